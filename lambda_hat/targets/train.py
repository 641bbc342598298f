"""Minima of a mean loss: Adam with a cosine decay, then L-BFGS on the full data."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from lambda_hat.config import TrainingConfig
from lambda_hat.errors import BuildFailed
from lambda_hat.targets.base import SLICE_ROWS, Loss, full_loss

CHECK_EVERY = 50
"""Adam steps between two full-data losses."""
MEMORY = 30
"""Pairs of steps that L-BFGS remembers: networks have long valleys, on which optax's 10 gain less per step."""
MAX_STALLED = 20
"""L-BFGS stops after this many steps without a lower loss: rounding has the upper hand."""

Params = dict[str, Array]


def train(
    loss: Loss, params: Params, data: dict[str, Array], cfg: TrainingConfig, key: Key[Array, ""]
) -> tuple[Params, dict[str, Any]]:
    """The point of least full-data loss that Adam and then L-BFGS meet from `params`, and how they ended (JSON-able).

    Raises BuildFailed where the loss becomes non-finite.
    """
    batch_size = None if cfg.batch_size is None or cfg.batch_size >= _rows(data) else cfg.batch_size
    adam = _adam(loss, batch_size, params, data, key, cfg.learning_rate, cfg.steps, cfg.patience, cfg.tolerance)
    steps = int(adam.step)
    if not jnp.isfinite(adam.loss):
        if steps == 0:
            raise BuildFailed("the loss is not finite before training; check sigma and the scales of data")
        raise BuildFailed(
            f"training diverged: the loss is not finite after {steps} Adam steps; lower training.learning_rate "
            f"(now {cfg.learning_rate:g})"
        )
    params, info = polish(loss, adam.best, data, cfg.polish_steps, cfg.grad_tolerance)
    adam_info = {
        "adam_steps": steps,
        "adam_stopped_by": "steps" if steps >= cfg.steps else "patience",
        "adam_loss": float(adam.best_loss),
    }
    return params, adam_info | info


def polish(
    loss: Loss, params: Params, data: dict[str, Array], steps: int, grad_tolerance: float
) -> tuple[Params, dict[str, Any]]:
    """The point of least full-data loss that at most `steps` L-BFGS steps meet from `params`, and how they ended.

    Raises BuildFailed where the loss at the start is not finite.
    """
    state = _lbfgs(loss, params, data, steps, grad_tolerance)
    value, gradient = _value_and_gradient(loss, state.best, data)
    largest = float(jnp.max(jnp.abs(jnp.concatenate([g.ravel() for g in gradient.values()]))))
    norm = float(optax.tree.norm(gradient))
    if not (math.isfinite(value) and math.isfinite(norm)):
        raise BuildFailed(f"the loss (now {float(value):g}) or its gradient is not finite where L-BFGS starts")
    if state.gradient <= grad_tolerance:
        stopped_by = "gradient"
    else:
        stopped_by = "steps" if state.step >= steps else "stalled"
    info = {
        "polish_steps": int(state.step),
        "polish_stopped_by": stopped_by,
        "train_loss": float(value),
        "grad_norm": norm,
        "grad_max": largest,
        "warnings": _warnings(norm, _rows(data)),
    }
    return state.best, info


def _warnings(grad_norm: float, n: int) -> list[str]:
    """A sentence where the slope at `w_star` is felt by the default posterior (beta = 1/log n, gamma = 1).

    Along a flat direction that posterior gains up to `(t |grad|)^2 / (2 gamma)` nats by leaving `w_star`; the bound
    on `t |grad|` is where that is .005.
    """
    slope = n / math.log(n) * grad_norm
    if slope <= 0.1:
        return []
    return [
        f"w_star is not a minimum: its gradient norm is {grad_norm:.2g}, {slope:.2g} in nats at beta = 1/log n "
        "(at most 0.1 is wanted); llc is biased downwards. Raise training.steps or training.polish_steps"
    ]


def _rows(data: dict[str, Array]) -> int:
    return len(next(iter(data.values())))


@partial(jax.jit, static_argnames="loss")
def _value_and_gradient(loss: Loss, params: Params, data: dict[str, Array]):
    return jax.value_and_grad(lambda p: full_loss(loss, p, data, SLICE_ROWS))(params)


class _Adam(NamedTuple):
    step: Int[Array, ""]
    params: Params
    moments: optax.OptState
    loss: Float[Array, ""]
    best: Params
    best_loss: Float[Array, ""]
    reference: Float[Array, ""]
    """The loss that has to be improved by `tolerance`, and the step at which it last was."""
    improved_at: Int[Array, ""]


@partial(jax.jit, static_argnames=("loss", "batch_size"))
def _adam(loss, batch_size, params, data, key, learning_rate, steps, patience, tolerance) -> _Adam:
    """Adam from `params`; the numbers are arguments, so that one program serves all settings."""
    optimizer = optax.scale_by_adam()

    def objective(params):
        return full_loss(loss, params, data, SLICE_ROWS)

    def gradient(params, step):
        if batch_size is None:
            return jax.grad(objective)(params)
        rows = jax.random.randint(jax.random.fold_in(key, step), (batch_size,), 0, _rows(data))
        return jax.grad(loss)(params, {name: array[rows] for name, array in data.items()})

    def update(step, carry):
        params, moments = carry
        direction, moments = optimizer.update(gradient(params, step), moments, params)
        rate = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), moments

    def improve(s: _Adam) -> _Adam:
        step = jnp.minimum(s.step + CHECK_EVERY, steps)
        params, moments = jax.lax.fori_loop(s.step, step, update, (s.params, s.moments))
        value = objective(params)
        is_best = value < s.best_loss
        is_better = value < s.reference * (1 - tolerance)
        return _Adam(
            step,
            params,
            moments,
            value,
            _where(is_best, params, s.best),
            jnp.where(is_best, value, s.best_loss),
            jnp.where(is_better, value, s.reference),
            jnp.where(is_better, step, s.improved_at),
        )

    def goes_on(s: _Adam) -> Bool[Array, ""]:
        return (s.step < steps) & (s.step - s.improved_at < patience) & jnp.isfinite(s.loss)

    value = objective(params)
    zero = jnp.zeros_like(steps)
    start = _Adam(zero, params, optimizer.init(params), value, params, value, value, zero)
    return jax.lax.while_loop(goes_on, improve, start)


class _Lbfgs(NamedTuple):
    step: Int[Array, ""]
    params: Params
    memory: optax.OptState
    gradient: Float[Array, ""]
    """Largest entry of the gradient at `params`."""
    best: Params
    best_loss: Float[Array, ""]
    stalled: Int[Array, ""]
    """Steps since the best loss."""


@partial(jax.jit, static_argnames="loss")
def _lbfgs(loss, params, data, steps, grad_tolerance) -> _Lbfgs:
    """L-BFGS with a zoom line search (Nocedal and Wright 2006) on the full data."""
    optimizer = optax.lbfgs(memory_size=MEMORY)

    def objective(params):
        return full_loss(loss, params, data, SLICE_ROWS)

    value_and_gradient = optax.value_and_grad_from_state(objective)

    def improve(s: _Lbfgs) -> _Lbfgs:
        value, gradient = value_and_gradient(s.params, state=s.memory)
        updates, memory = optimizer.update(gradient, s.memory, s.params, value=value, grad=gradient, value_fn=objective)
        params = optax.apply_updates(s.params, updates)
        value, gradient = value_and_gradient(params, state=memory)
        is_best = value < s.best_loss
        return _Lbfgs(
            s.step + 1,
            params,
            memory,
            optax.tree.norm(gradient, ord="inf"),
            _where(is_best, params, s.best),
            jnp.where(is_best, value, s.best_loss),
            jnp.where(is_best, 0, s.stalled + 1),
        )

    def goes_on(s: _Lbfgs) -> Bool[Array, ""]:
        return (s.step < steps) & (s.gradient > grad_tolerance) & (s.stalled < MAX_STALLED)

    value, gradient = jax.value_and_grad(objective)(params)
    zero = jnp.zeros_like(steps)
    start = _Lbfgs(zero, params, optimizer.init(params), optax.tree.norm(gradient, ord="inf"), params, value, zero)
    return jax.lax.while_loop(goes_on, improve, start)


def _where(condition: Bool[Array, ""], a: Params, b: Params) -> Params:
    return jax.tree.map(partial(jnp.where, condition), a, b)
