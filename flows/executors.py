"""From a site to a Parsl configuration.

Two executors, by label: `packs` (MPIExecutor: MPI-launched packs) and `tasks` (one process each: target builds, and
the runs of the unpacked flow). On a batch site each asks the scheduler for blocks of its own.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import InvalidStateError
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.deadlines import block_end_line, drain_period
from flows.sites import (
    AllocationSite,
    BatchSite,
    PbsBuilds,
    PbsSite,
    PythonSite,
    SiteConfig,
    SlurmBuilds,
    SlurmSite,
    format_walltime,
    load_python_site,
    parse_walltime,
)
from lambda_hat.errors import ConfigError

if TYPE_CHECKING:
    from parsl import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.executors.base import ParslExecutor
    from parsl.providers.base import ExecutionProvider

REPO_ROOT = Path(__file__).resolve().parents[1]
PACKS, TASKS = "packs", "tasks"
HEARTBEAT_PERIOD, HEARTBEAT_THRESHOLD = 5, 20
STRATEGY_PERIOD = {"local": 0.5, "batch": 2.0}
"""Parsl's default of 5 s adds as much to the first task (seen: 9 s against 4 s). A submission that the scheduler
refuses is repeated at this period until `lost_blocks` have failed."""
ANSWER_SECONDS = 20.0
"""In which an interchange answers; it takes milliseconds. Afterwards Parsl takes it for gone."""
LOOK_SECONDS = 0.5
"""Between two looks whether an interchange that takes no task has ended."""
IDLE_SECONDS = 10.0
"""After which a block without work is given back."""
OWN_TMPDIR = """\
leave() {
  [ -z "$watcher" ] || kill "$watcher"
  rm -rf "$LAMBDA_HAT_TMPDIR"
  for process in /proc/[0-9]*; do
    grep -qsz multiprocessing "$process/cmdline" || continue
    grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${process#/proc/}"
  done
}
base=${TMPDIR:-/tmp}; [ ${#base} -le 64 ] || base=/tmp
LAMBDA_HAT_TMPDIR=$(mktemp -d "$base/lh.XXXXXX") && trap leave EXIT
export TMPDIR="${LAMBDA_HAT_TMPDIR:-$base}"\
"""
"""Of a block's first shell, which outlives the workers: they are ended by signals and clean up nothing, and what they
start may be as untidy. The name is short, because a socket's path has at most 107 characters. A pool that is killed
leaves a helper of Python's multiprocessing behind, which would wait for ever."""
WATCHER = """
end_without_driver() {{
  last='' same=0
  while [ $same -lt 4 ]; do
    sleep 10
    now=$(cat {lease})
    [ "$now" = "$last" ] && same=$((same + 1)) || same=0
    last=$now
  done
  for process in /proc/[0-9]*; do
    grep -qsz process_worker_pool "$process/cmdline" || continue
    grep -qszxF "TMPDIR=$LAMBDA_HAT_TMPDIR" "$process/environ" && kill -9 "${{process#/proc/}}"
  done
}}
end_without_driver > /dev/null 2>&1 &
watcher=$!
"""
"""Of the same shell: a worker pool that starts when the interchange has died waits for its answer without end, and
would keep its nodes until the walltime. A driver that lives rewrites its lease every few seconds."""
TO_FILE = 'file=$0; { : >> "$file"; } 2> /dev/null || file=/dev/null; exec "$@" 2>> "$file"'
"""What a process writes to stderr goes to a file, or where that cannot be made, nowhere."""
PLAIN_PATH = re.compile(r"[\w./+@:-]+")
LINK_PREFIX = "lambda_hat_link_"


@contextmanager
def parsl_config(
    site: SiteConfig, run_dir: Path, packs: bool, lease: Path | None = None, tasks: bool = True
) -> Iterator[Config]:
    """The Parsl configuration of `site`: an executor for single processes with `tasks`, one for MPI packs with `packs`.

    Parsl's own files go to `run_dir`. lease: the driver's, without which the workers end.
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
            _start_by_module(executor, parsl_dir)
            _bound_waits(executor)
            if batch:
                _keep_waiting_blocks(executor)
            if lease is not None:
                executor.provider.worker_init += WATCHER.format(lease=shlex.quote(str(lease)))
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
    """Workers beside the driver: on this machine, or on the first node of the allocation that it is in."""
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider

    class Provider(LocalProvider):
        """Workers that left no exit status, as where the disk was full, have failed: Parsl would wait for ever."""

        def _read_job_file(self, script_path: str, suffix: str) -> str:
            try:
                return super()._read_job_file(script_path, suffix)
            except OSError as error:
                return str(error)

    def provider(nodes: int, *lines: str) -> LocalProvider:
        init = "\n".join([_python_path(), OWN_TMPDIR, site.worker_init, *lines])
        return Provider(
            launcher=SimpleLauncher(),
            nodes_per_block=nodes,
            init_blocks=1,
            min_blocks=1,
            max_blocks=1,
            worker_init=init,
        )

    node_file = parsl_dir / "nodefile"
    node_file.write_text("".join(f"{node}\n" for node in site.nodes))
    # Parsl reads SLURM's list where there is one, else this file; that of PBS has a line per MPI process.
    lines = [f"export PBS_NODEFILE={shlex.quote(str(node_file))}"]
    if isinstance(site, AllocationSite) and os.environ.get("SLURM_NODELIST"):
        lines = []
    elif not isinstance(site, AllocationSite):
        lines.append("unset SLURM_NODELIST")
    workers = site.task_workers or (len(os.sched_getaffinity(0)) if site.block_nodes == 1 else 2 * site.block_nodes)
    return [_tasks_executor(site, provider(1), workers), _packs_executor(site, provider(site.block_nodes, *lines))]


def _batch_executors(site: BatchSite) -> list[HighThroughputExecutor]:
    """Blocks of the scheduler: a big-memory build never holds a sampling node, and the other way round."""
    workers = site.task_workers or site.builds.cores_per_node
    return [_tasks_executor(site, builds_provider(site), workers), _packs_executor(site, packs_provider(site))]


def packs_provider(site: BatchSite) -> ExecutionProvider:
    """Parsl's provider of the blocks that packs run in."""
    common = {
        "nodes_per_block": site.nodes_per_block,
        "min_blocks": site.min_blocks,
        "max_blocks": site.max_blocks,
        "walltime": block_walltime(site, site.walltime_seconds),
    }
    if isinstance(site, SlurmSite):
        return _slurm_provider(
            site,
            partition=site.partition,
            qos=site.qos,
            constraint=site.constraint,
            cores_per_node=site.cores_per_node,
            mem_per_node=site.mem_per_node,
            gpus_per_node=site.gpus_per_node or None,
            exclusive=site.exclusive,
            scheduler_options=site.scheduler_options,
            **common,
        )
    assert isinstance(site, PbsSite)
    return _pbs_provider(
        site,
        queue=site.queue,
        cpus_per_node=site.chunk_cores,
        select_options=pbs_select(site.mem_per_node, site.gpus_per_node, site.select_options),
        scheduler_options="\n".join([pbs_place(site.exclusive), site.scheduler_options]),
        **common,
    )


def builds_provider(site: BatchSite) -> ExecutionProvider:
    """Parsl's provider of the blocks that targets are built in."""
    builds = site.builds
    common = {
        "nodes_per_block": 1,
        "min_blocks": 0,
        "max_blocks": builds.max_blocks,
        "walltime": block_walltime(site, parse_walltime("builds.walltime", builds.walltime)),
    }
    if isinstance(site, SlurmSite):
        assert isinstance(builds, SlurmBuilds)
        return _slurm_provider(
            site,
            partition=builds.partition or site.partition,
            qos=builds.qos or site.qos,
            cores_per_node=builds.cores_per_node,
            mem_per_node=builds.mem_per_node,
            exclusive=False,
            scheduler_options=builds.scheduler_options,
            **common,
        )
    assert isinstance(site, PbsSite) and isinstance(builds, PbsBuilds)
    return _pbs_provider(
        site,
        queue=builds.queue or site.queue,
        cpus_per_node=builds.cores_per_node,
        select_options=pbs_select(builds.mem_per_node, 0, builds.select_options),
        scheduler_options=builds.scheduler_options,
        **common,
    )


def block_walltime(site: BatchSite, seconds: int) -> str:
    """The walltime of a block. SLURM counts in minutes, to which Parsl would round down: to 0, which is no limit."""
    return format_walltime(-(-seconds // 60) * 60 if isinstance(site, SlurmSite) else seconds)


def pbs_select(mem_per_node: int | None, gpus_per_node: int, options: str) -> str:
    """What follows `select=N:ncpus=C`. `mpiprocs` is left unset: PBS would name a node once per process."""
    parts = [f"mem={mem_per_node}gb"] if mem_per_node is not None else []
    parts += [f"ngpus={gpus_per_node}"] if gpus_per_node else []
    return ":".join([*parts, *([options.strip(":")] if options else [])])


def pbs_place(exclusive: bool) -> str:
    """Chunks on nodes of their own; without this PBS may put several on one."""
    return f"#PBS -l place=scatter{':excl' if exclusive else ''}"


def _slurm_provider(site: SlurmSite, **settings: Any) -> ExecutionProvider:
    from parsl.providers import SlurmProvider

    return _provider(SlurmProvider, site, settings)


def _pbs_provider(site: PbsSite, **settings: Any) -> ExecutionProvider:
    from parsl.providers import PBSProProvider

    # The node file has a line per MPI process, and Parsl takes every line for a node.
    lines = [
        'awk \'!seen[$0]++\' "$PBS_NODEFILE" > "${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"',
        'export PBS_NODEFILE="${TMPDIR:-/tmp}/lambda_hat_nodes.$PBS_JOBID"',
    ]
    return _provider(PBSProProvider, site, settings, *lines)


def _provider(kind: type, site: BatchSite, settings: dict[str, Any], *lines: str) -> ExecutionProvider:
    from parsl.launchers import SimpleLauncher

    # Jobs of PBS start in the home folder.
    init = [f"cd {shlex.quote(os.getcwd())}", site.worker_init, _python_path(), OWN_TMPDIR, *lines]
    init.append(block_end_line(parse_walltime("walltime", settings["walltime"])))
    # Parsl offers no other way to say how often the scheduler is asked.
    polled = type(kind.__name__, (kind,), {"status_polling_interval": site.poll_seconds})
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


def _common(site: SiteConfig, provider: ExecutionProvider) -> dict[str, Any]:
    from parsl.addresses import address_by_interface
    from parsl.jobs.error_handlers import windowed_error_handler

    address = site.address
    if site.interface is not None:
        try:
            address = address_by_interface(site.interface)
        except OSError as error:
            raise ConfigError(f"interface: {site.interface}: {error.strerror or error}") from None
    # A node that fails is not the executor's end; several blocks in a row are.
    batch = isinstance(site, BatchSite)
    threshold = site.lost_blocks if batch else 1
    return {
        "address": address,
        "encrypted": True,
        "heartbeat_period": HEARTBEAT_PERIOD,
        "heartbeat_threshold": HEARTBEAT_THRESHOLD,
        "block_error_handler": partial(windowed_error_handler, threshold=threshold),
        # A block that is about to end would only start what it then has to stop.
        "drain_period": drain_period(parse_walltime("walltime", provider.walltime)) if batch else None,
    }


def _tasks_executor(site: SiteConfig, provider: ExecutionProvider, workers: int) -> HighThroughputExecutor:
    from parsl.executors import HighThroughputExecutor

    return HighThroughputExecutor(
        label=TASKS,
        max_workers_per_node=workers,
        cores_per_worker=1e-9,
        provider=provider,
        **_common(site, provider),
    )


def _packs_executor(site: SiteConfig, provider: ExecutionProvider) -> HighThroughputExecutor:
    from parsl.executors import MPIExecutor

    # One node count per executor: packs of different sizes queueing inside a block can hang for ever.
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
        # What arrives on an open channel is unpickled, which runs whatever it says.
        if getattr(executor, "encrypted", True) is not True:
            raise ConfigError(
                f"{site.parsl_config}: executor '{executor.label}' speaks unencrypted, so that whoever reaches its "
                "ports could run anything; write encrypted=True"
            )
        if isinstance(executor, HighThroughputExecutor):
            _bound_waits(executor)
    return config


def _start_by_module(executor: HighThroughputExecutor, parsl_dir: Path) -> None:
    """Let Parsl start its processes with this interpreter, and the interchange end when this process does.

    What the interchange complains of, such as that it cannot write its log, goes to a file, and not to the screen.
    """
    package = "parsl.executors.high_throughput"
    # Their scripts are found by name on the PATH, and pip's first line of a script breaks where an environment's path
    # has a space. Parsl fills braces in twice.
    python = shlex.quote(sys.executable).replace("{", "{{{{").replace("}", "}}}}")
    executor.launch_cmd = executor.launch_cmd.replace(
        "process_worker_pool.py", f"{python} -m {package}.process_worker_pool"
    )
    # A killed driver would leave the interchange, and with it the worker pools, behind for minutes; and Ctrl-C is for
    # the driver alone, which then shuts the interchange down. Set after construction, because MPIExecutor's own type
    # check refuses a list here.
    wrapper = [["setsid"], ["setpriv", "--pdeathsig", "TERM"]]
    prefix = [word for words in wrapper if shutil.which(words[0]) for word in words]
    complaints = ["sh", "-c", TO_FILE, str(parsl_dir / f"interchange-{executor.label}.err")]
    executor.interchange_launch_cmd = [*complaints, *prefix, sys.executable, "-m", f"{package}.interchange"]


class InterchangeLost(Exception):
    """The process through which an executor reaches its workers has ended."""


def _bound_waits(executor: HighThroughputExecutor) -> None:
    """Let Parsl wait for its interchange no longer than ANSWER_SECONDS, once it has started: one that was killed gives
    no answer, and takes no task, which would keep the thread that sends them, and the end of the driver, for ever."""
    start, shutdown = executor.start, executor.shutdown
    in_use, closed = threading.Lock(), threading.Event()

    def start_bounded() -> None:
        start()
        client, tasks = executor.command_client, executor.outgoing_q
        client.run = partial(client.run, timeout_s=ANSWER_SECONDS)  # type: ignore[method-assign]
        tasks.put = partial(put, tasks.put, tasks.zmq_socket)  # type: ignore[method-assign]

    def put(send: Callable[[Any], None], socket: Any, message: Any) -> None:
        import zmq

        socket.setsockopt(zmq.SNDTIMEO, int(1000 * LOOK_SECONDS))
        # What nobody has taken when Parsl ends is for nobody.
        socket.setsockopt(zmq.LINGER, 0)
        deadline = time.monotonic() + ANSWER_SECONDS
        while time.monotonic() < deadline and executor.interchange_proc.poll() is None:
            with in_use, contextlib.suppress(zmq.Again):
                if closed.is_set() or executor.bad_state_is_set:
                    break
                send(message)
                return
        raise InterchangeLost("its interchange takes no task")

    def close(*args: Any, **kwargs: Any) -> None:
        # A socket that is closed while another thread waits in it ends the process.
        closed.set()
        with in_use:
            shutdown(*args, **kwargs)

    executor.start, executor.shutdown = start_bounded, close  # type: ignore[method-assign]


def fail_where_lost(executor: ParslExecutor) -> None:
    """Let an executor's tasks fail where its interchange has been killed, which Parsl never looks for."""
    process = getattr(executor, "interchange_proc", None)
    if process is None or process.poll() is None or executor.bad_state_is_set:
        return
    # What has just got its result is settled already.
    with contextlib.suppress(InvalidStateError):
        executor.set_bad_state_and_fail_all(
            InterchangeLost(f"its interchange, process {process.pid}, has ended with status {process.returncode}")
        )


def _keep_waiting_blocks(executor: HighThroughputExecutor) -> None:
    """Let Parsl give back no block when it has none too many.

    Its strategy then asks to scale in by 0 blocks, which takes every idle one, and a block that waits in the queue is
    idle to it: it would be cancelled and submitted again without end (seen: 8 jobs in place of 2).
    """
    scale_in = executor.scale_in

    def scale_in_some(blocks: int, max_idletime: float | None = None) -> list[str]:
        return scale_in(blocks, max_idletime) if blocks else []

    executor.scale_in = scale_in_some  # type: ignore[method-assign]


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join([str(REPO_ROOT), *([inherited] if inherited else [])])
    return f"export PYTHONPATH={shlex.quote(path)}"


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
    """Remove the links into `parent` of drivers that were killed."""
    for folder in Path(_links_folder()).glob(f"{LINK_PREFIX}*_*"):
        link, pid = folder / "parsl", folder.name.removeprefix(LINK_PREFIX).partition("_")[0]
        with contextlib.suppress(OSError):
            if pid.isdecimal() and not Path(f"/proc/{pid}").exists() and Path(os.readlink(link)).parent == parent:
                link.unlink()
                folder.rmdir()
