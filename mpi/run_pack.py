"""The program that runs under mpirun: it samples the runs of one pack, and every rank works.

    mpirun -n 4 python mpi/run_pack.py PACK.json
    mpirun -n 4 python mpi/run_pack.py --experiments conf/smoke.yaml [--store DIR] [key=value ...]

Each run is published as soon as it is finished. The second form needs no driver: it composes the study, builds the
targets that are missing, and samples the runs that are left.

A pack file is JSON. Its keys:
- `format`: 1.
- `pack_id`, `store_root` (absolute), `cores_per_rank`.
- `expected_ranks`: a number, or null.
- `runs`: of each run its target_id, run_id, config, cost in seconds, and, where known, program. Runs with the same
  program share compiled code.
Keys that may be missing, with their defaults:
- `builds` ([]): targets for the ranks to build first, each with target_id and config.
- `gpus_per_node` (0), `ranks_per_gpu` (1), `gpu_sharing` (none; mps: through NVIDIA's MPS).
- `site` (null): what the site is called, for the table.
- `deadline` (null): seconds since the epoch. The variable LAMBDA_HAT_DEADLINE may bring it forward.
- `lease` (null): the path of the driver's heartbeat.
- `suspects` ([]): runs, as "target_id/run_id", that may have killed their rank. They go out last, one at a time.
- `lanes` (1): how many runs of one program a rank samples side by side at most, or "auto".
- `compile_cache` (true): false lets every rank compile its programs itself.

The ranks drain at the deadline, on SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C, when the driver ends, and when the store cannot
be written: each saves the state of its run in a checkpoint within seconds, and the pack ends by itself.

With `gpus_per_node` above 0 each rank takes one GPU by its rank on the node, out of those that the scheduler gave. If a
rank sees no GPU, the whole pack stops. With 0 the ranks compute on cores, and leave the node's GPUs alone, unless
`JAX_PLATFORMS` is set.

Logs go to the pack's folder in the store. `rank-0000.log` has everything that the rank printed, native libraries
included. `rank-0000.jsonl` has its events:
- `start`, `ready`, `build_start`, `build_end`, `end`.
- `run_start` has the `lane`, counted from 0 among runs that are sampled side by side.
- `run_end`: one for every run that was handed out, with `seconds`, the `reason` where it is not finished, and `status`:
  finished, failed, blocked (its target is missing), paused (its state is saved; `advanced`: it got further), left (not
  begun; `store_error`: the store could not be written), or elsewhere (another process samples it).
- `drain` has a `reason`.
- `width` has the number of `lanes` that "auto" chose, and the `seconds` of that measurement, compilation included. They
  count for no run.
- `let_go`: `runs` that its driver may give to another pack. This one will not begin them.
- `refused` has the `reason` why a rank could not start as the pack asks.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lambda_hat.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNFINISHED,
    ConfigError,
    LambdaHatError,
    LaunchError,
    run_command,
)
from lambda_hat.planning.calibration import read_costs
from lambda_hat.store.drain import Drain, earliest_deadline
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, SLOWEST_LOOK, Heartbeat, drain_when_lost
from lambda_hat.store.layout import (
    CACHE_OFF,
    CACHE_VARIABLE,
    EventLog,
    Store,
    write_json_atomic,
)
from lambda_hat.store.umask import keep_umask
from lambda_hat.user_folder import refuse_taken_names
from lambda_hat.workflow_config import compose_study
from mpi.devices import bind_rank
from mpi.dispatch import World, dispatch, install_abort_hooks, start_mpi, to_stderr
from mpi.launcher_variables import check_world, launcher_local_rank, launcher_rank, launcher_size
from mpi.mps import place_of_mps
from mpi.pack import Pack, at_least, describe_pack, items_of, pack_of_study, pack_record, read_pack
from mpi.rank import Console, Rank, Sharing
from mpi.shared_memory import unlink_shared_memory

PATIENCE = 3.0
"""Seconds that a rank waits before a message, so that another rank with the same message can end the job first."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one pack.

    Returns:
        The exit status, the same on every rank. With a pack file it is 0 when every run was dealt with; the outcomes
        are in the store. With `--experiments` it is 0 when every run of the study is finished, 1 when one failed, and
        75 when some are left.
    """
    started = time.monotonic()
    keep_umask(os.environ)
    first = launcher_rank(os.environ) == 0
    with contextlib.nullcontext() if first else _silence():
        args = _parse(argv)
    if args.dry_run:
        if first:
            print(describe_pack(load_pack(args)))
        return EXIT_OK
    launched = launcher_size(os.environ)
    try:
        world = start_mpi(launched[1] if launched else None)
        check_world(world.size, None, os.environ)
    except LaunchError as error:
        if first:
            raise
        return error.exit_code
    install_abort_hooks(world)
    drain = Drain()
    drain.on_signals()
    try:
        return _run_everywhere(world, args, drain, started)
    except LambdaHatError as error:
        if world.size == 1:
            raise
        # A defect of the site shows on every rank. Rank 0 ends the job before the others repeat the message, and the
        # first rank of a node before the rest of it.
        time.sleep(0 if world.rank == 0 else PATIENCE * (1 + (launcher_local_rank(os.environ) > 0)))
        # If this rank left like a single process, it would wait for the others, and they for it.
        to_stderr(f"error: {error}")
        world.abort(error.exit_code)
    except KeyboardInterrupt:
        if world.size == 1:
            raise
        if world.rank == 0:
            to_stderr("interrupted; run the same command again to continue")
        world.abort(EXIT_INTERRUPTED)


def _run_everywhere(world: World, args: argparse.Namespace, drain: Drain, started: float) -> int:
    pack = None
    unlink_shared_memory(world.comm)
    with contextlib.ExitStack() as stack:
        if world.rank == 0:
            # Only one rank reads, so that all ranks work from the same pack, and bad input is reported once.
            pack = load_pack(args)
            check_world(world.size, pack["expected_ranks"], os.environ)
            pack |= {"deadline": earliest_deadline(pack["deadline"], os.environ), "lease": _heartbeat_of(pack, stack)}
        if world.comm is not None:
            pack = world.comm.bcast(pack)
        assert pack is not None
        drain.deadline = pack["deadline"]
        outcomes = run_pack(world, pack, drain, started)
    if args.experiments is None:
        return EXIT_OK
    if outcomes["failed"] + outcomes["blocked"]:
        return EXIT_FAILED
    return EXIT_UNFINISHED if outcomes["paused"] + outcomes["left"] + outcomes["elsewhere"] else EXIT_OK


def _heartbeat_of(pack: Pack, stack: contextlib.ExitStack) -> str | None:
    """The file of the driver's heartbeat. A pack without a driver makes its own, so that others see it at work."""
    heartbeat = os.environ.get(HEARTBEAT_VARIABLE) or pack["lease"]
    if heartbeat or not pack["runs"]:
        return heartbeat
    own = Heartbeat(Store(pack["store_root"]).packs_dir)
    # Nothing refers to the file once the ranks have ended well.
    stack.callback(own.path.unlink, missing_ok=True)
    return str(stack.enter_context(own).path)


def options_parser() -> argparse.ArgumentParser:
    """The parser of this program's options."""
    parser = argparse.ArgumentParser(prog="run_pack.py", description="Run one pack of runs, under mpirun or alone.")
    parser.add_argument("pack", nargs="?", type=Path, metavar="PACK.json", help="the pack, as the driver wrote it")
    parser.add_argument("--experiments", type=Path, metavar="FILE", help="compose, build and run this study instead")
    parser.add_argument("--store", metavar="DIR", help="with --experiments: the store to use")
    parser.add_argument("--lanes", metavar="K", help="with --experiments: runs of one program side by side, or auto")
    for option, default, what in (
        ("--cores-per-rank", 1, "cores of one rank"),
        ("--gpus-per-node", 0, "GPUs that the ranks of a node take; 0: they compute on cores"),
        ("--ranks-per-gpu", 1, "ranks that share a GPU"),
    ):
        about = f"with --experiments: {what}; default {default}"
        parser.add_argument(option, type=int, default=default, metavar="N", help=about)
    parser.add_argument("--dry-run", action="store_true", help="show what would be built and run, and start nothing")
    parser.add_argument("words", nargs="*", metavar="key=value", help="with --experiments: overrides of the file")
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = options_parser()
    args = parser.parse_intermixed_args(argv)
    if args.experiments is not None and args.pack is not None:
        # argparse takes the first key=value word for the pack.
        args.words.insert(0, str(args.pack))
        args.pack = None
    if (args.pack is None) == (args.experiments is None):
        parser.error("give either PACK.json or --experiments FILE")
    resources = (args.cores_per_rank, args.gpus_per_node, args.ranks_per_gpu)
    if args.pack is not None and (args.words or args.store or args.lanes or resources != (1, 0, 1)):
        parser.error(
            "a pack file says all; --store, --lanes, --cores-per-rank, --gpus-per-node, --ranks-per-gpu and key=value "
            "go with --experiments"
        )
    return args


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Print nothing inside the block: every rank would print the same usage message."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def load_pack(args: argparse.Namespace) -> Pack:
    """Read the pack of the file, or make that of the study, as the options say.

    Raises:
        ConfigError: The file or the options cannot be used.
        StoreError: The store cannot be used.
    """
    if args.pack is not None:
        return read_pack(args.pack)
    given = {"store_root": args.store, "lanes": args.lanes}
    settings = {key: value for key, value in given.items() if value is not None}
    study = compose_study(args.experiments, args.words, settings)
    refuse_taken_names(study.source, study.targets.values(), (run.cfg for run in study.runs))
    if study.site_overrides:
        raise ConfigError(f"site.{study.site_overrides[0]}: the launcher is the site here; give mpirun's own options")
    for option, value, least in (
        ("--cores-per-rank", args.cores_per_rank, 1),
        ("--gpus-per-node", args.gpus_per_node, 0),
        ("--ranks-per-gpu", args.ranks_per_gpu, 1),
    ):
        at_least(option, value, least)
    store = Store(study.settings.store_root)
    study = study.priced(read_costs(store.root, args.cores_per_rank, args.gpus_per_node), store.targets_dir)
    pack = pack_of_study(study, args.cores_per_rank, look_only=args.dry_run) | {
        "lanes": study.settings.lanes,
        "gpus_per_node": args.gpus_per_node,
        "ranks_per_gpu": args.ranks_per_gpu,
        "gpu_sharing": "none",
    }
    if pack["runs"] and not args.dry_run:
        store = Store(pack["store_root"])
        store.ensure_writable()
        write_json_atomic(store.pack_dir(pack["pack_id"]) / "pack.json", pack_record(pack))
    return pack


def run_pack(world: World, pack: Pack, drain: Drain, started: float) -> Counter[str]:
    """Do this rank's part of the pack.

    Args:
        world: The processes of this launch.
        pack: The pack.
        drain: Asked whether to go on.
        started: The monotonic time at which the rank started, in seconds.

    Returns:
        The number of outcomes of each kind, of all ranks.

    Raises:
        LaunchError: The rank cannot have the cores or the GPU that the pack asks for. It has attempted no run.
    """
    if not pack["runs"]:
        if world.rank == 0:
            print("nothing to do: every run is finished in the store")
        return Counter()
    store = Store(pack["store_root"])
    folder = store.pack_dir(pack["pack_id"])
    events = EventLog(folder / f"rank-{world.rank:04d}.jsonl")
    with Console(folder / f"rank-{world.rank:04d}.log", f"[rank {world.rank}]") as console:
        install_abort_hooks(world, console.alarm)
        sharing = Sharing(pack, world.size, events)
        # A rank that leaves ends the launch, so it is enough that one rank looks often.
        look, heard = (1.0, sharing.hear) if world.rank == 0 else (SLOWEST_LOOK, lambda record: None)
        drain_when_lost(pack["lease"], drain, f"rank {world.rank}", look, on_beat=heard)
        rank = Rank(world, pack, store, drain, events, console)
        if not pack["compile_cache"]:
            os.environ[CACHE_VARIABLE] = CACHE_OFF
        try:
            resources = (pack["cores_per_rank"], pack["gpus_per_node"], pack["ranks_per_gpu"])
            rank.begin(bind_rank(world.rank, *resources, place_of_mps(pack)))
        except LaunchError as error:
            events.append("refused", rank=world.rank, host=socket.gethostname(), reason=str(error))
            raise
        outcomes = dispatch(world, items_of(pack, world.size), rank.do, drain, sharing.begin)
        rank.finish(time.monotonic() - started)
        if world.rank == 0:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            stopped = "" if drain.reason is None else f"; stopped: {drain.reason}"
            console.say(f"{pack['pack_id']}: {counts}, on {world.size} ranks; {folder}{stopped}")
    return outcomes


if __name__ == "__main__":
    run_command(main)
