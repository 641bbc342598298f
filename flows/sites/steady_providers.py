"""What Parsl's providers of blocks lack: a scheduler may be silent, jobs may be held, and a good block ends well."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from flows.sites.scheduler import SILENCE
from flows.sites.watched_jobs import ENDED, SUBMITTED, WatchedJobs

if TYPE_CHECKING:
    from parsl.executors.status_handling import BlockProviderExecutor
    from parsl.jobs.states import JobState, JobStatus

ANSWER_SECONDS = 10.0
"""Seconds that Parsl waits to hear which of its blocks run, before it gives some back."""


def too_many_lost(executor: BlockProviderExecutor, status: dict[str, JobStatus], threshold: int) -> None:
    """Let Parsl give an executor up where so many of its blocks failed in a row.

    A submission that did not reach the scheduler is no block that failed.
    """
    from parsl.jobs.error_handlers import windowed_error_handler

    told = {block: each for block, each in status.items() if not is_unanswered(each.message or "")}
    windowed_error_handler(executor, told, threshold)


def is_unanswered(message: str) -> bool:
    """Whether Parsl's message on a block says that its submission did not reach the scheduler."""
    return message.startswith("Failed to start block") and SILENCE.search(message) is not None


class SteadyProvider:
    """What Parsl's providers of blocks lack: a scheduler may be silent, jobs may be held, and a good block ends well.

    It stands before one of them among the bases of a class.
    """

    jobs: WatchedJobs
    give_back: Callable[[list[str]], None] | None = None
    """Tells running jobs to end by themselves."""
    left_out: Sequence[str] = ()
    """Nodes that new blocks should not have."""
    kept = False
    """Its blocks will get work, though no task waits."""
    resources: dict[str, dict[str, Any]]
    cmd_timeout: int

    @property
    def max_blocks(self) -> int:
        """Blocks at most: none more while the scheduler gives no answer."""
        return 0 if self.jobs.silence is not None else self._max_blocks

    @max_blocks.setter
    def max_blocks(self, number: int) -> None:
        self._max_blocks = number

    def execute_wait(self, cmd: str, timeout: int | None = None) -> tuple[int, str, str]:
        """Run one of the scheduler's commands. Returns exit status, stdout and stderr."""
        words, seconds = shlex.split(cmd), timeout or self.cmd_timeout
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL)
        except FileNotFoundError:
            return 127, "", f"no {words[0]} on the PATH"
        except subprocess.TimeoutExpired:
            # An exception would end Parsl's own clean-up.
            return 255, "", f"{words[0]} gave no answer within {seconds} s"
        return done.returncode, done.stdout, done.stderr

    def submit(self, *args: Any, **kwargs: Any) -> str:
        """Submit a block. Returns the id of its job."""
        from parsl.providers.errors import SubmitException

        try:
            job_id = cast(Any, super()).submit(*args, **kwargs)
        except SubmitException as error:
            if SILENCE.search(str(error.stderr)):
                self.jobs.is_silent(str(error.stderr).strip())
            raise
        self.jobs.add(job_id)
        return job_id

    def cancel(self, job_ids: Sequence[str]) -> list[bool]:
        """Let running blocks end by themselves, and take waiting ones out of the queue. Returns what succeeded."""
        running = []
        if job_ids and self.give_back is not None:
            self.jobs.ask(ANSWER_SECONDS)
            running = [job_id for job_id in job_ids if self.jobs.states.get(job_id, "").startswith("RUNNING")]
            if running:
                self.give_back(running)
        waiting = [job_id for job_id in job_ids if job_id not in running]
        done = dict.fromkeys(running, True)
        if waiting and self.jobs.silence is None:
            done |= zip(waiting, cast(Any, super()).cancel(waiting), strict=True)
        return [done.get(job_id, False) for job_id in job_ids]


class SteadyPbs(SteadyProvider):
    """Its jobs are those that `WatchedJobs` tells of."""

    def _status(self) -> None:
        from parsl.jobs.states import JobStatus

        self.jobs.refresh()
        for job_id, job in self.resources.items():
            # Parsl has listed a job a moment before it is watched.
            paths = {"stdout_path": job["job_stdout_path"], "stderr_path": job["job_stderr_path"]}
            job["status"] = JobStatus(parsl_state(self.jobs.states.get(job_id, SUBMITTED)), **paths)


class SteadySlurm(SteadyProvider):
    """It takes a job that SLURM has stopped for one that runs, and a requeued one for one that waits."""

    scheduler_options: str

    def submit(self, *args: Any, **kwargs: Any) -> str:
        """Submit a block without the nodes that are left out, where there are others. Returns the id of its job."""
        from parsl.providers.errors import SubmitException

        options = self.scheduler_options
        if self.left_out:
            self.scheduler_options = f"{options}\n#SBATCH --exclude={','.join(self.left_out)}\n"
        try:
            return super().submit(*args, **kwargs)
        except SubmitException:
            if not self.left_out or self.jobs.silence is not None:
                raise
            self.scheduler_options = options
            return super().submit(*args, **kwargs)
        finally:
            self.scheduler_options = options

    def _status(self) -> None:
        from parsl.jobs.states import JobState

        stopped = dict.fromkeys(["S", "ST", "SI", "SO", "RS", "SUSPENDED", "STOPPED", "RESIZING"], JobState.RUNNING)
        requeued = dict.fromkeys(["RQ", "RH", "RD", "RF", "REQUEUED", "REQUEUE_HOLD"], JobState.PENDING)
        self._translate_table = {**self._translate_table, **stopped, **requeued}
        cast(Any, super())._status()

    _translate_table: dict[str, JobState]


def parsl_state(state: str) -> JobState:
    """Parsl's state of a job in the state that PBS tells: whatever is in the queue waits or runs.

    Parsl counts held and suspended jobs as neither, and would submit more in their place without end.
    """
    from parsl.jobs.states import JobState

    if state == ENDED:
        return JobState.COMPLETED
    return JobState.RUNNING if state.startswith(("RUNNING", "SUSPENDED", "EXITING")) else JobState.PENDING
