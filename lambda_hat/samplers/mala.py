"""The Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996): blackjax's HMC with one leapfrog step.

A leapfrog step of length s from a momentum `p ~ N(0, M)` proposes `w - (s^2 / 2) M^-1 grad U + s M^-1 p`. This is a
Langevin step of `epsilon = s^2` with the preconditioner `M^-1`, and both are accepted with the same probability.
"""

from __future__ import annotations

from typing import Any

import blackjax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from lambda_hat.config import MalaConfig
from lambda_hat.engine.algorithm import Algorithm
from lambda_hat.engine.model import Model
from lambda_hat.samplers import hamiltonian


def build(model: Model, cfg: MalaConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of MALA; its step size is epsilon, as in SGLD. `arguments` as in `hamiltonian`."""
    kernel = blackjax.hmc.build_kernel()

    def transition(key: Key[Array, ""], state: Any, step_size: Float[Array, ""], inverse_mass_matrix: PyTree):
        state, info = kernel(key, state, model.log_density, step_size, inverse_mass_matrix, 1)
        # A single step that is far off counts as a rejection, not as a divergence.
        return state, info._replace(is_divergent=jnp.zeros((), bool))

    return hamiltonian.adapted(
        model,
        arguments | {"initial_step_size": jnp.sqrt(arguments["initial_step_size"])},
        cfg.metric,
        lambda start: blackjax.hmc.init(start, model.log_density),
        transition,
        lambda key, step_size: step_size,
        lambda info: 1,
        reported=jnp.square,
    )


MALA = hamiltonian.sampler(
    name="mala",
    build=build,
)
