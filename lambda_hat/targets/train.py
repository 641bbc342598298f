"""Minimise a mean loss: Adam with a cosine schedule, then L-BFGS on the full data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from lambda_hat.config import TrainingConfig
from lambda_hat.errors import BuildFailed
from lambda_hat.programs.compiling import call
from lambda_hat.targets.base import SLICE_ROWS, Arrays, Loss

CHECK_EVERY = 50
"""Adam steps between two evaluations of the loss on the full data."""
MEMORY = 30
"""Number of past steps that L-BFGS remembers. In the long valleys of networks, optax's default of 10 gains less per
step."""
MAX_STALLED = 20
"""L-BFGS stops after this many steps without a lower loss, because rounding then dominates."""

Params = dict[str, Array]


def train(
    loss: Loss,
    params: Params,
    data: Arrays,
    cfg: TrainingConfig,
    key: Key[Array, ""],
    programs: Path | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Minimise the loss by Adam and then L-BFGS, from `params`.

    Args:
        loss: the mean loss.
        params: the starting point.
        data: the full data.
        cfg: steps, learning rate, batch size and tolerances.
        key: random key of the minibatches.
        programs: the folder through which processes exchange compiled programs; None: there is none.

    Returns:
        The visited point of least loss on the full data, and JSON-able information about how both methods ended.

    Raises:
        BuildFailed: if the loss becomes non-finite.
    """
    batch_size = _batch_size(loss, data, cfg)
    numbers = (cfg.learning_rate, cfg.steps, cfg.patience, cfg.tolerance)
    adam = call(_adam, (loss, batch_size), programs, params, data, key, *numbers)
    steps = int(adam.step)
    if not jnp.isfinite(adam.loss):
        if steps == 0:
            raise BuildFailed("the loss is not finite before training; check sigma and the scales of data")
        raise BuildFailed(_diverged(steps, cfg))
    params, info = polish(loss, adam.best, data, cfg.polish_steps, cfg.grad_tolerance, programs)
    adam_info = {
        "adam_steps": steps,
        "adam_stopped_by": "steps" if steps >= cfg.steps else "patience",
        "adam_loss": float(adam.best_loss),
    }
    return params, adam_info | info


def checkpoints(
    loss: Loss,
    params: Params,
    data: Arrays,
    cfg: TrainingConfig,
    key: Key[Array, ""],
    steps: Sequence[int],
    programs: Path | None = None,
) -> list[Params]:
    """The parameters after each number of Adam steps in `steps`, with the schedule of `cfg` and no early stop.

    The other arguments are those of `train`.

    Raises:
        BuildFailed: if a parameter becomes non-finite.
    """
    batch_size = _batch_size(loss, data, cfg)
    found, carry, begin = [], (params, optax.scale_by_adam().init(params)), 0
    for step in steps:
        numbers = (cfg.learning_rate, cfg.steps, begin, step)
        carry = call(_adam_steps, (loss, batch_size), programs, carry, data, key, *numbers)
        begin = step
        if not all(jnp.all(jnp.isfinite(array)) for array in carry[0].values()):
            raise BuildFailed(_diverged(step, cfg))
        found.append(carry[0])
    return found


def _batch_size(loss: Loss, data: Arrays, cfg: TrainingConfig) -> int | None:
    return None if cfg.batch_size is None or cfg.batch_size >= loss.num_rows(data) else cfg.batch_size


def _diverged(step: int, cfg: TrainingConfig) -> str:
    return (
        f"training diverged: the loss is not finite after {step} Adam steps; lower training.learning_rate "
        f"(now {cfg.learning_rate:g})"
    )


def polish(
    loss: Loss,
    params: Params,
    data: Arrays,
    steps: int,
    grad_tolerance: float,
    programs: Path | None = None,
) -> tuple[Params, dict[str, Any]]:
    """Minimise the loss by at most `steps` steps of L-BFGS on the full data, from `params`.

    Args:
        loss: the mean loss.
        params: the starting point.
        data: the full data.
        steps: most steps.
        grad_tolerance: stop when no entry of the gradient is larger.
        programs: as for `train`.

    Returns:
        The visited point of least loss, and JSON-able information about how L-BFGS ended.

    Raises:
        BuildFailed: if the loss or its gradient is not finite.
    """
    state = call(_lbfgs, (loss,), programs, params, data, steps, grad_tolerance)
    end = slope(loss, state.best, data, programs)
    if not (math.isfinite(end["train_loss"]) and math.isfinite(end["grad_norm"])):
        raise BuildFailed(f"the loss (now {end['train_loss']:g}) or its gradient is not finite where L-BFGS starts")
    if state.gradient <= grad_tolerance:
        stopped_by = "gradient"
    else:
        stopped_by = "steps" if state.step >= steps else "stalled"
    info = {
        "polish_steps": int(state.step),
        "polish_stopped_by": stopped_by,
        **end,
        "warnings": _warnings(end["grad_norm"], loss.num_rows(data)),
    }
    return state.best, info


def slope(loss: Loss, params: Params, data: Arrays, programs: Path | None = None) -> dict[str, Any]:
    """The loss on the full data, and the Euclidean and maximum norms of its gradient, at a point. JSON-able."""
    value, gradient = call(_value_and_gradient, (loss,), programs, params, data)
    return {
        "train_loss": float(value),
        "grad_norm": float(optax.tree.norm(gradient)),
        "grad_max": float(jnp.max(jnp.abs(jnp.concatenate([g.ravel() for g in gradient.values()])))),
    }


def _warnings(grad_norm: float, n: int) -> list[str]:
    """A sentence if the gradient at `w_star` matters to the default posterior (t = n / log n, gamma = 1).

    Along a flat direction the log density can rise by `(t |grad|)^2 / (2 gamma)` nats above its value at `w_star`. The
    bound of .1 on `t |grad|` keeps this below .005 nats.
    """
    slope = n / math.log(n) * grad_norm
    if slope <= 0.1:
        return []
    return [
        f"w_star is not a minimum: its gradient norm is {grad_norm:.2g}, {slope:.2g} in nats at beta = 1/log n "
        "(at most 0.1 is wanted); llc is biased downwards. Raise training.steps or training.polish_steps"
    ]


def _value_and_gradient(loss: Loss, params: Params, data: Arrays):
    return jax.value_and_grad(lambda p: loss.full(p, data, SLICE_ROWS))(params)


class _Adam(NamedTuple):
    step: Int[Array, ""]
    params: Params
    moments: optax.OptState
    loss: Float[Array, ""]
    best: Params
    best_loss: Float[Array, ""]
    reference: Float[Array, ""]
    """The loss at the last step that improved it by `tolerance`."""
    improved_at: Int[Array, ""]
    """The step at which that was."""


def _adam_update(loss, batch_size, data, key, learning_rate, steps) -> Callable:
    """A function of a step and (params, moments) that makes one Adam step of the cosine schedule over `steps`."""
    optimizer = optax.scale_by_adam()

    def gradient(params, step):
        if batch_size is None:
            return jax.grad(lambda p: loss.full(p, data, SLICE_ROWS))(params)
        return jax.grad(loss)(params, loss.batch(jax.random.fold_in(key, step), data, batch_size))

    def update(step, carry):
        params, moments = carry
        direction, moments = optimizer.update(gradient(params, step), moments, params)
        rate = learning_rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps))
        return jax.tree.map(lambda p, d: p - rate * d, params, direction), moments

    return update


def _adam_steps(loss, batch_size, carry, data, key, learning_rate, steps, begin, end):
    """Make the Adam steps from `begin` to `end` of the cosine schedule over `steps`."""
    return jax.lax.fori_loop(begin, end, _adam_update(loss, batch_size, data, key, learning_rate, steps), carry)


def _adam(loss, batch_size, params, data, key, learning_rate, steps, patience, tolerance) -> _Adam:
    """Adam from `params`, until it is out of steps, or has had none with an improvement for `patience` steps."""
    update = _adam_update(loss, batch_size, data, key, learning_rate, steps)

    def objective(params):
        return loss.full(params, data, SLICE_ROWS)

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
    start = _Adam(zero, params, optax.scale_by_adam().init(params), value, params, value, value, zero)
    return jax.lax.while_loop(goes_on, improve, start)


class _Lbfgs(NamedTuple):
    step: Int[Array, ""]
    params: Params
    memory: optax.OptState
    gradient: Float[Array, ""]
    """The largest absolute entry of the gradient at `params`."""
    best: Params
    best_loss: Float[Array, ""]
    stalled: Int[Array, ""]
    """The number of steps since the best loss."""


def _lbfgs(loss, params, data, steps, grad_tolerance) -> _Lbfgs:
    """L-BFGS with a zoom line search (Nocedal and Wright 2006) on the full data."""
    optimizer = optax.lbfgs(memory_size=MEMORY)

    def objective(params):
        return loss.full(params, data, SLICE_ROWS)

    # optax says no more of its pytrees than that they may have leaves of any kind.
    value_and_gradient = cast(Callable[..., tuple[Array, Params]], optax.value_and_grad_from_state(objective))

    def improve(s: _Lbfgs) -> _Lbfgs:
        value, gradient = value_and_gradient(s.params, state=s.memory)
        updates, memory = optimizer.update(gradient, s.memory, s.params, value=value, grad=gradient, value_fn=objective)
        params = cast(Params, optax.apply_updates(s.params, updates))
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
