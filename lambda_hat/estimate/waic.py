"""The singular fluctuation and WAIC, from the losses of single rows along the chains (Watanabe 2010, 2013)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lambda_hat.estimate.draws import RowMoments

if TYPE_CHECKING:
    import jaxtyping


class SingularFluctuation(NamedTuple):
    """Estimates at inverse temperature beta, for rows whose loss l_i is a negative log likelihood up to a constant."""

    nu: float
    """`beta V / 2`. Its expectation tends to the singular fluctuation, which is dim / 2 for a regular model that
    contains the truth."""
    nu_std_error: float
    """Standard error of `nu` by the jackknife over the chains; NaN for a single chain."""
    functional_variance: float
    """`V = sum_i Var_w l_i(w)`."""
    waic: float
    """`(-sum_i log E_w exp(-l_i) + beta V) / n`, in nats per data point, up to the constant that the losses omit. n is
    the number of rows, or the sum of their weights if they have weights."""


def singular_fluctuation(
    rows: RowMoments, alive: jaxtyping.Bool[np.ndarray, " chains"], beta: float, weight_per_row: float = 1.0
) -> SingularFluctuation:
    """Pool the living chains, which have equally many draws each (Watanabe 2010, JMLR 11, definitions 1 and 3).

    Args:
        rows: moments of the loss of every row, shape (chains, rows).
        alive: (chains,) bool, the chains that count; at least one is True.
        beta: inverse temperature, `n_beta / n` with n as in `SingularFluctuation.waic`.
        weight_per_row: mean weight of a row.
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
    waic = (beta * functional_variance - float(np.sum(log_predictive))) / (mean.shape[1] * weight_per_row)
    return SingularFluctuation(nu, nu_std_error, functional_variance, waic)


def _functional_variance(
    mean: jaxtyping.Float[np.ndarray, "chains rows"], variance: jaxtyping.Float[np.ndarray, "chains rows"]
) -> float:
    """The sum over rows of the pooled variance, within the chains and between their means."""
    return float(np.sum(variance.mean(axis=0) + mean.var(axis=0)))
