"""From a batch site to Parsl's providers, which start the workers of a block."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from flows.sites.deadlines import block_end_line
from flows.sites.scheduler import SCHEDULERS
from flows.sites.shell_lines import OWN_TMPDIR, python_path_line
from flows.sites.site_schemas import (
    BatchSite,
    PbsBuilds,
    PbsSite,
    SlurmBuilds,
    SlurmSite,
    format_walltime,
    parse_walltime,
)
from flows.sites.steady_providers import SteadyPbs, SteadySlurm
from flows.sites.watched_jobs import WatchedJobs
from lambda_hat.store.umask import umask_word

if TYPE_CHECKING:
    from parsl.providers import PBSProProvider, SlurmProvider

    class BatchProvider(SlurmProvider, PBSProProvider):
        """What `_provider` makes: one of the two, with these."""

        jobs: WatchedJobs
        give_back: Callable[[list[str]], None] | None
        left_out: Sequence[str]
        kept: bool


PBS_NODES = [
    'awk \'!seen[$0]++\' "$PBS_NODEFILE" > "${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"',
    'export PBS_NODEFILE="${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"',
]
"""Lines of a block's first shell. The node file of PBS has a line per MPI process, and Parsl takes every line for a
node."""
SLURM_OPTIONS = "#SBATCH --no-requeue"
"""A line of a block's script. A block that loses a node is replaced at once; SLURM would let it wait two minutes."""


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
            "scheduler_options": _lines(SLURM_OPTIONS, site.scheduler_options),
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
    }
    if isinstance(site, SlurmSite):
        assert isinstance(builds, SlurmBuilds)
        settings |= {
            "partition": builds.partition or site.partition,
            "qos": builds.qos or site.qos,
            "cores_per_node": builds.cores_per_node,
            "mem_per_node": builds.mem_per_node,
            "exclusive": False,
            "scheduler_options": _lines(SLURM_OPTIONS, builds.scheduler_options),
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
