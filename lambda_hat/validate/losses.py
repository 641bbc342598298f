"""The losses of the noisy suite for the samplers. They hold no data, so that targets of one shape share programs."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambda_hat.targets.base import Arrays, Loss


@dataclass(frozen=True)
class SquaresLoss(Loss):
    """The mean over rows of `weight (x . w - y)^2`; `data` holds "x" (rows, d), "y" (rows,) and "weight" (rows,)."""

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        return jnp.mean(data["weight"] * (data["x"] @ params["w"] - data["y"]) ** 2)


@dataclass(frozen=True)
class LogisticLoss(Loss):
    """The mean negative log likelihood of labels 0 and 1, in nats; `data` holds "x" (rows, d) and "y" (rows,)."""

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        z = data["x"] @ params["w"]
        return jnp.mean(jax.nn.softplus(z) - data["y"] * z)


@dataclass(frozen=True)
class PoissonLoss(Loss):
    """The mean negative log likelihood of Poisson counts of mean `exp(x . w)`, in nats, without `log y!`.

    `data` holds "x" (rows, d) and "y" (rows,).
    """

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        z = data["x"] @ params["w"]
        return jnp.mean(jnp.exp(z) - data["y"] * z)


@dataclass(frozen=True)
class MixtureLoss(Loss):
    """The mean negative log likelihood of two equally frequent normal laws of unit variance, in nats up to a constant.

    Their means are `w`, of shape (2,). `data` holds "x" (rows,).
    """

    def __call__(self, params: Arrays, data: Arrays) -> Float[Array, ""]:
        squares = (data["x"][:, None] - params["w"][None]) ** 2 / 2
        return -jnp.mean(jax.nn.logsumexp(-squares, axis=1))
