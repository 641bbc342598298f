"""The number of lanes at which a lane is cheapest, by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lambda_hat.engine.algorithm import Sampler
from lambda_hat.engine.chunks import Chunks
from lambda_hat.engine.run import Lane, Programs
from lambda_hat.errors import TooLarge

LADDER = 4
"""Factor from the lanes of one rung to those of the next. Arbitrary."""
WORTH = 0.9
"""A rung is taken where a lane costs at most this share of one on the rung below, since more lanes compile longer."""
SECONDS = 0.05
"""Least time of a measurement. Arbitrary."""


def best_width(sampler: Sampler, lanes: Sequence[Lane], memory: int | None, programs: Path | None) -> int:
    """The number of lanes at which a lane is about cheapest: 1, 4, 16, ... up to all of `lanes`.

    Kernels of varying cost get one lane: side by side, all would wait for the slowest at every transition. Call this
    inside `jax.enable_x64(...)`.

    Args:
        sampler: The sampler.
        lanes: Runs of equal `samplers.lane_key`.
        memory: Bytes that a program may take; None: not known.
        programs: The folder through which compiled programs are exchanged; None: there is none.
    """
    if not sampler.fixed_cost:
        return 1
    best, cost, width = 1, float("inf"), 1
    while width <= len(lanes):
        try:
            found = seconds_per_transition(sampler, lanes[:width], memory, programs)
        except TooLarge:
            break
        if found > WORTH * cost:
            break
        best, cost = width, found
        # The last rung is all lanes.
        width = min(LADDER * width, max(len(lanes), width + 1))
    return best


def seconds_per_transition(sampler: Sampler, lanes: Sequence[Lane], memory: int | None, shared: Path | None) -> float:
    """Seconds that one lane takes for a transition, with chains that are not adapted; compilation does not count.

    Raises:
        TooLarge: The lanes need more memory than there is.
    """
    cfg, programs = lanes[0].cfg, Programs(sampler, lanes, Chunks(lanes=len(lanes), memory=memory, programs=shared))
    # As if adaptation were over, so that no window ends.
    carry = programs.get("begin")()._replace(step=np.uint32(sampler.num_adapt(cfg)))
    total = cfg.num_steps
    advance = programs.loop(carry)
    steps, seconds, done = 1, 0.0, int(carry.step)
    # The first call warms up. The calls grow, and only the last one counts.
    while seconds < SECONDS and done < total:
        before, start = done, time.perf_counter()
        carry = advance(carry, np.uint32(min(done + steps, total)))
        done = int(carry.step)
        seconds = time.perf_counter() - start
        per_transition = seconds / max(done - before, 1) / len(lanes)
        if done == before:
            break
        steps *= 4
    return per_transition
