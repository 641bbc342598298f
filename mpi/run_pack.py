"""The program under mpirun: runs the runs of one pack, every rank working, each run published as it finishes.

    mpirun -n 4 python mpi/run_pack.py PACK.json
    mpirun -n 4 python mpi/run_pack.py --experiments conf/smoke.yaml [--store DIR] [key=value ...]

The second form needs no driver: it composes the study, builds the targets that are missing, and runs what is left.

A pack file is JSON: `format` (1), `pack_id`, `store_root` (absolute), `cores_per_rank`, `expected_ranks` (or null),
`runs` (target_id, run_id, config, cost in seconds; program, which runs that share compiled code have in common, where
known), and where they are needed `builds` (target_id, config), for the ranks to build as well, `gpus_per_node` (0),
`ranks_per_gpu` (1), `deadline` (seconds since the epoch; the variable LAMBDA_HAT_DEADLINE may bring it forward),
`lease` (path of the driver's), `suspects` (runs as "target_id/run_id" that may have killed their rank, handed out last
and one at a time), `lanes` (how many runs of one program a rank samples side by side at most, or "auto"; 1) and
`compile_cache` (true; false: every rank compiles its programs itself).

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
import itertools
import math
import os
import re
import socket
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass
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
from lambda_hat.lanes import AUTO, MOST_LANES, check_lanes, even_pieces
from lambda_hat.lease import LEASE_VARIABLE, SLOWEST_LOOK, Lease, drain_when_lost
from lambda_hat.omegaconf_support import build_dataclass, schema_for
from lambda_hat.store import (
    CACHE_OFF,
    CACHE_VARIABLE,
    Damage,
    EventLog,
    Store,
    error_line,
    read_json,
    write_json_atomic,
)
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
from mpi.dispatch import World, dispatch, install_abort_hooks, start_mpi, to_stderr
from mpi.handout import LEFT, Item
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
    "lanes": 1,
    "compile_cache": True,
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
    args = parser.parse_intermixed_args(argv)
    if args.experiments is not None and args.pack is not None:
        # argparse gives the first key=value word to the pack.
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
    # Every rank would print the same usage message.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


# --------------------------------------------------------------------------------------------------------------
# What there is to do


def load_pack(args: argparse.Namespace) -> Pack:
    """The pack of the file, or of the study, as the options say. Raises ConfigError or StoreError."""
    if args.pack is not None:
        return read_pack(args.pack)
    given = {"store_root": args.store, "lanes": args.lanes}
    settings = {key: value for key, value in given.items() if value is not None}
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
        "lanes": study.settings.lanes,
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
    pack["lanes"] = check_lanes(f"{path}: lanes", pack["lanes"])
    lease, suspects = pack["lease"], pack["suspects"]
    _require(lease is None or isinstance(lease, str), f"{path}: lease", lease, "a path or null")
    texts = isinstance(suspects, list) and all(isinstance(key, str) for key in suspects)
    _require(texts, f"{path}: suspects", suspects, "a list of texts")
    _require(type(pack["compile_cache"]) is bool, f"{path}: compile_cache", pack["compile_cache"], "true or false")
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
        "compile_cache": study.settings.compile_cache,
        "builds": builds,
        "runs": runs,
    }


def items_of(pack: Pack, ranks: int) -> list[Item]:
    """The pack's work in the order of hand-out: builds that much depends on first, then runs, longest first."""
    waiting: Counter[str] = Counter()
    for run in pack["runs"]:
        waiting[run["target_id"]] += run["cost"]
    builders = builders_of(pack)
    for target_id, builder in builders.items():
        if target_id != builder:
            waiting[builder] += waiting[target_id]
    builds = sorted(set(builders.values()), key=lambda t: (-waiting[t], t))
    runs = {_key(run): run for run in pack["runs"]}
    suspects = set(pack["suspects"])
    items = []
    for key, keys in bundles_of(pack, ranks).items():
        first, cost = runs[key], sum(runs[one]["cost"] for one in keys)
        builder = builders.get(first["target_id"])
        items.append(Item(key, builder, cost, first.get("program"), key in suspects, len(keys)))
    return [Item(target_id) for target_id in builds] + sorted(items, key=lambda item: (-item.cost, item.key))


def bundles_of(pack: Pack, ranks: int) -> dict[str, list[str]]:
    """The runs that one rank gets at a time, by the first of them: single ones, or with `lanes` those that are expected
    to share a program, at most as many as lanes, and no more than leave every rank its share."""
    most = MOST_LANES if pack["lanes"] == AUTO else pack["lanes"]
    if most == 1:
        return {_key(run): [_key(run)] for run in pack["runs"]}
    builders, suspects = builders_of(pack), set(pack["suspects"])
    families: dict[Hashable, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(pack["runs"], key=lambda run: (run["target_id"], run["run_id"])):
        key, target_id = _key(run), run["target_id"]
        alone = run.get("program") is None or key in suspects
        families[key if alone else (run["program"], builders.get(target_id))][target_id].append(key)
    bundles = []
    for by_target in families.values():
        size = min(most, math.ceil(sum(map(len, by_target.values())) / ranks))
        # Lanes of one target share its data, but are not worth ranks that have nothing to do.
        whole = min(map(len, by_target.values())) >= size
        for keys in by_target.values() if whole else [list(itertools.chain(*by_target.values()))]:
            bundles += even_pieces(keys, size)
    return {keys[0]: keys for keys in bundles}


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
    bundles = bundles_of(pack, 1)
    for item in items_of(pack, 1):
        if item.key not in costs:
            lines.append(f"  build {item.key}")
        lines += [f"  run {key} ({costs[key]:.1f} s)" for key in bundles.get(item.key, ())]
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
        if not pack["compile_cache"]:
            os.environ[CACHE_VARIABLE] = CACHE_OFF
        try:
            rank.begin(bind_rank(world.rank, pack["cores_per_rank"], pack["gpus_per_node"], pack["ranks_per_gpu"]))
        except LaunchError as error:
            events.append("refused", rank=world.rank, host=socket.gethostname(), reason=str(error))
            raise
        outcomes = dispatch(world, items_of(pack, world.size), rank.do, drain)
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


@dataclass(frozen=True)
class Job:
    """A run that this rank holds the claim of."""

    key: str
    target_id: str
    run_dir: Path
    claim: claims.Claim
    end: Callable[..., str]
    """Says how it ended."""


class Rank:
    """One rank's work: does its items, each inside a guard, and writes the events."""

    def __init__(self, world: World, pack: Pack, store: Store, drain: Drain, events: EventLog, console: Console):
        self._world, self._store, self._drain, self._events, self._console = world, store, drain, events, console
        self._lease = None if pack["lease"] is None else Path(pack["lease"])
        self._builds = {entry["target_id"]: entry for entry in pack["builds"]}
        self._runs = {_key(entry): entry for entry in pack["runs"]}
        self._bundles, self._lanes = bundles_of(pack, world.size), pack["lanes"]
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

    def do(self, key: str) -> list[str]:
        """Build the target or do the runs of the item `key`; their outcomes, with `build` before it for a target."""
        begun = time.monotonic()
        try:
            return [f"build {self._build(key)}"] if key in self._builds else self._do_runs(self._bundles[key])
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

    def _do_runs(self, keys: Sequence[str]) -> list[str]:
        """The outcomes of some runs that are expected to share a program: together where they do."""
        if len(keys) == 1:
            return self._run(keys, 1)
        return [outcome for group, width in self._groups(keys) for outcome in self._run(group, width)]

    def _groups(self, keys: Sequence[str]) -> Iterator[tuple[list[str], int]]:
        """The keys in groups of runs that can be lanes of one program, and how many lanes its program has."""
        together: dict[Hashable, dict[str, Any]] = {}
        for key in keys:
            try:
                prepared = self._execute.prepare(*self._whereabouts(key))
                together.setdefault(self._execute.companions(prepared), {})[key] = prepared
            except Exception:
                # What is wrong with it is told when it is tried by itself.
                yield [key], 1
        for group in together.values():
            most = len(group)
            if self._lanes == AUTO and most > 1:
                most = self._execute.width_for(list(group.values()), self._ranks_on_node)
            pieces = even_pieces(list(group), most)
            for piece in pieces:
                yield piece, len(pieces[0])

    def _whereabouts(self, key: str) -> tuple[Path, Path, SampleConfig]:
        """Folder of a run, folder of its target, configuration."""
        entry = self._runs[key]
        target_dir = self._store.target_dir(entry["target_id"])
        return self._store.run_dir(entry["target_id"], entry["run_id"]), target_dir, _sample_config(entry)

    def _run(self, keys: Sequence[str], width: int) -> list[str]:
        """The outcomes of runs that are lanes of one program."""
        taken = [self._take(key, lane) for lane, key in enumerate(keys)]
        outcomes = [outcome for outcome in taken if isinstance(outcome, str)]
        return outcomes + self._sample([job for job in taken if isinstance(job, Job)], width)

    def _take(self, key: str, lane: int) -> Job | str:
        """A run that is now this rank's to sample; else its outcome."""
        entry = self._runs[key]
        target_id, run_id = entry["target_id"], entry["run_id"]
        run_dir = self._store.run_dir(target_id, run_id)
        end = self._begin("run", target_id=target_id, run_id=run_id, lane=lane)
        if self._drain.reason is not None:
            return end(LEFT, reason=self._drain.reason)
        if self._store.target_status(target_id) != "built":
            return end("blocked", reason=self._why_blocked(target_id))
        try:
            claim = claims.take(run_dir, self._lease, **self._context)
        except StoreUnwritable as error:
            return self._cannot_write(end, error)
        except StoreError as error:
            return self._failed(end, run_dir, error)
        if claim is None:
            return end("elsewhere", reason=f"another process samples it: {_who(claims.holder(run_dir))}")
        if self._store.run_status(target_id, run_id) == "finished":
            claim.finished()
            return end("finished", cached=True)
        return Job(key, target_id, run_dir, claim, end)

    def _sample(self, jobs: Sequence[Job], width: int) -> list[str]:
        """Sample the runs that are this rank's; their outcomes."""
        outcomes: list[str] = []

        def ended(outcome: str, **details: Any) -> None:
            for job in jobs[len(outcomes) :]:
                outcomes.append(job.end(outcome, **details))
                job.claim.release()

        try:
            for analysis in self._analyses(jobs, width):
                job = jobs[len(outcomes)]
                outcomes.append(job.end("finished", verdict=analysis["verdict"]))
                job.claim.finished()
        except Paused as pause:
            ended("paused", reason=pause.reason, advanced=pause.advanced)
        except StoreUnwritable as error:
            self._drain.request(str(error))
            ended(LEFT, reason=str(error), store_error=True)
        except Exception as error:
            if len(jobs) > 1:
                # Whose fault it is shows when each is by itself.
                return outcomes + [outcome for job in jobs[len(outcomes) :] for outcome in self._sample([job], 1)]
            outcomes.append(self._sampling_failed(jobs[0], error))
            jobs[0].claim.release()
        return outcomes

    def _analyses(self, jobs: Sequence[Job], width: int) -> Iterator[dict[str, Any]]:
        """The analysis of each run once it is published."""
        shared = (self._context, self._drain, self._ranks_on_node)
        if len(jobs) > 1:
            prepared = [self._execute.prepare(*self._whereabouts(job.key)) for job in jobs]
            yield from self._execute.sample_together(prepared, *shared, width)
        else:
            for job in jobs:
                yield self._execute.sample_into(*self._whereabouts(job.key), *shared, self._store.set_aside)

    def _sampling_failed(self, job: Job, error: Exception) -> str:
        damages = self._damages(error, job.target_id)
        if damages:
            return job.end("blocked", reason=f"its target is damaged, and is to be built again: {damages}")
        return self._failed(job.end, job.run_dir, error)

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

    def _begin(self, what: str, lane: int | None = None, **names: str) -> Callable[..., str]:
        """Write `<what>_start`. The function returned writes `<what>_end` and a line, and returns the status."""
        where = {} if lane is None else {"lane": lane}
        self._events.append(f"{what}_start", rank=self._world.rank, **names, **where)
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
