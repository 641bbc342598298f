"""What was printed while one run was sampled: the lines of its rank's log that belong to it, every time it was tried.

A rank prints a line where a run ends; what stands between it and the line before is that run's, or that of all lanes of
its program.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lambda_hat.store import Store, read_events
from lambda_hat.studies import Key

_END = re.compile(r"\[rank \d+\] (?:run|build) (\S+): \w+ in [\d.]+ s\b")


class Attempt(NamedTuple):
    """One time that a rank took a run."""

    pack_id: str
    rank: int
    host: str
    begun: float
    """Seconds since the epoch."""
    status: str | None
    """As in the event `run_end`; None where there is none: it is being sampled, or its rank died."""
    seconds: float | None
    reason: str | None
    log: Path
    lines: list[str]


def attempts(store: Store, key: Key) -> list[Attempt]:
    """Every time that a rank took a run, the first one first."""
    word = key[1].encode()
    found: list[Attempt] = []
    for events_file in store.packs_dir.glob("pack_*/rank-*.jsonl"):
        try:
            # Parsing every event of a large store would take long.
            if word not in events_file.read_bytes():
                continue
        except OSError:
            continue
        found += _attempts_in(events_file, key)
    return sorted(found, key=lambda attempt: attempt.begun)


def _attempts_in(events_file: Path, key: Key) -> Iterator[Attempt]:
    log = events_file.with_suffix(".log")
    text = _lines_of(log)
    host, ends = "?", 0
    group: list[str] = []
    """Names of the runs that are begun together."""
    begun: tuple[int, float] | None = None
    """Rank and time, as long as the run has not ended."""

    def attempt(end: dict[str, Any]) -> Attempt:
        assert begun is not None
        lines = _section(text, "/".join(key), set(group), ends if end else None)
        status, seconds, reason = (end.get(name) for name in ("status", "seconds", "reason"))
        return Attempt(
            events_file.parent.name,
            begun[0],
            host,
            begun[1],
            None if status is None else str(status),
            float(seconds) if isinstance(seconds, (int, float)) else None,
            None if reason is None else str(reason),
            log,
            lines,
        )

    for event in read_events(events_file)[0]:
        kind, this = event["event"], (event.get("target_id"), event.get("run_id"))
        if kind == "start":
            host = str(event.get("host"))
        elif kind == "run_start":
            if not event.get("lane"):
                if begun is not None:
                    yield attempt({})
                    begun = None
                group = []
            group.append(f"{this[0]}/{this[1]}")
            if this == key:
                # One that is damaged tells neither.
                rank, moment = (event.get(name) for name in ("rank", "time"))
                begun = rank if type(rank) is int else 0, moment if isinstance(moment, (int, float)) else 0.0
        elif kind == "run_end" and this == key and begun is not None:
            yield attempt(event)
            begun, ends = None, ends + 1
    if begun is not None:
        yield attempt({})


def _lines_of(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _section(lines: list[str], name: str, group: set[str], number: int | None) -> list[str]:
    """The lines of a log for the `number`th end of a run; None: of one that has not ended. group: the runs that were
    sampled beside it."""
    ends = [(index, match[1]) for index, line in enumerate(lines) if (match := _END.match(line))]
    if number is None:
        last = max((index for index, item in ends if item not in group), default=-1)
        return lines[last + 1 :]
    own = [index for index, item in ends if item == name]
    if number >= len(own):
        return []
    earlier = (index for index, item in ends if index < own[number] and (item not in group or item == name))
    section = lines[max(earlier, default=-1) + 1 : own[number] + 1]
    # Where others of the group ended is their own affair.
    return [line for line in section if not (match := _END.match(line)) or match[1] == name]
