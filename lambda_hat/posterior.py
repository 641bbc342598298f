"""The localised, tempered posterior: the one place where `n_beta` and `gamma` live. No jax: closed forms use it too."""

from __future__ import annotations

import math
from typing import NamedTuple

from lambda_hat.config import SampleConfig


class Posterior(NamedTuple):
    """`pi(w) ~ exp(-n_beta L_n(w) - gamma/2 |w - w_star|^2)` (Lau et al. 2023, arXiv 2308.12108).

    n_beta: inverse temperature times the number of data points, in 1 / (units of the loss).
    gamma: strength of the Gaussian localisation, in 1 / (units of w)^2.
    """

    n_beta: float
    gamma: float

    def potential(self, loss, w, w_star):
        """Negative log density, without its constant: a scalar from the loss at `w` and two arrays of shape (dim,)."""
        return self.n_beta * loss + 0.5 * self.gamma * ((w - w_star) ** 2).sum()


def posterior_for(cfg: SampleConfig, n: int, dim: int) -> Posterior:
    """The posterior that `cfg` asks for on a target with `n` data points and `dim` parameters.

    `beta` defaults to `1 / log n` (Watanabe 2013), `gamma` to 1 (arbitrary); `prior_radius` sets
    `gamma = dim / prior_radius^2`, whose draws from the localisation alone lie at about that distance.
    """
    beta = 1.0 / math.log(n) if cfg.beta is None else cfg.beta
    if cfg.prior_radius is not None:
        gamma = dim / cfg.prior_radius**2
    else:
        gamma = 1.0 if cfg.gamma is None else cfg.gamma
    return Posterior(n_beta=n * beta, gamma=gamma)
