"""R-hat, effective sample sizes and standard errors of chains (Vehtari et al. 2021, arXiv 1903.08008).

The numbers equal those of ArviZ to rounding; a test compares them. They are computed here because the array functions
of `arviz_stats` import scipy, and xarray and pandas where these are installed, which takes every rank of a pack about
one second. Draws are arrays of shape (chains, draws).
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import jaxtyping

MAX_RHAT = 1.05
"""Above this R-hat the chains disagree. Vehtari et al. (2021) suggest 1.01 for long runs. An LLC is wanted to a few per
cent, for which a weaker bound is enough."""
TAIL = (0.05, 0.95)
"""The quantiles whose effective sample sizes make the ESS of the tails."""
BLOM = 3 / 8
"""Offset of a rank in its normal score, `(rank - 3/8) / (size + 1/4)` (Blom 1958)."""


class Mixing(NamedTuple):
    """How well chains have mixed."""

    std_error: float
    """Standard error of the mean over all draws."""
    rhat: float
    ess_bulk: float
    ess_tail: float
    ess_mean: float


def mixing(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> Mixing:
    """Summarise how well chains have mixed, including chains that never moved.

    The standard error is `sd / sqrt(ESS)` with the effective sample size of the mean. If R-hat exceeds `MAX_RHAT`, it
    is at least the standard error that follows from the means of the chains alone.

    Args:
        draws: (chains, draws) finite.

    Returns:
        The numbers. R-hat of a single chain compares its halves, and is NaN below four draws (eight in a single chain).
        Chains that never moved have R-hat 1 if they agree, else infinity.
    """
    if np.all(draws == draws[:, :1]):
        agree = bool(np.all(draws == draws[0, 0]))
        ess = float(draws.size) if agree else float(len(draws))
        return Mixing(_between_std_error(draws), 1.0 if agree else float("inf"), ess, ess, ess)
    between = _rhat_or_nan(draws)
    size = ess_mean(draws)
    std_error = float(np.std(draws, ddof=1) / np.sqrt(size))
    if not between <= MAX_RHAT:
        std_error = max(std_error, _between_std_error(draws))
    return Mixing(std_error, between, ess_bulk(draws), ess_tail(draws), size)


def _rhat_or_nan(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    if len(draws) == 1:
        half = draws.shape[1] // 2
        draws = np.stack([draws[0, :half], draws[0, -half:]])
    if draws.shape[1] < 4:
        return float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        return rhat(draws)


def _between_std_error(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    """The standard error of the mean from the means of the chains alone; 0 for a single chain."""
    if len(draws) == 1:
        return 0.0
    return float(np.std(draws.mean(axis=1), ddof=1) / np.sqrt(len(draws)))


def rhat(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    """Rank-normalised split R-hat (Vehtari et al. 2021).

    It is the larger of the R-hat of the normal scores of the draws, and that of their distances from the median.

    Args:
        draws: (chains, draws), at least two chains of four draws.
    """
    split = _split(draws)
    return max(_rhat(_normalised(split)), _rhat(_normalised(np.abs(split - np.median(split)))))


def ess_mean(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    """Effective sample size for the mean."""
    return _ess(_split(draws))


def ess_bulk(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    """Effective sample size of the normal scores."""
    return _ess(_normalised(_split(draws)))


def ess_tail(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    """The smaller of the effective sample sizes for the two quantiles of `TAIL`."""
    return min(_ess(_split((draws <= quantile).astype(np.float64))) for quantile in np.quantile(draws, TAIL))


def _split(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> jaxtyping.Float[np.ndarray, "2*chains draws//2"]:
    """The two halves of every chain as chains of their own, without the middle one of an odd number of draws."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normalised(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> jaxtyping.Float[np.ndarray, "chains draws"]:
    """The normal scores of the ranks among all draws. Equal draws share their mean rank."""
    _, places, counts = np.unique(draws, return_inverse=True, return_counts=True)
    doubled_ranks = 2 * np.cumsum(counts) - (counts - 1)
    return _scores(draws.size)[doubled_ranks - 2][places].reshape(draws.shape)


@lru_cache(maxsize=16)
def _scores(size: int) -> jaxtyping.Float[np.ndarray, " ranks"]:
    """The normal scores of the ranks 1, 1.5, 2, ... `size`."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile((rank / 2 - BLOM) / (size - 2 * BLOM + 1)) for rank in range(2, 2 * size + 1)])


def _rhat(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    num_draws = draws.shape[1]
    within = draws.var(axis=1, ddof=1).mean()
    between = draws.mean(axis=1).var(ddof=1)
    return float(np.sqrt(between / within + (num_draws - 1) / num_draws))


def _ess(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> float:
    """Effective sample size from the autocorrelations, averaged over the chains.

    Geyer's initial monotone sequence of pairs truncates them. NaN if a draw is NaN.
    """
    num_chains, num_draws = draws.shape
    size = draws.size
    if np.ptp(draws) < np.finfo(np.float64).resolution:
        return float(size)
    covariance = _autocovariance(draws)
    within = covariance[0] * num_draws / (num_draws - 1)
    total = covariance[0] + (draws.mean(axis=1).var(ddof=1) if num_chains > 1 else 0.0)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    num_pairs = max((num_draws - 1) // 2, 1)
    pairs = correlation[0 : 2 * num_pairs : 2] + correlation[1 : 2 * num_pairs : 2]
    if np.isnan(pairs).any():
        return float("nan")
    ends = np.flatnonzero(pairs <= 0)
    last = int(ends[0]) if len(ends) else num_pairs - 1
    # The even lag of the first omitted pair is added, because it lowers the variance of the estimate.
    time = -1 + 2 * np.minimum.accumulate(pairs[:last]).sum() + max(correlation[2 * last], 0.0)
    return float(size / max(time, 1 / np.log10(size)))


def _autocovariance(draws: jaxtyping.Float[np.ndarray, "chains draws"]) -> jaxtyping.Float[np.ndarray, " draws"]:
    """The biased autocovariance at every lag, averaged over the chains."""
    num_draws = draws.shape[1]
    centred = draws - draws.mean(axis=1, keepdims=True)
    length = 1 << (2 * num_draws - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, n=length, axis=1)) ** 2
    return np.fft.irfft(power.mean(axis=0), n=length)[:num_draws] / num_draws
