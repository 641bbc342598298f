"""Networks of one tanh layer, `f(x) = sum_i a_i tanh(b_i x)`, with a truth of zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import TanhBuild
from lambda_hat.targets.base import Loss, Made
from lambda_hat.targets.quadrature import half_normal_rule


@dataclass(frozen=True)
class TanhLoss(Loss):
    """`L(a, b) = E f(x)^2 / 2` over standard normal x, by quadrature: f is odd, so the nodes are those with x > 0.

    `data`: "nodes" and "weights" of shape (nodes,), the weights adding up to 1.
    """

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        f = jnp.sum(params["a"] * jnp.tanh(params["b"] * data["nodes"][:, None]), axis=-1)
        return 0.5 * jnp.sum(data["weights"] * f**2)


def make_loss(cfg: TanhBuild) -> Loss:
    """The loss, the same for every width."""
    return TanhLoss()


def make(cfg: TanhBuild, programs: Path | None = None) -> Made:
    """`w_star` {"a": (hidden,), "b": (hidden,)} = 0, and the nodes."""
    nodes, weights = half_normal_rule()
    zeros = np.zeros(cfg.target.hidden)
    return Made({"a": zeros, "b": zeros.copy()}, {"nodes": nodes, "weights": weights}, {})
