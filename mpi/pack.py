"""The pack that `mpi/run_pack.py` reads, checks and hands out; the docstring there explains the keys of a pack file."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import asdict
from operator import attrgetter
from pathlib import Path
from typing import Any

from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS, BuildConfig
from lambda_hat.config.study_settings import AUTO, check_lanes
from lambda_hat.errors import ConfigError, CorruptArtifact
from lambda_hat.id_utils import Run, canonical_json, config_digest, target_id_for, trajectory_id
from lambda_hat.omegaconf_support import build_dataclass, schema_for, with_values
from lambda_hat.planning.calibration import read_costs
from lambda_hat.planning.cost import price
from lambda_hat.planning.lanes import MOST_LANES, even_pieces
from lambda_hat.planning.packing import PACK_FORMAT, PlannedRun
from lambda_hat.store.layout import Damage, Store, read_json
from lambda_hat.workflow_config import Study
from mpi.handout import Item
from mpi.launcher_variables import launcher_size

_ID = re.compile(r"[\w-]+")
"""Ids are names of folders, and must not lead out of the store."""
PACK_KEYS = ("format", "pack_id", "store_root", "cores_per_rank", "expected_ranks", "runs")
PACK_DEFAULTS = {
    "builds": [],
    "gpus_per_node": 0,
    "ranks_per_gpu": 1,
    "gpu_sharing": "none",
    "site": None,
    "deadline": None,
    "lease": None,
    "suspects": [],
    "lanes": 1,
    "compile_cache": True,
}

Pack = dict[str, Any]
"""The keys of a pack file. `builds` are configurations of targets by id here, and `runs` instances of PlannedRun."""


def read_pack(path: Path) -> Pack:
    """Read, check and decode a pack file; keys that it lacks have their defaults.

    Raises:
        ConfigError: The file is not a pack file; the message names the file and the key.
    """
    try:
        pack = read_json(path)
    except CorruptArtifact as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not isinstance(pack, dict) or pack.get("format") != PACK_FORMAT:
        raise ConfigError(f"{path}: not a pack file of format {PACK_FORMAT}; start lambda-hat run again to write one")
    missing = [key for key in PACK_KEYS if key not in pack]
    if missing:
        raise ConfigError(f"{path}: {missing[0]}: missing; a pack file has the keys {', '.join(PACK_KEYS)}")
    pack = PACK_DEFAULTS | pack
    for key, least in (("cores_per_rank", 1), ("gpus_per_node", 0), ("ranks_per_gpu", 1)):
        at_least(f"{path}: {key}", pack[key], least)
    _require(pack["gpu_sharing"] in ("none", "mps"), f"{path}: gpu_sharing", pack["gpu_sharing"], "none or mps")
    _check_entries(path, pack)
    builds = {entry["target_id"]: _build_config(path, entry) for entry in pack["builds"]}
    return pack | {"builds": builds, "runs": [_planned_run(path, entry) for entry in pack["runs"]]}


def _check_entries(path: Path, pack: Pack) -> None:
    for key in ("pack_id", "store_root"):
        _require(isinstance(pack[key], str), f"{path}: {key}", pack[key], "text")
    _require(pack["site"] is None or isinstance(pack["site"], str), f"{path}: site", pack["site"], "text or null")
    if pack["expected_ranks"] is not None:
        at_least(f"{path}: expected_ranks", pack["expected_ranks"], 1)
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


def at_least(name: str, value: Any, least: int) -> None:
    """Raise ConfigError where `value` is not an integer of at least `least`; `name` is its name in the message."""
    if type(value) is not int or value < least:
        raise ConfigError(f"{name}: got {value!r}, expected an integer of at least {least}")


def _same_id(path: Path, written: str, computed: str) -> None:
    if written != computed:
        raise ConfigError(f"{path}: {written}: its configuration is that of {computed}; the file was edited")


def _build_config(path: Path, entry: dict[str, Any]) -> BuildConfig:
    where = entry["target_id"]
    target = entry["config"].get("target")
    kind = target.get("kind") if isinstance(target, dict) else None
    build = build_dataclass(schema_for(BUILD_SCHEMAS, kind, f"{where}: target.kind"), [(where, entry["config"])])
    _same_id(path, where, target_id_for(build))
    return build


def _planned_run(path: Path, entry: dict[str, Any]) -> PlannedRun:
    where = entry["run_id"]
    config = entry["config"]
    schema = schema_for(SAMPLE_SCHEMAS, config.get("name"), f"{where}: name")
    # A driver writes configurations in full. To merge one takes ten milliseconds, as long as a short run.
    cfg = with_values(schema(), dict(_dotted(config))) if not any("." in str(key) for key in config) else None
    cfg = build_dataclass(schema, [(where, config)]) if cfg is None else cfg
    run = PlannedRun.of(cfg, program=entry.get("program") or "", cost=entry["cost"])
    for written, computed in zip((entry["target_id"], entry["run_id"]), run.key, strict=True):
        _same_id(path, written, computed)
    return run


def _dotted(config: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", content) for inner, content in value.items())
        else:
            yield str(key), value


def pack_of_study(study: Study, cores_per_rank: int, look_only: bool = False) -> Pack:
    """Make one pack of everything that the store lacks, and report damaged files.

    Args:
        study: The study.
        cores_per_rank: Cores of each rank.
        look_only: Leave damaged files in place; else they are set aside.
    """
    store = Store(study.settings.store_root)
    runs: list[PlannedRun] = []
    damages: list[Damage] = []
    for run in study.runs:
        status, found = store.inspect_run(*run.key, run.digest, move=not look_only)
        damages += found
        if status != "finished":
            runs.append(run)
    builds: dict[str, BuildConfig] = {}
    for target_id in dict.fromkeys(run.target_id for run in runs):
        build = study.targets[target_id]
        target_status, found = store.inspect_target(target_id, config_digest(build), move=not look_only)
        damages += found
        if target_status != "built":
            builds[target_id] = build
    for damage in damages:
        print(f"damaged: {damage}")
    content = canonical_json([run.key for run in runs])
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


def pack_record(pack: Pack) -> dict[str, Any]:
    """The content of the file of a pack."""
    builds = [{"target_id": target_id, "config": asdict(build)} for target_id, build in pack["builds"].items()]
    return pack | {"builds": builds, "runs": [run.pack_entry() for run in pack["runs"]]}


def items_of(pack: Pack, ranks: int) -> list[Item]:
    """The pack's work in the order of hand-out: builds first, then runs, longest first.

    The builds are ordered by the cost of the runs that need them.

    Args:
        pack: The pack.
        ranks: Size of the MPI world.
    """
    waiting: Counter[str] = Counter()
    for run in pack["runs"]:
        waiting[run.target_id] += run.cost
    builders = builders_of(pack)
    for target_id, builder in builders.items():
        if target_id != builder:
            waiting[builder] += waiting[target_id]
    builds = sorted(set(builders.values()), key=lambda t: (-waiting[t], t))
    runs = {key_of(run): run for run in pack["runs"]}
    suspects = set(pack["suspects"])
    items = []
    for key, keys in bundles_of(pack, ranks).items():
        first, cost = runs[key], sum(runs[one].cost for one in keys)
        builder = builders.get(first.target_id)
        items.append(Item(key, builder, cost, first.program or None, key in suspects, len(keys)))
    return [Item(target_id) for target_id in builds] + sorted(items, key=lambda item: (-item.cost, item.key))


def bundles_of(pack: Pack, ranks: int) -> dict[str, list[str]]:
    """The runs that one rank gets together, by the key of the first one.

    These are single runs, or with `lanes` runs that are expected to share a program: at most as many as lanes, and so
    few that every rank gets its share.

    Args:
        pack: The pack.
        ranks: Size of the MPI world.
    """
    most = MOST_LANES if pack["lanes"] == AUTO else pack["lanes"]
    if most == 1:
        return {key_of(run): [key_of(run)] for run in pack["runs"]}
    builders, suspects = builders_of(pack), set(pack["suspects"])
    families: dict[Hashable, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(pack["runs"], key=attrgetter("key")):
        key = key_of(run)
        alone = not run.program or key in suspects
        families[key if alone else (run.program, builders.get(run.target_id))][run.target_id].append(key)
    bundles = []
    for by_target in families.values():
        size = min(most, math.ceil(sum(map(len, by_target.values())) / ranks))
        # Lanes of one target share its data. But that is not worth idle ranks.
        whole = min(map(len, by_target.values())) >= size
        for keys in by_target.values() if whole else [list(itertools.chain(*by_target.values()))]:
            bundles += even_pieces(keys, size)
    return {keys[0]: keys for keys in bundles}


def builders_of(pack: Pack) -> dict[str, str]:
    """For every target to build, the target whose build makes it: itself, or the first checkpoint of its training."""
    firsts: dict[str, str] = {}
    builders = {}
    for target_id, build in pack["builds"].items():
        training = trajectory_id(build) or target_id
        builders[target_id] = firsts.setdefault(training, target_id)
    return builders


def key_of(run: Run) -> str:
    """The key of a run among all items."""
    return "/".join(run.key)


def describe_pack(pack: Pack) -> str:
    """The text that `--dry-run` prints."""
    cores, gpus = pack["cores_per_rank"], pack["gpus_per_node"]
    launched = launcher_size(os.environ)
    seconds = read_costs(Path(pack["store_root"]), cores, gpus).pack_seconds(
        # A run whose program is not known shares it with no other run.
        ((run.cfg.name, run.program or key_of(run), run.cost) for run in pack["runs"]),
        pack["expected_ranks"] or (launched[1] if launched else None),
    )
    lines = [
        f"{pack['pack_id']}: {len(pack['builds'])} targets to build, {len(pack['runs'])} runs, about "
        f"{price(seconds, cores, gpus, pack['ranks_per_gpu'])}, in {pack['store_root']}"
    ]
    costs = {key_of(run): run.cost for run in pack["runs"]}
    bundles = bundles_of(pack, 1)
    for item in items_of(pack, 1):
        if item.key not in costs:
            lines.append(f"  build {item.key}")
        lines += [f"  run {key} ({costs[key]:.1f} s)" for key in bundles.get(item.key, ())]
    return "\n".join(lines)
