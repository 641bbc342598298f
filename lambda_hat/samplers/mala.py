"""The Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996) with blackjax's kernel.

Each chain adapts its own step size by dual averaging (Hoffman & Gelman 2014) in burn-in; chains share nothing.
"""

from __future__ import annotations

import blackjax
import jax.numpy as jnp
from blackjax.adaptation.step_size import dual_averaging_adaptation
from jaxtyping import Array

from lambda_hat.config import MalaConfig
from lambda_hat.samplers.base import Algorithm, Info, Model, Sampler


def build(model: Model, cfg: MalaConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of MALA. `tuned` is the step size epsilon, as in SGLD; blackjax's is half of it."""
    kernel = blackjax.mala.build_kernel()
    init, update, final = dual_averaging_adaptation(arguments["target_acceptance"])

    def start_chain(key, start):
        return blackjax.mala.init(start, model.log_density), init(arguments["initial_step_size"]), 1

    def adapt(key, index, state, averaging):
        state, info = kernel(key, state, model.log_density, 0.5 * jnp.exp(averaging.log_step_size))
        # A proposal where the density overflows is a rejection.
        acceptance = jnp.where(jnp.isnan(info.acceptance_rate), 0, info.acceptance_rate)
        return state, update(averaging, acceptance), 1

    def step(key, state, step_size):
        state, info = kernel(key, state, model.log_density, 0.5 * step_size)
        return state, Info(info.acceptance_rate, jnp.zeros((), bool), 1)

    return Algorithm(
        init=start_chain,
        adapt=adapt,
        settle=final,
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda step_size: step_size,
    )


MALA = Sampler(
    name="mala",
    arguments=("num_burnin", "target_acceptance", "initial_step_size"),
    strict=False,
    build=build,
    num_adapt=lambda cfg: cfg.num_burnin,
)
