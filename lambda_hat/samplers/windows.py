"""Stan's window adaptation of step size and diagonal mass matrix, one step at a time.

Step sizes by dual averaging throughout (Hoffman & Gelman 2014); in windows of doubling length the variances of the
positions are learned, and taken as the inverse mass matrix at the end of each. The parts and the schedule are
blackjax's, whose own loop over them cannot be stopped on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.adaptation.mass_matrix import MassMatrixAdaptationState, mass_matrix_adaptation
from blackjax.adaptation.staged_adaptation import build_schedule
from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation
from jaxtyping import Array, Float


class Windows(NamedTuple):
    """What has been learned so far."""

    averaging: DualAveragingAdaptationState
    variances: MassMatrixAdaptationState

    @property
    def step_size(self) -> Float[Array, ""]:
        """For the next transition."""
        return jnp.exp(self.averaging.log_step_size)

    @property
    def inverse_mass_matrix(self) -> Float[Array, " dim"]:
        """That of the last window that has ended."""
        return self.variances.inverse_mass_matrix


class WindowAdaptation(NamedTuple):
    """init: (position, step size) -> Windows. update: (windows, index of the step, new position, acceptance) ->
    Windows. final: windows -> (step size, inverse mass matrix)."""

    init: Callable[..., Windows]
    update: Callable[..., Windows]
    final: Callable[[Windows], tuple[Array, Array]]


def window_adaptation(num_steps: int, target_acceptance: Array) -> WindowAdaptation:
    """An adaptation of `num_steps` transitions."""
    start_averaging, average, averaged = dual_averaging_adaptation(target_acceptance)
    start_variances, add, estimate = mass_matrix_adaptation(is_diagonal_matrix=True)
    schedule = build_schedule(num_steps)

    def init(position, step_size):
        return Windows(start_averaging(step_size), start_variances(position.size))

    def end_window(windows: Windows) -> Windows:
        return Windows(start_averaging(averaged(windows.averaging)), estimate(windows.variances))

    def update(windows: Windows, index, position, acceptance) -> Windows:
        is_slow, is_end = schedule[index, 0] == 1, schedule[index, 1] == 1
        variances = jax.lax.cond(is_slow, lambda: add(windows.variances, position), lambda: windows.variances)
        windows = Windows(average(windows.averaging, acceptance), variances)
        return jax.lax.cond(is_end, end_window, lambda windows: windows, windows)

    def final(windows: Windows):
        return averaged(windows.averaging), windows.inverse_mass_matrix

    return WindowAdaptation(init, update, final)
