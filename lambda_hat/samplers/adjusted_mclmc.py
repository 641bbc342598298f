"""Metropolis-adjusted microcanonical Langevin (Robnik et al. 2025, arXiv 2503.01707), with blackjax's tuner.

A transition draws a new direction, follows the isokinetic dynamics for a random number of steps, uniform from 1 to
twice the tuned mean less one, and is then accepted or rejected: unbiased at any step size.
"""

from __future__ import annotations

import blackjax
import jax
import jax.numpy as jnp
from jaxtyping import Array

from lambda_hat.config import AdjustedMclmcConfig
from lambda_hat.samplers.base import Algorithm, Info, Model, Sampler
from lambda_hat.samplers.mclmc import GRADIENTS_PER_STEP

TUNING_SHARES = (0.4, 0.2)
"""Shares of `num_tuning`: the step size is tuned twice, before and after the preconditioner, which takes the second."""


def _num_steps(key: Array, mean: Array) -> Array:
    """A whole number of steps, uniform, of the given mean."""
    most = jnp.maximum(jnp.round(2 * mean - 1), 1).astype(jnp.int32)
    return jax.random.randint(key, (), 1, most + 1)


def build(model: Model, cfg: AdjustedMclmcConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of adjusted MCLMC, its tuner included."""
    dynamic = blackjax.adjusted_mclmc_dynamic.build_kernel(integration_steps_fn=_num_steps)

    def kernel(rng_key, state, logdensity_fn, step_size, inverse_mass_matrix, integration_steps_params):
        return dynamic(
            rng_key,
            state,
            logdensity_fn,
            step_size,
            inverse_mass_matrix=inverse_mass_matrix,
            integration_steps_params=integration_steps_params,
        )

    def init(key, start):
        key_init, key_tune = jax.random.split(key)
        state = blackjax.adjusted_mclmc_dynamic.init(start, model.log_density, key_init)
        state, tuned, num_steps = blackjax.adjusted_mclmc_find_L_and_step_size(
            kernel,
            model.log_density,
            cfg.num_tuning,
            state,
            key_tune,
            arguments["target_acceptance"],
            frac_tune1=TUNING_SHARES[0],
            frac_tune2=TUNING_SHARES[1],
            diagonal_preconditioning=cfg.diagonal_preconditioning,
        )
        return state, tuned, 1 + GRADIENTS_PER_STEP * num_steps

    def step(key, state, tuned):
        mean_steps = (tuned.L / tuned.step_size,)
        state, info = kernel(key, state, model.log_density, tuned.step_size, tuned.inverse_mass_matrix, mean_steps)
        return state, Info(info.acceptance_rate, info.is_divergent, GRADIENTS_PER_STEP * info.num_integration_steps)

    return Algorithm(
        init=init,
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


ADJUSTED_MCLMC = Sampler(
    name="adjusted_mclmc",
    arguments=("num_burnin", "target_acceptance"),
    strict=False,
    build=build,
    fixed_cost=False,
)
