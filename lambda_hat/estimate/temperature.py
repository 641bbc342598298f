"""The configurational temperature of the chains, and the degree of growth of the loss along them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lambda_hat.estimate.convergence import mixing
from lambda_hat.estimate.draws import Draws

if TYPE_CHECKING:
    import jaxtyping

STD_ERRORS = 3.0
"""A temperature or a degree counts as off beyond this many standard errors, which chance exceeds in one run of 370."""


class Heat(NamedTuple):
    """The configurational temperature of a run and its parts. Every field is NaN without a living chain."""

    temperature: float
    """`E[(w - w_star) . grad U(w)] / dim`: exactly 1 under the posterior."""
    temperature_error: float
    """Standard error of `temperature`."""
    growth: float
    """`n_beta E[(w - w_star) . grad L_n(w)]`, the part of `dim * temperature` that comes from the loss."""
    localisation: float
    """`gamma E[|w - w_star|^2]`, the part that comes from the localisation."""
    distance: float
    """Root of `E[|w - w_star|^2]`, in units of the parameters."""
    flat_temperature: float
    """The temperature at the run's step size if the loss were flat: 1 for a sampler without discretisation heat."""
    excess: float
    """`dim (temperature - flat_temperature) / growth`: the relative error of the LLC if all of this comes from the
    loss."""
    excess_error: float
    """Standard error of `excess`."""


def heat_of(draws: Draws, alive: jaxtyping.Bool[np.ndarray, " chains"], gamma: float, dim: int) -> Heat:
    """Estimate the configurational temperature.

    Under the posterior `exp(-U)`, integration by parts gives `E[(w - w_star) . grad U(w)] = dim`, so the temperature is
    1 (Rugh 1997; Jepps, Ayton & Evans 2000; Wenzel et al. 2020, arXiv 2002.02405).

    A step of SGLD heats a direction of curvature h by `eps h / 4`. The localisation has its part of that in every
    direction, `eps gamma / 4`, whether the loss sees the direction or not. This part raises no estimate. On a network
    with many flat directions it is most of the heat.

    Args:
        draws: what the chains recorded.
        alive: (chains,) bool, the chains that count.
        gamma: strength of the localisation.
        dim: number of parameters that moved.
    """
    growth, squared = draws.growth[alive], draws.distance[alive]
    if not growth.size:
        return Heat(*[float("nan")] * len(Heat._fields))
    virial = growth + gamma * squared
    flat_heat = float(draws.flat_heat[alive].mean())
    error, mean = mixing(virial).std_error, float(growth.mean())
    # If the loss does not grow along the chains, their heat does not raise the estimate.
    scale = mean if mean > 0 else float("inf")
    return Heat(
        temperature=float(virial.mean()) / dim,
        temperature_error=error / dim,
        growth=mean,
        localisation=gamma * float(squared.mean()),
        distance=float(np.sqrt(squared.mean())),
        flat_temperature=1 + flat_heat / dim,
        excess=(float(virial.mean()) - dim - flat_heat) / scale,
        excess_error=error / scale,
    )


def grows_slower_than(
    degree: float, growth: jaxtyping.Float[np.ndarray, "chains draws"], llc: jaxtyping.Float[np.ndarray, "chains draws"]
) -> bool:
    """Whether the degree of growth `E[growth] / E[llc]` lies significantly below `degree`.

    For a loss that is homogeneous of degree k around `w_star` the degree of growth is k.

    Args:
        degree: the degree to compare with.
        growth: (chains, draws) `n_beta (w - w_star) . grad L_n(w)`.
        llc: (chains, draws) `n_beta (L_n(w) - L_n(w_star))`.
    """
    rest = growth - degree * llc
    return bool(rest.mean() + STD_ERRORS * mixing(rest).std_error < 0)
