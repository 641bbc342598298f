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
    host, ends = "?", 0
    group: list[Key] = []
    open_start: dict[str, Any] | None = None
    text = _lines_of(log)

    def attempt(end: dict[str, Any] | None) -> Attempt:
        assert open_start is not None
        lines = _section(text, key, group, ends if end is not None else None)
        status, seconds, reason = ((end or {}).get(name) for name in ("status", "seconds", "reason"))
        return Attempt(
            events_file.parent.name,
            int(open_start["rank"]),
            host,
            float(open_start["time"]),
            None if status is None else str(status),
            float(seconds) if isinstance(seconds, (int, float)) else None,
            None if reason is None else str(reason),
            log,
            lines,
        )

    for event in read_events(events_file)[0]:
        kind = event["event"]
        try:
            if kind == "start":
                host = str(event["host"])
            elif kind == "run_start":
                this = (event["target_id"], event["run_id"])
                if event.get("lane"):
                    group.append(this)
                else:
                    if open_start is not None:
                        yield attempt(None)
                        open_start = None
                    group = [this]
                if this == key:
                    open_start = event
            elif kind == "run_end" and (event["target_id"], event["run_id"]) == key and open_start is not None:
                yield attempt(event)
                open_start, ends = None, ends + 1
        except (KeyError, TypeError, ValueError):
            # A line that the disk has damaged.
            continue
    if open_start is not None:
        yield attempt(None)


def _lines_of(log: Path) -> list[str]:
    try:
        return log.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _section(lines: list[str], key: Key, group: list[Key], number: int | None) -> list[str]:
    """The lines of a log for the `number`th end of a run; None: of one that has not ended."""
    name, names = "/".join(key), {"/".join(each) for each in group}
    ends = [(index, match[1]) for index, line in enumerate(lines) if (match := _END.match(line))]
    if number is None:
        last = max((index for index, item in ends if item not in names), default=-1)
        return lines[last + 1 :]
    own = [index for index, item in ends if item == name]
    if number >= len(own):
        return []
    earlier = (index for index, item in ends if index < own[number] and (item not in names or item == name))
    before = max(earlier, default=-1)
    section = lines[before + 1 : own[number] + 1]
    # Of the other lanes' ends only what was printed is of interest, and the run's own line.
    return [line for line in section if not (match := _END.match(line)) or match[1] == name]
