"""The event logs of ranks: one fold turns their lines into the processes there were, and what each of them attempted.

Each rank appends to `rank-<number>.jsonl` in the folder of its pack. Events, each with its `time` in seconds since the
epoch: `start` (`size` of the pack, `host`, `pid`), `ready` (jax is imported; `host`), `refused` (`reason`),
`build_start` and `run_start` (`target_id`, `run_id`, and the `lane` of a run among those of one program), `build_end`
and `run_end` (the same names, and the fields of `Attempt` from `status` on), `width` (of a program), `let_go` (`runs`),
`drain` (`reason`) and `end` (seconds that it was `busy`, and `seconds` in all).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lambda_hat.store.files import read_events

Key = tuple[str, str]
"""Target and run."""
RANK_LOGS = "rank-*.jsonl"
LATEST = 4e9
"""Seconds since the epoch. A line with a later time is damaged."""


@dataclass(eq=False, slots=True)
class Attempt:
    """One time that a rank took a run, or a target to build."""

    life: RankLife
    key: Key
    """The run is empty for a build."""
    begun: float
    """Seconds since the epoch, like every time here."""
    group: list[Attempt]
    """The runs that are lanes of one program with it, itself included."""
    ended: float | None = None
    """None: it goes on, or its rank died. Where the line of its end is lost, the time of the rank's next step."""
    status: str | None = None
    """finished, failed, blocked, paused, left or elsewhere; None where no line tells its end."""
    seconds: float = 0.0
    reason: str | None = None
    verdict: str | None = None
    cached: bool = False
    """It was found finished."""
    advanced: bool = False
    """It was paused beyond its earlier checkpoint."""
    store_error: bool = False
    """It was left because the store could not be written; `reason` says why."""

    @property
    def until(self) -> float:
        """Its end; where there is none, as long as its process is known to have lived."""
        return max(self.begun, self.life.ended) if self.ended is None else self.ended


@dataclass(eq=False, slots=True)
class RankLife:
    """One process of a rank."""

    log: Path
    rank: int
    begun: float
    ended: float
    """When it was last heard of."""
    host: str = "?"
    pid: int | None = None
    size: int = 0
    """Ranks of its pack; 0 until it says so."""
    ready: float | None = None
    attempts: list[Attempt] = field(default_factory=list)
    refused: str | None = None
    """Why it did not start."""
    drained: str | None = None
    """Why it took nothing more."""
    let_go: list[list[Key]] = field(default_factory=list)
    """The runs that it let go of for another pack, each time that its driver asked."""
    over: bool = False
    """It has said that it is done."""
    busy: float | None = None
    """Seconds inside builds and runs, as it said at its end."""
    seconds: float | None = None
    """Seconds of its life, as it said at its end."""

    @property
    def in_flight(self) -> list[Attempt]:
        """What it has begun and not ended: several runs where they are lanes of one program."""
        group = self.attempts[-1].group if self.attempts else []
        return [attempt for attempt in group if attempt.ended is None]

    def leave(self, moment: float) -> None:
        """What is in flight is over, though no line says so."""
        for attempt in self.in_flight:
            attempt.ended = moment


def lives_of(log: Path) -> list[RankLife]:
    """The processes that wrote an event log."""
    lives: list[RankLife] = []
    for event in read_events(log)[0]:
        follow(lives, log, event)
    return lives


def follow(lives: list[RankLife], log: Path, event: dict[str, Any]) -> Attempt | None:
    """Fold one more event of a log into the processes that wrote it. Returns the attempt whose end it tells.

    A line that the disk has damaged is passed over: what it told is in the store.
    """
    try:
        moment = float(event["time"])
        if not 0 < moment < LATEST:
            return None
        if event["event"] == "start" or not lives:
            if lives:
                lives[-1].leave(lives[-1].ended)
            lives.append(RankLife(log, int(log.stem.removeprefix("rank-")), moment, moment))
        lives[-1].ended = max(lives[-1].ended, moment)
        # `ready` names the host as well, where the line of `start` is lost.
        if isinstance(event.get("host"), str):
            lives[-1].host = event["host"]
        return _take(lives[-1], event, moment)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


def _take(life: RankLife, event: dict[str, Any], moment: float) -> Attempt | None:
    kind = event["event"]
    if kind == "start":
        life.size = int(event["size"])
        life.pid = event["pid"] if type(event["pid"]) is int else None
    elif kind == "ready":
        life.ready = moment
    elif kind in ("build_start", "run_start"):
        key, group = _key_of(event), []
        if event.get("lane") and life.attempts:
            group = life.attempts[-1].group
        else:
            # The first lane begins a group. The one before has ended even if a line of that was lost.
            life.leave(moment)
        group.append(Attempt(life, key, moment, group))
        life.attempts.append(group[-1])
    elif kind in ("build_end", "run_end"):
        key = _key_of(event)
        known = (attempt for attempt in life.in_flight if attempt.key == key)
        attempt = next(known, None) or Attempt(life, key, moment, [])
        attempt.ended = moment
        attempt.status, attempt.seconds = str(event["status"]), float(event["seconds"])
        reason, verdict = event.get("reason"), event.get("verdict")
        attempt.reason = None if reason is None else str(reason)
        attempt.verdict = None if verdict is None else str(verdict)
        attempt.cached, attempt.advanced = event.get("cached") is True, event.get("advanced") is True
        attempt.store_error = event.get("store_error") is True
        return attempt
    elif kind == "let_go":
        life.let_go.append([(str(target_id), str(run_id)) for target_id, run_id in event["runs"]])
    elif kind == "refused":
        life.refused = str(event["reason"])
    elif kind == "drain":
        life.drained = str(event["reason"])
    elif kind == "end":
        life.leave(moment)
        life.over = True
        life.busy, life.seconds = float(event["busy"]), float(event["seconds"])
    return None


def _key_of(event: dict[str, Any]) -> Key:
    """Raises KeyError or TypeError."""
    run_id = event["run_id"] if event["event"].startswith("run") else ""
    if not isinstance(event["target_id"], str) or not isinstance(run_id, str):
        raise TypeError("names are strings")
    return event["target_id"], run_id


class PackLog:
    """What the ranks of one pack have written, read as it grows."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.size = 0
        """Ranks of the pack; 0 until one of them says so."""
        self.over = False
        """Every rank has said that it is done, or its driver says so. It is read once more then, and not again."""
        self.ends: dict[Key, Attempt] = {}
        """The last attempt at each run that ended in this pack."""
        self.changed = time.monotonic()
        """Monotonic time of the last news."""
        self._lives: dict[Path, list[RankLife]] = {}
        self._offsets: dict[Path, int] = {}
        self._settled = False

    def read(self) -> list[Attempt]:
        """Read what was written since the last call. Returns the runs that have ended since."""
        found: list[Attempt] = []
        if self._settled:
            return found
        self._settled = self.over
        for log in sorted(self.directory.glob(RANK_LOGS)):
            events, self._offsets[log] = read_events(log, self._offsets.get(log, 0))
            for event in events:
                self.changed = time.monotonic()
                attempt = follow(self._lives.setdefault(log, []), log, event)
                if attempt is not None and attempt.key[1]:
                    self.ends[attempt.key] = attempt
                    found.append(attempt)
        self.size = max((life.size for life in self.ranks), default=0)
        self.over |= 0 < self.size <= sum(life.over for life in self.ranks)
        return found

    @property
    def ranks(self) -> list[RankLife]:
        """The last process of every rank."""
        return [lives[-1] for lives in self._lives.values() if lives]

    @property
    def begun(self) -> bool:
        """Whether a rank has shown itself."""
        return bool(self._offsets)

    @property
    def running(self) -> bool:
        """Whether ranks have begun, and not all of them have ended."""
        return self.begun and not self.over

    @property
    def in_flight(self) -> dict[int, list[Key]]:
        """Rank to the runs that it has begun and not ended."""
        found = {life.rank: [attempt.key for attempt in life.in_flight if attempt.key[1]] for life in self.ranks}
        return {rank: keys for rank, keys in found.items() if keys}
