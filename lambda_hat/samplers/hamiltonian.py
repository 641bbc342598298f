"""The part that HMC, NUTS, MALA and adjusted MCLMC share: they learn a step size and a metric in burn-in.

Each chain learns by itself. In the first half of burn-in, windows of doubling length learn the metric, while dual
averaging (Hoffman & Gelman 2014, arXiv 1111.4246) learns a step size. In the second half the metric stays fixed, and
dual averaging sees transitions as they will be while draws are recorded. Stan ends with 50 such steps; on singular
targets these left the step size anywhere within a factor of 10.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

from lambda_hat.engine.algorithm import Algorithm, Info, Learned, Sampler, all_of_burnin, visit_of
from lambda_hat.engine.model import Model
from lambda_hat.engine.windows import NUMBER, Windows
from lambda_hat.samplers.own_metric import own_metric

ARGUMENTS = ("num_burnin", "target_acceptance", "initial_step_size")
"""Fields of the configuration that are arguments of the programs."""


class Tuned(NamedTuple):
    """What a transition takes."""

    step_size: Float[Array, ""]
    inverse_mass_matrix: PyTree
    jitters: Bool[Array, ""]
    """The step size is drawn anew: while the metric is being learned it is not."""


class Seen(NamedTuple):
    """What a transition shows to the adaptation."""

    acceptance: Float[Array, ""]
    w: Float[Array, " dim"]
    score: Float[Array, " dim"]
    """Gradient of the log posterior at `w`."""


def adapted(
    model: Model,
    arguments: dict[str, Array],
    metric: str | None,
    init: Callable[[Float[Array, " dim"]], Any],
    transition: Callable[[Key[Array, ""], Any, Float[Array, ""], PyTree], tuple[Any, Any]],
    jittered: Callable[[Key[Array, ""], Float[Array, ""]], Float[Array, ""]],
    gradients: Callable[[Any], Int[Array, ""] | int],
    reported: Callable[[Float[Array, ""]], Float[Array, ""]] = lambda step_size: step_size,
) -> Algorithm:
    """One chain with adaptation of step size and metric, around a kernel of blackjax.

    Args:
        model: The posterior.
        arguments: The fields of `ARGUMENTS`.
        metric: As `own_metric`.
        init: position (dim,) -> blackjax's state.
        transition: (key, state, leapfrog step, inverse mass matrix) -> (state, info).
        jittered: (key, adapted step size) -> the step size of one transition.
        gradients: info -> gradients that the transition evaluated.
        reported: leapfrog step -> step size in the sampler's own units; by default they are the same.
    """
    # blackjax says float where it takes traced numbers as well.
    begin, average, _ = cast(Any, dual_averaging_adaptation)(arguments["target_acceptance"])
    own = own_metric(metric)
    num_adapt = arguments["num_burnin"]

    def init_chain(key: Key[Array, ""], start: Float[Array, " dim"]):
        rule = _strong(begin(arguments["initial_step_size"]))
        return init(start), Learned(rule, *own.init(start)), 1

    def tuned(index: UInt[Array, ""], rule: DualAveragingAdaptationState, metric: PyTree) -> Tuned:
        chosen = jnp.where(index < num_adapt, rule.log_step_size, rule.log_step_size_avg)
        return Tuned(jnp.exp(chosen), own.inverse_mass_matrix(metric), index >= num_adapt // NUMBER(2))

    def step(key: Key[Array, ""], state: Any, tuned: Tuned):
        key_jitter, key_kernel = jax.random.split(key)
        step_size = jnp.where(tuned.jitters, jittered(key_jitter, tuned.step_size), tuned.step_size)
        state, info = transition(key_kernel, state, step_size, tuned.inverse_mass_matrix)
        visit = visit_of(model, state.position, state.logdensity_grad)
        told = Info(info.acceptance_rate, info.is_divergent, gradients(info), visit)
        return state, told, Seen(info.acceptance_rate, state.position, state.logdensity_grad)

    def learn(
        key: Key[Array, ""],
        index: UInt[Array, ""],
        place: UInt[Array, ""],
        state: Any,
        rule: DualAveragingAdaptationState,
        kept: PyTree,
        seen: Seen,
    ):
        # A proposal at which the density overflows is rejected.
        acceptance = jnp.where(jnp.isnan(seen.acceptance), 0, seen.acceptance)
        return state, _strong(average(rule, acceptance)), own.keep(kept, place, seen.w, seen.score), 0

    return Algorithm(
        init=init_chain,
        tuned=tuned,
        step=step,
        learn=learn,
        position=lambda state: state.position,
        record=lambda key, w: model.excess_loss(w),
        step_size=lambda tuned: reported(tuned.step_size),
    )


def windows(cfg: Any) -> Windows:
    """The windows of HMC, NUTS, MALA and both MCLMC: in the first half of burn-in."""
    return Windows(all_of_burnin(cfg) // 2, own_metric(cfg.metric).rows)


def fitted(cfg: Any, metric: PyTree, kept: PyTree) -> tuple[PyTree, PyTree]:
    """The metric of each chain after a window, and nothing kept. NumPy arrays with an axis of chains."""
    own = own_metric(cfg.metric)
    chains = [
        own.fitted(*jax.tree.map(lambda x, chain=chain: x[chain], (metric, kept))) for chain in range(cfg.num_chains)
    ]
    return jax.tree.map(lambda *of_chains: np.stack(of_chains), *chains)


def new_window(cfg: Any, learned: Learned) -> Learned:
    """The metrics that a window has shown; dual averaging starts again from its mean."""
    rule = learned.rule
    log_step_size = rule.log_step_size_avg
    started = DualAveragingAdaptationState(
        log_step_size=log_step_size,
        log_step_size_avg=np.zeros_like(log_step_size),
        step=np.ones_like(rule.step),
        avg_error=np.zeros_like(log_step_size),
        mu=log_step_size + np.log(np.asarray(10, log_step_size.dtype)),
    )
    return Learned(started, *fitted(cfg, learned.metric, learned.kept))


def _strong(averaging: DualAveragingAdaptationState) -> DualAveragingAdaptationState:
    """Give the state dtypes that stay the same in a loop."""
    dtype = cast(Array, averaging.log_step_size).dtype
    kinds = jax.tree.map(lambda x: jnp.int32 if jnp.issubdtype(jnp.result_type(x), jnp.integer) else dtype, averaging)
    return jax.tree.map(lambda x, kind: jnp.asarray(x).astype(kind), averaging, kinds)


sampler = partial(
    Sampler, arguments=ARGUMENTS, strict=False, num_adapt=all_of_burnin, windows=windows, new_window=new_window
)
"""A `Sampler` with what all of these samplers share."""
