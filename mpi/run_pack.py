"""The program under mpirun: runs the runs of one pack, every rank working, each run published as it finishes.

    mpirun -n 4 python mpi/run_pack.py PACK.json
    mpirun -n 4 python mpi/run_pack.py --experiments conf/smoke.yaml [--store DIR] [key=value ...]

The second form needs no driver: it composes the study, builds the targets that are missing, and runs what is left.

A pack file is JSON: `format` (1), `pack_id`, `store_root` (absolute), `cores_per_rank`, `expected_ranks` (or null),
`runs` (target_id, run_id, config, cost in seconds; program, which runs that share compiled code have in common, where
known), and where they are needed `builds` (target_id, config), for the ranks to build as well, `gpus_per_node` (0),
`ranks_per_gpu` (1), `deadline` (seconds since the epoch; the variable LAMBDA_HAT_DEADLINE may bring it forward),
`lease` (path of the driver's) and `suspects` (runs as "target_id/run_id" that may have killed their rank, handed out
last and one at a time).

At the deadline, on SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C, when the driver ends, and when the store cannot be written, the
ranks drain: each keeps the state of its run in a checkpoint within seconds, and the pack ends by itself.

With `gpus_per_node` above 0 each rank takes one GPU by its rank on the node, keeping to what the scheduler gave, and
the whole pack stops where a rank sees none. With 0 the ranks compute on cores, and leave the node's GPUs alone, unless
`JAX_PLATFORMS` is set.

Logs go to the pack's folder in the store: `rank-0000.log` has what the rank printed, native libraries included, and
`rank-0000.jsonl` its events: `start`, `ready`, `build_start`, `build_end`, `run_start`, `run_end` and `end`. Every run
that was handed out has one `run_end`, with `seconds`, the `reason` where it is not finished, and `status`: finished,
failed, blocked (its target is not there), paused (its state is kept; `advanced` where it got further), left (not begun;
`store_error` where the store could not be written) or elsewhere (another process samples it). `drain` has a `reason`.
`refused`, with a `reason`, stands where a rank could not start as the pack asks.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import hashlib
import os
import re
import socket
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lambda_hat import claims
from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS, BuildConfig, SampleConfig
from lambda_hat.cores import Binding
from lambda_hat.cost import price, read_costs
from lambda_hat.drain import Drain, earliest_deadline
from lambda_hat.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_UNFINISHED,
    ConfigError,
    CorruptArtifact,
    LambdaHatError,
    LaunchError,
    Paused,
    StoreError,
    StoreUnwritable,
    run_command,
)
from lambda_hat.id_utils import canonical_json, run_id_for, target_id_for, trajectory_id
from lambda_hat.lease import LEASE_VARIABLE, SLOWEST_LOOK, Lease, drain_when_lost
from lambda_hat.omegaconf_support import build_dataclass, schema_for
from lambda_hat.store import Damage, EventLog, Store, error_line, read_json, write_json_atomic
from lambda_hat.workflow_config import Study, compose_study
from mpi.devices import (
    bind_rank,
    check_gpu,
    check_world,
    launcher_local_rank,
    launcher_local_size,
    launcher_rank,
    launcher_size,
)
from mpi.dispatch import LEFT, Item, World, dispatch, install_abort_hooks, start_mpi, to_stderr
from mpi.shared_memory import unlink_shared_memory

PACK_FORMAT = 1
_ID = re.compile(r"[\w-]+")
"""Ids are names of folders in the store, and lead nowhere else."""
PACK_KEYS = ("format", "pack_id", "store_root", "cores_per_rank", "expected_ranks", "runs")
PACK_DEFAULTS = {
    "builds": [],
    "gpus_per_node": 0,
    "ranks_per_gpu": 1,
    "deadline": None,
    "lease": None,
    "suspects": [],
}

PATIENCE = 3.0
"""Seconds by which a rank lets another one go first with a message that both have."""

Pack = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one pack; the same exit status on every rank.

    A pack file: 0 when every run was dealt with, the outcome being in the store. `--experiments`: 0 when every run of
    the study is finished, 1 otherwise.
    """
    started = time.monotonic()
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
        # What is wrong with the site is wrong on every rank: rank 0 ends the job before the others say it again, and
        # the first rank of a node before the rest of it.
        time.sleep(0 if world.rank == 0 else PATIENCE * (1 + (launcher_local_rank(os.environ) > 0)))
        # To leave as a single process does would keep this rank waiting for the others, and them for this one.
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
            # One rank reads, so that every rank works from the same pack, and bad input is told once.
            pack = load_pack(args)
            check_world(world.size, pack["expected_ranks"], os.environ)
            pack |= {"deadline": earliest_deadline(pack["deadline"], os.environ), "lease": _lease_of(pack, stack)}
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


def _lease_of(pack: Pack, stack: contextlib.ExitStack) -> str | None:
    """The driver's lease; where no driver started this pack, one of its own, so that others see that its runs are being
    sampled."""
    lease = os.environ.get(LEASE_VARIABLE) or pack["lease"]
    if lease or not pack["runs"]:
        return lease
    own = Lease(Store(pack["store_root"]).packs_dir)
    # Nothing refers to it once the ranks have ended well.
    stack.callback(own.path.unlink, missing_ok=True)
    return str(stack.enter_context(own).path)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="run_pack.py", description="Run one pack of runs, under mpirun or alone.")
    parser.add_argument("pack", nargs="?", type=Path, metavar="PACK.json", help="the pack, as the driver wrote it")
    parser.add_argument("--experiments", type=Path, metavar="FILE", help="compose, build and run this study instead")
    parser.add_argument("--store", metavar="DIR", help="with --experiments: the store to use")
    for option, default, what in (
        ("--cores-per-rank", 1, "cores of one rank"),
        ("--gpus-per-node", 0, "GPUs that the ranks of a node take; 0: they compute on cores"),
        ("--ranks-per-gpu", 1, "ranks that share a GPU"),
    ):
        about = f"with --experiments: {what}; default {default}"
        parser.add_argument(option, type=int, default=default, metavar="N", help=about)
    parser.add_argument("--dry-run", action="store_true", help="show what would be built and run, and start nothing")
    parser.add_argument("words", nargs="*", metavar="key=value", help="with --experiments: overrides of the file")
    args = parser.parse_intermixed_args(argv)
    if args.experiments is not None and args.pack is not None:
        # argparse gives the first key=value word to the pack.
        args.words.insert(0, str(args.pack))
        args.pack = None
    if (args.pack is None) == (args.experiments is None):
        parser.error("give either PACK.json or --experiments FILE")
    resources = (args.cores_per_rank, args.gpus_per_node, args.ranks_per_gpu)
    if args.pack is not None and (args.words or args.store or resources != (1, 0, 1)):
        parser.error(
            "a pack file says all; --store, --cores-per-rank, --gpus-per-node, --ranks-per-gpu and key=value go with "
            "--experiments"
        )
    return args


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    # Every rank would print the same usage message.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# --------------------------------------------------------------------------------------------------------------
# What there is to do


def load_pack(args: argparse.Namespace) -> Pack:
    """The pack of the file, or of the study, as the options say. Raises ConfigError or StoreError."""
    if args.pack is not None:
        return read_pack(args.pack)
    settings = {} if args.store is None else {"store_root": args.store}
    study = compose_study(args.experiments, args.words, settings)
    if study.site_overrides:
        raise ConfigError(f"site.{study.site_overrides[0]}: the launcher is the site here; give mpirun's own options")
    for option, value, least in (
        ("--cores-per-rank", args.cores_per_rank, 1),
        ("--gpus-per-node", args.gpus_per_node, 0),
        ("--ranks-per-gpu", args.ranks_per_gpu, 1),
    ):
        _at_least(option, value, least)
    store = Store(study.settings.store_root)
    study = study.priced(read_costs(store.root, args.cores_per_rank, args.gpus_per_node), store.targets_dir)
    pack = pack_of_study(study, args.cores_per_rank, look_only=args.dry_run) | {
        "gpus_per_node": args.gpus_per_node,
        "ranks_per_gpu": args.ranks_per_gpu,
    }
    if pack["runs"] and not args.dry_run:
        store = Store(pack["store_root"])
        store.ensure_writable()
        write_json_atomic(store.pack_dir(pack["pack_id"]) / "pack.json", pack)
    return pack


def read_pack(path: Path) -> Pack:
    """Read and check a pack file.

    Raises ConfigError naming the file and the key.
    """
    try:
        pack = read_json(path)
    except CorruptArtifact as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not isinstance(pack, dict) or pack.get("format") != PACK_FORMAT:
        raise ConfigError(f"{path}: not a pack file of format {PACK_FORMAT}; start flows/packed.py again to write one")
    missing = [key for key in PACK_KEYS if key not in pack]
    if missing:
        raise ConfigError(f"{path}: {missing[0]}: missing; a pack file has the keys {', '.join(PACK_KEYS)}")
    pack = PACK_DEFAULTS | pack
    for key, least in (("cores_per_rank", 1), ("gpus_per_node", 0), ("ranks_per_gpu", 1)):
        _at_least(f"{path}: {key}", pack[key], least)
    _check_entries(path, pack)
    for entry in pack["builds"]:
        _same_id(path, entry["target_id"], target_id_for(_build_config(entry)))
    for entry in pack["runs"]:
        _same_id(path, entry["run_id"], run_id_for(_sample_config(entry)))
    return pack


def _check_entries(path: Path, pack: Pack) -> None:
    for key in ("pack_id", "store_root"):
        _require(isinstance(pack[key], str), f"{path}: {key}", pack[key], "text")
    if pack["expected_ranks"] is not None:
        _at_least(f"{path}: expected_ranks", pack["expected_ranks"], 1)
    lease, suspects = pack["lease"], pack["suspects"]
    _require(lease is None or isinstance(lease, str), f"{path}: lease", lease, "a path or null")
    texts = isinstance(suspects, list) and all(isinstance(key, str) for key in suspects)
    _require(texts, f"{path}: suspects", suspects, "a list of texts")
    deadline = pack["deadline"]
    seconds = deadline is None or (type(deadline) in (int, float) and abs(deadline) < float("inf"))
    _require(seconds, f"{path}: deadline", deadline, "seconds since the epoch, or null")
    ids = {"builds": ("target_id",), "runs": ("target_id", "run_id")}
    for key, names in ids.items():
        _require(isinstance(pack[key], list), f"{path}: {key}", pack[key], "a list")
        for index, entry in enumerate(pack[key]):
            where = f"{path}: {key}[{index}]"
            _require(isinstance(entry, dict), where, entry, "a mapping")
            for name in names:
                text = entry.get(name)
                _require(isinstance(text, str) and _ID.fullmatch(text), f"{where}: {name}", text, "an id")
            _require(isinstance(entry.get("config"), dict), f"{where}: config", entry.get("config"), "a mapping")
            if key == "runs":
                cost, program = entry.get("cost"), entry.get("program")
                costs = type(cost) in (int, float) and 0 <= cost < float("inf")
                _require(costs, f"{where}: cost", cost, "seconds, a finite number of at least 0")
                _require(program is None or isinstance(program, str), f"{where}: program", program, "text or null")


def _require(holds: Any, name: str, value: Any, expected: str) -> None:
    if not holds:
        raise ConfigError(f"{name}: got {value!r:.80}, expected {expected}")


def _at_least(name: str, value: Any, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}: got {value!r}, expected an integer of at least {least}")


def _same_id(path: Path, written: str, computed: str) -> None:
    if written != computed:
        raise ConfigError(f"{path}: {written}: its configuration is that of {computed}; the file was edited")


def _build_config(entry: dict[str, Any]) -> BuildConfig:
    where = entry["target_id"]
    target = entry["config"].get("target")
    kind = target.get("kind") if isinstance(target, dict) else None
    return build_dataclass(schema_for(BUILD_SCHEMAS, kind, f"{where}: target.kind"), [(where, entry["config"])])


def _sample_config(entry: dict[str, Any]) -> SampleConfig:
    where = entry["run_id"]
    schema = schema_for(SAMPLE_SCHEMAS, entry["config"].get("name"), f"{where}: name")
    return build_dataclass(schema, [(where, entry["config"])])


def pack_of_study(study: Study, cores_per_rank: int, look_only: bool = False) -> Pack:
    """One pack of all that the store lacks. What it holds damaged is named and, unless `look_only`, set aside."""
    store = Store(study.settings.store_root)
    runs = []
    damages: list[Damage] = []
    for run in study.runs:
        status, found = store.inspect_run(run.target_id, run.run_id, run.cfg, move=not look_only)
        damages += found
        if status != "finished":
            names = {"target_id": run.target_id, "run_id": run.run_id}
            runs.append({**names, "config": asdict(run.cfg), "cost": run.cost, "program": run.program})
    builds = []
    for target_id in dict.fromkeys(run["target_id"] for run in runs):
        target_status, found = store.inspect_target(target_id, study.targets[target_id], move=not look_only)
        damages += found
        if target_status != "built":
            builds.append({"target_id": target_id, "config": asdict(study.targets[target_id])})
    for damage in damages:
        print(f"damaged: {damage}")
    content = canonical_json([[run["target_id"], run["run_id"]] for run in runs])
    return PACK_DEFAULTS | {
        "format": PACK_FORMAT,
        "pack_id": f"pack_{hashlib.sha1(content.encode()).hexdigest()[:8]}",
        "store_root": str(store.root),
        "cores_per_rank": cores_per_rank,
        "expected_ranks": None,
        "builds": builds,
        "runs": runs,
    }


def items_of(pack: Pack) -> list[Item]:
    """The pack's work in the order of hand-out: builds that much depends on first, then runs, longest first."""
    waiting: Counter[str] = Counter()
    for run in pack["runs"]:
        waiting[run["target_id"]] += run["cost"]
    builders = builders_of(pack)
    for target_id, builder in builders.items():
        if target_id != builder:
            waiting[builder] += waiting[target_id]
    builds = sorted(set(builders.values()), key=lambda t: (-waiting[t], t))
    runs = sorted(pack["runs"], key=lambda run: (-run["cost"], run["target_id"], run["run_id"]))
    items = [Item(target_id) for target_id in builds]
    suspects = set(pack["suspects"])
    for run in runs:
        key = _key(run)
        items.append(Item(key, builders.get(run["target_id"]), run["cost"], run.get("program"), key in suspects))
    return items


def builders_of(pack: Pack) -> dict[str, str]:
    """For every target to build the one whose build makes it: itself, or the first checkpoint of its training."""
    firsts: dict[str, str] = {}
    builders = {}
    for entry in pack["builds"]:
        target_id = entry["target_id"]
        training = trajectory_id(_build_config(entry)) or target_id
        builders[target_id] = firsts.setdefault(training, target_id)
    return builders


def _key(run: dict[str, Any]) -> str:
    return f"{run['target_id']}/{run['run_id']}"


def describe_pack(pack: Pack) -> str:
    """What `--dry-run` prints."""
    cores, gpus = pack["cores_per_rank"], pack["gpus_per_node"]
    launched = launcher_size(os.environ)
    seconds = read_costs(Path(pack["store_root"]), cores, gpus).pack_seconds(
        # Runs without the name of a program share it with no other.
        ((run["config"]["name"], run.get("program") or _key(run), run["cost"]) for run in pack["runs"]),
        pack["expected_ranks"] or (launched[1] if launched else None),
    )
    lines = [
        f"{pack['pack_id']}: {len(pack['builds'])} targets to build, {len(pack['runs'])} runs, about "
        f"{price(seconds, cores, gpus, pack['ranks_per_gpu'])}, in {pack['store_root']}"
    ]
    costs = {_key(run): run["cost"] for run in pack["runs"]}
    for item in items_of(pack):
        lines.append(f"  run {item.key} ({costs[item.key]:.1f} s)" if item.key in costs else f"  build {item.key}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------
# Doing it


def run_pack(world: World, pack: Pack, drain: Drain, started: float) -> Counter[str]:
    """This rank's part of the pack; returns how many items of all ranks had which outcome.

    `started` is the monotonic time at which the rank began.
    Raises LaunchError, with no run attempted on this rank, where it cannot have the cores or the GPU that the pack asks
    for.
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
        # A rank that leaves ends the launch, so one that looks often is enough for all of them.
        drain_when_lost(pack["lease"], drain, f"rank {world.rank}", 1.0 if world.rank == 0 else SLOWEST_LOOK)
        rank = Rank(world, pack, store, drain, events, console)
        try:
            rank.begin(bind_rank(world.rank, pack["cores_per_rank"], pack["gpus_per_node"], pack["ranks_per_gpu"]))
        except LaunchError as error:
            events.append("refused", rank=world.rank, host=socket.gethostname(), reason=str(error))
            raise
        outcomes = dispatch(world, items_of(pack), rank.do, drain)
        rank.finish(time.monotonic() - started)
        if world.rank == 0:
            counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
            stopped = "" if drain.reason is None else f"; stopped: {drain.reason}"
            console.say(f"{pack['pack_id']}: {counts}, on {world.size} ranks; {folder}{stopped}")
    return outcomes


class Console:
    """Inside the block all that this process prints, native libraries included, goes to the file `path`."""

    def __init__(self, path: Path, prefix: str):
        self._path, self._prefix = path, prefix

    def __enter__(self) -> Console:
        _flush()
        self._stdout, self._stderr = (os.fdopen(os.dup(stream), "w", buffering=1) for stream in (1, 2))
        self._log = self._path.open("a", buffering=1)
        for stream in (1, 2):
            os.dup2(self._log.fileno(), stream)
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True)
        faulthandler.enable()
        return self

    def __exit__(self, *exc: object) -> None:
        _flush()
        os.dup2(self._stdout.fileno(), 1)
        os.dup2(self._stderr.fileno(), 2)

    def say(self, line: str) -> None:
        """Print one line, with the rank before it, to the log and to where stdout went before the block."""
        for stream in (self._log, self._stdout):
            # A full disk costs the line. One write, so that the lines of different ranks stay whole.
            with contextlib.suppress(OSError):
                stream.write(f"{self._prefix} {line}\n")

    def alarm(self, text: str) -> None:
        """Print `text` to the log and to where stderr went before the block."""
        for stream in (self._log, self._stderr):
            with contextlib.suppress(OSError):
                stream.write(f"{text}\n")
                stream.flush()


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def _print_traceback(error: BaseException) -> None:
    with contextlib.suppress(OSError):
        traceback.print_exception(error)


class Rank:
    """One rank's work: does its items, each inside a guard, and writes the events."""

    def __init__(self, world: World, pack: Pack, store: Store, drain: Drain, events: EventLog, console: Console):
        self._world, self._store, self._drain, self._events, self._console = world, store, drain, events, console
        self._lease = None if pack["lease"] is None else Path(pack["lease"])
        self._builds = {entry["target_id"]: entry for entry in pack["builds"]}
        self._runs = {_key(entry): entry for entry in pack["runs"]}
        self._ranks_on_node = launcher_local_size(os.environ) or 1
        self._context = {"rank": world.rank, "pack_id": pack["pack_id"]}
        self._busy = 0.0

    def begin(self, binding: Binding) -> None:
        """Write `start`, import what samples, write `ready`. Raises LaunchError where jax does not see the GPU."""
        self._events.append(
            "start",
            **self._context,
            size=self._world.size,
            host=socket.gethostname(),
            pid=os.getpid(),
            binding=asdict(binding),
        )
        begun = time.monotonic()
        # Only now: XLA counts the cores that the process may use when it starts.
        from lambda_hat import execute

        if binding.device is not None:
            check_gpu(self._world.rank, binding, execute.visible_devices)
        self._execute = execute
        self._events.append("ready", seconds=time.monotonic() - begun, **execute.where_am_i())

    def finish(self, seconds: float) -> None:
        """Write `end`: seconds inside builds and runs, and of the whole process."""
        if self._drain.reason is not None:
            self._events.append("drain", rank=self._world.rank, reason=self._drain.reason)
        self._events.append("end", rank=self._world.rank, busy=self._busy, seconds=seconds)

    def do(self, key: str) -> str:
        """Build the target or run the run `key`, and return its outcome, with `build` before it for a target."""
        begun = time.monotonic()
        try:
            return f"build {self._build(key)}" if key in self._builds else self._run(key)
        finally:
            self._busy += time.monotonic() - begun

    def _build(self, target_id: str) -> str:
        directory = self._store.target_dir(target_id)
        end = self._begin("build", target_id=target_id)
        if self._store.target_status(target_id) == "built":
            return end("finished", cached=True)
        try:
            self._execute.build_into(directory, _build_config(self._builds[target_id]))
        except StoreUnwritable as error:
            return self._cannot_write(end, error)
        except Exception as error:
            return self._failed(end, directory, error)
        return end("finished")

    def _run(self, key: str) -> str:
        entry = self._runs[key]
        target_id, run_id = entry["target_id"], entry["run_id"]
        run_dir, target_dir = self._store.run_dir(target_id, run_id), self._store.target_dir(target_id)
        end = self._begin("run", target_id=target_id, run_id=run_id)
        if self._drain.reason is not None:
            return end(LEFT, reason=self._drain.reason)
        if self._store.target_status(target_id) != "built":
            return end("blocked", reason=self._why_blocked(target_id))
        try:
            claim = claims.take(run_dir, self._lease, **self._context)
            if claim is None:
                return end("elsewhere", reason=f"another process samples it: {_who(claims.holder(run_dir))}")
        except StoreUnwritable as error:
            return self._cannot_write(end, error)
        except StoreError as error:
            return self._failed(end, run_dir, error)
        try:
            status = self._sample(entry, run_dir, target_dir, end)
        except StoreUnwritable as error:
            status = self._cannot_write(end, error)
        (claim.finished if status == "finished" else claim.release)()
        return status

    def _sample(self, entry: dict[str, Any], run_dir: Path, target_dir: Path, end: Callable[..., str]) -> str:
        target_id = entry["target_id"]
        if self._store.run_status(target_id, entry["run_id"]) == "finished":
            return end("finished", cached=True)
        cfg = _sample_config(entry)
        try:
            analysis = self._execute.sample_into(
                run_dir, target_dir, cfg, self._context, self._drain, self._ranks_on_node, self._store.set_aside
            )
        except Paused as pause:
            return end("paused", reason=pause.reason, advanced=pause.advanced)
        except StoreUnwritable:
            raise
        except Exception as error:
            damages = self._damages(error, target_id)
            if damages:
                return end("blocked", reason=f"its target is damaged, and is to be built again: {damages}")
            return self._failed(end, run_dir, error)
        return end("finished", verdict=analysis["verdict"])

    def _damages(self, error: Exception, target_id: str) -> str:
        """What is wrong with the files of a target, which are set aside for that."""
        if not isinstance(error, CorruptArtifact):
            return ""
        try:
            _, damages = self._store.inspect_target(target_id, None, thorough=True)
        except StoreUnwritable:
            raise
        except StoreError as refusal:
            return str(refusal)
        # Another rank may have been faster.
        return "; ".join(map(str, damages)) or (str(error) if self._store.target_status(target_id) != "built" else "")

    def _failed(self, end: Callable[..., str], directory: Path, error: Exception) -> str:
        """Keep the failure of a build or a run with its traceback."""
        try:
            self._execute.record_failure(directory, error, self._context)
        except StoreUnwritable as unwritable:
            return self._cannot_write(end, unwritable)
        if not isinstance(error, LambdaHatError):
            # The message of our own errors says all; error.json has the traceback of both.
            _print_traceback(error)
        return end("failed", reason=_sentence(error), see=str(directory / "error.json"))

    def _cannot_write(self, end: Callable[..., str], error: StoreUnwritable) -> str:
        """No other run could be kept either."""
        self._drain.request(str(error))
        return end(LEFT, reason=str(error), store_error=True)

    def _begin(self, what: str, **names: str) -> Callable[..., str]:
        """Write `<what>_start`. The function returned writes `<what>_end` and a line, and returns the status."""
        self._events.append(f"{what}_start", rank=self._world.rank, **names)
        begun = time.monotonic()

        def end(status: str, **details: Any) -> str:
            seconds = time.monotonic() - begun
            record = {"status": status, "seconds": seconds, **details}
            self._events.append(f"{what}_end", rank=self._world.rank, **names, **record)
            more = "".join(f", {key}: {value}" for key, value in details.items())
            self._console.say(f"{what} {'/'.join(names.values())}: {status} in {seconds:.1f} s{more}")
            return status

        return end

    def _why_blocked(self, target_id: str) -> str:
        if self._store.target_status(target_id) == "failed":
            return f"its target could not be built: {error_line(self._store.target_dir(target_id) / 'error.json')}"
        return "its target is not built: no meta.json"


def _who(record: dict[str, Any] | None) -> str:
    if not record:
        return "it has just ended"
    return f"process {record.get('pid')} on {record.get('host')}, pack {record.get('pack_id')}"


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    run_command(main)
