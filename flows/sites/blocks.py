"""The blocks that a scheduler holds for a study: what they wait for, and what became of them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flows.sites.interchange import InterchangeLost
from flows.sites.scheduler import SCHEDULERS
from flows.sites.site_schemas import BatchSite
from lambda_hat.errors import LambdaHatError, SchedulerError
from lambda_hat.store.heartbeat import Heartbeat

if TYPE_CHECKING:
    from parsl.executors.status_handling import BlockProviderExecutor

    from flows.sites.providers import BatchProvider

    class BatchExecutor(BlockProviderExecutor):
        """An executor of a batch site."""

        @property
        def provider(self) -> BatchProvider:
            """The provider of its blocks."""
            ...


MOST_NAMED = 2
"""At most so many waiting jobs are named beside the progress bar."""

FIRST_LOOK = 3.0
"""Seconds from a submission to the first question about it."""


class Progress(Protocol):
    """Where the news of blocks is shown while a study runs; a `StudyProgress`."""

    def note(self, what: str, text: str) -> None:
        """Show beside the bar of `what` what it waits for."""
        ...

    def event(self, sentence: str) -> None:
        """Print a line where there are no bars."""
        ...


class Blocks:
    """Watches the blocks of executors. `look` may be called often; it asks the scheduler every `poll_seconds`.

    say, log_event: take a sentence, and an event of the driver log with its fields. lease: keeps the jobs' ids.
    """

    def __init__(
        self,
        site: BatchSite,
        executors: Sequence[BatchExecutor],
        say: Callable[[str], None],
        lease: Heartbeat,
        log_event: Callable[..., None],
    ):
        self._site, self._executors, self._say, self._lease = site, executors, say, lease
        self._log_event = log_event
        self._scheduler = SCHEDULERS[site.kind]
        self._states: dict[str, str] = {}
        self._refused: set[tuple[str, str]] = set()
        self._told_lost: set[str] = set()
        self._next_look = float("inf")
        self.progress: Progress | None = None

    def look(self) -> None:
        """Say what is new. Raises SchedulerError, with the scheduler's words, where an executor gets no blocks."""
        known = len(self._states)
        for executor in self._executors:
            self._look_at(executor)
        if len(self._states) > known:
            self._note_jobs()
        if time.monotonic() >= self._next_look:
            self._ask()

    def lost(self, label: str) -> dict[str, Path]:
        """Jobs of an executor that ended without being given back, and the paths of their errors. Each is told once."""
        from parsl.jobs.states import JobState

        self._ask()
        found = {}
        for executor in self._executors:
            for job_id, block in list(executor.job_ids_to_block.items()) if executor.label == label else ():
                status = executor.status_facade.get(block)
                given_back = status is not None and status.state == JobState.SCALED_IN
                if self._states.get(job_id) == "ended" and not given_back and job_id not in self._told_lost:
                    self._told_lost.add(job_id)
                    found[job_id] = Path(executor.provider.resources[job_id]["job_stderr_path"])
        return found

    def cancel(self) -> None:
        """Cancel every job that has not ended.

        Parsl leaves the blocks of executors that it gave up, and those that it had no time to cancel.
        """
        submitted = [job_id for executor in self._executors for job_id in list(executor.job_ids_to_block)]
        for job_id in dict.fromkeys([*self._states, *submitted]):
            if self._states.get(job_id) != "ended":
                # The scheduler refuses a job that has just ended; the others go on being cancelled.
                with contextlib.suppress(LambdaHatError):
                    self._scheduler.cancel(job_id, self._name_of(job_id))

    def _note_jobs(self) -> None:
        """Keep the jobs in the lease. If this driver is killed, the next one cancels them."""
        self._lease.note_jobs(
            [
                {"scheduler": self._scheduler.name, "job_id": job_id, "name": self._name_of(job_id)}
                for job_id in self._states
            ]
        )

    def _name_of(self, job_id: str) -> str:
        """The job's name, which is that of its script, too."""
        for executor in self._executors:
            if job_id in executor.provider.resources:
                return Path(executor.provider.resources[job_id]["job_stderr_path"]).name.removesuffix(".stderr")
        return ""

    def _look_at(self, executor: BatchExecutor) -> None:
        for job_id in list(executor.job_ids_to_block):
            if job_id not in self._states:
                self._states[job_id] = "submitted"
                provider = executor.provider
                nodes = "1 node" if provider.nodes_per_block == 1 else f"{provider.nodes_per_block} nodes"
                self._event(f"job {job_id} submitted for {executor.label}: {nodes}, {provider.walltime}")
                what = {"scheduler": self._scheduler.title, "for": executor.label}
                what |= {"nodes": provider.nodes_per_block, "walltime": provider.walltime}
                self._log_event("job", job_id=job_id, state="submitted", **what)
                self._next_look = min(self._next_look, time.monotonic() + FIRST_LOOK)
        for block, status in list(executor.status_facade.items()):
            message = status.message or ""
            if not message.startswith("Failed to start block") or (executor.label, block) in self._refused:
                continue
            self._refused.add((executor.label, block))
            words = _words_of(message)
            if not executor.job_ids_to_block:
                raise SchedulerError(f"{self._scheduler.title} refused the block of {executor.label}: {words}")
            sentence = f"{self._scheduler.title} refused another block of {executor.label}: {words}"
            self._say(sentence)
            self._log_event("note", sentence=sentence)
        if executor.bad_state_is_set and not isinstance(executor.executor_exception, InterchangeLost):
            raise SchedulerError(
                f"{self._site.lost_blocks} blocks of {executor.label} failed one after the other: "
                f"{executor.executor_exception}; run the same command again to continue"
            )

    def _ask(self) -> None:
        self._next_look = time.monotonic() + self._site.poll_seconds
        live = [job_id for job_id, state in self._states.items() if state != "ended"]
        if not live:
            self._next_look = float("inf")
            return
        try:
            found = self._scheduler.queue(live)
        except LambdaHatError as error:
            # A job may have left the queue long ago, and a scheduler may be busy.
            found = {} if "Invalid job id" in str(error) else {job_id: self._states[job_id] for job_id in live}
        waiting = []
        for job_id in live:
            state = found.get(job_id, "ended")
            if state != self._states[job_id]:
                self._states[job_id] = state
                self._event(f"job {job_id}: {state}")
                self._log_event("job", job_id=job_id, state=state)
            if not state.startswith(("RUNNING", "ended")):
                waiting.append(f"job {job_id} {state}")
        if self.progress is not None:
            more = [f"and {len(waiting) - MOST_NAMED} more"] if len(waiting) > MOST_NAMED else []
            self.progress.note("packs", "  ".join(waiting[:MOST_NAMED] + more))

    def _event(self, sentence: str) -> None:
        if self.progress is not None:
            self.progress.event(sentence)


def _words_of(message: str) -> str:
    """The scheduler's own words, out of what Parsl says of a failed submission."""
    words = message.partition("stderr=")[2].strip() or message.partition("stdout=")[2].strip()
    return words or message
