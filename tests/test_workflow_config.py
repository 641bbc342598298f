"""The grid: layers, sweeps, duplicates, and a sentence for everything that could not run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml

from lambda_hat import workflow_config
from lambda_hat.config import BUILD_SCHEMAS, SAMPLE_SCHEMAS
from lambda_hat.errors import ConfigError
from lambda_hat.id_utils import target_id_for
from lambda_hat.omegaconf_support import load_build_config, load_sample_config, load_yaml, to_yaml
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.workflow_config import CONF_DIR, compose_build_cfg, compose_sample_cfg, compose_study

SMALL = {"targets": [{"target": "quadratic"}], "samplers": [{"name": "sgld"}]}


@pytest.fixture
def study_file(tmp_path):
    def write(content):
        path = tmp_path / "study.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("name", ["smoke.yaml", "experiments.yaml"])
def test_shipped_studies_compose(name):
    study = compose_study(CONF_DIR / name)
    assert len(study.runs) == len({(r.target_id, r.run_id) for r in study.runs}) > 0


@pytest.mark.parametrize("path", sorted((CONF_DIR / "target").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_target_group_round_trips_through_yaml(path, tmp_path):
    entry = {"target": path.stem} | ({"model": "small", "data": "small"} if path.stem == "mlp" else {})
    cfg = compose_build_cfg(entry)
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_build_config(tmp_path / "config.yaml") == cfg
    assert cfg.label


@pytest.mark.parametrize("name", SAMPLE_SCHEMAS)
def test_every_sampler_round_trips_through_yaml(name, tmp_path):
    cfg = compose_sample_cfg("tgt_1", {"name": name})
    (tmp_path / "config.yaml").write_text(to_yaml(cfg))
    assert load_sample_config(tmp_path / "config.yaml") == cfg


def test_layers_later_ones_win():
    cfg = compose_build_cfg(
        {
            "model": "base",
            "data": "small",
            "teacher": "tiny",
            "seed": 7,
            "overrides": {"data": {"n": 50}, "loss": "mse"},
        }
    )
    assert (cfg.seed, cfg.data.n, cfg.loss, cfg.teacher.widths) == (7, 50, "mse", [3])
    assert (cfg.data.input_dim, cfg.model.activation) == (4, "gelu")
    assert abs(cfg.dim - 1000) < 60
    assert compose_build_cfg({"model": "base", "data": "small", "teacher": "_null"}).teacher is None


def test_sweeps_multiply_and_lists_stay_lists(study_file):
    study = compose_study(
        study_file(
            {
                "targets": [
                    {
                        "target": "dln",
                        "overrides": {"target": {"widths": [5, 3, 5], "rank": 1}},
                        "sweep": {"seed": [0, 1, 2]},
                    }
                ],
                "samplers": [
                    {"name": "sgld", "overrides": {"thin": 5}, "sweep": {"step_size": [1e-6, 1e-5], "seed": [0, 1]}}
                ],
            }
        )
    )
    assert (len(study.targets), len(study.runs)) == (3, 12)
    assert all(cfg.target.widths == [5, 3, 5] for cfg in study.targets.values())
    assert {run.cfg.thin for run in study.runs} == {5}
    assert {(run.cfg.step_size, run.cfg.seed) for run in study.runs} == {(e, s) for e in (1e-6, 1e-5) for s in (0, 1)}


def test_a_sampler_may_be_for_some_targets_alone(study_file):
    both = {"targets": [{"target": "quadratic", "sweep": {"seed": [0, 1]}}, {"target": "monomial"}]}
    first, second, third = compose_study(study_file({**SMALL, **both})).targets
    samplers = [
        {"name": "sgld", "targets": [second], "sweep": {"seed": [0, 1]}},
        {"name": "hmc", "targets": [third, first]},
        {"name": "mala"},
    ]
    study = compose_study(study_file({**both, "samplers": samplers}))
    assert [(run.target_id, run.cfg.name) for run in study.runs] == [
        (first, "hmc"), (first, "mala"), (second, "sgld"), (second, "sgld"), (second, "mala"), (third, "hmc"),
        (third, "mala"),
    ]  # fmt: skip
    plain = compose_study(study_file({**both, "samplers": [{"name": "mala"}]}))
    assert {run.run_id for run in study.runs if run.cfg.name == "mala"} == {run.run_id for run in plain.runs}


def test_another_store_root_changes_no_id(study_file):
    one = compose_study(study_file(SMALL))
    two = compose_study(study_file(SMALL), ["store_root=/elsewhere"])
    assert two.settings.store_root == "/elsewhere"
    assert list(one.targets) == list(two.targets)
    assert [r.run_id for r in one.runs] == [r.run_id for r in two.runs]
    assert next(iter(two.targets.values())).store.root == "/elsewhere"


def test_duplicates_are_one_target_and_one_run_reported_once(study_file):
    study = compose_study(study_file({"targets": SMALL["targets"] * 2, "samplers": SMALL["samplers"] * 2}))
    assert (len(study.targets), len(study.runs)) == (1, 1)
    assert len(study.notes) == 2
    assert "targets[1] is the same target as an earlier entry" in study.notes[0]
    assert "samplers[1] is the same run as an earlier entry" in study.notes[1]


@pytest.mark.parametrize("which", ["target_id_for", "PlannedRun"])
def test_two_configurations_with_one_id_are_an_error(study_file, monkeypatch, which):
    if which == "target_id_for":
        monkeypatch.setattr(workflow_config, which, lambda cfg: "same")
    else:
        run_of = PlannedRun.of
        monkeypatch.setattr(PlannedRun, "of", lambda cfg, **more: replace(run_of(cfg, **more), run_id="same"))
    content = {
        "targets": [{"target": "quadratic"}, {"target": "monomial"}] if which == "target_id_for" else SMALL["targets"],
        "samplers": [{"name": "sgld", "sweep": {"seed": [0, 1]}}],
    }
    with pytest.raises(ConfigError, match="same: two different configurations have this id"):
        compose_study(study_file(content))


def test_a_file_of_ones_own_changes_a_samplers_defaults(tmp_path):
    (tmp_path / "sample").mkdir()
    (tmp_path / "sample" / "hmc.yaml").write_text("num_draws: 50\nthin: 2\n")
    cfg = compose_sample_cfg("tgt_1", {"name": "hmc", "overrides": {"thin": 3}}, conf_dir=tmp_path)
    assert (cfg.num_draws, cfg.thin) == (50, 3)
    (tmp_path / "sample" / "hmc.yaml").write_text("num_drawz: 50\n")
    with pytest.raises(ConfigError, match=r"sample/hmc\.yaml: unknown key 'num_drawz'; did you mean 'num_draws'"):
        compose_sample_cfg("tgt_1", {"name": "hmc"}, conf_dir=tmp_path)


def test_a_target_file_without_a_kind(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine.yaml").write_text("target: 5\n")
    with pytest.raises(ConfigError, match=r"target/mine\.yaml: target\.kind: unknown None"):
        compose_build_cfg({"target": "mine"}, conf_dir=tmp_path)


def test_float32_throughout_without_x64(study_file):
    content = {**SMALL, "samplers": [{"name": "hmc"}, {"name": "sgld", "overrides": {"precision": "float64"}}]}
    runs = compose_study(study_file({**content, "jax_enable_x64": False})).runs
    assert [run.cfg.precision for run in runs] == ["float32", "float64"]
    assert [run.cfg.precision for run in compose_study(study_file(content)).runs] == [None, "float64"]


def test_acceptance_follows_the_target(study_file):
    content = {"targets": [{"target": "dln"}, {"model": "small"}], "samplers": [{"name": "hmc"}, {"name": "nuts"}]}
    assert [run.cfg.target_acceptance for run in compose_study(study_file(content)).runs] == [0.99, 0.99, 0.9, 0.98]
    words = ["samplers.0.overrides.target_acceptance=.7"]
    runs = compose_study(study_file(content), words).runs
    assert {run.cfg.target_acceptance for run in runs if run.cfg.name == "hmc"} == {0.7}


def test_a_batch_larger_than_the_data_is_allowed_and_said(study_file):
    content = {
        "targets": [{"model": "small", "data": "small", "overrides": {"data": {"n": 100}}}],
        "samplers": [{"name": "sgld", "overrides": {"batch_size": 128}}],
    }
    (note,) = compose_study(study_file(content)).notes
    assert "batch_size 128 is larger than the 100 data points" in note
    assert "drawn with replacement" in note


BAD = [
    ({"targets.0.targt": 1}, r"targets\[0\]: unknown key 'targt'; did you mean 'target'"),
    ({"targets.0.target": "quadratc"}, r"targets\[0\]: target: unknown 'quadratc'; did you mean 'quadratic'"),
    ({"targets.0.model": "smal"}, r"only targets of kind mlp have a model"),
    ({"targets.0": {"model": "smal"}}, r"targets\[0\]: model: unknown 'smal'; did you mean 'small'"),
    ({"targets.0": {"data": "bas"}}, r"targets\[0\]: data: unknown 'bas'; did you mean 'base'"),
    ({"targets.0.overrides.target.dims": 3}, r"targets\[0\]: unknown key 'target\.dims'; did you mean 'dim'"),
    ({"targets.0.overrides.target.dim": "x"}, r"targets\[0\]: target\.dim: Value 'x' of type 'str' could not be"),
    ({"targets.0.overrides.target.dim": 0}, r"target\.dim: got 0, expected an integer of at least 1"),
    ({"targets.0.overrides.target": 5}, r"target: expected a mapping, got 5"),
    ({"targets.0.overrides": 5}, r"targets\[0\]: expected a mapping, got 5"),
    ({"targets.0.overrides.target.eigenvalues": 5}, r"target\.eigenvalues: expected a list, got 5"),
    ({"targets.0.overrides.target.eigenvalues": {"a": 5}}, r"target\.eigenvalues: expected a list, got {'a': 5}"),
    ({"targets.0.overrides.target.eigenvalues": [[5]]}, r"eigenvalues\[0\]: expected a single value, got \[5\]"),
    ({"samplers.0.overrides.num_draws": [5]}, r"samplers\[0\]: num_draws: expected a single value, got \[5\]"),
    ({"targets.0.overrides.seed": -1}, r"seed: got -1"),
    ({"targets": []}, r"targets: the grid is empty"),
    ({"samplers": []}, r"samplers: the grid is empty"),
    ({"samplers.0.name": "sglt"}, r"name: unknown 'sglt'; did you mean 'sgld' or 'sgnht'\? valid: adjusted_mclmc, hmc"),
    ({"samplers.0": {}}, r"samplers\[0\]: name: missing"),
    ({"samplers.0.targets": ["tgt_1"]}, r"samplers\[0\]: targets: got 'tgt_1', which is no target of this study"),
    ({"samplers.0.targets": "tgt_1"}, r"samplers\[0\]: targets: expected a list of target ids, got 'tgt_1'"),
    ({"samplers.0": "sgld"}, r"samplers\[0\]: expected a mapping"),
    ({"samplers.0.overrides.stepsize": 1}, r"samplers\[0\]: unknown key 'stepsize'; did you mean 'step_size'"),
    ({"samplers.0.overrides.step_size": -1e-3}, r"step_size: got -0\.001, expected a finite number above 0"),
    ({"samplers.0.overrides.step_size": float("nan")}, r"step_size: got nan, expected a finite number above 0"),
    ({"samplers.0.overrides.step_size": float("inf")}, r"step_size: got inf, expected a finite number above 0"),
    ({"samplers.0.overrides.precond": "adma"}, r"precond: unknown 'adma'; did you mean 'adam'"),
    ({"samplers.0.overrides": {"gamma": 1, "prior_radius": 2}}, r"got both gamma = 1\.0 and prior_radius = 2\.0"),
    ({"samplers.0.overrides": {"precond": "rmsprop", "num_burnin": 0}}, r"num_burnin: got 0, but burn-in learns"),
    ({"samplers.0.sweep": {"seed": 3}}, r"samplers\[0\]: sweep\.seed: expected a list of values, got 3"),
    ({"samplers.0.sweep": {"seed": []}}, r"samplers\[0\]: sweep\.seed: expected a list of values, got \[\]"),
    ({"packs": 3}, r"unknown key 'packs'; did you mean 'pack'"),
    ({"pack": 0}, r"pack: got 0, expected an integer of at least 1"),
    ({"samplers.0.name": "mclmc", "targets.0.overrides.target.dim": 1, "targets.0.overrides.target.rank": 1},
     r"mclmc needs at least 2 parameters, but target tgt_\w+ \(quadratic\) has 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=[str(sorted(change)) + str(i) for i, (change, _) in enumerate(BAD)]
)
def test_bad_input_is_one_sentence_with_the_key(study_file, change, message):
    from omegaconf import OmegaConf

    node = OmegaConf.create(SMALL)
    for key, value in change.items():
        OmegaConf.update(node, key, value, merge=False, force_add=True)
    path = study_file(OmegaConf.to_container(node))
    with pytest.raises(ConfigError, match=message) as caught:
        compose_study(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("pack", "'pack': expected key=value"),
        ("=3", "'=3': expected key=value"),
        ("targets.9.seed=1", "'targets.9.seed=1': targets is a list of 1; expected a number below that"),
        ("pack=[1", r"'pack=\[1'"),
        ("packs=1", "unknown key 'packs'"),
    ],
)
def test_bad_words(study_file, word, message):
    with pytest.raises(ConfigError, match=message):
        compose_study(study_file(SMALL), [word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("targets: [", r"study\.yaml:\d: not plain YAML"),
        ("a: 1\nb: !!python/name:os.system\n", r"study\.yaml:2: not plain YAML: could not determine a constructor"),
        ("- 1\n- 2\n", "expected a mapping"),
        ("targets: ${nope}\n", r"study\.yaml: targets: got '\$\{nope\}', but nothing is filled in"),
        ("pack: 1\npack: 2\n", r"study\.yaml:2: not plain YAML: found duplicate key pack"),
    ],
)
def test_a_file_that_is_no_study(study_file, text, message):
    with pytest.raises(ConfigError, match=message):
        compose_study(study_file(text))


def test_a_missing_unreadable_or_binary_file(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: no such file"):
        load_yaml(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_yaml(tmp_path / "binary.yaml")


def test_paths_with_spaces_and_quotes(awkward_dir):
    path = awkward_dir / "study.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "store_root": str(awkward_dir / "store")}))
    study = compose_study(path)
    (target_id,) = study.targets
    assert target_id == target_id_for(study.targets[target_id])
    assert study.settings.store_root == str(awkward_dir / "store")


@pytest.mark.parametrize("kind", ["mlp", "monomial", "monomial_sum", "radial", "line_and_point", "tanh"])
def test_a_kind_of_target_without_a_file_has_its_defaults_and_a_file_of_its_name_comes_first(kind, tmp_path):
    assert compose_build_cfg({"target": kind}) == BUILD_SCHEMAS[kind]()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / f"{kind}.yaml").write_text(f"target: {{kind: {kind}}}\nseed: 7\n")
    assert compose_build_cfg({"target": kind}, conf_dir=tmp_path).seed == 7
    with pytest.raises(ConfigError, match=f"unknown 'absent'; valid: .*{kind}"):
        compose_build_cfg({"target": "absent"}, conf_dir=tmp_path)


WATCHED = {"rows": {"per": "row", "rows": 16}, "others": {"data": "module:function"}}


def test_what_is_watched_is_part_of_the_id_and_its_size_is_said(study_file):
    def study(target, observe):
        return compose_study(study_file({"targets": [target], "samplers": [{"name": "sgld", "overrides": observe}]}))

    plain, watched = (study({}, observe) for observe in ({}, {"observe": WATCHED}))
    (one,), (other,) = plain.runs, watched.runs
    assert one.run_id != other.run_id and one.identity == other.identity
    assert plain.notes == [] and watched.notes == ["observe: 1 runs keep up to 500 KiB of rows each, 500 KiB in all"]
    assert other.cost > one.cost and other.program != one.program
    (note,) = study({}, {"observe": {"tokens": {"function": "module:function"}}}).notes
    assert note == "observe: what 1 runs keep is known when they start, and in their notes"


@pytest.mark.parametrize(
    ("target", "observe", "said"),
    [
        ({"target": "quadratic"}, {"a": {}}, r"samplers\[0\]: observe\.a: target tgt_\w+ \(quadratic\) has no rows"),
        ({}, {"a": {"rows": 5000}}, r"samplers\[0\]: observe\.a: rows: got 5000, but target tgt_\w+ \(mlp\) has 1000"),
        (
            {"target": "dln", "overrides": {"target": {"data": "empirical", "noise_std": 0.1}}},
            {"a": {"rows": 5}},
            r"observe\.a: .* keeps the moments of its data in place of the rows",
        ),
        ({}, {"a": {"per": "token"}}, r"observe\.a: per: token: the rows of target tgt_\w+ \(mlp\) have no tokens"),
        ({}, {"a": {"row": 5}}, r"samplers\[0\]: observe\.a\.row: Key 'row' not in"),
    ],
)
def test_what_cannot_be_watched_is_refused_before_anything_starts(study_file, target, observe, said):
    content = {"targets": [target], "samplers": [{"name": "sgld", "overrides": {"observe": observe}}]}
    with pytest.raises(ConfigError, match=said):
        compose_study(study_file(content))
