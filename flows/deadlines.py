"""When work has to stop: what is kept back of an allocation, and the earliest of the clocks that a pack knows.

Imported by Parsl's workers: standard library and the package's plain data only.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping

from lambda_hat.errors import ConfigError

DEADLINE_VARIABLE = "LAMBDA_HAT_DEADLINE"
"""Environment variable in which ranks find the time at which they drain: seconds since the epoch."""

BLOCK_END_VARIABLE = "LAMBDA_HAT_BLOCK_END"
BLOCK_SECONDS_VARIABLE = "LAMBDA_HAT_BLOCK_SECONDS"
"""Set at the start of a scheduler's block: when its walltime ends (seconds since the epoch), and how long it is."""

MARGIN = (10.0, 60.0)
"""Least and most that is kept back of an allocation, else a tenth of it: for the ranks to checkpoint, the next job to
be submitted, and the table to be written."""


def margin(seconds: float) -> float:
    """What is kept back of an allocation of this length."""
    least, most = MARGIN
    return min(most, max(least, 0.1 * seconds))


def parse_deadline(text: str, now: float) -> float:
    """Seconds since the epoch of `1764000000`, `2026-11-25T18:00` (local time) or `+12:00:00` (from now).

    Raises ConfigError for what is none of these, and for what is over.
    """
    from flows.sites import parse_walltime

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
    """The line of a block's script that says when the block ends, by the clock of its first node."""
    end = f"{BLOCK_END_VARIABLE}=$(( $(date +%s) + {walltime_seconds} ))"
    return f"export {BLOCK_SECONDS_VARIABLE}={walltime_seconds} {end}"


def drain_period(walltime_seconds: int) -> int:
    """Seconds after which a block takes no new work: the rest, beside the margin, would hardly be worth a start."""
    return max(1, int(walltime_seconds - 2 * margin(walltime_seconds)))


def earliest_deadline(own: float | None, environ: Mapping[str, str]) -> float | None:
    """When the ranks of a pack have to drain: its `own` deadline, one that was handed down, or the end of the block or
    job that it is in, less the margin; None where nothing ends."""
    found = [own, _number(environ, DEADLINE_VARIABLE), scheduler_deadline(environ)]
    end = _number(environ, BLOCK_END_VARIABLE)
    if end is not None:
        found.append(end - margin(_number(environ, BLOCK_SECONDS_VARIABLE) or math.inf))
    return min((when for when in found if when is not None), default=None)


def scheduler_deadline(environ: Mapping[str, str]) -> float | None:
    """The end of the job that this process is in, less the margin, where the scheduler tells it (SLURM from 23.02)."""
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
