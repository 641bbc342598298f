"""From a site to a Parsl configuration.

Two executors, by label: `packs`, an MPIExecutor, takes packs, and `tasks` takes single processes: builds of targets,
and the runs of an unpacked study. On a batch site each asks the scheduler for blocks of its own.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from flows.sites.deadlines import drain_period
from flows.sites.interchange import bound_waits, keep_waiting_blocks, start_by_module
from flows.sites.providers import builds_provider, local_provider, packs_provider, watched_jobs
from flows.sites.shell_lines import PLAIN_PATH, watcher_lines
from flows.sites.site_schemas import (
    AllocationSite,
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

    from flows.sites.providers import SiteProvider

PACKS, TASKS = "packs", "tasks"
HEARTBEAT_PERIOD, HEARTBEAT_THRESHOLD = 5, 20
STRATEGY_PERIOD = {"local": 0.5, "batch": 2.0}
"""Seconds between two looks of Parsl at its queue. Its default of 5 s adds as much to the first task (seen: 9 s against
4 s). Parsl repeats a refused submission at this period until `lost_blocks` have failed."""
IDLE_SECONDS = 10.0
"""A block that had no work for so long is given back."""
LINK_PREFIX = "lambda_hat_link_"


@contextmanager
def parsl_config(
    site: SiteConfig, run_dir: Path, packs: bool, lease: Path | None = None, tasks: bool = True
) -> Iterator[Config]:
    """The Parsl configuration of `site`.

    run_dir: the folder of Parsl's own files. packs, tasks: whether it has an executor for MPI packs, and for single
    processes. lease: the driver's; workers end when it is no longer renewed.
    Raises ConfigError where a Python site does not fit.
    """
    if isinstance(site, PythonSite):
        yield _python_config(site, packs)
        return
    from parsl import Config

    with _plain_path(site, run_dir) as parsl_dir:
        batch = isinstance(site, BatchSite)
        executors = _batch_executors(site) if batch else _local_executors(site, parsl_dir)
        executors = [executor for executor in executors if {TASKS: tasks, PACKS: packs}[executor.label]]
        for executor in executors:
            start_by_module(executor, parsl_dir)
            bound_waits(executor)
            if batch:
                keep_waiting_blocks(executor)
            if lease is not None:
                cast("SiteProvider", executor.provider).worker_init += watcher_lines(lease, batch)
        yield Config(
            executors=executors,
            run_dir=str(parsl_dir),
            strategy="htex_auto_scale" if batch else "none",
            strategy_period=STRATEGY_PERIOD["batch" if batch else "local"],
            max_idletime=IDLE_SECONDS,
            retries=0,
            usage_tracking=0,
        )


def _local_executors(site: SiteConfig, parsl_dir: Path) -> list[HighThroughputExecutor]:
    """Workers beside the driver: on this machine, or on the first node of its allocation."""
    node_file = parsl_dir / "nodefile"
    node_file.write_text("".join(f"{node}\n" for node in site.nodes))
    # Parsl reads SLURM's list where there is one, else this file. The one of PBS has a line per MPI process.
    lines = [f"export PBS_NODEFILE={shlex.quote(str(node_file))}"]
    if isinstance(site, AllocationSite) and os.environ.get("SLURM_NODELIST"):
        lines = []
    elif not isinstance(site, AllocationSite):
        lines.append("unset SLURM_NODELIST")
    workers = site.task_workers or (len(os.sched_getaffinity(0)) if site.block_nodes == 1 else 2 * site.block_nodes)
    packs = local_provider(site, site.block_nodes, *lines)
    return [_tasks_executor(site, local_provider(site, 1), workers), _packs_executor(site, packs)]


def _batch_executors(site: BatchSite) -> list[HighThroughputExecutor]:
    """Blocks of the scheduler, apart for builds and packs: a build that needs much memory holds no sampling node."""
    workers, jobs = site.task_workers or site.builds.cores_per_node, watched_jobs(site)
    builds, packs = builds_provider(site, jobs), packs_provider(site, jobs)
    return [_tasks_executor(site, builds, workers), _packs_executor(site, packs)]


def _common(site: SiteConfig, provider: SiteProvider) -> dict[str, Any]:
    from parsl.addresses import address_by_interface
    from parsl.providers import LocalProvider

    address = site.address
    if site.interface is not None:
        try:
            address = address_by_interface(site.interface)
        except OSError as error:
            raise ConfigError(f"interface: {site.interface}: {error.strerror or error}") from None
    # One failed node does not end an executor; several failed blocks in a row do.
    threshold = site.lost_blocks if isinstance(site, BatchSite) else 1
    # A block that is about to end would have to stop whatever it starts.
    batch = not isinstance(provider, LocalProvider)
    drain = drain_period(parse_walltime("walltime", provider.walltime)) if batch else None
    return {
        "address": address,
        "encrypted": True,
        "heartbeat_period": HEARTBEAT_PERIOD,
        "heartbeat_threshold": HEARTBEAT_THRESHOLD,
        "block_error_handler": partial(too_many_lost, threshold=threshold),
        "drain_period": drain,
    }


def _tasks_executor(site: SiteConfig, provider: SiteProvider, workers: int) -> HighThroughputExecutor:
    from parsl.executors import HighThroughputExecutor

    return HighThroughputExecutor(
        label=TASKS,
        max_workers_per_node=workers,
        cores_per_worker=1e-9,
        provider=provider,
        **_common(site, provider),
    )


def _packs_executor(site: SiteConfig, provider: SiteProvider) -> HighThroughputExecutor:
    from parsl.executors import MPIExecutor

    # One node count per executor: packs of different sizes that queue inside a block can hang for ever.
    return MPIExecutor(
        label=PACKS,
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


@contextmanager
def _plain_path(site: SiteConfig, directory: Path) -> Iterator[Path]:
    """`directory`, or a link to it without spaces and quotes: Parsl does not quote its own folder in shell lines."""
    if PLAIN_PATH.fullmatch(str(directory)):
        directory.mkdir(parents=True, exist_ok=True)
        yield directory
        return
    if isinstance(site, BatchSite):
        raise ConfigError(
            f"store_root: {directory.parents[1]}: on a {site.kind} site the path may have letters, digits and ./+@:_- "
            "only; give another one with --store DIR"
        )
    directory.mkdir(parents=True, exist_ok=True)
    _clear_links(directory.parent)
    with tempfile.TemporaryDirectory(prefix=f"{LINK_PREFIX}{os.getpid()}_", dir=_links_folder()) as folder:
        link = Path(folder) / "parsl"
        link.symlink_to(directory)
        yield link


def _links_folder() -> str:
    """Where links can lie: TMPDIR may have spaces as well."""
    return tempfile.gettempdir() if PLAIN_PATH.fullmatch(tempfile.gettempdir()) else "/tmp"


def _clear_links(parent: Path) -> None:
    """Remove the links into `parent` that killed drivers have left."""
    for folder in Path(_links_folder()).glob(f"{LINK_PREFIX}*_*"):
        link, pid = folder / "parsl", folder.name.removeprefix(LINK_PREFIX).partition("_")[0]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path(os.readlink(link)).parent == parent:
                link.unlink()
                folder.rmdir()
