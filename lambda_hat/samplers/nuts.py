"""The No-U-Turn sampler (Hoffman & Gelman 2014, arXiv 1111.4246) with blackjax's kernel and window adaptation.

Each transition draws its step size, log-uniform from `LEAST_FACTOR` to 1 times the adapted one: singular targets are
stiff in places that no single step size fits, and chains that never enter them are biased without showing it. Measured
on w1^2 w2^4 and (w1 - 1)^2 |w|^8 at (1, 1), 240,000 draws: without it up to 4 standard errors too low, and now and then
a chain held fast for long.

Each chain adapts in burn-in, and shares nothing: a diagonal mass matrix by blackjax's windows in the first half, the
step size by dual averaging of the transitions as they will be in the second (the windows' last 50 steps alone left it
anywhere within a factor of 10 on these targets). Chains run side by side in one program, which waits for the longest
trajectory of all of them.
"""

from __future__ import annotations

from typing import NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.step_size import DualAveragingAdaptationState, dual_averaging_adaptation
from jaxtyping import Array, Float

from lambda_hat.config import NutsConfig
from lambda_hat.samplers.base import Algorithm, Info, Model, Sampler
from lambda_hat.samplers.hmc import with_acceptance
from lambda_hat.samplers.windows import Windows, window_adaptation

LEAST_FACTOR = 0.1


class Tuned(NamedTuple):
    step_size: Float[Array, ""]
    inverse_mass_matrix: Float[Array, " dim"]


class Learned(NamedTuple):
    windows: Windows
    averaging: DualAveragingAdaptationState
    """Of the second half of burn-in."""


def _where(condition, this, that):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), this, that)


def build(model: Model, cfg: NutsConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of NUTS."""
    kernel = blackjax.nuts.build_kernel()

    in_windows = cfg.num_burnin // 2
    windows = window_adaptation(in_windows, arguments["target_acceptance"])
    averages = dual_averaging_adaptation(arguments["target_acceptance"])

    def transition(key, state, step_size, inverse_mass_matrix):
        return kernel(key, state, model.log_density, step_size, inverse_mass_matrix, cfg.max_num_doublings)

    def jittered(key, step_size):
        dtype = model.w_star.dtype
        return jnp.exp(jax.random.uniform(key, (), dtype, np.log(LEAST_FACTOR).astype(dtype), 0.0)) * step_size

    def init(key, start):
        step_size = arguments["initial_step_size"]
        learned = Learned(windows.init(start, step_size), averages[0](step_size))
        return blackjax.nuts.init(start, model.log_density), learned, 1

    def adapt(key, index, state, learned: Learned):
        # One kernel for both halves: compiling it costs more than a short run.
        key_jitter, key_kernel = jax.random.split(key)
        first_half = index < in_windows
        started = averages[0](windows.final(learned.windows)[0])
        averaging = _where(index == in_windows, started, learned.averaging)
        in_second = jittered(key_jitter, jnp.exp(averaging.log_step_size))
        step_size = jnp.where(first_half, learned.windows.step_size, in_second)
        state, info = transition(key_kernel, state, step_size, learned.windows.inverse_mass_matrix)
        updated = windows.update(learned.windows, index, state.position, info.acceptance_rate)
        learned = Learned(
            _where(first_half, updated, learned.windows),
            _where(first_half, averaging, averages[1](averaging, info.acceptance_rate)),
        )
        return state, learned, info.num_integration_steps

    def settle(learned: Learned):
        return Tuned(averages[2](learned.averaging), learned.windows.inverse_mass_matrix)

    def step(key, state, tuned: Tuned):
        key_jitter, key_kernel = jax.random.split(key)
        step_size = jittered(key_jitter, tuned.step_size)
        state, info = transition(key_kernel, state, step_size, tuned.inverse_mass_matrix)
        return state, Info(info.acceptance_rate, info.is_divergent, info.num_integration_steps)

    return Algorithm(
        init=init,
        adapt=adapt,
        settle=settle,
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


NUTS = Sampler(
    name="nuts",
    arguments=("target_acceptance", "initial_step_size"),
    strict=False,
    build=build,
    num_adapt=lambda cfg: cfg.num_burnin,
    prepared=with_acceptance,
    fixed_cost=False,
)
