"""Hamiltonian Monte Carlo (Duane et al. 1987) with blackjax's kernel and window adaptation.

Each chain adapts its own step size (dual averaging) and diagonal mass matrix in burn-in; chains share nothing.
Afterwards each transition draws its step size from `U(1 - JITTER, 1 + JITTER)` times the adapted one: a trajectory of
fixed length can return to where it began on a quadratic, and then never mixes (Neal 2011, section 3.2).
"""

from __future__ import annotations

from typing import NamedTuple

import blackjax
import jax
from jaxtyping import Array, Float

from lambda_hat.config import HmcConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import LOSS_COST, Algorithm, Draws, Info, Model, Sampler, Work
from lambda_hat.samplers.run import run
from lambda_hat.targets.base import Target

JITTER = 0.2
DEFAULT_ACCEPTANCE = 0.9


class Tuned(NamedTuple):
    step_size: Float[Array, ""]
    inverse_mass_matrix: Float[Array, " dim"]


def build(model: Model, cfg: HmcConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of HMC with `num_integration_steps` leapfrog steps per transition."""
    kernel = blackjax.hmc.build_kernel()

    def adapt(key):
        adaptation = blackjax.window_adaptation(
            blackjax.hmc,
            model.log_density,
            initial_step_size=arguments["initial_step_size"],
            target_acceptance_rate=arguments["target_acceptance"],
            adaptation_info_fn=lambda *_: None,
            num_integration_steps=cfg.num_integration_steps,
        )
        (state, parameters), _ = adaptation.run(key, model.w_star, cfg.num_burnin)
        return state, Tuned(parameters["step_size"], parameters["inverse_mass_matrix"])

    def step(key, state, tuned: Tuned):
        key_jitter, key_kernel = jax.random.split(key)
        factor = jax.random.uniform(key_jitter, (), model.w_star.dtype, 1 - JITTER, 1 + JITTER)
        state, info = kernel(
            key_kernel,
            state,
            model.log_density,
            factor * tuned.step_size,
            tuned.inverse_mass_matrix,
            cfg.num_integration_steps,
        )
        return state, Info(info.acceptance_rate, info.is_divergent)

    return Algorithm(
        adapt=adapt,
        num_burnin=0,  # all of it is adaptation
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


def work(cfg: HmcConfig, target: Target) -> Work:
    """One gradient per leapfrog step, and one for the first state."""
    per_step = float(cfg.num_integration_steps)
    return Work(before=1 + cfg.num_burnin * per_step, per_step=per_step, per_record=LOSS_COST)


def notes(cfg: HmcConfig, target: Target) -> tuple[str, ...]:
    return ()


HMC = Sampler("hmc", ("target_acceptance", "initial_step_size"), strict=False, build=build, work=work, notes=notes)


def sample(target: Target, cfg: HmcConfig, identity: int, posterior: Posterior) -> Draws:
    """Run the chains."""
    acceptance = DEFAULT_ACCEPTANCE if cfg.target_acceptance is None else cfg.target_acceptance
    arguments = {"target_acceptance": acceptance, "initial_step_size": cfg.initial_step_size}
    return run(HMC, target, cfg, identity, posterior, arguments)
