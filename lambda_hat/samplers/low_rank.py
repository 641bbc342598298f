"""A low-rank metric: a diagonal and a few directions that fit draws and gradients together.

Reference: Seyboldt et al. 2026, arXiv 2603.18845, Algorithm 1, with the constants of its implementation in nutpie.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt

from lambda_hat.engine.windows import NUMBER
from lambda_hat.samplers.metric import Metric, on_host

RANK = 20
"""Directions of a low-rank metric. Arbitrary: the number of stiff directions that a metric can take up."""
ROWS = 100
"""Draws that a low-rank metric is fitted to, spread evenly over a window. Arbitrary."""
REGULARISATION = 1e-5
"""Weight of the identity beside sums of squares of draws and of gradients."""
CUTOFF = 2.0
"""Factor by which a direction must be stiffer or softer than the diagonal says to be kept."""
SMALLEST, LARGEST = 1e-20, 1e20
"""Bounds of the diagonal."""


class Kept(NamedTuple):
    """The draws and gradients that one chain keeps of a window; NaN in rows without one.

    The last row is a spare one, into which every other draw is written.
    """

    draws: Float[Array | np.ndarray, "*c rows+1 dim"]
    gradients: Float[Array | np.ndarray, "*c rows+1 dim"]
    """Of the log posterior."""


def init(like: Float[Array, " dim"], rows: int) -> tuple[Metric, Kept]:
    """The metric of `P = 1` for parameters shaped as `like`, and room for `rows` draws."""
    none = jnp.full((rows + 1, like.size), jnp.nan, like.dtype)
    metric = Metric(jnp.ones_like(like), jnp.zeros((RANK, like.size), like.dtype), jnp.ones((RANK,), like.dtype))
    return metric, Kept(none, none)


def keep(
    kept: Kept,
    place: UInt[Array, ""],
    usable: Bool[Array, ""] | bool,
    w: Float[Array, " dim"],
    gradient: Float[Array, " dim"],
) -> Kept:
    """Write one draw into its place, where it is usable and has one."""
    nan = jnp.full((), jnp.nan, w.dtype)
    # A slice with a place beyond the last one is that of the last one.
    at = jnp.minimum(place, NUMBER(kept.draws.shape[0] - 1))
    return Kept(
        *(
            jax.lax.dynamic_update_index_in_dim(jnp.asarray(rows), jnp.where(usable, row, nan), at, 0)
            for rows, row in ((kept.draws, w), (kept.gradients, gradient))
        )
    )


def emptied(kept: Kept) -> Kept:
    """The state at the start of the next window."""
    return Kept(*(np.full_like(rows, np.nan) for rows in kept))


def fitted(kept: Kept, metric: Metric) -> Metric:
    """The metric of what some chains have kept together; `metric` where they show no scale.

    Args:
        kept: NumPy arrays with an axis of chains.
        metric: Of the present window, without one.
    """
    draws, gradients = (np.asarray(rows)[:, :-1].astype(np.float64) for rows in kept)
    there = np.all(np.isfinite(draws) & np.isfinite(gradients), axis=-1)
    if np.any(there.sum(axis=1) < 2):
        return metric
    with np.errstate(all="ignore"):
        found = fit(draws[there], gradients[there])
    dtype = metric.sigma.dtype
    if found is None or not all(np.all(np.isfinite(part)) for part in found):
        return metric
    return Metric(*(part.astype(dtype) for part in found))


def fit(
    draws: Float[np.ndarray, "rows dim"], gradients: Float[np.ndarray, "rows dim"], rank: int = RANK
) -> Metric | None:
    """The metric whose Fisher divergence from draws and gradients is least; None where it cannot be computed.

    Args:
        draws: Places of the chains.
        gradients: Of the log posterior, at these places.
        rank: Directions of the metric; those that do not exist, or need no scale of their own, have the scale 1.
    """
    draws, gradients = draws - draws.mean(axis=0), gradients - gradients.mean(axis=0)
    variance, of_gradients = np.mean(draws**2, axis=0), np.mean(gradients**2, axis=0)
    sigma = np.clip((variance / np.maximum(of_gradients, 1e-10)) ** 0.25, SMALLEST, LARGEST)
    draws, gradients = draws / sigma, gradients * sigma
    try:
        span = np.concatenate([_main_directions(draws, rank), _main_directions(gradients, rank)])
        basis = np.linalg.qr(span.T)[0]
        mean = _geometric_mean(_spread(draws @ basis), np.linalg.inv(_spread(gradients @ basis)))
        scales, vectors = np.linalg.eigh(mean)
    except np.linalg.LinAlgError:
        return None
    scales = _positive(scales)
    chosen = np.argsort(-np.abs(scales - 1), kind="stable")[:rank]
    scales, directions = scales[chosen], (basis @ vectors[:, chosen]).T
    scales = np.where((scales < 1 / CUTOFF) | (scales > CUTOFF), scales, 1.0)
    missing = rank - len(scales)
    return on_host(sigma, np.pad(directions, ((0, missing), (0, 0))), np.pad(scales, (0, missing), constant_values=1.0))


def _main_directions(rows: Float[np.ndarray, "rows dim"], rank: int) -> Float[np.ndarray, "most_rank dim"]:
    """The right singular vectors of the largest singular values, where these are not zero."""
    if len(rows) >= rows.shape[1]:
        return np.linalg.svd(rows, full_matrices=False)[2][:rank]
    # A tenth of the time of an SVD where there are many parameters.
    squares, left = np.linalg.eigh(rows @ rows.T)
    directions = left[:, -rank:][:, squares[-rank:] > len(rows) * np.finfo(rows.dtype).eps * squares[-1]].T @ rows
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _spread(rows: Float[np.ndarray, "rows q"]) -> Float[np.ndarray, "q q"]:
    return rows.T @ rows / REGULARISATION + np.eye(rows.shape[1])


def _geometric_mean(a: Float[np.ndarray, "q q"], b: Float[np.ndarray, "q q"]) -> Float[np.ndarray, "q q"]:
    """The geometric mean of two positive definite matrices, `b^(1/2) (b^(-1/2) a b^(-1/2))^(1/2) b^(1/2)`."""
    scales, vectors = np.linalg.eigh(b)
    root = np.sqrt(_positive(scales))
    inner_scales, inner = np.linalg.eigh((vectors.T @ a @ vectors) / np.outer(root, root))
    half = (inner * np.sqrt(_positive(inner_scales))) @ inner.T
    return vectors @ (half * np.outer(root, root)) @ vectors.T


def _positive(scales: Float[np.ndarray, " q"]) -> Float[np.ndarray, " q"]:
    """Rounding can take small eigenvalues below zero."""
    return np.maximum(scales, np.finfo(scales.dtype).eps * max(np.max(np.abs(scales)), np.finfo(scales.dtype).tiny))
