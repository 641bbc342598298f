"""Networks with one tanh layer, `f(x) = sum_i a_i tanh(b_i x)`, whose true function is zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import TanhBuild
from lambda_hat.targets.base import Arrays, Loss, Made
from lambda_hat.targets.truth.quadrature import half_normal_rule


@dataclass(frozen=True)
class TanhLoss(Loss):
    """The expected loss `L(a, b) = E f(x)^2 / 2` over standard normal x, by quadrature.

    f^2 is even, so nodes x > 0 suffice. `data` holds "nodes" and "weights" of shape (nodes,). The weights add up to 1.
    """

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        f = jnp.sum(params["a"][None] * jnp.tanh(params["b"][None] * data["nodes"][:, None]), axis=-1)
        return 0.5 * jnp.sum(data["weights"] * f**2)


def make_loss(cfg: TanhBuild) -> Loss:
    """The loss, the same for every width."""
    return TanhLoss()


def make(cfg: TanhBuild, programs: Path | None = None) -> Made:
    """The parameters `w_star` {"a": (hidden,), "b": (hidden,)}, all zero, and the nodes and weights."""
    nodes, weights = half_normal_rule()
    zeros = np.zeros(cfg.target.hidden)
    return Made({"a": zeros, "b": zeros.copy()}, {"nodes": nodes, "weights": weights}, {})
