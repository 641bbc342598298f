"""From an experiments file to the grid: every target, every run, their ids, and what they should cost.

Layers, later ones winning: the schema's defaults, the groups under `conf/`, the entry's `seed` and `overrides`, its
`sweep`. Groups are files: `model: small` reads `conf/model/small.yaml`.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lambda_hat.config import (
    BUILD_SCHEMAS,
    SAMPLE_SCHEMAS,
    BuildConfig,
    CustomBuild,
    DlnBuild,
    HmcConfig,
    MlpBuild,
    NutsConfig,
    SampleConfig,
    SgldConfig,
)
from lambda_hat.cost import estimate_seconds
from lambda_hat.errors import ConfigError, nearest
from lambda_hat.id_utils import canonical_json, identity_payload, run_id_for, target_id_for
from lambda_hat.lanes import check_lanes
from lambda_hat.omegaconf_support import (
    apply_words,
    build_dataclass,
    custom_target,
    load_yaml,
    refuse_interpolation,
    schema_for,
    set_key,
)
from lambda_hat.paths import moving_dim

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"

MLP_GROUPS = ("model", "data", "teacher")
TARGET_ENTRY_KEYS = ("target", *MLP_GROUPS, "seed", "checkpoints", "overrides", "sweep")
SAMPLER_ENTRY_KEYS = ("name", "overrides", "sweep")
NULL_GROUP = "_null"
MOST_ENTRIES = 1_000_000
"""Runs of a study at most: a sweep multiplies quickly, and each run takes a millisecond to compose."""


@dataclass(frozen=True)
class StudySettings:
    """What an experiments file, or `key=value` words, may set beside the grid. None of it changes a number,
    except `jax_enable_x64: false`, which makes every run float32 that does not name its precision."""

    store_root: str = "runs"
    results_root: str = "results"
    site: str = "local"
    pack: int = 32
    retries: int = 1
    lanes: Any = 1
    """A number, or auto."""
    jax_enable_x64: bool = True
    compile_cache: bool = True
    targets: list[Any] = field(default_factory=list)
    samplers: list[Any] = field(default_factory=list)

    def __post_init__(self):
        if self.pack < 1:
            raise ConfigError(f"pack: got {self.pack}, expected an integer of at least 1")
        object.__setattr__(self, "lanes", check_lanes("lanes", self.lanes))
        if self.retries < 0:
            raise ConfigError(f"retries: got {self.retries}, expected an integer of at least 0")


@dataclass(frozen=True)
class PlannedRun:
    """One sampler setting on one target."""

    target_id: str
    run_id: str
    cfg: SampleConfig
    program: str
    """Runs of equal `program` are expected to share compiled code."""
    cost: float
    """Expected seconds."""


@dataclass(frozen=True)
class Study:
    """The expanded grid."""

    source: Path
    settings: StudySettings
    targets: dict[str, BuildConfig]
    runs: list[PlannedRun]
    notes: list[str]
    """Sentences to show with the plan: duplicates, batches larger than the data."""
    site_overrides: list[str]
    """The `site.key=value` words, for the site's own schema."""


def compose_study(
    experiments: Path | str,
    words: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    conf_dir: Path = CONF_DIR,
) -> Study:
    """Read an experiments file, apply `key=value` words and `settings` (options given by name), expand the grid.

    Raises ConfigError, naming the file and the key, for whatever could not run.
    """
    experiments = Path(experiments)
    content = load_yaml(experiments)
    refuse_interpolation(content, str(experiments))
    site_overrides = [word.removeprefix("site.") for word in words if word.startswith("site.")]
    content = apply_words(content, [word for word in words if not word.startswith("site.")])
    layers = [(str(experiments), content), ("command line", settings or {})]
    if (conf_dir / "workflow.yaml").is_file():
        layers.insert(0, (str(conf_dir / "workflow.yaml"), load_yaml(conf_dir / "workflow.yaml")))
    study = build_dataclass(StudySettings, layers)
    for key in ("targets", "samplers"):
        if not getattr(study, key):
            raise ConfigError(f"{experiments}: {key}: the grid is empty; list at least one entry under {key}")

    notes: list[str] = []
    targets = _expand_targets(study, experiments, conf_dir, notes)
    samplers = list(_expand(study.samplers, f"{experiments}: samplers", SAMPLER_ENTRY_KEYS))
    if len(targets) * len(samplers) > MOST_ENTRIES:
        raise ConfigError(
            f"{experiments}: {len(targets)} targets times {len(samplers)} sampler settings, expected at most "
            f"{MOST_ENTRIES} runs; make several studies of it"
        )
    runs = _expand_runs(study, samplers, targets, conf_dir, notes)
    return Study(experiments, study, targets, list(runs.values()), notes, site_overrides)


def compose_build_cfg(
    target_entry: dict[str, Any],
    *,
    store_root: str = "runs",
    conf_dir: Path = CONF_DIR,
    source: str = "target entry",
) -> BuildConfig:
    """The build configuration of one target entry without `sweep`.

    Raises ConfigError naming `source` and the key.
    """
    _check_entry(target_entry, TARGET_ENTRY_KEYS, source)
    name = target_entry.get("target", "mlp")
    if isinstance(name, dict):
        where, base = source, {"target": custom_target(name, source)}
    else:
        where, base = _group_file("target", name, conf_dir), _group("target", name, conf_dir, source)
    kind = base.get("target", {}).get("kind")
    schema = schema_for(BUILD_SCHEMAS, kind, f"{where}: target.kind")
    layers = [(where, base)]
    for group in MLP_GROUPS:
        if group not in target_entry:
            continue
        if kind != "mlp":
            raise ConfigError(f"{source}: {group}: only targets of kind mlp have a {group}, this one is {kind}")
        if target_entry[group] == NULL_GROUP:
            layers.append((source, {group: None}))
        else:
            content = _group(group, target_entry[group], conf_dir, source)
            layers.append((_group_file(group, target_entry[group], conf_dir), {group: content}))
    if "checkpoints" in target_entry:
        if kind != "mlp":
            raise ConfigError(f"{source}: checkpoints: only targets of kind mlp are trained, this one is {kind}")
        layers.append((source, {"checkpoints": target_entry["checkpoints"]}))
    if "seed" in target_entry:
        layers.append((source, {"seed": target_entry["seed"]}))
    layers.append((source, target_entry.get("overrides") or {}))
    layers.append((source, {"store": {"root": store_root}}))
    return with_checkpoint_hash(build_dataclass(schema, layers), source)


def compose_sample_cfg(
    target_id: str,
    sampler_entry: dict[str, Any],
    *,
    build: BuildConfig | None = None,
    jax_enable_x64: bool = True,
    conf_dir: Path = CONF_DIR,
    source: str = "sampler entry",
) -> SampleConfig:
    """The configuration of one run: one sampler entry without `sweep`, on one target.

    With `build`, the target's configuration, defaults that depend on the target are filled in, and a sampler that
    the target cannot take is refused. Raises ConfigError naming `source` and the key.
    """
    _check_entry(sampler_entry, SAMPLER_ENTRY_KEYS, source)
    if "name" not in sampler_entry:
        raise ConfigError(f"{source}: name: missing; {nearest('', SAMPLE_SCHEMAS)}")
    name = sampler_entry["name"]
    schema = schema_for(SAMPLE_SCHEMAS, name, f"{source}: name")
    layers = [("sampler defaults", {} if jax_enable_x64 else {"precision": "float32"})]
    if (conf_dir / "sample" / f"{name}.yaml").is_file():
        layers.append((_group_file("sample", name, conf_dir), _group("sample", name, conf_dir, source)))
    layers.append((source, sampler_entry.get("overrides") or {}))
    layers.append((source, {"name": name, "target_id": target_id}))
    cfg = build_dataclass(schema, layers)
    if isinstance(cfg, (HmcConfig, NutsConfig)) and cfg.target_acceptance is None and build is not None:
        exact = build.analytic or isinstance(build, DlnBuild)
        cfg = replace(cfg, target_acceptance=0.99 if exact else 0.9)
    dim = None if build is None else _moving_dim(build, cfg, source)
    if dim is not None and dim < cfg.min_dim:
        raise ConfigError(
            f"{source}: {name} needs at least {cfg.min_dim} parameters, but target {target_id} ({build.kind}) has "
            f"{dim}; take another sampler, or put that target into a study without {name}"
        )
    return cfg


def _moving_dim(build: BuildConfig, cfg: SampleConfig, source: str) -> int | None:
    """Parameters that move; None where they are not known before the target is built."""
    try:
        return moving_dim(build, cfg)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None


def with_checkpoint_hash(cfg: BuildConfig, source: str) -> BuildConfig:
    """`cfg` with the absolute path of its checkpoint file and the hash of its content.

    Raises ConfigError where there is no such file, or the hash that is given is another one.
    """
    if not isinstance(cfg, CustomBuild) or cfg.target.checkpoint is None:
        return cfg
    path = Path(cfg.target.checkpoint).expanduser().absolute()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{source}: target.checkpoint: {path} cannot be read: {error.strerror or error}") from None
    if cfg.target.checkpoint_sha256 not in (None, digest):
        raise ConfigError(
            f"{source}: target.checkpoint_sha256: got {cfg.target.checkpoint_sha256}, but that of {path} is {digest}; "
            "leave it out"
        )
    return replace(cfg, target=replace(cfg.target, checkpoint=str(path), checkpoint_sha256=digest))


def _expand_targets(
    study: StudySettings, experiments: Path, conf_dir: Path, notes: list[str]
) -> dict[str, BuildConfig]:
    targets: dict[str, BuildConfig] = {}
    for where, entry in _expand(study.targets, f"{experiments}: targets", TARGET_ENTRY_KEYS):
        cfg = compose_build_cfg(entry, store_root=study.store_root, conf_dir=conf_dir, source=where)
        for point in _points(cfg):
            target_id = target_id_for(point)
            if target_id in targets:
                _refuse_collision(target_id, targets[target_id], point)
                notes.append(f"{where} is the same target as an earlier entry ({target_id}); it is built once")
            targets[target_id] = point
    return targets


def _points(cfg: BuildConfig) -> list[BuildConfig]:
    """The targets of one configuration: one, or each checkpoint of a training."""
    if not isinstance(cfg, MlpBuild) or cfg.checkpoints is None or cfg.step is not None:
        return [cfg]
    return [replace(cfg, step=step) for step in cfg.checkpoint_steps]


def _expand_runs(
    study: StudySettings,
    samplers: list[tuple[str, dict[str, Any]]],
    targets: dict[str, BuildConfig],
    conf_dir: Path,
    notes: list[str],
) -> dict[tuple[str, str], PlannedRun]:
    runs: dict[tuple[str, str], PlannedRun] = {}
    said: set[str] = set()

    def note(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notes.append(sentence)

    for target_id, build in targets.items():
        for where, entry in samplers:
            cfg = compose_sample_cfg(
                target_id,
                entry,
                build=build,
                jax_enable_x64=study.jax_enable_x64,
                conf_dir=conf_dir,
                source=where,
            )
            run_id = run_id_for(cfg)
            if (target_id, run_id) in runs:
                _refuse_collision(run_id, runs[target_id, run_id].cfg, cfg)
                note(f"{where} is the same run as an earlier entry; it is sampled once")
                continue
            batch = cfg.batch_size if isinstance(cfg, SgldConfig) and build.num_data else None
            if batch is not None and batch > build.num_data:
                note(
                    f"{where}: batch_size {batch} is larger than the {build.num_data} data points of {target_id}; "
                    "batches are drawn with replacement"
                )
            runs[target_id, run_id] = PlannedRun(
                target_id, run_id, cfg, _program(build, cfg), estimate_seconds(build, cfg)
            )
    return runs


NOT_PROGRAM = ("target_id", "seed", "beta", "gamma", "prior_radius", "step_size", "runtime")
"""Numbers that every program takes as arguments. A few more of some samplers do no harm here: runs that could share a
program are then only less likely to meet."""


def _program(build: BuildConfig, cfg: SampleConfig) -> str:
    spec = {key: value for key, value in asdict(cfg).items() if key not in NOT_PROGRAM}
    spec["pilot"] = getattr(cfg, "step_size", 0.0) is None
    whose = identity_payload(build)["target"] if isinstance(build, CustomBuild) else None
    text = canonical_json([spec, build.kind, build.dim, build.num_data, whose])
    return f"{cfg.name}-{build.kind}-{hashlib.sha1(text.encode()).hexdigest()[:8]}"


def _refuse_collision(identity: str, first: Any, second: Any) -> None:
    if canonical_json(identity_payload(first)) != canonical_json(identity_payload(second)):
        raise ConfigError(f"{identity}: two different configurations have this id; change the seed of one of them")


def _expand(entries: list[Any], where: str, valid: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
    """Every entry with its `sweep` multiplied out into overrides."""
    expanded = []
    for index, entry in enumerate(entries):
        source = f"{where}[{index}]"
        _check_entry(entry, valid, source)
        sweep = entry.get("sweep") or {}
        if not isinstance(sweep, dict):
            raise ConfigError(f"{source}: sweep: expected a mapping of dotted keys to lists, got {sweep!r}")
        for key, values in sweep.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{source}: sweep.{key}: expected a list of values, got {values!r}")
        size = math.prod(map(len, sweep.values()))
        if len(expanded) + size > MOST_ENTRIES:
            raise ConfigError(f"{source}: sweep: expands to {size} entries, expected at most {MOST_ENTRIES} in a study")
        bare = {key: value for key, value in entry.items() if key != "sweep"}
        for values in itertools.product(*sweep.values()):
            expanded.append((source, _with_overrides(bare, dict(zip(sweep, values, strict=True)), source)))
    return expanded


def _with_overrides(entry: dict[str, Any], swept: dict[str, Any], source: str) -> dict[str, Any]:
    if not swept:
        return entry
    overrides = copy.deepcopy(entry.get("overrides") or {})
    if not isinstance(overrides, dict):
        raise ConfigError(f"{source}: overrides: expected a mapping of keys to values, got {overrides!r}")
    for key, value in swept.items():
        if key == "seed" and "seed" in entry:
            raise ConfigError(f"{source}: seed: given twice, as seed: {entry['seed']} and under sweep")
        set_key(overrides, key, copy.deepcopy(value), f"{source}: sweep.{key}")
    return {**entry, "overrides": overrides}


def _check_entry(entry: Any, valid: Sequence[str], source: str) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{source}: expected a mapping with some of {', '.join(valid)}, got {entry!r}")
    for key in entry:
        if key not in valid:
            raise ConfigError(f"{source}: unknown key '{key}'; {nearest(key, valid)}")


def _group_file(group: str, name: Any, conf_dir: Path) -> str:
    return str(conf_dir / group / f"{name}.yaml")


def _group(group: str, name: Any, conf_dir: Path, source: str) -> dict[str, Any]:
    names = [path.stem for path in (conf_dir / group).glob("*.yaml")]
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"{source}: {group}: unknown {name!r}; {nearest(str(name), names)}")
    path = _group_file(group, name, conf_dir)
    content = load_yaml(path)
    refuse_interpolation(content, path)
    return content
