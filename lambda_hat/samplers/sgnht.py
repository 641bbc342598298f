"""Stochastic gradient Nosé-Hoover thermostat (Ding et al. 2014) with blackjax's integrator.

A transition is one step of

    w <- w + s A p,    p <- (1 - s xi) p - s A^T grad U_B(w) + sqrt(T (1 - (1 - f)^2)) noise,
    xi <- xi + s (|p|^2 / dim - T).

Here `s = sqrt(step_size)`, `P = A A^T`, and U is the negative log posterior. The friction `s xi` starts at f and
follows the kinetic energy, so that it takes up the noise of the minibatches. The gradient is taken at the new position,
and `T = 1 / (1 - f/2)`; the module sghmc gives the reasons.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from blackjax.sgmcmc import diffusions
from jaxtyping import Array, Float, Key

from lambda_hat.config import SgnhtConfig
from lambda_hat.engine.algorithm import Algorithm
from lambda_hat.engine.model import Model
from lambda_hat.samplers import stochastic
from lambda_hat.samplers.adaptation import Taken, langevin_step
from lambda_hat.samplers.noise import normal_like
from lambda_hat.samplers.sghmc import momentum_temperature

THERMOSTAT = 0.5
"""Longest step, in units of SGLD's with the same gradients. With few parameters the friction follows single excursions,
and longer steps lost chains. Arbitrary."""


class State(NamedTuple):
    """The state of one chain."""

    w: Float[Array, " dim"]
    momentum: Float[Array, " dim"]
    thermostat: Float[Array, ""]
    """The friction `s xi`: the share of the momentum that a step takes."""


def build(model: Model, cfg: SgnhtConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of SGNHT; `arguments` has the fields of `SGNHT.arguments`."""
    lost = arguments["friction"]
    temperature = momentum_temperature(lost)

    def start(key: Key[Array, ""], w: Float[Array, " dim"]) -> State:
        momentum = jnp.sqrt(temperature) * normal_like(key, w)
        return State(w, momentum, lost)

    def transition(key: Key[Array, ""], state: State, tuned: stochastic.Tuned) -> stochastic.Transition:
        key_gradient, key_noise = jax.random.split(key)
        leapfrog = jnp.sqrt(tuned.step_size)
        friction = lost / leapfrog
        # blackjax says float where it takes traced numbers as well.
        integrate = cast(Any, diffusions.sgnht)(alpha=friction, beta=friction**2 / temperature)
        ahead = state.w + leapfrog * tuned.metric.forward(state.momentum)
        drawn = model.drawn(key_gradient, stochastic.batches_of(cfg))
        found = stochastic.force(model, cfg, drawn, ahead, tuned.metric)
        _, momentum, thermostat = integrate(
            key_noise, state.momentum, state.momentum, state.thermostat / leapfrog, -found.pulled, leapfrog, temperature
        )

        def taken() -> Taken:
            localised = model.posterior.gamma * tuned.metric.trace
            return Taken(ahead, found.gradient, jnp.vdot(found.pulled, found.pulled), localised, found.visit, drawn)

        return stochastic.Transition(State(ahead, momentum, thermostat * leapfrog), found.visit, taken)

    def allowed(squared, noise, growth, heat):
        # The thermostat takes up the noise that all directions have in common.
        return THERMOSTAT * langevin_step(jnp.maximum(squared - noise, 0.1 * squared), noise, growth, heat)

    return stochastic.algorithm(
        model, cfg, arguments, start, transition, position=lambda state: state.w, allowed=allowed, noisy=True
    )


SGNHT = stochastic.sampler(name="sgnht", arguments=(*stochastic.ARGUMENTS, "friction"), strict=False, build=build)
