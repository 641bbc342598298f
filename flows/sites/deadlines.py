"""When work has to stop: the margin at the end of an allocation, and the earliest of the ends that a pack knows.

Parsl's workers import this file, so it imports little.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping

from lambda_hat.errors import ConfigError
from lambda_hat.store.drain import earliest_deadline

BLOCK_END_VARIABLE = "LAMBDA_HAT_BLOCK_END"
BLOCK_SECONDS_VARIABLE = "LAMBDA_HAT_BLOCK_SECONDS"
"""Variables of a scheduler's block: when its walltime ends (seconds since the epoch), and how long it is."""

MARGIN = (10.0, 60.0)
"""Seconds kept back at the end of an allocation, at least and at most; in between a tenth of it. In this time ranks
checkpoint, the next job is submitted, and the table is written."""


def margin(seconds: float) -> float:
    """Seconds kept back at the end of an allocation of this length."""
    least, most = MARGIN
    return min(most, max(least, 0.1 * seconds))


def parse_deadline(text: str, now: float) -> float:
    """Seconds since the epoch of `1764000000`, `2026-11-25T18:00` (local time) or `+12:00:00` (from now).

    Raises ConfigError for another text, and for a time that is over.
    """
    from flows.sites.site_schemas import parse_walltime

    expected = "expected a time such as 2026-11-25T18:00, +12:00:00 from now, or seconds since the epoch"
    words = text.strip()
    try:
        if words.startswith("+"):
            when = now + parse_walltime("--deadline", words[1:])
        else:
            try:
                when = float(words)
            except ValueError:
                when = datetime.datetime.fromisoformat(words).timestamp()
    except (ValueError, OverflowError, OSError):
        raise ConfigError(f"--deadline: got {text!r}, {expected}") from None
    if not math.isfinite(when):
        raise ConfigError(f"--deadline: got {text!r}, {expected}")
    if when <= now:
        raise ConfigError(f"--deadline: got {text!r}, which is {now - when:.0f} s ago; {expected}")
    return when


def block_end_line(walltime_seconds: int) -> str:
    """The line of a block's script that sets the end of the block, by the clock of its first node."""
    end = f"{BLOCK_END_VARIABLE}=$(( $(date +%s) + {walltime_seconds} ))"
    return f"export {BLOCK_SECONDS_VARIABLE}={walltime_seconds} {end}"


def drain_period(walltime_seconds: int) -> int:
    """Seconds after which a block takes no new work. What is left beside the margin is hardly worth a start."""
    return max(1, int(walltime_seconds - 2 * margin(walltime_seconds)))


def deadline_in_allocation(own: float | None, environ: Mapping[str, str]) -> float | None:
    """When the ranks of a pack have to drain, in seconds since the epoch; None if nothing ends.

    It is the earliest of the pack's `own` deadline, the deadline in the environment, and the end of the block or job
    that the pack runs in, less the margin.

    Raises:
        ConfigError: the environment's deadline is not a number.
    """
    found = [earliest_deadline(own, environ), scheduler_deadline(environ)]
    end = _number(environ, BLOCK_END_VARIABLE)
    if end is not None:
        found.append(end - margin(_number(environ, BLOCK_SECONDS_VARIABLE) or math.inf))
    return min((when for when in found if when is not None), default=None)


def scheduler_deadline(environ: Mapping[str, str]) -> float | None:
    """The end of this process's job, less the margin, in seconds since the epoch.

    None if the scheduler does not tell it. SLURM does from 23.02.
    """
    end, begun = _number(environ, "SLURM_JOB_END_TIME"), _number(environ, "SLURM_JOB_START_TIME")
    if end is None:
        return None
    return end - margin(math.inf if begun is None else end - begun)


def _number(environ: Mapping[str, str], name: str) -> float | None:
    try:
        value = float(environ.get(name, ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None
