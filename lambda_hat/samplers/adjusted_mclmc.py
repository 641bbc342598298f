"""Metropolis-adjusted microcanonical Langevin (Robnik et al. 2025, arXiv 2503.01707) with blackjax's kernel.

A transition draws a new direction and follows the isokinetic dynamics for a random number of steps, uniform from 1 to
twice its mean less one. Then it is accepted or rejected, so that the sampler is unbiased at any step size. The mean
makes a trajectory `sqrt(dim)` long in the coordinates in which the metric is 1: the posterior reaches about as far
there. The step size and the metric are learned as in HMC.
"""

from __future__ import annotations

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lambda_hat.config import AdjustedMclmcConfig
from lambda_hat.engine.algorithm import Algorithm
from lambda_hat.engine.model import Model
from lambda_hat.samplers import hamiltonian
from lambda_hat.samplers.mclmc import GRADIENTS_PER_STEP
from lambda_hat.targets.random_numbers import random_numbers

MOST_STEPS = 10
"""Bound of the mean number of steps. While the step size is being learned it may be tiny, and a trajectory endless."""


def build(model: Model, cfg: AdjustedMclmcConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of adjusted MCLMC; `arguments` has the fields of `hamiltonian.ARGUMENTS`."""
    dynamic = blackjax.adjusted_mclmc_dynamic.build_kernel(integration_steps_fn=lambda _, number: number)
    length = jnp.sqrt(jnp.full((), model.w_star.size, model.w_star.dtype))

    def init(start: Float[Array, " dim"]):
        return blackjax.adjusted_mclmc_dynamic.init(start, model.log_density, jax.random.key(0))

    def transition(key: Key[Array, ""], state: Any, step_size: Float[Array, ""], inverse_mass_matrix: PyTree):
        key_number, key_kernel = jax.random.split(key)
        mean = jnp.clip(length / step_size, 1, MOST_STEPS)
        number = 1 + random_numbers(key_number, (), jnp.round(2 * mean).astype(jnp.int32) - 1)
        return dynamic(
            key_kernel,
            state,
            model.log_density,
            step_size,
            inverse_mass_matrix=inverse_mass_matrix,
            integration_steps_params=(number,),
        )

    return hamiltonian.adapted(
        model,
        arguments,
        cfg.metric,
        init,
        transition,
        lambda key, step_size: step_size,
        lambda info: GRADIENTS_PER_STEP * info.num_integration_steps,
    )


ADJUSTED_MCLMC = hamiltonian.sampler(
    name="adjusted_mclmc",
    build=build,
    fixed_cost=False,
)
