"""Diagonal preconditioners from moments of the loss gradient (RMSProp, Adam)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from lambda_hat.config import SgldConfig


class Moments(NamedTuple):
    """Moving averages of the loss gradient. The localisation and the temperature do not enter them."""

    count: Float[Array, ""]
    first: Float[Array, " dim"]
    second: Float[Array, " dim"]


@dataclass(frozen=True)
class Preconditioner:
    """`P = 1 / (damping + sqrt(v))`, `v <- decay v + (1 - decay) g^2` (Li et al. 2016, arXiv 1512.07666).

    bias_correction: read v as `(v_t - decay^t v_0) / (1 - decay^t)`, the weighted mean of the squared gradients seen
    so far (Adam, arXiv 1412.6980, for any `v_0`); the same for the first moment.
    """

    bias_correction: bool
    decay: Float[Array, ""]
    momentum_decay: Float[Array, ""]
    damping: Float[Array, ""]
    initial_second_moment: Float[Array, ""]

    def init(self, w: Float[Array, " dim"]) -> Moments:
        zero = jnp.zeros_like(w)
        return Moments(jnp.zeros((), w.dtype), zero, zero + self.initial_second_moment)

    def update(self, moments: Moments, gradient: Float[Array, " dim"]) -> Moments:
        return Moments(
            moments.count + 1,
            self.momentum_decay * moments.first + (1 - self.momentum_decay) * gradient,
            self.decay * moments.second + (1 - self.decay) * gradient**2,
        )

    def momentum(self, moments: Moments) -> Float[Array, " dim"]:
        """The first moment, as it enters the drift."""
        if not self.bias_correction:
            return moments.first
        return moments.first / (1 - self.momentum_decay**moments.count)

    def second_moment(self, moments: Moments) -> Float[Array, " dim"]:
        """v, corrected if asked for."""
        if not self.bias_correction:
            return moments.second
        weight = self.decay**moments.count
        # Rounding can take the difference below zero where every gradient was zero.
        return jnp.maximum((moments.second - weight * self.initial_second_moment) / (1 - weight), 0)

    def scale(self, second_moment: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The diagonal of P."""
        return 1 / (self.damping + jnp.sqrt(second_moment))


ARGUMENTS = ("decay", "momentum_decay", "damping", "initial_second_moment")
"""Fields of the configuration that are numbers of the preconditioner."""


def preconditioner(cfg: SgldConfig, arguments: dict[str, Array]) -> Preconditioner | None:
    """The preconditioner that `cfg` names, with its numbers from `arguments`; None where P is 1."""
    if cfg.precond == "none":
        return None
    return Preconditioner(
        bias_correction=cfg.precond == "adam" and cfg.bias_correction,
        **{name: arguments[name] for name in ARGUMENTS},
    )
