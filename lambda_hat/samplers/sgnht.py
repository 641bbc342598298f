"""Stochastic gradient Nosé-Hoover thermostat (Ding et al. 2014) with blackjax's integrator.

With `s = sqrt(step_size)`: `w <- w + s p`, `p <- (1 - s xi) p - s grad U_B(w) + sqrt(T (1 - (1 - f)^2)) noise`,
`xi <- xi + s (|p|^2 / dim - T)`. U is the negative log posterior. The friction `s xi` starts at f and follows the
kinetic energy, so that it takes up the noise of the minibatches. The gradient is taken at the new position, and
`T = 1 / (1 - f/2)`, for the reasons that sghmc gives.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from blackjax.sgmcmc import diffusions
from jaxtyping import Array, Float

from lambda_hat.config import SgnhtConfig
from lambda_hat.samplers import stochastic
from lambda_hat.samplers.base import Algorithm, Info, Model, Sampler
from lambda_hat.samplers.sghmc import momentum_temperature


class State(NamedTuple):
    w: Float[Array, " dim"]
    momentum: Float[Array, " dim"]
    friction: Float[Array, ""]
    """xi, per unit of time."""


def build(model: Model, cfg: SgnhtConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of SGNHT."""
    step_size = arguments["step_size"]
    leapfrog = jnp.sqrt(step_size)
    friction = arguments["friction"] / leapfrog
    temperature = momentum_temperature(arguments["friction"])
    integrate = diffusions.sgnht(alpha=friction, beta=friction**2 / temperature)

    def init(key, start):
        momentum = jnp.sqrt(temperature) * jax.random.normal(key, start.shape, start.dtype)
        return State(start, momentum, friction), (), 0

    def step(key, state: State, tuned):
        key_gradient, key_noise = jax.random.split(key)
        ahead = state.w + leapfrog * state.momentum
        gradient = -stochastic.posterior_gradient(model, key_gradient, ahead, cfg.batch_size)
        state = State(*integrate(key_noise, *state, gradient, leapfrog, temperature))
        nan = jnp.full((), jnp.nan, state.w.dtype)
        return state, Info(nan, jnp.zeros((), bool), 1)

    return Algorithm(
        init=init,
        step=step,
        position=lambda state: state.w,
        record=stochastic.recorder(model, cfg),
        step_size=lambda tuned: step_size,
        mala=lambda key, w, tuned: stochastic.mala_acceptance(model, key, w, step_size, None),
    )


SGNHT = Sampler(
    name="sgnht",
    arguments=("num_burnin", "friction", *stochastic.PILOT_ARGUMENTS),
    strict=False,
    build=build,
    costs=stochastic.costs,
    notes=stochastic.notes,
    records_differences=stochastic.records_differences,
    takes_noise=True,
)
