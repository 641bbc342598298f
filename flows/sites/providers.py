"""From a site to Parsl's providers, which start the workers of a block."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from flows.sites.deadlines import block_end_line
from flows.sites.scheduler import SCHEDULERS, SILENCE
from flows.sites.shell_lines import OWN_TMPDIR, python_path_line
from flows.sites.site_schemas import (
    BatchSite,
    PbsBuilds,
    PbsSite,
    SiteConfig,
    SlurmBuilds,
    SlurmSite,
    format_walltime,
    parse_walltime,
)
from flows.sites.watched_jobs import ENDED, WatchedJobs
from lambda_hat.store.umask import umask_word

if TYPE_CHECKING:
    from parsl.executors.status_handling import BlockProviderExecutor
    from parsl.jobs.states import JobState, JobStatus
    from parsl.providers import LocalProvider, PBSProProvider, SlurmProvider

    class BatchProvider(SlurmProvider, PBSProProvider):
        """What `_provider` makes: one of the two, with these."""

        jobs: WatchedJobs
        give_back: Callable[[list[str]], None] | None

    SiteProvider = LocalProvider | BatchProvider

ANSWER_SECONDS = 10.0
"""Seconds that Parsl waits to hear which of its blocks run, before it gives some back."""
PBS_NODES = [
    'awk \'!seen[$0]++\' "$PBS_NODEFILE" > "${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"',
    'export PBS_NODEFILE="${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"',
]
"""Lines of a block's first shell. The node file of PBS has a line per MPI process, and Parsl takes every line for a
node."""


def local_provider(site: SiteConfig, nodes: int, *lines: str) -> LocalProvider:
    """Parsl's provider of workers beside the driver. lines: of their shell, the last ones."""
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider

    class Provider(LocalProvider):
        """Takes workers without an exit status, as on a full disk, for failed. Parsl would wait for ever."""

        def _read_job_file(self, script_path: str, suffix: str) -> str:
            try:
                return super()._read_job_file(script_path, suffix)
            except OSError as error:
                return str(error)

    return Provider(
        launcher=cast(Any, SimpleLauncher()),  # Parsl takes any Launcher and gives the parameter no type
        nodes_per_block=nodes,
        init_blocks=1,
        min_blocks=1,
        max_blocks=1,
        worker_init="\n".join([python_path_line(), OWN_TMPDIR, site.worker_init, *lines]),
    )


def packs_provider(site: BatchSite, jobs: WatchedJobs | None = None) -> BatchProvider:
    """Parsl's provider of the blocks that packs run in. jobs: where they are watched; None: alone."""
    settings: dict[str, Any] = {
        "nodes_per_block": site.nodes_per_block,
        "min_blocks": site.min_blocks,
        "max_blocks": site.max_blocks,
        "walltime": block_walltime(site, site.walltime_seconds),
    }
    if isinstance(site, SlurmSite):
        settings |= {
            "partition": site.partition,
            "qos": site.qos,
            "constraint": site.constraint,
            "cores_per_node": site.cores_per_node,
            "mem_per_node": site.mem_per_node,
            "gpus_per_node": site.gpus_per_node or None,
            "exclusive": site.exclusive,
            "scheduler_options": site.scheduler_options,
        }
    else:
        assert isinstance(site, PbsSite)
        settings |= {
            "queue": site.queue,
            "cpus_per_node": site.chunk_cores,
            "select_options": pbs_select(site.mem_per_node, site.gpus_per_node, site.select_options),
            "scheduler_options": _lines(pbs_place(site.exclusive), pbs_umask(), site.scheduler_options),
        }
    return _provider(site, settings, jobs)


def builds_provider(site: BatchSite, jobs: WatchedJobs | None = None) -> BatchProvider:
    """Parsl's provider of the blocks that targets are built in. jobs: where they are watched; None: alone."""
    builds = site.builds
    settings: dict[str, Any] = {
        "nodes_per_block": 1,
        "min_blocks": 0,
        "max_blocks": builds.max_blocks,
        "walltime": block_walltime(site, parse_walltime("builds.walltime", builds.walltime)),
        "scheduler_options": builds.scheduler_options,
    }
    if isinstance(site, SlurmSite):
        assert isinstance(builds, SlurmBuilds)
        settings |= {
            "partition": builds.partition or site.partition,
            "qos": builds.qos or site.qos,
            "cores_per_node": builds.cores_per_node,
            "mem_per_node": builds.mem_per_node,
            "exclusive": False,
        }
    else:
        assert isinstance(site, PbsSite) and isinstance(builds, PbsBuilds)
        settings |= {
            "queue": builds.queue or site.queue,
            "cpus_per_node": builds.cores_per_node,
            "select_options": pbs_select(builds.mem_per_node, 0, builds.select_options),
            "scheduler_options": _lines(pbs_umask(), builds.scheduler_options),
        }
    return _provider(site, settings, jobs)


def block_walltime(site: BatchSite, seconds: int) -> str:
    """The walltime of a block. SLURM counts in minutes; Parsl would round down, in the end to 0, which is no limit."""
    return format_walltime(-(-seconds // 60) * 60 if isinstance(site, SlurmSite) else seconds)


def pbs_select(mem_per_node: int | None, gpus_per_node: int, options: str) -> str:
    """What follows `select=N:ncpus=C`. `mpiprocs` stays unset: with it PBS names a node once per process."""
    parts = [f"mem={mem_per_node}gb"] if mem_per_node is not None else []
    parts += [f"ngpus={gpus_per_node}"] if gpus_per_node else []
    return ":".join([*parts, *([options.strip(":")] if options else [])])


def pbs_place(exclusive: bool) -> str:
    """The line that puts each chunk on a node of its own. Without it PBS may put several on one."""
    return f"#PBS -l place=scatter{':excl' if exclusive else ''}"


def pbs_umask() -> str:
    """The line that gives a job the umask of its submitter."""
    return f"#PBS -W umask={umask_word()}"


def _lines(*lines: str) -> str:
    return "\n".join(filter(None, lines))


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
        if job_ids and self.give_back is not None:
            self.jobs.ask(ANSWER_SECONDS)
        running = [job_id for job_id in job_ids if self.jobs.states.get(job_id, "").startswith("RUNNING")]
        running = running if self.give_back is not None else []
        if running and self.give_back is not None:
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
            paths = {"stdout_path": job["job_stdout_path"], "stderr_path": job["job_stderr_path"]}
            job["status"] = JobStatus(parsl_state(self.jobs.states[job_id]), **paths)


class SteadySlurm(SteadyProvider):
    """It takes a job that SLURM has stopped for one that runs, and a requeued one for one that waits."""

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


def watched_jobs(site: BatchSite) -> WatchedJobs:
    """Where the jobs of a site's blocks are watched."""
    return WatchedJobs(SCHEDULERS[site.kind], site.poll_seconds)


def _provider(site: BatchSite, settings: dict[str, Any], jobs: WatchedJobs | None) -> BatchProvider:
    from parsl.launchers import SimpleLauncher
    from parsl.providers import PBSProProvider, SlurmProvider

    kind = SlurmProvider if isinstance(site, SlurmSite) else PBSProProvider
    steady = SteadySlurm if isinstance(site, SlurmSite) else SteadyPbs
    # Jobs of PBS start in the home folder.
    init = [f"cd {shlex.quote(os.getcwd())}", site.worker_init, python_path_line(), OWN_TMPDIR]
    init += [] if isinstance(site, SlurmSite) else PBS_NODES
    init.append(block_end_line(parse_walltime("walltime", settings["walltime"])))
    # Parsl offers no other way to say how often the scheduler is asked.
    more = {"status_polling_interval": site.poll_seconds, "jobs": watched_jobs(site) if jobs is None else jobs}
    polled = cast("Callable[..., BatchProvider]", type(kind.__name__, (type(kind.__name__, (steady, kind), {}),), more))
    return polled(
        account=site.account,
        init_blocks=settings["min_blocks"],
        # Parsl counts a slot for every worker on every node, and would take one block for enough.
        parallelism=settings["nodes_per_block"],
        launcher=SimpleLauncher(),
        worker_init="\n".join(init),
        cmd_timeout=60,
        **settings,
    )
