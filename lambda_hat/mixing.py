"""R-hat and effective sample sizes of chains (Vehtari et al. 2021, arXiv 1903.08008).

The same numbers as ArviZ's, to rounding, which a test holds them to. They are computed here because ArviZ brings
pandas, xarray and scipy with it, and every rank of a pack would wait for them.
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist

import numpy as np

TAIL = (0.05, 0.95)
"""Quantiles whose effective sample size is that of the tails."""
BLOM = 3 / 8
"""Offset of ranks before they are made normal (Blom 1958)."""


def rhat(draws: np.ndarray) -> float:
    """Split R-hat of (chains, draws), two chains of four draws or more: the larger of that of the normalised ranks and
    that of the normalised ranks of the distances from the median."""
    split = _split(draws)
    return max(_rhat(_normalised(split)), _rhat(_normalised(np.abs(split - np.median(split)))))


def ess_mean(draws: np.ndarray) -> float:
    """Effective sample size for the mean of (chains, draws)."""
    return _ess(_split(draws))


def ess_bulk(draws: np.ndarray) -> float:
    """Effective sample size of the normalised ranks of (chains, draws)."""
    return _ess(_normalised(_split(draws)))


def ess_tail(draws: np.ndarray) -> float:
    """The smaller of the effective sample sizes for the two quantiles of TAIL."""
    return min(_ess(_split((draws <= quantile).astype(np.float64))) for quantile in np.quantile(draws, TAIL))


def _split(draws: np.ndarray) -> np.ndarray:
    """Every chain as two, the middle draw of an odd number left out."""
    half = draws.shape[1] // 2
    return np.concatenate([draws[:, :half], draws[:, -half:]])


def _normalised(draws: np.ndarray) -> np.ndarray:
    """Normal quantiles of the ranks among all draws, equal draws sharing the mean of theirs."""
    _, places, counts = np.unique(draws, return_inverse=True, return_counts=True)
    doubled_ranks = 2 * np.cumsum(counts) - (counts - 1)
    return _scores(draws.size)[doubled_ranks - 2][places].reshape(draws.shape)


@lru_cache(maxsize=16)
def _scores(size: int) -> np.ndarray:
    """Normal quantiles of the ranks 1, 1.5, 2, ... `size`."""
    quantile = NormalDist().inv_cdf
    return np.array([quantile((rank / 2 - BLOM) / (size - 2 * BLOM + 1)) for rank in range(2, 2 * size + 1)])


def _rhat(draws: np.ndarray) -> float:
    num_draws = draws.shape[1]
    within = draws.var(axis=1, ddof=1).mean()
    between = draws.mean(axis=1).var(ddof=1)
    return float(np.sqrt(between / within + (num_draws - 1) / num_draws))


def _ess(draws: np.ndarray) -> float:
    """Effective sample size from the autocorrelations of all chains together, cut by Geyer's initial monotone sequence
    of pairs; NaN where a draw is."""
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
    # The first pair that is left out still gives its even lag, which lowers the variance of the estimate.
    time = -1 + 2 * np.minimum.accumulate(pairs[:last]).sum() + max(correlation[2 * last], 0.0)
    return float(size / max(time, 1 / np.log10(size)))


def _autocovariance(draws: np.ndarray) -> np.ndarray:
    """(lags,) the biased autocovariance, the mean over the chains."""
    num_draws = draws.shape[1]
    centred = draws - draws.mean(axis=1, keepdims=True)
    length = 1 << (2 * num_draws - 1).bit_length()
    power = np.abs(np.fft.rfft(centred, n=length, axis=1)) ** 2
    return np.fft.irfft(power.mean(axis=0), n=length)[:num_draws] / num_draws
