"""What the ranks of one pack have written so far, read as it grows."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambda_hat.store import read_events

Key = tuple[str, str]
"""Target and run."""


@dataclass
class PackLog:
    """The events of a pack's ranks. `read()` gives the `run_end` events that are new, and keeps count of the rest."""

    directory: Path
    processes: dict[tuple[str, int], int] = field(default_factory=dict)
    """Host and process id of each rank that has begun."""
    in_flight: dict[int, list[Key]] = field(default_factory=dict)
    """Rank to the runs that it has begun and not ended: several where they are lanes of one program."""
    ends: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """How each run ended in this pack."""
    begun_at: dict[Key, float] = field(default_factory=dict)
    """When each run was begun last (seconds since the epoch, by the clock of its host)."""
    building: dict[int, str] = field(default_factory=dict)
    """Rank to the target that it builds."""
    drains: dict[int, str] = field(default_factory=dict)
    """Rank to why it drained."""
    hosts: dict[int, str] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    """Ranks that are done."""
    changed: float = field(default_factory=time.monotonic)
    """Monotonic time of the last news."""
    _size: int | None = None
    _offsets: dict[Path, int] = field(default_factory=lambda: defaultdict(int))

    @property
    def begun(self) -> bool:
        """Whether a rank has shown itself."""
        return bool(self._offsets)

    @property
    def size(self) -> int:
        """Ranks of the pack; 0 as long as none has said it."""
        return self._size or 0

    @property
    def over(self) -> bool:
        """Whether every rank has said that it is done."""
        return self._size is not None and len(self.ended) >= self._size

    def read(self) -> Iterator[dict[str, Any]]:
        """Read what was written since the last call."""
        for log in sorted(self.directory.glob("rank-*.jsonl")):
            events, self._offsets[log] = read_events(log, self._offsets[log])
            for event in events:
                self.changed = time.monotonic()
                try:
                    news = self._take(event)
                except (KeyError, TypeError, ValueError):
                    # A line that the disk has damaged; what it told is in the store.
                    continue
                if news:
                    yield event

    def _take(self, event: dict[str, Any]) -> bool:
        kind, rank = event["event"], event["rank"]
        if kind == "start":
            self.processes[event["host"], event["pid"]] = rank
            self.hosts[rank] = event["host"]
            self._size = int(event["size"])
        elif kind == "run_start":
            key = (event["target_id"], event["run_id"])
            # The first lane begins a group, and ends the one before even if a line of that was lost.
            self.in_flight[rank] = [*self.in_flight.get(rank, ()), key] if event.get("lane") else [key]
            self.begun_at[key] = float(event["time"])
        elif kind == "run_end":
            key = (event["target_id"], event["run_id"])
            if key in self.in_flight.get(rank, ()):
                self.in_flight[rank].remove(key)
                if not self.in_flight[rank]:
                    del self.in_flight[rank]
            # Readers rely on both.
            self.ends[key] = event | {"status": str(event["status"]), "seconds": float(event["seconds"])}
            return True
        elif kind == "build_start":
            self.building[rank] = str(event["target_id"])
        elif kind == "build_end":
            self.building.pop(rank, None)
        elif kind == "drain":
            self.drains[rank] = str(event["reason"])
        elif kind == "end":
            self.ended.add(rank)
        return False

    def count(self, status: str) -> int:
        """Runs that ended so in this pack."""
        return sum(end["status"] == status for end in self.ends.values())

    @property
    def advanced(self) -> bool:
        """Whether a run finished, or got beyond its earlier checkpoint."""
        return any(
            (end["status"] == "finished" and not end.get("cached")) or end.get("advanced") is True
            for end in self.ends.values()
        )

    @property
    def store_error(self) -> str | None:
        """Why the store could not be written, where a run was left for that."""
        return next((str(end.get("reason")) for end in self.ends.values() if end.get("store_error") is True), None)
