"""Unadjusted microcanonical Langevin Monte Carlo (Robnik et al. 2023, arXiv 2212.08549), with blackjax's tuner.

Nothing is accepted or rejected: the energy error per step sets the bias. A step that becomes non-finite is reverted.
"""

from __future__ import annotations

import blackjax
import jax
import jax.numpy as jnp

from lambda_hat.config import MclmcConfig
from lambda_hat.samplers.base import Algorithm, Info, Model, Sampler
from lambda_hat.targets.base import Target

GRADIENTS_PER_STEP = 2
"""McLachlan's integrator."""
TUNING_SHARES = (0.4, 0.3, 0.2)
"""Shares of `num_tuning` for step size, preconditioner and decoherence length; with a preconditioner the tuner adds a
third of the second share to settle the step size again."""


def tuning_steps(cfg: MclmcConfig) -> int:
    """Transitions that the tuner makes, rounded as it rounds them."""
    first, second, third = (round(cfg.num_tuning * share) for share in TUNING_SHARES)
    if cfg.diagonal_preconditioning:
        second += second // 3
    return first + second + third


def build(model: Model, cfg: MclmcConfig, arguments: dict) -> Algorithm:
    """One chain of MCLMC, its tuner included."""
    kernel = blackjax.mclmc.build_kernel()

    def init(key, start):
        key_init, key_tune = jax.random.split(key)
        state = blackjax.mclmc.init(start, model.log_density, key_init)
        state, tuned, _ = blackjax.mclmc_find_L_and_step_size(
            kernel,
            cfg.num_tuning,
            state,
            key_tune,
            logdensity_fn=model.log_density,
            frac_tune1=TUNING_SHARES[0],
            frac_tune2=TUNING_SHARES[1],
            frac_tune3=TUNING_SHARES[2],
            desired_energy_var=arguments["desired_energy_var"],
            diagonal_preconditioning=cfg.diagonal_preconditioning,
        )
        return state, tuned, 1 + GRADIENTS_PER_STEP * tuning_steps(cfg)

    def step(key, state, tuned):
        state, info = kernel(key, state, model.log_density, tuned.inverse_mass_matrix, tuned.L, tuned.step_size)
        return state, Info(jnp.full((), jnp.nan, model.w_star.dtype), ~info.nonans, GRADIENTS_PER_STEP)

    return Algorithm(
        init=init,
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


def notes(cfg: MclmcConfig, target: Target) -> tuple[str, ...]:
    return ("unadjusted: biased by its step size",)


MCLMC = Sampler(
    name="mclmc",
    arguments=("num_burnin", "desired_energy_var"),
    strict=False,
    build=build,
    notes=notes,
)
