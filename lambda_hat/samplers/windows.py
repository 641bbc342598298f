"""The windows of burn-in, and the metrics that they learn.

The sampler chooses the part of burn-in after which the last window ends. The windows before it end at a half, a
quarter, ... of that, and each window's metric holds in the next one. After the last window the metric stays, and the
step size settles in it. Lengths are arguments of the program, so that runs of any burn-in share it.

The metrics are blackjax's: variances or covariances of the draws (Welford), or a diagonal and a few directions that fit
draws and gradients together (Seyboldt et al. 2026, arXiv 2603.18845).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt

from lambda_hat.samplers.metric import Metric

RANK = 20
"""Directions of a low-rank metric. Arbitrary: the number of stiff directions that a metric can take up."""
ROWS = 100
"""Draws that a low-rank metric is fitted to, spread evenly over a window. Arbitrary."""
LEAST_WINDOW = 16
"""Transitions of the first window, at least. Arbitrary."""
MOST_WINDOWS = 24
"""Bound of the number of windows: `2^24 LEAST_WINDOW` transitions are more than any burn-in has."""
NUMBER = np.uint32
"""Type of counts of transitions in a program."""


class Windows(NamedTuple):
    """The windows of one burn-in, as arguments of a program."""

    last_end: UInt[Array, ""]
    """Transitions after which the last window ends."""

    @property
    def ends(self) -> UInt[Array, " windows"]:
        """Transitions after which windows end, the last one first."""
        halvings = jnp.arange(MOST_WINDOWS, dtype=jnp.uint32)
        return jnp.right_shift(self.last_end, halvings)

    def is_end(self, index: UInt[Array, ""]) -> Bool[Array, ""]:
        """Whether a window ends after transition `index`, counted from 0."""
        done = index + NUMBER(1)
        return jnp.any(self.ends == done) & (done >= jnp.minimum(NUMBER(LEAST_WINDOW), self.last_end))

    def is_kept(self, index: UInt[Array, ""], rows: int) -> Bool[Array, ""]:
        """Whether the draw of transition `index` is one of about `rows` draws spread evenly over its window."""
        ends = jnp.where(self.ends >= LEAST_WINDOW, self.ends, NUMBER(0))
        begin = jnp.max(jnp.where(ends <= index, ends, NUMBER(0)))
        end = jnp.min(jnp.where(ends > index, ends, self.last_end))
        stride = jnp.maximum((end - begin + NUMBER(rows - 1)) // NUMBER(rows), NUMBER(1))
        return (index < self.last_end) & ((index - begin) % stride == NUMBER(0))


class Kept(NamedTuple):
    """The draws and gradients that a low-rank metric is fitted to."""

    draws: Float[Array, "rows dim"]
    gradients: Float[Array, "rows dim"]
    """Of the log posterior."""
    count: UInt[Array, ""]
    """Rows that are filled."""


class LowRank:
    """Learns a diagonal and `RANK` directions from `rows` draws of each chain and the gradients there.

    Args:
        num_chains: Chains that share the metric.
    """

    fits = True
    """The curvatures along the directions of the metric are about 1."""

    def __init__(self, num_chains: int):
        self.rows = -(-ROWS // num_chains)

    def init(self, like: Float[Array, " dim"]) -> tuple[Kept, Metric]:
        """The empty state, and the metric of `P = 1`, for parameters shaped as `like`."""
        rows = jnp.zeros((self.rows, like.size), like.dtype)
        metric = Metric(jnp.ones_like(like), jnp.zeros((RANK, like.size), like.dtype), jnp.ones((RANK,), like.dtype))
        return Kept(rows, rows, jnp.zeros((), jnp.uint32)), metric

    def keep(self, kept: Kept, keeps: Bool[Array, ""], w: Float[Array, " dim"], gradient: Float[Array, " dim"]) -> Kept:
        """The state with one draw more, where `keeps` is true, the draw is finite and there is room."""
        keeps &= jnp.all(jnp.isfinite(w)) & jnp.all(jnp.isfinite(gradient)) & (kept.count < NUMBER(self.rows))
        # `mode="drop"` writes nothing at a place beyond the last row.
        place = jnp.where(keeps, kept.count, NUMBER(self.rows))
        return Kept(
            kept.draws.at[place].set(w, mode="drop"),
            kept.gradients.at[place].set(gradient, mode="drop"),
            kept.count + keeps.astype(jnp.uint32),
        )

    def begin(self, kept: Kept, ends: Bool[Array, ""]) -> Kept:
        """Empty the state where a window has ended."""
        return kept._replace(count=jnp.where(ends, NUMBER(0), kept.count))

    def fit(self, kept: Kept, metric: Metric) -> Metric:
        """The metric of what the chains have kept; `metric` where they show no scale. `kept` has an axis of chains."""
        # blackjax takes nearly as long to import as jax, and an unpreconditioned SGLD needs none of it. It computes a
        # number while it is imported, which must not become a part of the program that is being traced.
        with jax.ensure_compile_time_eval():
            from blackjax.adaptation.metric_estimators import fisher_score_low_rank

        # A chain with fewer draws repeats them, which changes neither mean nor covariance.
        rows = jnp.arange(self.rows, dtype=jnp.uint32)[None] % jnp.maximum(kept.count, NUMBER(1))[:, None]
        dim = metric.sigma.size
        draws, gradients = (
            jnp.take_along_axis(x, rows[..., None], axis=1).reshape(-1, dim) for x in (kept.draws, kept.gradients)
        )
        with jax.numpy_dtype_promotion("standard"):
            sigma, directions, scales = fisher_score_low_rank(draws, gradients, RANK)
        found = Metric(sigma, directions.T, scales)
        found = jax.tree.map(lambda new, old: new.astype(old.dtype), found, metric)
        fits = jnp.all(kept.count > 1)
        for part in found:
            fits &= jnp.all(jnp.isfinite(part))
        return jax.tree.map(lambda new, old: jnp.where(fits, new, old), found, metric)


class MetricLearner(NamedTuple):
    """A metric that one chain learns for itself. Its state is a pytree of arrays."""

    init: Callable[[Float[Array, " dim"]], PyTree]
    """w -> state."""
    inverse_mass_matrix: Callable[[PyTree], PyTree]
    """state -> the metric as blackjax's kernels take it."""
    update: Callable[[PyTree, Windows, UInt[Array, ""], Float[Array, " dim"], Float[Array, " dim"]], PyTree]
    """(state, windows, index, draw, gradient of the log posterior there) -> state after transition `index`."""


def learner_of(metric: str | None) -> MetricLearner:
    """The learner of a metric: "diagonal", "low_rank" or "dense". The null of a configuration must be filled in."""
    assert metric is not None
    return _low_rank() if metric == "low_rank" else _welford(metric == "diagonal")


def _low_rank() -> MetricLearner:
    from blackjax.mcmc.metrics import LowRankInverseMassMatrix

    learner = LowRank(1)

    def update(
        state: PyTree, windows: Windows, index: UInt[Array, ""], w: Float[Array, " dim"], gradient: Float[Array, " dim"]
    ):
        kept, metric = state
        kept = learner.keep(kept, windows.is_kept(index, learner.rows), w, gradient)
        ends = windows.is_end(index)
        one = jax.tree.map(lambda x: x[None], kept)
        metric = jax.lax.cond(ends, learner.fit, lambda kept, metric: metric, one, metric)
        return learner.begin(kept, ends), metric

    def inverse_mass_matrix(state):
        _, (sigma, directions, scales) = state
        return LowRankInverseMassMatrix(sigma, directions.T, scales)

    return MetricLearner(learner.init, inverse_mass_matrix, update)


def _welford(is_diagonal: bool) -> MetricLearner:
    """Learn variances or covariances, shrunk as in Stan."""
    from blackjax.adaptation.mass_matrix import mass_matrix_adaptation

    begin, add, estimate = mass_matrix_adaptation(is_diagonal_matrix=is_diagonal)

    def update(
        state: PyTree, windows: Windows, index: UInt[Array, ""], w: Float[Array, " dim"], gradient: Float[Array, " dim"]
    ):
        state = jax.lax.cond(index < windows.last_end, lambda: add(state, w), lambda: state)
        return jax.lax.cond(windows.is_end(index), estimate, lambda state: state, state)

    return MetricLearner(lambda like: begin(like.size), lambda state: state.inverse_mass_matrix, update)
