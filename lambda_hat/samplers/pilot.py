"""The pilot chain that chooses SGLD's step size.

`eps = c / h`, with `h` the largest curvature of the negative log posterior met along one chain, in the metric of the
preconditioner where there is one. On a quadratic the variance of SGLD is then off by `1 / (1 - c/4)` at most.

The pilot must have been where the run's chains will go, so it moves by the same step with its momentum kept
(underdamped Langevin): it crosses the posterior in the square root of the steps that SGLD needs. At a singular
`w_star` the curvature says nothing about the scale, so the step starts tiny and grows geometrically, never above what
the largest curvature so far allows. Gradients and curvatures are of the full data: a batch's curvature is noisy, and
its largest value along a chain would be an estimate of that noise.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import SgldConfig, StochasticGradientConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers import precond as preconditioning
from lambda_hat.samplers.base import HVP_COST, Model
from lambda_hat.samplers.precond import preconditioner
from lambda_hat.samplers.run import PILOT_STREAM, base_key, compiled, flat_model, model_arguments, numbers
from lambda_hat.targets.base import Target

FIRST_STEP = 1e-10
"""First eps, in units of w^2. Arbitrary: small beside any scale of w that a float32 run could resolve."""
STABILITY = 0.5
"""The pilot's own eps times the largest curvature so far; its leapfrog is stable below 4."""
LEAST_FRICTION = 0.03
"""Fraction of the momentum lost per step where the localisation asks for less. Arbitrary."""
MIXING = 0.1
"""Share of noise in the power iteration's vector: without it an eigenvector that is no longer the top one is kept."""


class Pilot(NamedTuple):
    """What the pilot found."""

    step_size: float
    curvature: float
    """h, in the metric of the preconditioner."""
    num_gradients: int
    fge: float
    seconds_compile: float
    seconds_sample: float
    cache_hit: bool
    notes: tuple[str, ...]


class State(NamedTuple):
    w: Float[Array, " dim"]
    momentum: Float[Array, " dim"]
    direction: Float[Array, " dim"]
    """Unit vector of the power iteration."""
    eps: Float[Array, ""]
    curvature: Float[Array, ""]
    """Largest so far."""


class Scaled(NamedTuple):
    """The same in the metric of the preconditioner."""

    direction: Float[Array, " dim"]
    curvature: Float[Array, ""]


def is_preconditioned(cfg: StochasticGradientConfig) -> bool:
    """Whether the run moves in the metric of a preconditioner."""
    return isinstance(cfg, SgldConfig) and cfg.precond != "none"


def _power_step(key, direction, product):
    """Norm of `H u`, which bounds the top curvature from below, and the next unit vector."""
    size = jnp.linalg.norm(product)
    noise = jax.random.normal(key, direction.shape, direction.dtype) / np.sqrt(direction.size)
    mixed = jnp.where(size > 0, product / size, direction) + MIXING * noise
    return size, mixed / jnp.linalg.norm(mixed)


def _make(cfg: StochasticGradientConfig, loss, population: bool) -> Callable:
    num_creep = cfg.pilot_steps // 4
    num_explore = cfg.pilot_steps // 2 - num_creep
    growth = FIRST_STEP ** (-1 / num_creep)

    def program(seed, identity, arguments, posterior: Posterior, w_star, held, data):
        model: Model = flat_model(loss, population, cfg.slice_rows, w_star, held, data, posterior)
        precond = preconditioner(cfg, arguments) if is_preconditioned(cfg) else None
        key = base_key(seed, identity, PILOT_STREAM)
        gradient = jax.grad(model.potential)
        start = model.w_star
        dtype = start.dtype

        def advance(key, state: State) -> State:
            key_power, key_noise = jax.random.split(key)
            g, product = jax.jvp(gradient, (state.w,), (state.direction,))
            size, direction = _power_step(key_power, state.direction, product)
            usable = jnp.isfinite(size) & jnp.all(jnp.isfinite(g))
            curvature = jnp.where(usable, jnp.maximum(state.curvature, size), state.curvature)
            eps = jnp.where(usable, jnp.minimum(growth * state.eps, STABILITY / curvature), 0.01 * state.eps)
            step = jnp.sqrt(eps)
            friction = jnp.maximum(LEAST_FRICTION, step * jnp.sqrt(posterior.gamma))
            noise = jax.random.normal(key_noise, start.shape, dtype)
            kept = jnp.exp(-friction)
            momentum = kept * state.momentum + jnp.sqrt(1 - kept**2) * noise - step * g
            # Where the chain overflowed it starts again from w_star with a much smaller step.
            momentum = jnp.where(usable, momentum, noise)
            w = jnp.where(usable, state.w + step * momentum, start)
            return State(w, momentum, jnp.where(usable, direction, noise / jnp.linalg.norm(noise)), eps, curvature)

        def explore(carry, index):
            """Move, and average the squared loss gradients that the run's preconditioner will see."""
            state, second_moment = carry
            key_move, key_batch = jax.random.split(jax.random.fold_in(key, index))
            if precond is not None:
                g = model.loss_gradient(key_batch, state.w, cfg.batch_size)
                squared = jnp.where(jnp.all(jnp.isfinite(g)), g**2, 0) / num_explore
                second_moment = second_moment + jnp.where(index < num_creep, jnp.zeros_like(squared), squared)
            return (advance(key_move, state), second_moment), None

        def measure(carry, index):
            """Move, and follow the curvature in the metric of the preconditioner."""
            state, scaled, root = carry
            key_move, key_power = jax.random.split(jax.random.fold_in(key, index))
            _, product = jax.jvp(gradient, (state.w,), (root * scaled.direction,))
            size, direction = _power_step(key_power, scaled.direction, root * product)
            usable = jnp.isfinite(size)
            scaled = Scaled(
                jnp.where(usable, direction, scaled.direction),
                jnp.where(usable, jnp.maximum(scaled.curvature, size), scaled.curvature),
            )
            return (advance(key_move, state), scaled, root), None

        key_momentum, key_direction = jax.random.split(jax.random.fold_in(key, cfg.pilot_steps))
        direction = jax.random.normal(key_direction, start.shape, dtype)
        direction = direction / jnp.linalg.norm(direction)
        momentum = jax.random.normal(key_momentum, start.shape, dtype)
        state = State(start, momentum, direction, jnp.asarray(FIRST_STEP, dtype), jnp.zeros((), dtype))
        indices = jnp.arange(cfg.pilot_steps, dtype=jnp.uint32)
        first, rest = indices[: num_creep + num_explore], indices[num_creep + num_explore :]
        (state, second_moment), _ = jax.lax.scan(explore, (state, jnp.zeros_like(start)), first)
        if precond is None:
            (state, _), _ = jax.lax.scan(explore, (state, second_moment), rest)
            return state.curvature
        root = jnp.sqrt(precond.scale(second_moment))
        (_, scaled, _), _ = jax.lax.scan(measure, (state, Scaled(direction, jnp.zeros((), dtype)), root), rest)
        return scaled.curvature

    return program


def run_pilot(target: Target, cfg: StochasticGradientConfig, identity: int, posterior: Posterior) -> Pilot:
    """Choose the step size of `cfg` on `target`. Call inside `jax.enable_x64(...)`.

    The work is one Hessian-vector product per step, two and a batch's gradient where there is a preconditioner.
    """
    preconditioned = is_preconditioned(cfg)
    args = (
        np.uint32(cfg.seed),
        np.uint32(identity),
        numbers(cfg, preconditioning.ARGUMENTS if preconditioned else ()),
        *model_arguments(target, posterior, cfg.precision),
    )
    static = ("pilot", cfg.pilot_steps, cfg.slice_rows)
    if preconditioned:
        static += (cfg.precond, cfg.bias_correction, cfg.batch_size)
    program = compiled(
        (*static, target.loss, target.population),
        lambda: _make(cfg, target.loss, target.population),
        args,
        target.loss.strict,
    )
    start = time.perf_counter()
    curvature = float(jax.device_get(program.call(*args)))
    seconds = time.perf_counter() - start
    notes: tuple[str, ...] = ()
    if not (np.isfinite(curvature) and curvature > 0):
        notes = ("the pilot chain met no curvature, so its step size is pilot_c; give a step_size",)
        curvature = 1.0
    per_step = HVP_COST
    if preconditioned:
        fraction = 1.0 if cfg.batch_size is None or target.population else cfg.batch_size / target.num_data
        per_step = 1.5 * HVP_COST + 0.5 * fraction
    return Pilot(
        step_size=cfg.pilot_c / curvature,
        curvature=curvature,
        num_gradients=cfg.pilot_steps * 2,
        fge=cfg.pilot_steps * per_step,
        seconds_compile=program.seconds,
        seconds_sample=seconds,
        cache_hit=program.cache_hit,
        notes=notes,
    )
