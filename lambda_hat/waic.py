"""The singular fluctuation and WAIC, from the losses of single data points along the chains (Watanabe 2010, 2013)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lambda_hat.samplers.base import RowMoments


class SingularFluctuation(NamedTuple):
    """Estimates at inverse temperature beta, for losses that are negative log likelihoods without their constants."""

    nu: float
    """`beta V / 2`, whose expectation tends to the singular fluctuation; dim / 2 on a regular model that holds the
    truth."""
    nu_std_error: float
    """Jackknife over the chains; NaN with a single one."""
    functional_variance: float
    """`V = sum_i Var_w l_i(w)`."""
    waic: float
    """`-mean_i log E_w exp(-l_i) + beta V / n`, in nats per data point, without the constants that the loss lacks."""


def singular_fluctuation(rows: RowMoments, alive: np.ndarray, beta: float) -> SingularFluctuation:
    """Pool the living chains, which have equally many draws each (Watanabe 2010, JMLR 11, definitions 1 and 3).

    rows: moments of shape (chains, rows); alive: (chains,) bool, at least one True; beta: inverse temperature.
    """
    mean, variance, log_likelihood = (np.asarray(part, dtype=np.float64)[alive] for part in rows)
    functional_variance = _functional_variance(mean, variance)
    nu = 0.5 * beta * functional_variance
    count = len(mean)
    nu_std_error = float("nan")
    if count > 1:
        kept = [np.arange(count) != left_out for left_out in range(count)]
        without = 0.5 * beta * np.array([_functional_variance(mean[rest], variance[rest]) for rest in kept])
        nu_std_error = float(np.sqrt((count - 1) * np.mean((without - without.mean()) ** 2)))
    log_predictive = np.logaddexp.reduce(log_likelihood, axis=0) - np.log(count)
    waic = -float(np.mean(log_predictive)) + beta * functional_variance / mean.shape[1]
    return SingularFluctuation(nu, nu_std_error, functional_variance, waic)


def _functional_variance(mean: np.ndarray, variance: np.ndarray) -> float:
    """Sum over rows of the pooled variance: within the chains, and between their means."""
    return float(np.sum(variance.mean(axis=0) + mean.var(axis=0)))
