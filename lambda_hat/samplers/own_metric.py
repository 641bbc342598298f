"""The metrics that one chain learns for itself, as blackjax's kernels take them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc.metrics import LowRankInverseMassMatrix
from jaxtyping import Array, Float, PyTree, UInt

from lambda_hat.engine.windows import ALL, NOWHERE
from lambda_hat.samplers import low_rank
from lambda_hat.samplers.metric import Metric

SHRINKAGE, TOWARDS = 5.0, 1e-3
"""A covariance of n draws is taken as if SHRINKAGE more draws had shown variances of TOWARDS, as in Stan."""


class OwnMetric(NamedTuple):
    """A metric and what is kept of a window. Both are pytrees of arrays."""

    rows: int
    """Transitions that a window keeps, at most."""
    init: Callable[[Float[Array, " dim"]], tuple[PyTree, PyTree]]
    """w -> (metric, kept)."""
    keep: Callable[[Any, UInt[Array, ""], Float[Array, " dim"], Float[Array, " dim"]], Any]
    """(kept, place as `Window.place`, draw, gradient of the log posterior there) -> kept."""
    fitted: Callable[[Any, Any], tuple[PyTree, PyTree]]
    """(metric, kept) -> (metric, nothing kept), NumPy arrays of one chain."""
    inverse_mass_matrix: Callable[[PyTree], PyTree]
    """metric -> the same for blackjax."""


def own_metric(name: str | None) -> OwnMetric:
    """The metric of this name: "diagonal", "low_rank" or "dense". The null of a configuration must be filled in."""
    assert name is not None
    return _low_rank() if name == "low_rank" else _covariance(name == "diagonal")


def _low_rank() -> OwnMetric:
    def fitted(metric: Metric, kept: low_rank.Kept):
        return low_rank.fitted(jax.tree.map(lambda x: x[None], kept), metric), low_rank.emptied(kept)

    def keep(kept: low_rank.Kept, place: UInt[Array, ""], w: Float[Array, " dim"], gradient: Float[Array, " dim"]):
        return low_rank.keep(kept, place, True, w, gradient)

    def inverse_mass_matrix(metric: Metric) -> LowRankInverseMassMatrix:
        return LowRankInverseMassMatrix(metric.sigma, metric.directions.T, metric.scales)

    def init(like: Float[Array, " dim"]):
        return low_rank.init(like, low_rank.ROWS)

    return OwnMetric(low_rank.ROWS, init, keep, fitted, inverse_mass_matrix)


class Moments(NamedTuple):
    """Sums over the draws of a window (Welford)."""

    count: Float[Array | np.ndarray, ""]
    mean: Float[Array | np.ndarray, " dim"]
    squares: Float[Array | np.ndarray, "..."]
    """Of the deviations from the mean: (dim,), or their products (dim, dim)."""


def _covariance(is_diagonal: bool) -> OwnMetric:
    """Variances or covariances of the draws, shrunk as in Stan."""

    def product(a: Float[Array, " dim"], b: Float[Array, " dim"]) -> Float[Array, "..."]:
        return a * b if is_diagonal else jnp.outer(a, b)

    def init(like: Float[Array, " dim"]) -> tuple[Array, Moments]:
        squares = jnp.zeros_like(product(like, like))
        identity = jnp.ones_like(like) if is_diagonal else jnp.eye(like.size, dtype=like.dtype)
        return identity, Moments(jnp.zeros((), like.dtype), jnp.zeros_like(like), squares)

    def keep(kept: Moments, place: UInt[Array, ""], w: Float[Array, " dim"], gradient: Float[Array, " dim"]) -> Moments:
        count = jnp.asarray(kept.count + 1)
        mean = kept.mean + (w - kept.mean) / count
        added = Moments(count, mean, kept.squares + product(w - kept.mean, w - mean))
        return jax.tree.map(lambda new, old: jnp.where(place != NOWHERE, new, old), added, kept)

    def fitted(metric: Any, kept: Any) -> tuple[PyTree, PyTree]:
        count = float(kept.count)
        towards = TOWARDS if is_diagonal else TOWARDS * np.eye(len(kept.mean))
        covariance = kept.squares.astype(np.float64) / max(count - 1, 1)
        found = (count * covariance + SHRINKAGE * towards) / (count + SHRINKAGE)
        return found.astype(metric.dtype), Moments(*map(np.zeros_like, kept))

    return OwnMetric(ALL, init, keep, fitted, lambda metric: metric)
