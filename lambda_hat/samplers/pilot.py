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

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt

from lambda_hat.config import SgldConfig, StochasticGradientConfig
from lambda_hat.samplers import precond as preconditioning
from lambda_hat.samplers.base import HVP_COST, Model
from lambda_hat.samplers.chains import PILOT_STREAM, Lanes, Numbers, TargetSpec, base_key
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.samplers.precond import preconditioner
from lambda_hat.samplers.run import Lane, numbers_of, target_spec

FIRST_STEP = 1e-10
"""First eps, in units of w^2. Arbitrary: small beside any scale of w that a float32 run could resolve."""
STABILITY = 0.5
"""The pilot's own eps times the largest curvature so far; its leapfrog is stable below 4."""
LEAST_FRICTION = 0.03
"""Fraction of the momentum lost per step where the localisation asks for less. Arbitrary."""
MIXING = 0.1
"""Share of noise in the power iteration's vector: without it an eigenvector that is no longer the top one is kept."""
EXPLORE, MEASURE = "explore", "measure"
"""Phases of a run, as a checkpoint names them."""
FOUND = "curvature"
"""Where a checkpoint of a later phase keeps what the pilot has found."""


class Pilot(NamedTuple):
    """What the pilot found, and the work that it took."""

    step_size: float
    curvature: float
    """h, in the metric of the preconditioner."""
    num_gradients: int
    fge: float
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


class Exploring(NamedTuple):
    """The pilot chain in its first half, or all the way where there is no preconditioner."""

    step: UInt[Array, ""]
    state: State
    second_moment: Float[Array, " dim"]
    """Of the loss gradient, averaged once the step has grown."""


class Measuring(NamedTuple):
    """The pilot chain in its second half, in the metric of the preconditioner."""

    step: UInt[Array, ""]
    state: State
    scaled: Scaled
    root: Float[Array, " dim"]
    """Square root of the preconditioner."""


def is_preconditioned(cfg: StochasticGradientConfig) -> bool:
    """Whether the run moves in the metric of a preconditioner."""
    return isinstance(cfg, SgldConfig) and cfg.precond != "none"


def _power_step(key, direction, product):
    """Norm of `H u`, which bounds the top curvature from below, and the next unit vector."""
    size = jnp.linalg.norm(product)
    noise = jax.random.normal(key, direction.shape, direction.dtype) / np.sqrt(direction.size)
    mixed = jnp.where(size > 0, product / size, direction) + MIXING * noise
    return size, mixed / jnp.linalg.norm(mixed)


class PilotChain:
    """The programs of pilots, one a lane; `explore` and `measure` can stop after any step."""

    def __init__(self, cfg: StochasticGradientConfig, target: TargetSpec):
        self._cfg, self._target = cfg, target
        self._num_creep = cfg.pilot_steps // 4
        self.num_explore = cfg.pilot_steps // 2 if is_preconditioned(cfg) else cfg.pilot_steps

    def begin(self, numbers: Numbers) -> Exploring:
        """At `w_star`, with the first step size."""

        def of_lane(model: Model, arguments, key):
            start = model.w_star
            key_momentum, key_direction = jax.random.split(jax.random.fold_in(key, self._cfg.pilot_steps))
            momentum = jax.random.normal(key_momentum, start.shape, start.dtype)
            first_step = jnp.asarray(FIRST_STEP, start.dtype)
            state = State(start, momentum, _unit_vector(key_direction, start), first_step, jnp.zeros((), start.dtype))
            return state, jnp.zeros_like(start)

        return Exploring(jnp.zeros((), jnp.uint32), *self._lanes(numbers).map(of_lane, _keys(numbers)))

    def explore(self, numbers: Numbers, carry: Exploring, upto: UInt[Array, ""]) -> Exploring:
        """Move, and average the squared loss gradients that the run's preconditioner will see."""
        lanes, keys, cfg, num_creep = self._lanes(numbers), _keys(numbers), self._cfg, self._num_creep
        seen = cfg.pilot_steps // 2 - num_creep

        def step(index, now):
            def of_lane(model: Model, arguments, key, state: State, second_moment):
                key_move, key_batch = jax.random.split(jax.random.fold_in(key, index))
                if is_preconditioned(cfg):
                    g = model.loss_gradient(key_batch, state.w, cfg.batch_size)
                    squared = jnp.where(jnp.all(jnp.isfinite(g)), g**2, 0) / seen
                    second_moment = second_moment + jnp.where(index < num_creep, jnp.zeros_like(squared), squared)
                return self._move(model, key_move, state), second_moment

            return lanes.map(of_lane, keys, *now)

        return Exploring(upto, *jax.lax.fori_loop(carry.step, upto, step, (carry.state, carry.second_moment)))

    def turn(self, numbers: Numbers, carry: Exploring) -> Measuring:
        """From exploring to measuring."""

        def of_lane(model: Model, arguments, key, state: State, second_moment):
            _, key_direction = jax.random.split(jax.random.fold_in(key, self._cfg.pilot_steps))
            w = state.w
            scaled = Scaled(_unit_vector(key_direction, w), jnp.zeros((), w.dtype))
            precond = preconditioner(self._cfg, arguments)
            return state, scaled, jnp.sqrt(precond.scale(second_moment))

        turned = self._lanes(numbers).map(of_lane, _keys(numbers), carry.state, carry.second_moment)
        return Measuring(carry.step, *turned)

    def measure(self, numbers: Numbers, carry: Measuring, upto: UInt[Array, ""]) -> Measuring:
        """Move, and follow the curvature in the metric of the preconditioner."""
        lanes, keys = self._lanes(numbers), _keys(numbers)

        def step(index, now):
            def of_lane(model: Model, arguments, key, root, state: State, scaled: Scaled):
                key_move, key_power = jax.random.split(jax.random.fold_in(key, index))
                _, product = jax.jvp(jax.grad(model.potential), (state.w,), (root * scaled.direction,))
                size, direction = _power_step(key_power, scaled.direction, root * product)
                usable = jnp.isfinite(size)
                scaled = Scaled(
                    jnp.where(usable, direction, scaled.direction),
                    jnp.where(usable, jnp.maximum(scaled.curvature, size), scaled.curvature),
                )
                return self._move(model, key_move, state), scaled

            return lanes.map(of_lane, keys, carry.root, *now)

        state, scaled = jax.lax.fori_loop(carry.step, upto, step, (carry.state, carry.scaled))
        return Measuring(upto, state, scaled, carry.root)

    def _lanes(self, numbers: Numbers) -> Lanes:
        return Lanes(self._target, self._cfg.slice_rows, numbers)

    def _move(self, model: Model, key: Array, state: State) -> State:
        start, dtype = model.w_star, model.w_star.dtype
        growth = FIRST_STEP ** (-1 / self._num_creep)
        key_power, key_noise = jax.random.split(key)
        g, product = jax.jvp(jax.grad(model.potential), (state.w,), (state.direction,))
        size, direction = _power_step(key_power, state.direction, product)
        usable = jnp.isfinite(size) & jnp.all(jnp.isfinite(g))
        curvature = jnp.where(usable, jnp.maximum(state.curvature, size), state.curvature)
        eps = jnp.where(usable, jnp.minimum(growth * state.eps, STABILITY / curvature), 0.01 * state.eps)
        step = jnp.sqrt(eps)
        friction = jnp.maximum(LEAST_FRICTION, step * jnp.sqrt(model.posterior.gamma))
        noise = jax.random.normal(key_noise, start.shape, dtype)
        kept = jnp.exp(-friction)
        momentum = kept * state.momentum + jnp.sqrt(1 - kept**2) * noise - step * g
        # Where the chain overflowed it starts again from w_star with a much smaller step.
        momentum = jnp.where(usable, momentum, noise)
        w = jnp.where(usable, state.w + step * momentum, start)
        return State(w, momentum, jnp.where(usable, direction, noise / jnp.linalg.norm(noise)), eps, curvature)


def _keys(numbers: Numbers) -> Array:
    """Of every lane."""
    return jax.vmap(partial(base_key, stream=PILOT_STREAM))(numbers.seed, numbers.identity)


def _unit_vector(key: Array, like: Float[Array, " dim"]) -> Float[Array, " dim"]:
    vector = jax.random.normal(key, like.shape, like.dtype)
    return vector / jnp.linalg.norm(vector)


def run_pilots(lanes: Sequence[Lane], chunks: Chunks) -> list[Pilot]:
    """Choose the step size of every lane. Call inside `jax.enable_x64(...)`.

    The work is one Hessian-vector product per step, two and a batch's gradient where there is a preconditioner.
    """
    if FOUND not in chunks.facts[0]:
        for facts, curvature in zip(chunks.facts, _curvatures(lanes, chunks), strict=True):
            facts[FOUND] = curvature
    return [_pilot(lane, facts[FOUND]) for lane, facts in zip(lanes, chunks.facts, strict=True)]


def _pilot(lane: Lane, curvature: float) -> Pilot:
    cfg, target = lane.cfg, lane.target
    notes: tuple[str, ...] = ()
    if not (np.isfinite(curvature) and curvature > 0):
        notes = ("the pilot chain met no curvature, so its step size is pilot_c; give a step_size",)
        curvature = 1.0
    per_step = HVP_COST
    if is_preconditioned(cfg):
        fraction = 1.0 if cfg.batch_size is None or target.population else cfg.batch_size / target.num_data
        per_step = 1.5 * HVP_COST + 0.5 * fraction
    return Pilot(
        step_size=cfg.pilot_c / curvature,
        curvature=curvature,
        num_gradients=cfg.pilot_steps * 2,
        fge=cfg.pilot_steps * per_step,
        notes=notes,
    )


def _curvatures(lanes: Sequence[Lane], chunks: Chunks) -> list[float]:
    cfg, shared = lanes[0].cfg, target_spec(lanes)
    preconditioned = is_preconditioned(cfg)
    numbers = jax.device_put(numbers_of(lanes, preconditioning.ARGUMENTS if preconditioned else ()))
    chain = PilotChain(cfg, shared)
    static = ("pilot", cfg.pilot_steps, cfg.slice_rows)
    if preconditioned:
        static += (cfg.precond, cfg.bias_correction, cfg.batch_size)

    def program(name: str, *args, donate: tuple[int, ...] = ()) -> Callable:
        make = partial(getattr, chain, name)
        return chunks.program((*static, name, shared), make, (numbers, *args), shared.loss.strict, donate)

    def loop(name: str, phase: str, carry, total: int):
        advance = program(name, carry, np.uint32(total), donate=(1,))
        return chunks.drive(phase, partial(advance, numbers), carry, total)

    def shapes() -> Exploring:
        return jax.eval_shape(chain.begin, numbers)

    measuring = chunks.restore(MEASURE, lambda: jax.eval_shape(chain.turn, numbers, shapes()))
    if measuring is None:
        exploring = chunks.restore(EXPLORE, shapes)
        if exploring is None:
            exploring = program("begin")(numbers)
        exploring = loop("explore", EXPLORE, exploring, chain.num_explore)
        if not preconditioned:
            return exploring.state.curvature.tolist()
        measuring = program("turn", exploring)(numbers, exploring)
    measuring = loop("measure", MEASURE, measuring, cfg.pilot_steps)
    return measuring.scaled.curvature.tolist()
