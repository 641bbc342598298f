"""The part that HMC, NUTS, MALA and adjusted MCLMC share: they learn a step size and a metric in burn-in.

Each chain learns by itself. In the first half of burn-in, windows of doubling length learn the metric, while dual
averaging (Hoffman & Gelman 2014, arXiv 1111.4246) learns a step size. In the second half the metric stays fixed, and
dual averaging sees transitions as they will be while draws are recorded. Stan ends with 50 such steps; on singular
targets these left the step size anywhere within a factor of 10.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation
from jaxtyping import Array, Float, Int, Key, PyTree, UInt

from lambda_hat.engine.algorithm import Algorithm, Info, visit_of
from lambda_hat.engine.model import Model
from lambda_hat.samplers.windows import NUMBER, Windows, learner_of

ARGUMENTS = ("num_burnin", "target_acceptance", "initial_step_size")
"""Fields of the configuration that are arguments of the programs."""


class Learned(NamedTuple):
    """The state of one chain's adaptation."""

    averaging: DualAveragingAdaptationState
    metric: PyTree
    """The learner's state."""


class Tuned(NamedTuple):
    """What a chain has after adaptation."""

    step_size: Float[Array, ""]
    inverse_mass_matrix: PyTree


def adapted(
    model: Model,
    arguments: dict[str, Array],
    metric: str | None,
    init: Callable[[Float[Array, " dim"]], Any],
    transition: Callable[[Key[Array, ""], Any, Float[Array, ""], PyTree], tuple[Any, Any]],
    jittered: Callable[[Key[Array, ""], Float[Array, ""]], Float[Array, ""]],
    gradients: Callable[[Any], Int[Array, ""] | int],
    reported: Callable[[Float[Array, ""]], Float[Array, ""]] = lambda step_size: step_size,
) -> Algorithm[Any, Learned, Tuned]:
    """One chain with adaptation of step size and metric, around a kernel of blackjax.

    Args:
        model: The posterior.
        arguments: The fields of `ARGUMENTS`.
        metric: As `windows.learner_of`.
        init: position (dim,) -> blackjax's state.
        transition: (key, state, leapfrog step, inverse mass matrix) -> (state, info).
        jittered: (key, adapted step size) -> the step size of one transition.
        gradients: info -> gradients that the transition evaluated.
        reported: leapfrog step -> step size in the sampler's own units; by default they are the same.
    """
    # blackjax says float where it takes traced numbers as well.
    begin, average, averaged = cast(Any, dual_averaging_adaptation)(arguments["target_acceptance"])
    learner = learner_of(metric)
    windows = Windows(arguments["num_burnin"] // NUMBER(2))

    def init_chain(key: Key[Array, ""], start: Float[Array, " dim"]):
        return init(start), Learned(_strong(begin(arguments["initial_step_size"])), learner.init(start)), 1

    def adapt(key: Key[Array, ""], index: UInt[Array, ""], state: Any, learned: Learned):
        key_jitter, key_kernel = jax.random.split(key)
        step_size = jnp.exp(learned.averaging.log_step_size)
        # Both halves share one kernel, because compiling it costs more than a short run.
        step_size = jnp.where(index < windows.last_end, step_size, jittered(key_jitter, step_size))
        state, info = transition(key_kernel, state, step_size, learner.inverse_mass_matrix(learned.metric))
        # A proposal at which the density overflows is rejected.
        acceptance = jnp.where(jnp.isnan(info.acceptance_rate), 0, info.acceptance_rate)
        averaging = average(learned.averaging, acceptance)
        started = begin(averaged(averaging))
        averaging = jax.tree.map(lambda a, b: jnp.where(windows.is_end(index), a, b), started, averaging)
        seen = learner.update(learned.metric, windows, index, state.position, state.logdensity_grad)
        return state, Learned(_strong(averaging), seen), gradients(info)

    def settle(learned: Learned):
        return Tuned(averaged(learned.averaging), learner.inverse_mass_matrix(learned.metric))

    def step(key: Key[Array, ""], state: Any, tuned: Tuned):
        key_jitter, key_kernel = jax.random.split(key)
        step_size = jittered(key_jitter, tuned.step_size)
        state, info = transition(key_kernel, state, step_size, tuned.inverse_mass_matrix)
        visit = visit_of(model, state.position, state.logdensity_grad)
        return state, Info(info.acceptance_rate, info.is_divergent, gradients(info), visit)

    return Algorithm(
        init=init_chain,
        adapt=adapt,
        settle=settle,
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.excess_loss(w),
        step_size=lambda tuned: reported(tuned.step_size),
    )


def _strong(averaging: DualAveragingAdaptationState) -> DualAveragingAdaptationState:
    """Give the state dtypes that stay the same in a loop."""
    dtype = cast(Array, averaging.log_step_size).dtype
    kinds = jax.tree.map(lambda x: jnp.int32 if jnp.issubdtype(jnp.result_type(x), jnp.integer) else dtype, averaging)
    return jax.tree.map(lambda x, kind: jnp.asarray(x).astype(kind), averaging, kinds)
