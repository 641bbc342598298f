"""The blocks that a scheduler holds for a study: what they wait for, and what became of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flows.sites.interchange import InterchangeLost
from flows.sites.providers import watched_jobs
from flows.sites.scheduler import SCHEDULERS
from flows.sites.site_schemas import BatchSite, asked_for
from flows.sites.steady_providers import is_unanswered
from flows.sites.watched_jobs import ENDED, SUBMITTED, WatchedJobs
from lambda_hat.errors import LambdaHatError, SchedulerError, SchedulerSilent
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
PATIENCE = 2.0
"""Seconds that the driver waits for an answer before it goes on without."""
END_SECONDS = 20.0
"""Seconds for a block that was given back to end by itself; after that it is cancelled. It looks every second whether
it is given back, and then removes its temporary files."""
NEVER, NEVER_SECONDS = "Can Never Run", 600.0
"""What PBS says of a job that asks for more than the cluster has. Nodes that are down for a moment count as none, so a
block is given up only after so many seconds."""


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

    say, log_event: take a sentence, and an event of the driver log with its fields. lease: keeps the jobs' ids, and
    tells blocks that they are given back. jobs: what the executors' providers watch, too. sites: by their labels, those
    of executors on another site than `site`.
    """

    def __init__(
        self,
        site: BatchSite,
        executors: Sequence[BatchExecutor],
        say: Callable[[str], None],
        lease: Heartbeat,
        log_event: Callable[..., None],
        jobs: WatchedJobs | None = None,
        sites: Mapping[str, BatchSite] | None = None,
    ):
        self._sites = sites or {}
        self._site, self._executors, self._say, self._lease = site, executors, say, lease
        self._log_event = log_event
        self._scheduler = SCHEDULERS[site.kind]
        self._jobs = watched_jobs(site) if jobs is None else jobs
        self._told: dict[str, str] = {}
        """The state of each job that was last told."""
        self._given_back: dict[str, float] = {}
        """When jobs were told to end by themselves."""
        self._never: dict[str, float] = {}
        """Since when the scheduler says of jobs that they can never run."""
        self._silent_since: float | None = None
        self._refused: set[tuple[str, str]] = set()
        self._told_lost: set[str] = set()
        self._next_look = float("inf")
        self.progress: Progress | None = None
        for executor in executors:
            executor.provider.give_back = self._give_back

    def look(self) -> None:
        """Say what is new. Raises SchedulerError, with the scheduler's words, where an executor gets no blocks."""
        known = len(self._told)
        for executor in self._executors:
            self._look_at(executor)
        if len(self._told) > known:
            self._note_jobs()
        if time.monotonic() >= self._next_look:
            self._ask()
        self._tell()
        self._give_up_never()

    def lost(self, label: str) -> dict[str, Path]:
        """Jobs of an executor that ended without being given back, and the paths of their errors. Each is told once."""
        from parsl.jobs.states import JobState

        self._ask()
        self._tell()
        found = {}
        for executor, job_id, block in self._all_blocks(label):
            status = executor.status_facade.get(block)
            given_back = status is not None and status.state == JobState.SCALED_IN
            over = self._told.get(job_id, "").startswith((ENDED, "EXITING"))
            if over and not given_back and job_id not in self._told_lost:
                self._told_lost.add(job_id)
                found[job_id] = Path(executor.provider.resources[job_id]["job_stderr_path"])
        return found

    def stopped(self, label: str) -> list[str]:
        """What the scheduler says of the jobs of an executor whose processes it has stopped."""
        states = {job_id: self._told.get(job_id, "") for _, job_id, _ in self._all_blocks(label)}
        return [f"job {job_id}: {state}" for job_id, state in states.items() if state.startswith("SUSPENDED")]

    def cancel(self) -> None:
        """Cancel every job that has not ended, once those that were given back have had time to end by themselves.

        Parsl leaves the blocks of executors that it gave up, and those that it had no time to cancel. What cannot be
        cancelled is told, and stays in the lease: the next driver cancels it.
        """
        deadline = time.monotonic() + END_SECONDS
        while self._given_back.keys() & set(self._jobs.live) and time.monotonic() < deadline:
            self._jobs.ask()
            if self._jobs.silence is not None:
                break
            time.sleep(0.5)
        left, silence = [], None
        for job_id in self._not_gone():
            job = {"scheduler": self._scheduler.name, "job_id": job_id, "name": self._name_of(job_id)}
            try:
                if silence is not None:
                    raise silence
                self._scheduler.cancel(job_id, job["name"])
            except LambdaHatError as error:
                # Each further question would take a minute.
                silence = error if isinstance(error, SchedulerSilent) else None
                left.append(job)
                end = self._scheduler.end_command(job_id)
                self._say(f"job {job_id} could not be cancelled: {error}; to end it: {end}; the next start tries again")
        self._lease.note_left(left)

    def _not_gone(self) -> list[str]:
        """Jobs to cancel: those that have not ended, and what is in the queue of those that were said to have."""
        states = self._jobs.snapshot()
        found = dict.fromkeys([*self._told, *(job_id for _, job_id, _ in self._all_blocks())])
        ended = [job_id for job_id in found if states.get(job_id) == ENDED]
        try:
            there = self._scheduler.queue(ended) if ended else {}
        except LambdaHatError:
            # It was the scheduler itself that said so.
            there = {}
        return [job_id for job_id in found if states.get(job_id) != ENDED or job_id in there]

    def _all_blocks(self, label: str | None = None) -> Iterable[tuple[BatchExecutor, str, str]]:
        for executor in self._executors:
            if label in (None, executor.label):
                for job_id, block in list(executor.job_ids_to_block.items()):
                    yield executor, job_id, block

    def _give_back(self, job_ids: list[str]) -> None:
        self._given_back |= dict.fromkeys(job_ids, time.monotonic())
        self._lease.give_back(job_ids)

    def _note_jobs(self) -> None:
        """Keep the jobs in the lease. If this driver is killed, the next one cancels them."""
        self._lease.note_jobs(
            [
                {"scheduler": self._scheduler.name, "job_id": job_id, "name": self._name_of(job_id)}
                for job_id in self._told
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
            if job_id not in self._told:
                self._jobs.add(job_id)
                self._told[job_id] = SUBMITTED
                provider = executor.provider
                nodes = "1 node" if provider.nodes_per_block == 1 else f"{provider.nodes_per_block} nodes"
                self._event(f"job {job_id} submitted for {executor.label}: {nodes}, {provider.walltime}")
                what = {"scheduler": self._scheduler.title, "for": executor.label}
                what |= {"nodes": provider.nodes_per_block, "walltime": provider.walltime}
                self._log_event("job", job_id=job_id, state=SUBMITTED, **what)
                self._next_look = min(self._next_look, time.monotonic() + FIRST_LOOK)
        for block, status in list(executor.status_facade.items()):
            message = status.message or ""
            if not message.startswith("Failed to start block") or (executor.label, block) in self._refused:
                continue
            self._refused.add((executor.label, block))
            if is_unanswered(message):
                # Parsl submits no more until the scheduler answers.
                self._next_look = min(self._next_look, time.monotonic() + self._site.poll_seconds)
                continue
            words = _words_of(message)
            self._say(f"the block of {executor.label} asked for {self._asked_for(executor)}")
            if not executor.job_ids_to_block:
                raise SchedulerError(f"{self._scheduler.title} refused the block of {executor.label}: {words}")
            self._say_and_note(f"{self._scheduler.title} refused another block of {executor.label}: {words}")
        if executor.bad_state_is_set and not isinstance(executor.executor_exception, InterchangeLost):
            raise SchedulerError(
                f"{self._site_of(executor).lost_blocks} blocks of {executor.label} failed one after the other: "
                f"{executor.executor_exception}; run the same command again to continue"
            )

    def _ask(self) -> None:
        """Ask for the states of all jobs. An answer that takes long is told when it has come."""
        live = self._jobs.live
        self._next_look = time.monotonic() + self._site.poll_seconds
        if not live and self._jobs.silence is None:
            self._next_look = float("inf")
            return
        self._jobs.ask(PATIENCE)
        for job_id in live:
            if time.monotonic() - self._given_back.get(job_id, float("inf")) > END_SECONDS:
                self._cancel_stuck(job_id)

    def _cancel_stuck(self, job_id: str) -> None:
        """Cancel a block that was given back and has not ended."""
        try:
            self._scheduler.cancel(job_id, self._name_of(job_id))
        except LambdaHatError as error:
            self._say_and_note(f"job {job_id} was given back and could not be cancelled: {error}")

    def _tell(self) -> None:
        """Tell what has changed since the last look."""
        states, waiting = self._jobs.snapshot(), []
        for job_id, state in states.items():
            if job_id not in self._told:
                continue
            if state != self._told[job_id]:
                self._told[job_id] = state
                self._event(f"job {job_id}: {state}")
                self._log_event("job", job_id=job_id, state=state)
            if not state.startswith(("RUNNING", ENDED, SUBMITTED)):
                waiting.append(f"job {job_id} {state}")
        self._tell_silence()
        if self.progress is not None:
            more = [f"and {len(waiting) - MOST_NAMED} more"] if len(waiting) > MOST_NAMED else []
            if self._silent_since is not None:
                more.append(f"no answer from {self._scheduler.title} since {_clock(self._silent_since)}")
            self.progress.note("packs", "  ".join(waiting[:MOST_NAMED] + more))

    def _tell_silence(self) -> None:
        silence, title = self._jobs.silence, self._scheduler.title
        if silence is not None and self._silent_since is None:
            self._silent_since = silence.since
            words = " ".join(silence.words.split())
            self._say_and_note(
                f"{title} has given no answer since {_clock(silence.since)} ({words}): it is asked again every "
                f"{self._site.poll_seconds} s, and until then jobs count as what they were"
            )
        elif silence is None and self._silent_since is not None:
            self._say_and_note(f"{title} answers again, after {time.time() - self._silent_since:.0f} s")
            self._silent_since = None

    def _give_up_never(self) -> None:
        """Raise SchedulerError where all blocks of an executor wait for what the cluster does not have."""
        for executor in self._executors:
            states = {job_id: self._told.get(job_id, "") for job_id in list(executor.job_ids_to_block)}
            live = {job_id: state for job_id, state in states.items() if state != ENDED}
            for job_id in states:
                if NEVER not in live.get(job_id, ""):
                    self._never.pop(job_id, None)
            since = [self._never.setdefault(job, time.monotonic()) for job, state in live.items() if NEVER in state]
            if not live or len(since) < len(live) or time.monotonic() - max(since) < NEVER_SECONDS:
                continue
            job_id, state = next(iter(live.items()))
            self._say(f"the block of {executor.label} asked for {self._asked_for(executor)}")
            raise SchedulerError(
                f"{self._scheduler.title} has said for {NEVER_SECONDS:.0f} s of job {job_id}, the block of "
                f"{executor.label}: {state}; it was given up"
            )

    def _site_of(self, executor: BatchExecutor) -> BatchSite:
        return self._sites.get(executor.label, self._site)

    def _asked_for(self, executor: BatchExecutor) -> str:
        return asked_for(self._site_of(executor), executor.label)

    def _say_and_note(self, sentence: str) -> None:
        self._say(sentence)
        self._log_event("note", sentence=sentence)

    def _event(self, sentence: str) -> None:
        if self.progress is not None:
            self.progress.event(sentence)


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))


def _words_of(message: str) -> str:
    """The scheduler's own words, out of what Parsl says of a failed submission."""
    words = message.partition("stderr=")[2].strip() or message.partition("stdout=")[2].strip()
    return words or message
