"""From an experiments file to the grid: every target and every run, their ids and expected costs.

A configuration has these layers, of which later ones win: the defaults of its schema, the groups under `conf/`, the
entry's `seed` and `overrides`, its `sweep`. A group is a file: `model: small` reads `conf/model/small.yaml`.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import itertools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, TypeVar

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
from lambda_hat.config.common import positive_int
from lambda_hat.config.defaults import TARGET_ACCEPTANCE
from lambda_hat.config.parameter_paths import moving_dim
from lambda_hat.errors import ConfigError, nearest
from lambda_hat.id_utils import canonical_json, identity_payload, run_id_for, target_id_for
from lambda_hat.omegaconf_support import (
    apply_words,
    build_dataclass,
    build_schema,
    custom_target,
    load_yaml,
    refuse_interpolation,
    schema_for,
    set_key,
    with_values,
)
from lambda_hat.planning.cost import CostModel, shape_of
from lambda_hat.planning.lanes import check_lanes

Config = TypeVar("Config", BuildConfig, SampleConfig)

CONF_DIR = Path(__file__).resolve().parents[1] / "conf"

MLP_GROUPS = ("model", "data", "teacher")
_OVERRIDES = "A mapping of configuration keys to values that differ from the groups and defaults."
_SWEEP = "A mapping of dotted configuration keys to lists of values. There is one entry for every combination."
_KINDS = [kind for kind in BUILD_SCHEMAS if kind != "custom"]
"""Kinds of target that an entry may name."""
TARGET_ENTRY_KEYS = {
    "target": "A kind of target or a name in `conf/target`, by default `mlp`; or `{factory: ..., kwargs: ..., "
    "version: ...}`, whose Python function is called.",
    "model": "mlp: a name in `conf/model`, the student.",
    "data": "mlp: a name in `conf/data`.",
    "teacher": "mlp: a name in `conf/teacher`; `_null`, or none: a network of the student's architecture.",
    "seed": "The target's seed.",
    "checkpoints": "mlp: `{every: N}`, a target at every N-th Adam step of the training.",
    "overrides": _OVERRIDES,
    "sweep": _SWEEP,
}
SAMPLER_ENTRY_KEYS = {
    "name": "The sampler.",
    "targets": "Ids of the targets to sample, as `--dry-run` prints them; by default all targets.",
    "overrides": _OVERRIDES,
    "sweep": _SWEEP,
}
"""The keys of an entry of the grid, and their meaning."""
NULL_GROUP = "_null"
MOST_ENTRIES = 1_000_000
"""Most runs of a study: a sweep multiplies quickly."""


@dataclass(frozen=True)
class StudySettings:
    """The keys of an experiments file.

    `key=value` words override the file, and options override both. Apart from the grid only `jax_enable_x64: false`
    changes numbers, and `lanes` their rounding.
    """

    store_root: str = "runs"
    """The store: the folder that keeps targets, runs and packs; `--store`."""
    results_root: str = "results"
    """The folder that the table and the pictures are written to; `--results`."""
    site: str = "local"
    """Where the study runs: a name in `conf/site`, or the path of a file; `--site`."""
    pack: int = 32
    """Most runs of one pack, which is one MPI launch; `--pack`."""
    retries: int = 1
    """Tries in a row that may finish no further run. Until then the runs that packs lost are packed again; 0: never.
    `--retries`."""
    lanes: Any = 1
    """Runs of one program that a rank samples side by side: a number, or `auto`. 1 keeps every bit. `--lanes`."""
    jax_enable_x64: bool = True
    """If false, every run without a `precision` of its own is float32."""
    compile_cache: bool = True
    """Share compiled programs through the store's `cache`. If false, each process compiles its own, as suits a slow
    store."""
    targets: list[Any] = field(default_factory=list)
    """The target entries of the grid."""
    samplers: list[Any] = field(default_factory=list)
    """The sampler entries of the grid."""

    def __post_init__(self):
        positive_int("pack", self.pack)
        positive_int("retries", self.retries, 0)
        object.__setattr__(self, "lanes", check_lanes("lanes", self.lanes))


@dataclass(frozen=True)
class PlannedRun:
    """One sampler setting on one target."""

    target_id: str
    run_id: str
    cfg: SampleConfig
    program: str
    """Runs with the same `program` are expected to share compiled code."""
    cost: float
    """Expected seconds, without compilation."""


@dataclass(frozen=True)
class Study:
    """The expanded grid."""

    source: Path
    settings: StudySettings
    targets: dict[str, BuildConfig]
    runs: list[PlannedRun]
    notes: list[str]
    """Sentences that are shown with the plan, about duplicates and batches larger than the data."""
    site_overrides: list[str]
    """The `site.key=value` words without their `site.`."""
    costs: CostModel = field(default_factory=CostModel)
    """The model that the runs' `cost` comes from."""

    def priced(self, costs: CostModel, targets_dir: Path) -> Study:
        """The same study at other costs. `targets_dir` of the store has what was measured of custom targets."""
        if costs == self.costs and not any(isinstance(build, CustomBuild) for build in self.targets.values()):
            return self
        shapes = {t: shape_of(build, targets_dir / t) for t, build in self.targets.items()}
        runs = [replace(run, cost=costs.seconds(shapes[run.target_id], run.cfg)) for run in self.runs]
        return replace(self, runs=runs, costs=costs)

    def guessed(self, targets_dir: Path) -> int:
        """Number of custom targets that the store at `targets_dir` has not measured yet."""
        custom = ((t, build) for t, build in self.targets.items() if isinstance(build, CustomBuild))
        return sum(not shape_of(build, targets_dir / t).is_known for t, build in custom)


def compose_study(
    experiments: Path | str,
    words: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    conf_dir: Path = CONF_DIR,
) -> Study:
    """Read an experiments file and expand its grid.

    Args:
        experiments: The file.
        words: `key=value` words of the command line, which override the file.
        settings: Settings given as options, which override both.
        conf_dir: The folder of the groups.

    Raises:
        ConfigError: something in it could not run. The message names the file and the key.
    """
    experiments = Path(experiments)
    content = load_yaml(experiments)
    refuse_interpolation(content, str(experiments))
    site_overrides = [word.removeprefix("site.") for word in words if word.startswith("site.")]
    content = apply_words(content, [word for word in words if not word.startswith("site.")])
    study = build_dataclass(StudySettings, [(str(experiments), content), ("command line", settings or {})])
    for key in ("targets", "samplers"):
        if not getattr(study, key):
            raise ConfigError(f"{experiments}: {key}: the grid is empty; list at least one entry under {key}")

    notes: list[str] = []
    targets = _expand_targets(study, experiments, conf_dir, notes)
    samplers = _expand(study.samplers, f"{experiments}: samplers", SAMPLER_ENTRY_KEYS)
    runs = _expand_runs(study, samplers, targets, conf_dir, notes, str(experiments))
    return Study(experiments, study, targets, list(runs.values()), notes, site_overrides)


def sampler_points(study: Study) -> list[dict[str, Any]]:
    """The sampler entries of a study, with the points of every sweep as entries of their own."""
    expanded = _expand(study.settings.samplers, f"{study.source}: samplers", SAMPLER_ENTRY_KEYS)
    return [entry.content for entry in expanded]


def with_samplers(study: Study, samplers: list[dict[str, Any]], where: str, conf_dir: Path = CONF_DIR) -> Study:
    """The targets of `study` with other sampler entries, which messages call `where`, at default costs.

    Raises:
        ConfigError: as `compose_study` does.
    """
    settings, notes = replace(study.settings, samplers=samplers), []
    expanded = _expand(samplers, where, SAMPLER_ENTRY_KEYS)
    runs = _expand_runs(settings, expanded, study.targets, conf_dir, notes, where)
    return replace(study, settings=settings, runs=list(runs.values()), notes=notes, costs=CostModel())


def compose_build_cfg(
    target_entry: dict[str, Any],
    *,
    store_root: str = "runs",
    conf_dir: Path = CONF_DIR,
    source: str = "target entry",
) -> BuildConfig:
    """The configuration of one target.

    Args:
        target_entry: An entry of the grid's targets without `sweep`.
        store_root: The store, which belongs to no id.
        conf_dir: The folder of the groups.
        source: What error messages call the entry.

    Raises:
        ConfigError: the entry could not be built. The message names `source` and the key.
    """
    _check_entry(target_entry, TARGET_ENTRY_KEYS, source)
    name = target_entry.get("target", "mlp")
    if isinstance(name, dict):
        where, base = source, {"target": custom_target(name, source)}
    elif name in _KINDS and not Path(_group_file("target", str(name), conf_dir)).is_file():
        where, base = source, {"target": {"kind": name}}
    else:
        where, base = _group_file("target", name, conf_dir), _group("target", name, conf_dir, source)
    schema = build_schema(base, where)
    kind, layers = base["target"]["kind"], [(where, base)]
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
    """The configuration of one run.

    Args:
        target_id: The target's id.
        sampler_entry: An entry of the grid's samplers without `sweep`.
        build: The target's configuration. If given, defaults that depend on the target are filled in, and a sampler
            that does not suit it is refused.
        jax_enable_x64: If false, the run is float32 unless the entry names a precision.
        conf_dir: The folder of the groups.
        source: What error messages call the entry.

    Raises:
        ConfigError: the entry could not run. The message names `source` and the key.
    """
    setting = _sampler_setting(sampler_entry, target_id, jax_enable_x64, conf_dir, source)
    return setting if build is None else _on_target(setting, target_id, _Facts(build), source)


def _sampler_setting(
    sampler_entry: dict[str, Any], target_id: str, jax_enable_x64: bool, conf_dir: Path, source: str
) -> SampleConfig:
    """The part of an entry's configuration that does not depend on the target."""
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
    return build_dataclass(schema, layers)


class _Facts:
    """What runs need to know of their target's configuration, computed once for all of them."""

    def __init__(self, build: BuildConfig):
        self.build = build
        self.exact = build.analytic or isinstance(build, DlnBuild)
        self.num_data = build.num_data
        self.shape = shape_of(build)
        whose = identity_payload(build)["target"] if isinstance(build, CustomBuild) else None
        self.program = canonical_json([build.kind, build.dim, build.num_data, whose])[1:-1]
        """The target's part of `PlannedRun.program`."""
        self._dims: dict[str, int | None] = {}

    def moving_dim(self, cfg: SampleConfig, source: str) -> int | None:
        """Number of parameters that a run moves; None if it is not known before the target is built."""
        key = repr(cfg.restrict)
        if key not in self._dims:
            try:
                self._dims[key] = moving_dim(self.build, cfg)
            except ConfigError as error:
                raise ConfigError(f"{source}: {error}") from None
        return self._dims[key]


def _on_target(setting: SampleConfig, target_id: str, facts: _Facts, source: str) -> SampleConfig:
    """`setting` on one target, with the defaults that depend on it. ConfigError if the two do not go together."""
    cfg = replace(setting, target_id=target_id, **_defaults_on(setting, facts))
    dim = facts.moving_dim(cfg, source)
    if dim is not None and dim < cfg.min_dim:
        raise ConfigError(
            f"{source}: {cfg.name} needs at least {cfg.min_dim} parameters, but target {target_id} "
            f"({facts.build.kind}) has {dim}; take another sampler, or put that target into a study without {cfg.name}"
        )
    if cfg.singular_fluctuation and facts.build.no_likelihood is not None:
        raise ConfigError(
            f"{source}: singular_fluctuation: target {target_id} ({facts.build.kind}) has none: "
            f"{facts.build.no_likelihood}; leave it out, or say under targets which ones the entry is for"
        )
    return cfg


def _defaults_on(setting: SampleConfig, facts: _Facts) -> dict[str, Any]:
    if isinstance(setting, (HmcConfig, NutsConfig)) and setting.target_acceptance is None:
        return {"target_acceptance": 0.99 if facts.exact else TARGET_ACCEPTANCE[setting.name]}
    return {}


def with_checkpoint_hash(cfg: BuildConfig, source: str) -> BuildConfig:
    """`cfg` with the absolute path of its checkpoint file, and the hash of the file's content.

    Raises:
        ConfigError: the file cannot be read, or `cfg` gives another hash.
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
            f"{source}: target.checkpoint_sha256: got {cfg.target.checkpoint_sha256}, but the hash of {path} is "
            f"{digest}; leave it out"
        )
    return replace(cfg, target=replace(cfg.target, checkpoint=str(path), checkpoint_sha256=digest))


def _expand_targets(
    study: StudySettings, experiments: Path, conf_dir: Path, notes: list[str]
) -> dict[str, BuildConfig]:
    def compose(entry: dict[str, Any], where: str) -> BuildConfig:
        return compose_build_cfg(entry, store_root=study.store_root, conf_dir=conf_dir, source=where)

    targets: dict[str, BuildConfig] = {}
    composed = _Composer(compose, ("store", "target.kind", "target.checkpoint", "target.checkpoint_sha256"))
    for entry in _expand(study.targets, f"{experiments}: targets", TARGET_ENTRY_KEYS):
        where, cfg = entry.where, composed(entry)
        for point in _points(cfg):
            target_id = target_id_for(point)
            if target_id in targets:
                _refuse_collision(target_id, targets[target_id], point)
                notes.append(f"{where} is the same target as an earlier entry ({target_id}); it is built once")
            targets[target_id] = point
    return targets


def _points(cfg: BuildConfig) -> list[BuildConfig]:
    """The targets of one configuration: itself, or every checkpoint of its training."""
    if not isinstance(cfg, MlpBuild) or cfg.checkpoints is None or cfg.step is not None:
        return [cfg]
    return [replace(cfg, step=step) for step in cfg.checkpoint_steps]


def _expand_runs(
    study: StudySettings,
    samplers: list[_Entry],
    targets: dict[str, BuildConfig],
    conf_dir: Path,
    notes: list[str],
    source: str,
) -> dict[tuple[str, str], PlannedRun]:
    chosen = [_chosen_targets(entry, targets) for entry in samplers]
    if sum(len(targets) if own is None else len(own) for own in chosen) > MOST_ENTRIES:
        raise ConfigError(
            f"{source}: {len(targets)} targets times {len(samplers)} sampler settings, expected at most "
            f"{MOST_ENTRIES} runs; split it into several studies"
        )
    runs: dict[tuple[str, str], PlannedRun] = {}
    said: set[str] = set()

    def note(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notes.append(sentence)

    def compose(entry: dict[str, Any], where: str) -> SampleConfig:
        return _sampler_setting(entry, "", study.jax_enable_x64, conf_dir, where)

    composed = _Composer(compose, ("name", "target_id"))
    settings: dict[int, SampleConfig] = {}
    programs, costs = _Programs(), CostModel()
    for target_id, build in targets.items():
        facts = _Facts(build)
        for index, entry in enumerate(samplers):
            if (own := chosen[index]) is not None and target_id not in own:
                continue
            if index not in settings:
                settings[index] = composed(entry)
            cfg = _on_target(settings[index], target_id, facts, entry.where)
            run_id = run_id_for(cfg)
            if (target_id, run_id) in runs:
                _refuse_collision(run_id, runs[target_id, run_id].cfg, cfg)
                note(f"{entry.where} is the same run as an earlier entry; it is sampled once")
                continue
            batch = cfg.batch_size if isinstance(cfg, SgldConfig) else None
            if batch is not None and facts.num_data and batch > facts.num_data:
                note(
                    f"{entry.where}: batch_size {batch} is larger than the {facts.num_data} data points of "
                    f"{target_id}; batches are drawn with replacement"
                )
            runs[target_id, run_id] = PlannedRun(
                target_id, run_id, cfg, programs(index, cfg, facts), costs.seconds(facts.shape, cfg)
            )
    return runs


def _chosen_targets(entry: _Entry, targets: dict[str, BuildConfig]) -> frozenset[str] | None:
    """The ids of the targets that a sampler entry names; None if it names none, and is for all."""
    own = entry.content.get("targets")
    if own is None:
        return None
    if not isinstance(own, list) or not own:
        raise ConfigError(f"{entry.where}: targets: expected a list of target ids, got {own!r}; leave it out for all")
    for target_id in own:
        if not isinstance(target_id, str) or target_id not in targets:
            raise ConfigError(
                f"{entry.where}: targets: got {target_id!r}, which is no target of this study; --dry-run prints their "
                "ids, and a target's id changes with its configuration"
            )
    return frozenset(own)


class _Composer(Generic[Config]):
    """Composes the points of a sweep.

    It merges an entry once, and puts the values of each point into the result, provided that merging them would give
    the same.
    """

    def __init__(self, compose: Callable[[dict[str, Any], str], Config], merged: Sequence[str]):
        """merged: dotted keys that later layers set too, so that a sweep over them needs `compose`."""
        self._compose, self._merged = compose, merged
        self._bare: dict[str, Any] | None = None
        self._template: Config | None = None

    def __call__(self, entry: _Entry) -> Config:
        """The configuration of one point. Raises what `compose` raises."""
        if entry.swept and (template := self._template_for(entry)) is not None:
            cfg = with_values(template, entry.swept)
            if cfg is not None:
                return cfg
        return self._compose(entry.content, entry.where)

    def _template_for(self, entry: _Entry) -> Config | None:
        if self._bare is not entry.bare:
            self._bare, self._template = entry.bare, None
            if not any(key == word or key.startswith(f"{word}.") for key in entry.swept for word in self._merged):
                # An entry may be valid only together with a value of its sweep.
                with contextlib.suppress(ConfigError):
                    self._template = self._compose(entry.bare, entry.where)
        return self._template


NOT_PROGRAM = ("target_id", "seed", "beta", "gamma", "prior_radius", "step_size", "runtime")
"""Keys that every program takes as arguments. Some samplers' programs take more keys so; runs that differ in those get
different names, though they could share a program."""


class _Programs:
    """Makes `PlannedRun.program`, and remembers the parts that many runs share."""

    def __init__(self) -> None:
        self._specs: dict[tuple[int, float | None], str] = {}
        self._names: dict[tuple[str, str], str] = {}

    def __call__(self, setting: int, cfg: SampleConfig, facts: _Facts) -> str:
        """setting: the index of the sampler entry that `cfg` was made from."""
        # Of the fields that decide a program, only this one depends on the target too.
        key = setting, getattr(cfg, "target_acceptance", None)
        if key not in self._specs:
            spec = {name: value for name, value in vars(cfg).items() if name not in NOT_PROGRAM}
            spec["learns"] = getattr(cfg, "step_size", 0.0) is None
            self._specs[key] = canonical_json(spec)
        spec = self._specs[key]
        if (spec, facts.program) not in self._names:
            digest = hashlib.sha1(f"[{spec},{facts.program}]".encode()).hexdigest()[:8]
            self._names[spec, facts.program] = f"{cfg.name}-{facts.build.kind}-{digest}"
        return self._names[spec, facts.program]


def _refuse_collision(identity: str, first: Any, second: Any) -> None:
    if canonical_json(identity_payload(first)) != canonical_json(identity_payload(second)):
        raise ConfigError(f"{identity}: two different configurations have this id; change the seed of one of them")


@dataclass(frozen=True)
class _Entry:
    """One point of an entry's sweep."""

    where: str
    content: dict[str, Any]
    """The entry, with the values of its point of the sweep among the overrides."""
    bare: dict[str, Any]
    """The entry without its sweep: the same object for all of its points."""
    swept: dict[str, Any]


def _expand(entries: list[Any], where: str, valid: Collection[str]) -> list[_Entry]:
    """The points of the sweeps of all entries; an entry without a sweep is one point."""
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
            swept = dict(zip(sweep, values, strict=True))
            expanded.append(_Entry(source, _with_overrides(bare, swept, source), bare, swept))
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


def _check_entry(entry: Any, valid: Collection[str], source: str) -> None:
    if not isinstance(entry, dict):
        raise ConfigError(f"{source}: expected a mapping with some of {', '.join(valid)}, got {entry!r}")
    for key in entry:
        if key not in valid:
            raise ConfigError(f"{source}: unknown key '{key}'; {nearest(key, valid)}")


def _group_file(group: str, name: Any, conf_dir: Path) -> str:
    return str(conf_dir / group / f"{name}.yaml")


def _group(group: str, name: Any, conf_dir: Path, source: str) -> dict[str, Any]:
    names = {path.stem for path in (conf_dir / group).glob("*.yaml")}
    if group == "target":
        names |= set(_KINDS)
    if not isinstance(name, str) or name not in names:
        raise ConfigError(f"{source}: {group}: unknown {name!r}; {nearest(str(name), names)}")
    path = _group_file(group, name, conf_dir)
    content = load_yaml(path)
    refuse_interpolation(content, path)
    return content
