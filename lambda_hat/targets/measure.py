"""The measured cost of the loss and the gradient of a target, for losses whose cost does not follow from their shapes.

`lambda_hat/planning/cost.py` computes the cost of runs from it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lambda_hat.programs.compiling import compiled
from lambda_hat.targets.base import Loss, Target

MOST_ROWS = 256
"""Most rows of the batch that is measured: the default batch size of the samplers."""
LONG_ENOUGH = 0.03
"""Least seconds of a measurement. Arbitrary."""
WARM = 1.0
"""A first evaluation of more seconds than this counts, although it includes the start-up of the program."""
AGAIN = 3
"""Times that a measurement is repeated. The fastest counts, because disturbances only make it longer."""
MOST_REPEATS = 4096
"""Most evaluations in one measurement."""


def measure(target: Target, clock: Callable[[], float] = time.process_time) -> dict[str, float]:
    """Measure the cost of the loss and of the gradient of `target` on a batch in float32.

    Args:
        target: the target.
        clock: `time.process_time` counts core seconds, which other work on the machine hardly changes;
            `time.perf_counter` counts elapsed seconds. On a GPU it is always `time.perf_counter`.

    Returns:
        `gradient`: seconds per row of the gradient, or seconds in all if there are no data; `loss`: the cost of the
        loss as a fraction of that of the gradient, at most 1.
    """
    clock = clock if jax.default_backend() == "cpu" else time.perf_counter
    # The default precision of runs, whatever the caller computes in.
    with jax.enable_x64(False):
        trees = target.w_star, target.held, target.data
        params, held, data = ({k: jnp.asarray(_narrow(a)) for k, a in tree.items()} for tree in trees)
        rows = min(MOST_ROWS, max(target.num_data, 1))
        batch = data if target.population else target.loss.batch(jax.random.key(0), data, rows)
        gradient, loss = (_seconds(target.loss, what, clock, params, held, batch) for what in (True, False))
    return {"gradient": gradient / rows, "loss": min(loss / gradient, 1.0)}


def _narrow(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float32) if np.issubdtype(array.dtype, np.floating) else array


def _seconds(loss: Loss, gradient: bool, clock: Callable[[], float], params: dict, held: dict, batch: dict) -> float:
    """The seconds of one evaluation."""
    args = (params, held, batch, np.int32(1))
    run = compiled((__name__, loss, gradient), lambda: partial(_repeat, loss, gradient), args, strict=False).call

    def timed(repeats: int) -> float:
        begun = clock()
        jax.block_until_ready(run(params, held, batch, np.int32(repeats)))
        return max(clock() - begun, 1e-9)

    spent = timed(1)
    if spent > WARM:
        return spent
    repeats, spent = 1, timed(1)
    while spent < LONG_ENOUGH and repeats < MOST_REPEATS:
        repeats *= 4 if spent > LONG_ENOUGH / 16 else 16
        spent = timed(repeats)
    return min(spent, *(timed(repeats) for _ in range(AGAIN))) / repeats


def _repeat(loss: Loss, gradient: bool, params: dict, held: dict, batch: dict, repeats: Int[Array, ""]) -> dict:
    """Evaluate `repeats` times, each time at a point that depends on the last value, so that XLA can omit none."""

    def step(index: Int[Array, ""], params: dict) -> dict:
        keys = (jax.random.fold_in(jax.random.key(0), index),) if loss.stochastic else ()
        if gradient:
            found = jax.grad(lambda w: loss(held | w, batch, *keys))(params)
        else:
            value = loss(held | params, batch, *keys)
            found = jax.tree.map(lambda w: jnp.full_like(w, value), params)
        return jax.tree.map(lambda w, g: w + 1e-30 * g, params, found)

    return jax.lax.fori_loop(0, repeats, step, params)
