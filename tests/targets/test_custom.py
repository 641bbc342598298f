"""Targets from a factory: what it may return, checkpoints, ids, and how a study refers to it."""

import json
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from lambda_hat.config import CustomBuild, CustomTarget, NutsConfig
from lambda_hat.config.checkpoint_file import with_checkpoint_hash
from lambda_hat.errors import BuildFailed, ConfigError
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.report.results import collect, runs_in_store
from lambda_hat.store.layout import Store
from lambda_hat.targets import build_target, load_target
from lambda_hat.workflow_config import compose_study

MODULE = """
import numpy as np
import jax.numpy as jnp

def loss(params, batch):
    return 0.5 * jnp.mean((batch["x"] @ params["layer"]["w"] - batch["y"]) ** 2)

def linear(width=3, scale=1.0):
    x = np.random.default_rng(0).normal(size=(200, width))
    return loss, {"layer": {"w": scale * np.ones(width)}}, {"x": x, "y": x.sum(axis=1)}

def quadratic():
    return (lambda w, batch: 0.5 * jnp.sum(w**2)), np.zeros(2), None

def masked(masked_rows=50):
    f, params, data = linear()
    data |= {"m": (np.arange(200) >= masked_rows).astype(float)}
    return (lambda p, b: (jnp.sum(b["m"] * loss_of_rows(p, b)), jnp.sum(b["m"]))), params, data

def loss_of_rows(params, batch):
    return 0.5 * (batch["x"] @ params["layer"]["w"] - batch["y"]) ** 2

def tied():
    shared = np.ones(3)
    _, _, data = linear()
    return (lambda p, b: jnp.mean((b["x"] @ (p["a"] + p["b"]) - b["y"]) ** 2)), {"a": shared, "b": shared}, data

def normalised():
    _, _, data = linear()
    variables = {"params": {"w": np.ones(3)}, "batch_stats": {"mean": np.zeros(3)}}
    predict = lambda v, x: (x - v["batch_stats"]["mean"][None]) @ v["params"]["w"]
    return (lambda v, b: jnp.mean((predict(v, b["x"]) - b["y"]) ** 2) / 2), variables, data

def two():
    return loss, {}

def vector():
    f, params, data = linear()
    return (lambda p, b: b["x"] @ p["layer"]["w"]), params, data

def uneven():
    f, params, data = linear()
    return f, params, {"x": data["x"], "y": data["y"][1:]}

def broken():
    raise RuntimeError("no such data set")

class Zoo:
    member = staticmethod(linear)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The name of a module in the current folder, of its own for every test."""
    name = f"zoo_{abs(hash(tmp_path.name))}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    return name


def custom(module: str, function: str, **target) -> CustomBuild:
    return CustomBuild(target=CustomTarget(factory=f"{module}:{function}", **target))


def study(folder: Path, targets: str, samplers: str = "[{name: nuts}]") -> Path:
    path = folder / "study.yaml"
    path.write_text(f"store_root: {folder}/runs\ntargets: {targets}\nsamplers: {samplers}\n")
    return path


def test_a_factory_is_built_stored_and_loaded(module, tmp_path):
    cfg = custom(module, "linear", kwargs={"width": 2})
    build_into(tmp_path / "mine", cfg)
    target = load_target(tmp_path / "mine")[0]
    made, _ = build_target(cfg)
    assert (target.n, target.dim, target.num_data, target.population) == (200, 2, 200, False)
    assert target.loss == made.loss and hash(target.loss) == hash(made.loss)
    assert list(target.w_star) == ["layer/w"]
    np.testing.assert_array_equal(target.data["x"], made.data["x"])
    assert load_build_config(tmp_path / "mine" / "config.yaml") == cfg
    assert build_target(custom(module, "Zoo.member"))[0].dim == 3


def test_a_pair_and_notes_survive_the_store(module, tmp_path):
    cfg = custom(module, "masked", kwargs={"masked_rows": 50})
    build_into(tmp_path / "masked", cfg)
    target, made = load_target(tmp_path / "masked")[0], build_target(cfg)[0]
    assert target.loss == made.loss and target.num_data == target.n == 200
    assert target.loss.weight_per_row(target.data) == 0.75
    with jax.enable_x64(True):
        here = {"layer/w": jnp.zeros(3)}
        expected = np.mean(target.data["y"][50:] ** 2) / 2
        for slice_rows in (30, 200):
            assert float(target.loss.full(here, target.data, slice_rows)) == pytest.approx(expected, rel=1e-12)
    assert target.notes == ()
    build_into(tmp_path / "tied", custom(module, "tied"))
    assert load_target(tmp_path / "tied")[0].notes[0].startswith("a and b are one array")


def test_statistics_of_a_checkpoint_are_held_and_survive_the_store(module, tmp_path):
    mean = np.array([0.5, -1.0, 2.0])
    save_file({"params.w": np.full(3, 2.0), "batch_stats.mean": mean}, tmp_path / "trained.safetensors")
    build_into(tmp_path / "target", custom(module, "normalised", checkpoint=str(tmp_path / "trained.safetensors")))
    target = load_target(tmp_path / "target")[0]
    assert (target.dim, list(target.w_star), list(target.held)) == (3, ["params/w"], ["batch_stats/mean"])
    np.testing.assert_array_equal(target.held["batch_stats/mean"], mean)
    x, y = target.data["x"], target.data["y"]
    assert target.loss_at_w_star == pytest.approx(np.mean((2 * (x - mean).sum(axis=1) - y) ** 2) / 2, rel=1e-12)
    assert target.held_notes[0].startswith("batch_stats/mean stay as given")
    run = Run.of(NutsConfig(num_draws=20, num_burnin=40, num_chains=2))
    assert sample_into(tmp_path / "run", tmp_path / "target", run)["dim"] == 3


def test_a_factory_without_data_needs_n(module):
    with pytest.raises(BuildFailed, match=r"quadratic: n: missing; without data"):
        build_target(custom(module, "quadratic"))
    target, _ = build_target(custom(module, "quadratic", n=1000))
    assert target.population and target.n == 1000 and target.num_data == 0


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("two", r"two returned a tuple of 2: \(function, dict\), expected a tuple \(loss, parameters, data\)"),
        ("nothing", r"nothing cannot be imported: AttributeError: module .* has no attribute 'nothing'"),
        ("vector", r"vector: loss: it returned an array of shape"),
        ("uneven", r"uneven: data: its arrays disagree in length: x has 200, y has 199"),
    ],
)
def test_a_wrong_factory_is_a_failed_build_with_a_sentence(module, function, message):
    with pytest.raises(BuildFailed, match=message):
        build_target(custom(module, function))


def test_a_module_that_is_nowhere_says_where_it_was_looked_for(module, tmp_path):
    with pytest.raises(
        BuildFailed, match=r"no_such:f cannot be imported: ModuleNotFoundError: .* on PYTHONPATH and in"
    ):
        build_target(custom("no_such", "f"))
    with pytest.raises(RuntimeError, match="no such data set"):
        build_target(custom(module, "broken"))
    with pytest.raises(ConfigError, match=r"target.factory: got 'linear', expected package.module:function"):
        CustomTarget(factory="linear")


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_parameters_come_from_a_checkpoint(module, tmp_path, suffix):
    path = tmp_path / f"weights of it.{suffix}"
    arrays = {"layer.w": np.array([1.0, 2.0, 3.0], np.float32)}
    if suffix == "npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    cfg = with_checkpoint_hash(custom(module, "linear", checkpoint=path.name), "here")
    assert cfg.target.checkpoint == str(path) and len(cfg.target.checkpoint_sha256) == 64
    target, _ = build_target(cfg)
    np.testing.assert_array_equal(target.w_star["layer/w"], [1.0, 2.0, 3.0])
    assert target.loss_at_w_star > 0

    copy = tmp_path / f"copy.{suffix}"
    copy.write_bytes(path.read_bytes())
    same = with_checkpoint_hash(custom(module, "linear", checkpoint=str(copy)), "here")
    assert target_id_for(same) == target_id_for(cfg) != target_id_for(custom(module, "linear"))
    copy.write_bytes(b"junk")
    with pytest.raises(BuildFailed, match="has changed: its sha256 is"):
        build_target(same)
    with pytest.raises(BuildFailed, match=f"cannot be read as {suffix}"):
        build_target(with_checkpoint_hash(custom(module, "linear", checkpoint=str(copy)), "here"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"layer/v": np.ones(3)}, "lacks layer/w and also has layer/v"),
        ({"layer/w": np.ones(2)}, r"layer/w has the shape \(2,\), expected \(3,\)"),
    ],
)
def test_a_checkpoint_that_does_not_fit_says_what(module, tmp_path, arrays, message):
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(BuildFailed, match=message):
        build_target(with_checkpoint_hash(custom(module, "linear", checkpoint="w.npz"), "here"))


def test_a_study_names_a_factory_and_sweeps_its_arguments(module, tmp_path):
    np.savez(tmp_path / "w.npz", **{"layer/w": np.ones(3)})
    factory = f"factory: '{module}:linear'"
    composed = compose_study(
        study(
            tmp_path,
            f"[{{target: {{{factory}, version: 1}}, sweep: {{target.kwargs.width: [2, 4]}}}}, "
            f"{{target: {{{factory}, checkpoint: w.npz}}}}]",
            "[{name: nuts, sweep: {restrict: [['layer/*'], ['*']]}}]",
        )
    )
    assert [cfg.target.kwargs for cfg in composed.targets.values()] == [{"width": 2}, {"width": 4}, {}]
    assert list(composed.targets.values())[2].target.checkpoint_sha256 is not None
    assert len({run.program for run in composed.runs}) > 1
    table = collect(Store(tmp_path / "runs"), [], {})
    assert table.num_rows == 0
    with pytest.raises(ConfigError, match=r"target: got \{'kind': 'quadratic'\}, expected a name in conf/target"):
        compose_study(study(tmp_path, "[{target: {kind: quadratic}}]"))
    with pytest.raises(ConfigError, match=r"target.checkpoint: .*nowhere.npz cannot be read: No such file"):
        compose_study(study(tmp_path, f"[{{target: {{{factory}, checkpoint: nowhere.npz}}}}]"))


def test_version_and_arguments_are_in_the_id_and_the_path_is_not(module):
    cfg = custom(module, "linear", checkpoint="a.npz", checkpoint_sha256="0" * 64)
    moved = replace(cfg, target=replace(cfg.target, checkpoint="/elsewhere/a.npz"))
    assert target_id_for(moved) == target_id_for(cfg)
    others = [
        custom(module, "linear"),
        custom(module, "linear", version=2),
        custom(module, "linear", kwargs={"width": 2}),
    ]
    assert len({target_id_for(other) for other in [cfg, *others]}) == 4


def test_a_factory_in_a_file_by_hand(module, tmp_path):
    path = tmp_path / "target.yaml"
    path.write_text(f"target: {{factory: '{module}:linear', kwargs: {{width: 2}}}}\n")
    assert load_build_config(path) == custom(module, "linear", kwargs={"width": 2})


@pytest.mark.slow
def test_the_table_knows_n_and_dim_once_the_target_is_built(module, tmp_path):
    cfg = custom(module, "linear")
    store = Store(tmp_path / "runs")
    target_id = target_id_for(cfg)
    directory = store.target_dir(target_id)
    sampler = NutsConfig(target_id=target_id, num_draws=50, num_burnin=50, num_chains=2)
    whole = replace(sampler, prior_radius=1.0)
    runs = [Run.of(s) for s in (sampler, whole)]
    before = collect(store, runs, {target_id: cfg}).to_pylist()
    assert [row["n"] for row in before] == [None, None] and before[0]["n_beta"] is None
    build_into(directory, cfg)
    built = collect(store, runs, {target_id: cfg}).to_pylist()
    assert [(row["n"], row["dim"], row["gamma"]) for row in built] == [(200, 3, 1.0), (200, 3, 3.0)]
    sample_into(store.run_dir(*runs[0].key), directory, runs[0])
    row = collect(store, *runs_in_store(store)).to_pylist()[0]
    assert row["status"] == "finished" and row["target"].startswith(f"{module}:linear")
    assert json.loads(row["target_config"])["target"]["factory"] == f"{module}:linear"
