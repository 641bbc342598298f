"""What there is to say of a study while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from lambda_hat.studies import Key, StudyRecord

DriverState = Literal["alive", "silent", "died", "ended", "submitted", "none"]


class Driver(NamedTuple):
    """What is known of a study's driver."""

    state: DriverState
    """alive; silent: not heard of lately, what it started may still be at work; died; ended: by itself; submitted: a
    job is to be the driver, and has not begun; none: a pack was started by itself."""
    status: int | None = None
    """Its exit status, where it ended."""
    reason: str | None = None
    """Why it ended, where an error did it."""
    ended: float | None = None
    """When that was (seconds since the epoch)."""
    silent_for: float = 0.0
    """Seconds since its last sign of life, where it is on another host."""
    at_work: bool = True
    """Where there is none, whether something else is."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("died", "ended") or not self.at_work


class Running(NamedTuple):
    """A run that is being sampled."""

    key: Key
    rank: int | None
    host: str
    seconds: float
    """Since it was begun."""
    expected: float
    """Seconds, without compilation."""


class Failure(NamedTuple):
    """A run that failed, or a target that could not be built, and why in one line."""

    key: Key
    """Without a run for a target."""
    reason: str


class JobState(NamedTuple):
    """A job of a scheduler, and its words about it."""

    job_id: str
    scheduler: str
    label: str
    """What it is for: packs, or tasks, which are builds and single runs."""
    nodes: int | None
    walltime: str
    state: str
    since: float
    """When the state was first heard (seconds since the epoch)."""

    @property
    def runs(self) -> bool:
        return self.state.startswith("RUNNING")

    @property
    def ended(self) -> bool:
        return self.state == "ended"


@dataclass(frozen=True)
class StudyStatus:
    """How one study stands."""

    record: StudyRecord
    driver: Driver
    note: str | None
    """What the driver said last, where that still holds."""
    next_job: str | None
    """The job that was submitted to go on where this driver's time ran out."""
    jobs: list[JobState]
    """Those that have not ended."""
    targets: dict[str, int]
    """built, failed and missing ones."""
    packs: dict[str, int]
    """over, running and waiting ones."""
    ranks_at_work: int
    ranks: int
    """Of running packs."""
    finished: int
    """Cached ones included."""
    failed: int
    blocked: int
    """Their target could not be built."""
    running: list[Running]
    """Those that have run longest first."""
    waiting: dict[str, int]
    """Why runs wait, and how many of them."""
    failures: list[Failure]
    """Some targets, then some runs, the latest first."""
    runs_per_minute: float | None
    seconds_left: float | None

    @property
    def total(self) -> int:
        """Runs of the study."""
        return self.record.cached_runs + len(self.record.runs)
