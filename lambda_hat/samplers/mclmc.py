"""Unadjusted microcanonical Langevin Monte Carlo (Robnik et al. 2023, arXiv 2212.08549) with blackjax's kernel.

Nothing is accepted or rejected: the energy error of a step sets the bias. A step that becomes non-finite is reverted.

Each chain learns by itself: the metric in windows in the first half of burn-in, and the step size in all of it. The
energy error grows with the cube of the step (Bou-Rabee & Sanz-Serna 2018, arXiv 1711.05337). So every transition shows
at which step the square of its error would be `desired_energy_var` per dimension. The step follows a mean of these that
forgets old transitions, and gives little weight to those far off (the rule of blackjax's own tuner).

A chain forgets its direction over a length `L = sqrt(dim)` in the coordinates in which the metric is 1: the posterior
reaches about as far there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, UInt

from lambda_hat.config import MclmcConfig
from lambda_hat.engine.algorithm import Algorithm, Info, Learned, Sampler, all_of_burnin, visit_of
from lambda_hat.engine.model import Model
from lambda_hat.samplers import hamiltonian
from lambda_hat.samplers.own_metric import own_metric
from lambda_hat.targets.base import Target

GRADIENTS_PER_STEP = 2
"""Gradients that McLachlan's integrator evaluates in a step."""
FIRST_STEP = 0.25
"""First step, in units of L. Arbitrary."""
REMEMBERED = 150
"""Transitions over which the mean of the energy errors reaches back, about."""
TRUST = 1.5
"""A transition whose step is off by a factor of e to this power has a weight of .6 in the mean."""
POWER = 6
"""Power of the step with which the square of the energy error grows."""
SHRINK = 0.8
"""Longest later step, in units of a step that became non-finite. Arbitrary."""


class StepSize(NamedTuple):
    """The energy errors that one chain has seen in its present metric, or those of c chains."""

    step_size: Float[Array | np.ndarray, "*c"]
    most: Float[Array | np.ndarray, "*c"]
    """Bound of the step; infinite until a transition became non-finite."""
    total: Float[Array | np.ndarray, "*c"]
    """Weighted sum of squared errors at the present step, in units of the desired square."""
    weight: Float[Array | np.ndarray, "*c"]
    """Sum of the weights."""


class Tuned(NamedTuple):
    """What a transition takes."""

    step_size: Float[Array, ""]
    inverse_mass_matrix: PyTree


def begun(length: Float[Array | np.ndarray, "*c"]) -> StepSize:
    """The step before the first transition in a metric. length: L, in whose units the step starts."""
    # These serve arrays of JAX and of NumPy.
    return StepSize(FIRST_STEP * length, length + np.inf, 0 * length, 0 * length)


def followed(
    step: StepSize, energy_change: Float[Array, ""], desired: Float[Array, ""], is_finite: Bool[Array, ""]
) -> StepSize:
    """The step after a transition.

    Args:
        step: The step before it.
        energy_change: The energy error of the transition.
        desired: The square that its energy error should have.
        is_finite: Whether the transition stayed finite.
    """
    error = energy_change**2 / desired + 1e-8
    weight = jnp.exp(-0.5 * (jnp.log(error) / (POWER * TRUST)) ** 2)
    memory = 1 - 2 / (REMEMBERED + 1)
    total, weights = memory * step.total + weight * error, memory * step.weight + weight
    found = jnp.minimum(step.step_size * (total / weights) ** (-1 / POWER), step.most)
    seen = StepSize(found, step.most, total * (found / step.step_size) ** POWER, weights)
    most = jnp.minimum(step.most, SHRINK * step.step_size)
    usable = is_finite & jnp.isfinite(found) & (found > 0)
    reverted = step._replace(step_size=most, most=most, total=step.total * (most / step.step_size) ** POWER)
    return jax.tree.map(lambda a, b: jnp.where(usable, a, b), seen, reverted)


def build(model: Model, cfg: MclmcConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of MCLMC; `arguments` has `num_burnin` and `desired_energy_var`."""
    kernel = blackjax.mclmc.build_kernel()
    own = own_metric(cfg.metric)
    dim, dtype = model.w_star.size, model.w_star.dtype
    length = jnp.sqrt(jnp.full((), dim, dtype))
    desired = arguments["desired_energy_var"] * dim

    def init(key: Key[Array, ""], start: Float[Array, " dim"]):
        return blackjax.mclmc.init(start, model.log_density, key), Learned(begun(length), *own.init(start)), 1

    def tuned(index: UInt[Array, ""], rule: StepSize, metric: PyTree) -> Tuned:
        return Tuned(jnp.asarray(rule.step_size), own.inverse_mass_matrix(metric))

    def step(key: Key[Array, ""], state: Any, tuned: Tuned):
        state, info = kernel(key, state, model.log_density, tuned.inverse_mass_matrix, length, tuned.step_size)
        visit = visit_of(model, state.position, state.logdensity_grad)
        return state, Info(jnp.full((), jnp.nan, dtype), ~info.nonans, GRADIENTS_PER_STEP, visit), info

    def learn(
        key: Key[Array, ""],
        index: UInt[Array, ""],
        place: UInt[Array, ""],
        state: Any,
        rule: StepSize,
        kept: PyTree,
        seen: Any,
    ):
        rule = followed(rule, seen.energy_change, desired, seen.nonans)
        return state, rule, own.keep(kept, place, state.position, state.logdensity_grad), 0

    return Algorithm(
        init=init,
        tuned=tuned,
        step=step,
        learn=learn,
        position=lambda state: state.position,
        record=lambda key, w: model.excess_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


def new_window(cfg: MclmcConfig, learned: Learned) -> Learned:
    """The metrics that a window has shown; the step starts again."""
    metric, kept = hamiltonian.fitted(cfg, learned.metric, learned.kept)
    dim, step_size = jax.tree.leaves(metric)[0].shape[-1], learned.rule.step_size
    length = np.full_like(step_size, np.sqrt(dim))
    return Learned(begun(length), metric, kept)


def notes(cfg: MclmcConfig, target: Target) -> tuple[str, ...]:
    """Sentences for the report."""
    return ("unadjusted: biased by its step size",)


MCLMC = Sampler(
    name="mclmc",
    arguments=("num_burnin", "desired_energy_var"),
    strict=False,
    build=build,
    num_adapt=all_of_burnin,
    windows=hamiltonian.windows,
    new_window=new_window,
    notes=notes,
)
