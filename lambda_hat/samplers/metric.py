"""Constant preconditioners `P = A A^T` of the stochastic samplers."""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Metric(NamedTuple):
    """`A = diag(sigma) (I + U (diag(lam)^(1/2) - I) U^T)`, with k directions; a diagonal metric has none."""

    sigma: Float[Array, "#dim"]
    """A single entry where all are equal."""
    directions: Float[Array, "k dim"]
    """The columns of U as rows: the products below read them in this order."""
    scales: Float[Array, " k"]
    """The entries of lam."""

    def forward(self, z: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`A z`."""
        return self.sigma * self._stretched(z)

    def adjoint(self, g: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """`A^T g`."""
        return self._stretched(self.sigma * g)

    @property
    def trace(self) -> Float[Array, ""]:
        """The trace of P."""
        along = jnp.sum((self.sigma[None] * self.directions) ** 2, axis=1)
        dim = self.directions.shape[1]
        return jnp.sum(self.sigma**2) * (dim // self.sigma.size) + jnp.sum((self.scales - 1) * along)

    def _stretched(self, y: Float[Array, " dim"]) -> Float[Array, " dim"]:
        if self.scales.size == 0:
            return y
        return y + ((jnp.sqrt(self.scales) - 1) * (self.directions @ y)) @ self.directions


def on_host(sigma: np.ndarray, directions: np.ndarray, scales: np.ndarray) -> Metric:
    """A metric of NumPy arrays, to be handed to a program."""
    return Metric(*cast(Any, (sigma, directions, scales)))


def identity(like: Float[Array, " dim"]) -> Metric:
    """The metric of `P = 1`, for parameters shaped as `like`."""
    none = jnp.zeros((0,), like.dtype)
    return Metric(jnp.ones((1,), like.dtype), jnp.zeros((0, like.size), like.dtype), none)


def diagonal(scale: Float[Array, " dim"]) -> Metric:
    """The metric of `P = diag(scale)`."""
    none = jnp.zeros((0,), scale.dtype)
    return Metric(jnp.sqrt(scale), jnp.zeros((0, scale.size), scale.dtype), none)
