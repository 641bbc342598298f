"""The No-U-Turn sampler (Hoffman & Gelman 2014, arXiv 1111.4246) with blackjax's kernel and window adaptation.

Each chain adapts its own step size (dual averaging) and diagonal mass matrix in burn-in; chains share nothing. They
run side by side in one program, which waits for the longest trajectory of all of them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import blackjax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import NutsConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import LOSS_COST, Algorithm, Costs, Draws, Info, Model, Sampler
from lambda_hat.samplers.hmc import DEFAULT_ACCEPTANCE
from lambda_hat.samplers.run import run
from lambda_hat.targets.base import Target


class Tuned(NamedTuple):
    step_size: Float[Array, ""]
    inverse_mass_matrix: Float[Array, " dim"]


def build(model: Model, cfg: NutsConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of NUTS."""
    kernel = blackjax.nuts.build_kernel()

    def adapt(key, start):
        adaptation = blackjax.window_adaptation(
            blackjax.nuts,
            model.log_density,
            initial_step_size=arguments["initial_step_size"],
            target_acceptance_rate=arguments["target_acceptance"],
            adaptation_info_fn=lambda state, info, adaptation_state: info.num_integration_steps,
            max_num_doublings=cfg.max_num_doublings,
        )
        (state, parameters), num_steps = adaptation.run(key, start, cfg.num_burnin)
        return state, Tuned(parameters["step_size"], parameters["inverse_mass_matrix"]), 1 + jnp.sum(num_steps)

    def step(key, state, tuned: Tuned):
        state, info = kernel(
            key,
            state,
            model.log_density,
            tuned.step_size,
            tuned.inverse_mass_matrix,
            cfg.max_num_doublings,
        )
        return state, Info(info.acceptance_rate, info.is_divergent, info.num_integration_steps)

    return Algorithm(
        adapt=adapt,
        num_burnin=np.uint32(0),  # all of it is adaptation
        step=step,
        position=lambda state: state.position,
        record=lambda key, w: model.full_loss(w),
        step_size=lambda tuned: tuned.step_size,
    )


def costs(cfg: NutsConfig, target: Target) -> Costs:
    """Gradients are of the full data."""
    return Costs(per_gradient=1.0, per_record=LOSS_COST)


def notes(cfg: NutsConfig, target: Target) -> tuple[str, ...]:
    return ()


NUTS = Sampler(
    name="nuts",
    arguments=("target_acceptance", "initial_step_size"),
    strict=False,
    build=build,
    costs=costs,
    notes=notes,
)


def sample(target: Target, cfg: NutsConfig, identity: int, posterior: Posterior) -> Draws:
    """Run the chains."""
    if cfg.target_acceptance is None:
        cfg = replace(cfg, target_acceptance=DEFAULT_ACCEPTANCE)
    return run(NUTS, target, cfg, identity, posterior)
