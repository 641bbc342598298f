"""From an experiments file to the grid: every target and every run, their ids and expected costs.

A configuration has these layers, of which later ones win: the defaults of its schema, the groups under `conf/`, the
entry's `seed` and `overrides`, its `sweep`. A group is a file: `model: small` reads `conf/model/small.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lambda_hat.checkout import ROOT
from lambda_hat.config import (
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
from lambda_hat.config.checkpoint_file import with_checkpoint_hash
from lambda_hat.config.defaults import TARGET_ACCEPTANCE
from lambda_hat.config.entries import (
    SAMPLER_ENTRY_KEYS,
    TARGET_ENTRY_KEYS,
    Entry,
    Sites,
    check_entry,
    chosen_targets,
    expand,
)
from lambda_hat.config.parameter_paths import moving_dim
from lambda_hat.config.study_settings import StudySettings
from lambda_hat.config.trajectories import checkpoints_of, refuse_second_trajectory, same_target, with_checkpoint
from lambda_hat.errors import ConfigError, nearest
from lambda_hat.id_utils import Run, config_digest, target_id_for, trajectory_id
from lambda_hat.omegaconf_support import (
    NAMED_KINDS,
    Composer,
    apply_words,
    build_dataclass,
    build_schema,
    custom_target,
    group_file,
    load_group,
    load_yaml,
    refuse_interpolation,
    schema_for,
)
from lambda_hat.planning.cost import CostModel, shape_of
from lambda_hat.planning.observed_size import check_observed, size_of_observed
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.planning.program_names import ProgramNames, of_target

CONF_DIR = ROOT / "conf"

MLP_GROUPS = ("model", "data", "teacher")
NULL_GROUP = "_null"


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
    sites: Mapping[str, str] = field(default_factory=dict)
    """Sites that entries name, beside that of the study, and which entry names each first."""
    site_costs: Mapping[str, CostModel] = field(default_factory=dict)
    """The models of those sites."""

    def costs_at(self, site: str) -> CostModel:
        """The model of the runs with this `site`."""
        return self.site_costs.get(site, self.costs)

    def priced(self, costs: CostModel, targets_dir: Path, site_costs: Mapping[str, CostModel] | None = None) -> Study:
        """The same study at other costs. `targets_dir` of the store has what was measured of custom targets."""
        others, custom = site_costs or {}, any(isinstance(build, CustomBuild) for build in self.targets.values())
        if (costs, others) == (self.costs, self.site_costs) and not custom:
            return self
        shapes = {t: shape_of(build, targets_dir / t) for t, build in self.targets.items()}
        models = {run.site: others.get(run.site, costs) for run in self.runs}
        runs = [replace(run, cost=models[run.site].seconds(shapes[run.target_id], run.cfg)) for run in self.runs]
        return replace(self, runs=runs, costs=costs, site_costs=others)

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
    return compose_grid(load_yaml(experiments), Path(experiments), words, settings, conf_dir)


def compose_grid(
    content: dict[str, Any],
    experiments: Path,
    words: Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    conf_dir: Path = CONF_DIR,
) -> Study:
    """Expand the grid of the `content` of an experiments file, which messages call `experiments`.

    The other arguments, and the exception, are those of `compose_study`.
    """
    refuse_interpolation(content, str(experiments))
    site_overrides = [word.removeprefix("site.") for word in words if word.startswith("site.")]
    content = apply_words(content, [word for word in words if not word.startswith("site.")])
    study = build_dataclass(StudySettings, [(str(experiments), content), ("command line", settings or {})])
    for key in ("targets", "samplers"):
        if not getattr(study, key):
            raise ConfigError(f"{experiments}: {key}: the grid is empty; list at least one entry under {key}")

    notes: list[str] = []
    sites = Sites(study.site)
    targets = _expand_targets(study, experiments, conf_dir, notes, sites)
    samplers = expand(study.samplers, f"{experiments}: samplers", SAMPLER_ENTRY_KEYS)
    runs = _expand_runs(study, samplers, targets, conf_dir, notes, str(experiments), sites)
    return Study(experiments, study, targets, list(runs.values()), notes, site_overrides, sites=sites.named)


def with_runs(study: Study, runs: Sequence[Run]) -> Study:
    """A study of other runs on targets of `study`, at default costs."""
    ids = {run.target_id for run in runs}
    targets = {target_id: build for target_id, build in study.targets.items() if target_id in ids}
    names, costs, planned = ProgramNames(), CostModel(), []
    for target_id, build in targets.items():
        facts = _Facts(build)
        for index, run in enumerate(runs):
            if run.target_id == target_id:
                planned.append(PlannedRun(**vars(run), **facts.expected(index, run.cfg, names, costs)))
    return replace(study, targets=targets, runs=planned, notes=[], costs=costs)


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
    check_entry(target_entry, TARGET_ENTRY_KEYS, source)
    name = target_entry.get("target", "mlp")
    if isinstance(name, dict):
        where, base = source, {"target": custom_target(name, source)}
    elif name in NAMED_KINDS and not Path(group_file("target", str(name), conf_dir)).is_file():
        where, base = source, {"target": {"kind": name}}
    else:
        where, base = group_file("target", name, conf_dir), load_group("target", name, conf_dir, source)
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
            content = load_group(group, target_entry[group], conf_dir, source)
            layers.append((group_file(group, target_entry[group], conf_dir), {group: content}))
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
    check_entry(sampler_entry, SAMPLER_ENTRY_KEYS, source)
    if "name" not in sampler_entry:
        raise ConfigError(f"{source}: name: missing; {nearest('', SAMPLE_SCHEMAS)}")
    name = sampler_entry["name"]
    schema = schema_for(SAMPLE_SCHEMAS, name, f"{source}: name")
    layers = [("sampler defaults", {} if jax_enable_x64 else {"precision": "float32"})]
    if (conf_dir / "sample" / f"{name}.yaml").is_file():
        layers.append((group_file("sample", name, conf_dir), load_group("sample", name, conf_dir, source)))
    layers.append((source, sampler_entry.get("overrides") or {}))
    layers.append((source, {"name": name, "target_id": target_id}))
    return build_dataclass(schema, layers)


class _Facts:
    """What runs need to know of their target's configuration, computed once for all of them."""

    def __init__(self, build: BuildConfig):
        self.build = build
        self.exact = build.analytic or isinstance(build, DlnBuild)
        self.num_data = build.num_data
        self._shape, self._program = shape_of(build), of_target(build)
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

    def expected(self, setting: int, cfg: SampleConfig, names: ProgramNames, costs: CostModel) -> dict[str, Any]:
        """What PlannedRun adds to a run. setting: the index of the sampler entry that `cfg` was made from."""
        program = names(setting, cfg, self.build.kind, self._program)
        return {"program": program, "cost": costs.seconds(self._shape, cfg)}


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
    try:
        stores_rows, is_custom = (not isinstance(facts.build, DlnBuild)), isinstance(facts.build, CustomBuild)
        check_observed(cfg, facts.num_data, stores_rows, is_custom, f"target {target_id} ({facts.build.kind})")
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    return cfg


def _defaults_on(setting: SampleConfig, facts: _Facts) -> dict[str, Any]:
    if isinstance(setting, (HmcConfig, NutsConfig)) and setting.target_acceptance is None:
        return {"target_acceptance": 0.99 if facts.exact else TARGET_ACCEPTANCE[setting.name]}
    return {}


def _expand_targets(
    study: StudySettings, experiments: Path, conf_dir: Path, notes: list[str], sites: Sites
) -> dict[str, BuildConfig]:
    def compose(entry: dict[str, Any], where: str) -> BuildConfig:
        return compose_build_cfg(entry, store_root=study.store_root, conf_dir=conf_dir, source=where)

    targets: dict[str, BuildConfig] = {}
    steps: dict[tuple[str | None, int], str] = {}
    composed = Composer(compose, ("store", "target.kind", "target.checkpoint", "target.checkpoint_sha256"))
    for entry in expand(study.targets, f"{experiments}: targets", TARGET_ENTRY_KEYS):
        site = sites.read(entry) or ""
        for point in _points(entry, composed):
            target_id, where = target_id_for(point), entry.where
            if target_id in targets:
                _refuse_collision(target_id, config_digest(targets[target_id]), config_digest(point))
                notes.append(same_target(targets[target_id], point, target_id, where))
            targets[target_id] = point
            sites.of_target.setdefault(target_id, site)
            if isinstance(point, CustomBuild) and point.step is not None:
                refuse_second_trajectory(steps, trajectory_id(point), point.step, target_id, where)
    return targets


def _points(entry: Entry, composed: Composer[BuildConfig]) -> list[BuildConfig]:
    """The targets of one entry: one, or every checkpoint of a training."""
    if (files := checkpoints_of(entry.content, entry.where)) is not None:
        contents = [with_checkpoint(entry.content, step, path) for step, path in files.items()]
        return [composed.whole(content, entry.where) for content in contents]
    cfg = composed(entry)
    if not isinstance(cfg, MlpBuild) or cfg.checkpoints is None or cfg.step is not None:
        return [cfg]
    return [replace(cfg, step=step) for step in cfg.checkpoint_steps]


def _expand_runs(
    study: StudySettings,
    samplers: list[Entry],
    targets: dict[str, BuildConfig],
    conf_dir: Path,
    notes: list[str],
    source: str,
    sites: Sites,
) -> dict[tuple[str, str], PlannedRun]:
    chosen = chosen_targets(samplers, targets, source)
    runs: dict[tuple[str, str], PlannedRun] = {}
    said: set[str] = set()

    def note(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            notes.append(sentence)

    def compose(entry: dict[str, Any], where: str) -> SampleConfig:
        return _sampler_setting(entry, "", study.jax_enable_x64, conf_dir, where)

    composed = Composer(compose, ("name", "target_id"))
    settings: dict[int, SampleConfig] = {}
    own_sites = [sites.read(entry) for entry in samplers]
    names, costs = ProgramNames(), CostModel()
    for target_id, build in targets.items():
        facts = _Facts(build)
        for index, entry in enumerate(samplers):
            if (own := chosen[index]) is not None and target_id not in own:
                continue
            if index not in settings:
                settings[index] = composed(entry)
            cfg = _on_target(settings[index], target_id, facts, entry.where)
            site = sites.of_target[target_id] if own_sites[index] is None else own_sites[index]
            run = PlannedRun.of(cfg, **facts.expected(index, cfg, names, costs), site=site)
            if run.key in runs:
                _refuse_collision(run.run_id, runs[run.key].digest, run.digest)
                note(f"{entry.where} is the same run as an earlier entry; it is sampled once")
                continue
            batch = cfg.batch_size if isinstance(cfg, SgldConfig) else None
            if batch is not None and facts.num_data and batch > facts.num_data:
                note(
                    f"{entry.where}: batch_size {batch} is larger than the {facts.num_data} data points of "
                    f"{target_id}; batches are drawn with replacement"
                )
            runs[run.key] = run
    watched = size_of_observed((run.cfg, targets[run.target_id].num_data) for run in runs.values() if run.cfg.observe)
    if watched is not None:
        note(watched)
    return runs


def _refuse_collision(identity: str, first: str, second: str) -> None:
    if first != second:
        raise ConfigError(f"{identity}: two different configurations have this id; change the seed of one of them")
