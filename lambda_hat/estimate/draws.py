"""What the chains of a run recorded. No jax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class RowMoments(NamedTuple):
    """Running moments of the loss l_i of every row over the recorded draws of a chain.

    In the shapes c = num_chains, r = rows; on the device there is an axis of lanes l before them.
    """

    mean: Float[Array, "*l c r"]
    """Mean of l_i."""
    variance: Float[Array, "*l c r"]
    """Mean of (l_i - mean)^2."""
    log_mean_likelihood: Float[Array, "*l c r"]
    """Logarithm of the mean of exp(-l_i)."""


class Observation(NamedTuple):
    """The values of an observable. In the shapes c = num_chains, d = num_draws."""

    draws: Float[np.ndarray, "c d ..."]
    """At the recorded draws; NaN where the loss is. float64 where it is one number per draw, else as recorded."""
    at_w_star: Float[np.ndarray, "..."]
    """At `w_star`, in the precision and the order of summation of the run, so that the rounding of a large value drops
    out of the difference."""


class Draws(NamedTuple):
    """The recorded draws and the counts of one run. In the shapes c = num_chains, d = num_draws; floats are float64."""

    loss: Float[np.ndarray, "c d"]
    """L_n(w), or its paired estimate, at the recorded draws. NaN from the draw at which a chain became non-finite."""
    acceptance: Float[np.ndarray, " c"] | None
    """Mean acceptance probability after burn-in; None for samplers that have none."""
    growth: Float[np.ndarray, "c d"]
    """`n_beta (w - w_star) . grad L_n(w)`, or an unbiased estimate of it, averaged over the transitions since the
    previous draw."""
    distance: Float[np.ndarray, "c d"]
    """`|w - w_star|^2`, averaged over the same transitions."""
    mala_acceptance: Float[np.ndarray, " c"] | None
    """Mean probability that a Metropolis test would accept the steps of a sampler that accepts every step, at
    `NUM_CHECKS` of the recorded draws; None unless `mala_checks` asks for it."""
    num_divergent: int
    """Transitions after burn-in that diverged. For mclmc: that were reverted because they became non-finite."""
    chain_alive: Bool[np.ndarray, " c"]
    """False if the chain became non-finite."""
    step_size: Float[np.ndarray, " c"]
    flat_heat: Float[np.ndarray, " c"]
    """`dim (T - 1)`, if the loss were flat, for the temperature T: the heat that the step gives to the localisation. 0
    where there is none, or where it is not known."""
    num_transitions: int
    """Transitions after burn-in, over all chains. Fewer than configured if every chain became non-finite."""
    num_gradients: int
    """Gradients evaluated over all chains, of a batch or of the full data, including tuning and burn-in. A control
    variate counts as two."""
    fge: float
    """Full-gradient equivalents over all chains, including recorded losses and checks of the step size."""
    seconds_compile: float
    seconds_sample: float
    programs_compiled: int
    programs_loaded: int
    """Programs loaded from the folder through which processes exchange them. A program that was in this process already
    counts neither as compiled nor as loaded."""
    notes: tuple[str, ...]
    """Sentences for the report."""
    row_moments: RowMoments | None = None
    """Moments of the losses of single rows; None unless `singular_fluctuation` asks for them."""
    weight_per_row: float = 1.0
    """`L_n` is the sum of the losses of the rows, divided by their number times this."""
    observed: Mapping[str, Observation] = {}
    """The observables by name. `fge` does not count them."""
    exact_losses: bool = True
    """True if `loss` is L_n itself, False if it is an unbiased estimate from batches or from a stochastic loss."""
