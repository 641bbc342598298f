"""How a study stands: what the screens of `lambda-hat status` and `show` are made from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from lambda_hat.store.study_records import Key, StudyRecord

DriverState = Literal["alive", "silent", "died", "ended", "submitted", "none"]


class Driver(NamedTuple):
    """The driver of a study."""

    state: DriverState
    """alive; silent: no sign of life lately, so what it started may still be at work; died; ended: by itself;
    submitted: a job will be the driver, and has not begun; none: a pack was started without one."""
    status: int | None = None
    """Its exit status, where it ended."""
    reason: str | None = None
    """The error that ended it."""
    ended: float | None = None
    """When it ended (seconds since the epoch)."""
    silent_for: float = 0.0
    """Seconds since its last sign of life, where it is on another host."""
    at_work: bool = True
    """Where there is no driver: whether ranks are at work."""

    @property
    def over(self) -> bool:
        """Whether it will do nothing more."""
        return self.state in ("died", "ended") or not self.at_work


class Running(NamedTuple):
    """A run that is being sampled."""

    key: Key
    rank: int | None
    host: str
    seconds: float
    """Since it began."""
    expected: float
    """Seconds, without compilation."""


class Failure(NamedTuple):
    """A run that failed, or a target that could not be built."""

    key: Key
    """The run is empty for a target."""
    reason: str


class JobState(NamedTuple):
    """A job of the scheduler."""

    job_id: str
    scheduler: str
    label: str
    """tasks: builds and single runs; packs; packs_<site>: those of a further site."""
    nodes: int | None
    walltime: str
    state: str
    """In the scheduler's words."""
    since: float
    """When it was first in that state (seconds since the epoch)."""

    @property
    def runs(self) -> bool:
        """Whether the scheduler has started it."""
        return self.state.startswith("RUNNING")

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.state == "ended"


@dataclass(frozen=True)
class StudyStatus:
    """How one study stands."""

    record: StudyRecord
    driver: Driver
    note: str | None
    """The driver's last sentence, where it still holds."""
    next_job: str | None
    """The job that was submitted to go on after this driver."""
    jobs: list[JobState]
    """Jobs that have not ended."""
    targets: dict[str, int]
    """Counts of targets: built, failed, missing."""
    packs: dict[str, dict[str, int]]
    """Counts of packs by their sites: over, running, waiting. A single site has an empty name."""
    ranks_at_work: int
    ranks: int
    """Of running packs."""
    finished: int
    """Cached runs included."""
    failed: int
    blocked: int
    """Runs whose target could not be built."""
    running: list[Running]
    """The longest first."""
    waiting: dict[str, int]
    """Why runs wait, and how many for that reason."""
    failures: list[Failure]
    """Some targets, then some runs, the latest first."""
    runs_per_minute: float | None
    seconds_left: float | None
    left_out: dict[str, str] = field(default_factory=dict)
    """Nodes that the driver leaves out, and why."""

    @property
    def total(self) -> int:
        """Runs of the study."""
        return self.record.cached_runs + len(self.record.runs)
