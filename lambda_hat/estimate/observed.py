"""What the draws of an observable mean: its expectation, and the LLC that a loss on other data sees."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lambda_hat.errors import ConfigError
from lambda_hat.estimate.convergence import mixing
from lambda_hat.estimate.llc import llc_from_losses


class Expectation(NamedTuple):
    """An expectation under the posterior, and its standard error."""

    value: float
    std_error: float
    """From the effective sample size, as that of the LLC. NaN, like `value`, if no chain stayed finite."""


def expectation(draws: ArrayLike) -> Expectation:
    """The mean of an observable over the chains that stayed finite.

    Args:
        draws: (chains, draws), its values.

    Raises:
        ConfigError: a ValueError, if `draws` are of another shape.
    """
    values = np.asarray(draws, dtype=np.float64)
    if values.ndim != 2:
        raise ConfigError(f"draws: got the shape {values.shape}, expected (chains, draws), one number per draw")
    kept = values[np.isfinite(values).all(axis=1)]
    if not kept.size:
        return Expectation(float("nan"), float("nan"))
    return Expectation(float(kept.mean()), mixing(kept).std_error)


def refined_llc(losses: ArrayLike, loss_at_w_star: ArrayLike, n_beta: float) -> Expectation:
    """The data-refined LLC `n_beta (E[L'(w)] - L'(w_star))` (Wang et al. 2024, arXiv 2410.02984).

    L' is the mean loss on other data than those of the posterior of the chains. Of the chain's own data it is the LLC.

    Args:
        losses: (chains, draws), L' at the draws, in nats.
        loss_at_w_star: L' at `w_star`, in nats.
        n_beta: inverse temperature times n of the chains.

    Raises:
        ConfigError: a ValueError, if `losses` are of another shape.
    """
    return expectation(llc_from_losses(np.asarray(losses), float(np.asarray(loss_at_w_star)), n_beta))
