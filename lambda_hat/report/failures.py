"""Failures by reason, each with its record and the end of its process's log."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambda_hat.store.layout import Store, read_json_or_none
from lambda_hat.store.process_logs import log_of, tail_of

MOST_REASONS = 20
"""Most reasons that the page shows."""
MOST_NAMED = 5
"""Most runs that are named for one reason."""


@dataclass(frozen=True)
class Failure:
    """Runs that failed or are blocked for one reason."""

    status: str
    reason: str
    runs: list[str]
    """The first of them, as target/run."""
    count: int
    record: Path
    """The `error.json` of the first."""
    log: Path
    tail: str
    """The last lines of `log`; empty if it is gone."""
    traceback: str


def failures_of(store: Store, rows: Iterable[dict[str, Any]]) -> list[Failure]:
    """Group the failed and blocked rows of the table by reason, the most frequent first."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["status"] in ("failed", "blocked"):
            groups.setdefault((row["status"], _without_place(str(row["reason"]))), []).append(row)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    return [_failure(store, status, reason, group) for (status, reason), group in ordered]


def _failure(store: Store, status: str, reason: str, group: list[dict[str, Any]]) -> Failure:
    first = group[0]
    target_id, run_id = first["target_id"], first["run_id"]
    directory = store.run_dir(target_id, run_id) if status == "failed" else store.target_dir(target_id)
    log = log_of(store, directory)
    record = read_json_or_none(directory / "error.json")
    traceback = record.get("traceback") if isinstance(record, dict) else None
    return Failure(
        status=status,
        reason=reason,
        runs=[f"{row['target_id']}/{row['run_id']}" for row in group[:MOST_NAMED]],
        count=len(group),
        record=directory / "error.json",
        log=log,
        tail="\n".join(tail_of(log)),
        traceback=traceback if isinstance(traceback, str) else "",
    )


def _without_place(reason: str) -> str:
    """The reason without rank and host: runs that fail alike fail on many ranks."""
    return re.sub(r" \(rank \d+ on [^)]*\)$", "", reason)
