"""From a site to a Parsl configuration.

Two executors, by label: `packs` takes packs, and `tasks` takes single processes: builds of targets, and the runs of an
unpacked study. On a batch site each asks the scheduler for blocks of its own, and `packs` is an MPIExecutor. Elsewhere
both are threads of the driver. Each further site of a study has one more for its packs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.sites.deadlines import drain_period
from flows.sites.interchange import bound_waits, keep_waiting_blocks, start_by_module
from flows.sites.providers import builds_provider, packs_provider, watched_jobs
from flows.sites.shell_lines import PLAIN_PATH, watcher_lines
from flows.sites.site_schemas import (
    BatchSite,
    PythonSite,
    SiteConfig,
    load_python_site,
    parse_walltime,
)
from flows.sites.steady_providers import too_many_lost
from lambda_hat.errors import ConfigError

if TYPE_CHECKING:
    from parsl import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.base import ParslExecutor

    from flows.sites.providers import BatchProvider
    from flows.sites.watched_jobs import WatchedJobs

PACKS, TASKS = "packs", "tasks"
HEARTBEAT_PERIOD, HEARTBEAT_THRESHOLD = 5, 20
STRATEGY_PERIOD = 2.0
"""Seconds between two looks of Parsl at its queue. Its default of 5 s adds as much to the first task (seen: 9 s against
4 s). Parsl repeats a refused submission at this period until `lost_blocks` have failed."""
IDLE_SECONDS = 10.0
"""A block that had no work for so long is given back."""


def parsl_config(
    site: SiteConfig,
    run_dir: Path,
    packs: bool,
    lease: Path | None = None,
    tasks: bool = True,
    others: Mapping[str, SiteConfig] | None = None,
) -> Config:
    """The Parsl configuration of `site`.

    run_dir: the folder of Parsl's own files. packs, tasks: whether it has an executor for MPI packs, and for single
    processes. lease: the driver's; workers end when it is no longer renewed. others: sites whose packs have an executor
    of their own, by its label.
    Raises ConfigError where a Python site does not fit, where a batch site has no use for `run_dir`, and where
    `worker_init` fails.
    """
    if isinstance(site, PythonSite):
        return _python_config(site, packs)
    from parsl import Config

    sites = {PACKS: site, **(others or {})}
    batch = [one for one in sites.values() if isinstance(one, BatchSite)]
    if batch and not PLAIN_PATH.fullmatch(str(run_dir)):
        raise ConfigError(
            f"store_root: {run_dir.parents[1]}: on a {batch[0].kind} site the path may have letters, digits and "
            "./+@:_- only; give another one with --store DIR"
        )
    run_dir.mkdir(parents=True, exist_ok=True)
    jobs = watched_jobs(batch[0]) if batch else None
    executors: list[ParslExecutor] = []
    for label, one in sites.items():
        labels = ([TASKS] if tasks and one is site else []) + ([label] if packs else [])
        if isinstance(one, BatchSite):
            executors += _batch_executors(one, labels, run_dir, lease, jobs)
        else:
            executors += _executors_beside(one, labels)
    return Config(
        executors=executors,
        run_dir=str(run_dir),
        strategy="htex_auto_scale" if batch else "none",
        strategy_period=STRATEGY_PERIOD,
        max_idletime=IDLE_SECONDS,
        retries=0,
        usage_tracking=0,
    )


def _executors_beside(site: SiteConfig, labels: Sequence[str]) -> list[ParslExecutor]:
    """Threads of this process: on this machine, or on the first node of its allocation."""
    from flows.sites.beside import Beside, Place, environment_beside

    environ = environment_beside(site)
    workers = site.task_workers or (len(os.sched_getaffinity(0)) if site.block_nodes == 1 else 2 * site.block_nodes)
    shares = [site.nodes[i : i + site.pack_nodes] for i in range(0, site.block_nodes, site.pack_nodes)]
    packs = [Place(tuple(nodes), environ) for nodes in shares]
    # The line of a single process says on which node it runs.
    return [Beside(label, workers * [Place((), environ)] if label == TASKS else packs) for label in labels]


def _batch_executors(
    site: BatchSite, labels: Sequence[str], run_dir: Path, lease: Path | None, jobs: WatchedJobs | None
) -> list[HighThroughputExecutor]:
    """Blocks of the scheduler, apart for builds and packs: a build that needs much memory holds no sampling node."""
    executors = [
        _tasks_executor(site, builds_provider(site, jobs))
        if label == TASKS
        else _packs_executor(site, label, packs_provider(site, jobs))
        for label in labels
    ]
    for executor in executors:
        start_by_module(executor, run_dir)
        bound_waits(executor)
        keep_waiting_blocks(executor)
        if lease is not None:
            cast("BatchProvider", executor.provider).worker_init += watcher_lines(lease)
    return executors


def _common(site: BatchSite, provider: BatchProvider) -> dict[str, Any]:
    from parsl.addresses import address_by_interface

    address = site.address
    if site.interface is not None:
        try:
            address = address_by_interface(site.interface)
        except OSError as error:
            raise ConfigError(f"interface: {site.interface}: {error.strerror or error}") from None
    return {
        "address": address,
        "encrypted": True,
        "heartbeat_period": HEARTBEAT_PERIOD,
        "heartbeat_threshold": HEARTBEAT_THRESHOLD,
        # One failed node does not end an executor; several failed blocks in a row do.
        "block_error_handler": partial(too_many_lost, threshold=site.lost_blocks),
        # A block that is about to end would have to stop whatever it starts.
        "drain_period": drain_period(parse_walltime("walltime", provider.walltime)),
    }


def _tasks_executor(site: BatchSite, provider: BatchProvider) -> HighThroughputExecutor:
    from parsl.executors import HighThroughputExecutor

    return HighThroughputExecutor(
        label=TASKS,
        max_workers_per_node=site.task_workers or site.builds.cores_per_node,
        cores_per_worker=1e-9,
        provider=provider,
        **_common(site, provider),
    )


def _packs_executor(site: BatchSite, label: str, provider: BatchProvider) -> HighThroughputExecutor:
    from parsl.executors import MPIExecutor

    # One node count per executor: packs of different sizes that queue inside a block can hang for ever.
    return MPIExecutor(
        label=label,
        mpi_launcher="mpiexec",
        max_workers_per_block=site.packs_per_block,
        provider=provider,
        **_common(site, provider),
    )


def _python_config(site: PythonSite, packs: bool) -> Config:
    from parsl import Config
    from parsl.executors import HighThroughputExecutor, MPIExecutor

    config = getattr(load_python_site(Path(site.parsl_config)), "config", None)
    if not isinstance(config, Config):
        raise ConfigError(f"{site.parsl_config}: expected a variable `config`, a parsl.Config")
    executors = {executor.label: executor for executor in config.executors}
    for label in [TASKS, PACKS] if packs else [TASKS]:
        if label not in executors:
            raise ConfigError(
                f"{site.parsl_config}: no executor labelled '{label}'; this flow needs one "
                f"({'an MPIExecutor for packs' if label == PACKS else 'for target builds'})"
            )
    if packs and not isinstance(executors[PACKS], MPIExecutor):
        raise ConfigError(f"{site.parsl_config}: executor '{PACKS}' must be an MPIExecutor")
    for executor in config.executors:
        # Parsl unpickles what arrives, which runs whatever it says.
        if getattr(executor, "encrypted", True) is not True:
            raise ConfigError(
                f"{site.parsl_config}: executor '{executor.label}' speaks unencrypted, so that whoever reaches its "
                "ports could run anything; write encrypted=True"
            )
        if isinstance(executor, HighThroughputExecutor):
            bound_waits(executor)
    return config
