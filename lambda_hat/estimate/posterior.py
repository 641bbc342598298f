"""The localised, tempered posterior, the one place that defines `n_beta` and `gamma`. No jax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from lambda_hat.config import SampleConfig

if TYPE_CHECKING:
    import jaxtyping


class Posterior(NamedTuple):
    """`pi(w) ~ exp(-n_beta L_n(w) - gamma/2 |w - w_star|^2)` (Lau et al. 2023, arXiv 2308.12108)."""

    n_beta: float
    """Inverse temperature times the number of data points, in 1 / (units of the loss)."""
    gamma: float
    """Strength of the Gaussian localisation, in 1 / (units of w)^2."""

    def potential(self, loss, w: jaxtyping.Float[Any, " dim"], w_star: jaxtyping.Float[Any, " dim"]):
        """The negative log density without its constant, from the loss at `w`."""
        return self.n_beta * loss + 0.5 * self.gamma * ((w - w_star) ** 2).sum()


def posterior_for(cfg: SampleConfig, n: int, dim: int) -> Posterior:
    """The posterior that `cfg` asks for on a target with `n` data points and `dim` parameters.

    `n_beta` is n times `beta`, which defaults to `1 / log n` (Watanabe 2013), and `gamma` defaults to 1 (arbitrary).
    `prior_radius` sets `gamma = dim / prior_radius^2`, so that draws from the localisation alone lie at about this
    distance from `w_star`.
    """
    n_beta = cfg.n_beta
    if n_beta is None:
        n_beta = n * (1.0 / math.log(n) if cfg.beta is None else cfg.beta)
    if cfg.prior_radius is not None:
        gamma = dim / cfg.prior_radius**2
    else:
        gamma = 1.0 if cfg.gamma is None else cfg.gamma
    return Posterior(n_beta=n_beta, gamma=gamma)
