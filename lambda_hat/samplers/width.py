"""How many lanes are worth while, by a short measurement."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lambda_hat.errors import TooLarge
from lambda_hat.samplers.base import Sampler
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.samplers.run import Lane, Programs

LADDER = 4
"""Lanes of a rung in units of the rung below."""
WORTH = 0.9
"""A rung is taken where a lane costs at most this of what it costs on the rung below: more lanes compile longer."""
SECONDS = 0.05
"""Least time of a measurement."""


def best_width(sampler: Sampler, lanes: Sequence[Lane], memory: int | None, programs: Path | None) -> int:
    """Lanes of a program at which one of them is about cheapest: 1, 4, 16, ... up to all of `lanes`.

    memory: bytes that a program may take; None: not known. Kernels of varying cost stay single: side by side all pay
    for the slowest of every transition. Call inside `jax.enable_x64(...)`.
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
        # The last rung is all of them.
        width = min(LADDER * width, max(len(lanes), width + 1))
    return best


def seconds_per_transition(sampler: Sampler, lanes: Sequence[Lane], memory: int | None, shared: Path | None) -> float:
    """Of one lane, the chains not adapted; compiled if need be, and not counted."""
    cfg, programs = lanes[0].cfg, Programs(sampler, lanes, Chunks(lanes=len(lanes), memory=memory, programs=shared))
    begun = programs.get("begin")()
    carry = programs.get("settle", begun)(begun)
    total = cfg.num_steps - sampler.num_adapt(cfg)
    advance = programs.loop("advance", carry, total)
    steps, seconds, done = 1, 0.0, 0
    # The first call warms up; the last one of those that grow is long enough to tell.
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
