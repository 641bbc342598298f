"""What a scheduler last said of the jobs of a study. It is asked once for all of them, and may be silent."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from flows.sites.scheduler import Scheduler
from lambda_hat.errors import LambdaHatError

SUBMITTED, ENDED = "submitted", "ended"
"""States of a job beside the scheduler's own: not asked about yet, and gone from the queue."""


@dataclass(frozen=True)
class Silence:
    """A scheduler that gives no answer."""

    since: float
    """Seconds since the epoch."""
    words: str
    """What its command said."""


class WatchedJobs:
    """The jobs of a study. The driver's thread and Parsl's share it.

    seconds: between two questions about a queue where nothing happens.
    """

    def __init__(self, scheduler: Scheduler, seconds: float):
        self._scheduler, self._seconds = scheduler, seconds
        self._lock = threading.Lock()
        self._question: threading.Thread | None = None
        self._asked = -float("inf")
        self.states: dict[str, str] = {}
        """What was last said of each job, in the scheduler's words."""
        self.silence: Silence | None = None
        """Set while the scheduler gives no answer. The states are those before that."""

    def add(self, job_id: str) -> None:
        """A job was submitted."""
        with self._lock:
            self.states.setdefault(job_id, SUBMITTED)

    def snapshot(self) -> dict[str, str]:
        """The states as they are now."""
        with self._lock:
            return dict(self.states)

    @property
    def live(self) -> list[str]:
        """Jobs that are not known to be gone."""
        with self._lock:
            return [job_id for job_id, state in self.states.items() if state != ENDED]

    def ask(self, patience: float | None = None) -> None:
        """Ask now. patience: seconds to wait for the answer, which is else taken when it comes."""
        with self._lock:
            if self._question is None or not self._question.is_alive():
                self._asked = time.monotonic()
                self._question = threading.Thread(target=self._ask, name="scheduler", daemon=True)
                self._question.start()
            question = self._question
        question.join(patience)

    def refresh(self) -> None:
        """Ask, unless that was done lately."""
        if time.monotonic() - self._asked > self._seconds / 2:
            self.ask()

    def is_silent(self, words: str) -> None:
        """A command did not reach the scheduler."""
        with self._lock:
            since = time.time() if self.silence is None else self.silence.since
            self.silence = Silence(since, words)

    def _ask(self) -> None:
        jobs = self.live
        found = {}
        try:
            if jobs:
                found = self._scheduler.queue(jobs)
        except LambdaHatError as error:
            self.is_silent(str(error))
            return
        with self._lock:
            self.silence = None
            self.states |= {job_id: found.get(job_id, ENDED) for job_id in jobs}
