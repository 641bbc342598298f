"""What runs are expected to cost: what is counted, what is fitted to a store, and what is left of a damaged file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from lambda_hat.calibration import MOST_KEPT, Measured, fit, fit_terms, update_costs
from lambda_hat.config import (
    SAMPLE_SCHEMAS,
    CustomBuild,
    CustomTarget,
    DataConfig,
    DlnBuild,
    DlnTarget,
    HmcConfig,
    MlpBuild,
    QuadraticBuild,
    SgldConfig,
)
from lambda_hat.cost import (
    DEFAULTS,
    TERMS,
    CostModel,
    platform_of,
    price,
    read_costs,
    read_platforms,
    shape_in_store,
    shape_of,
    work_of,
)
from lambda_hat.results import RunRef, collect
from lambda_hat.store import Store, publish_run, publish_target, write_config, write_record
from lambda_hat.workflow_config import compose_study

TERM = {name: index for index, name in enumerate(TERMS)}
MLP = MlpBuild(data=DataConfig(n=1000))


def work(build, cfg, gradients=1.0):
    return dict(zip(TERMS, work_of(shape_of(build), cfg, gradients), strict=True))


# --------------------------------------------------------------------------------------------------------------
# What is counted


def test_a_run_on_batches_counts_their_rows():
    cfg = SgldConfig(num_chains=2, num_draws=100, num_burnin=50, thin=10, step_size=1e-5, batch_size=64)
    counted = work(MLP, cfg)
    steps = 50 + 100 * 10
    full = 2 * 100 / 3 + 2 * 50 * 2
    assert (counted["run"], counted["step"], counted["draw"]) == (1, steps, 100)
    assert counted["coordinate"] == 2 * steps * MLP.dim
    assert counted["product"] == pytest.approx(MLP.dim * (2 * steps * 64 + full * 1000))


def test_a_pilot_is_counted_where_the_step_size_is_open():
    given, chosen = (work(MLP, SgldConfig(step_size=step)) for step in (1e-5, None))
    assert chosen["step"] - given["step"] == pytest.approx(3 * 1000)
    assert chosen["product"] - given["product"] == pytest.approx(3 * 1000 * 1000 * MLP.dim)


def test_a_trajectory_counts_its_gradients_and_float64_its_width():
    cfg = HmcConfig(num_integration_steps=7, precision="float32")
    assert work(MLP, cfg, 7.0)["step"] == 7 * cfg.num_steps
    assert work(MLP, replace(cfg, precision="float64"), 7.0)["product"] == 2 * work(MLP, cfg, 7.0)["product"]


@pytest.mark.parametrize("name", SAMPLE_SCHEMAS)
@pytest.mark.parametrize(
    "build", [QuadraticBuild(), MLP, DlnBuild(), DlnBuild(target=DlnTarget(data="empirical"))], ids=lambda b: b.kind
)
def test_every_sampler_has_a_cost_on_every_target(build, name):
    seconds = CostModel().seconds(shape_of(build), SAMPLE_SCHEMAS[name](name=name))
    assert 0.01 < seconds < 1000


def test_what_is_longer_or_larger_costs_more():
    model, cfg = CostModel(), SgldConfig(step_size=1e-5)
    seconds = model.seconds(shape_of(MLP), cfg)
    larger = MlpBuild(model=replace(MLP.model, widths=[100, 100]), data=MLP.data)
    assert model.seconds(shape_of(MLP), replace(cfg, num_draws=4000)) > 1.5 * seconds
    assert model.seconds(shape_of(larger), cfg) > 5 * seconds


def test_a_custom_target_is_a_guess_until_it_is_built(tmp_path):
    build = CustomBuild(target=CustomTarget(factory="package:function"))
    guess = shape_in_store(build, tmp_path)
    write_record(tmp_path / "meta.json", {"num_data": 50, "dim": 7})
    known = shape_in_store(build, tmp_path)
    assert (guess.rows, guess.dim, guess.batches) == (1000, 1000, True)
    assert (known.rows, known.dim, known.batches) == (50, 7, True)
    (tmp_path / "meta.json").write_bytes(b"damaged")
    assert shape_in_store(build, tmp_path) == guess


def test_every_rank_of_a_pack_compiles_what_it_samples():
    model = CostModel()
    runs = [("sgld", "a", 1.0)] * 3 + [("hmc", "b", 2.0)]
    assert model.pack_seconds(runs, 2) == 5 + 2 * 4 + 4
    assert model.pack_seconds(runs, 64) == 5 + 3 * 4 + 4
    assert model.pack_seconds(runs) == 5 + 4 + 4


def test_hours_of_cores_or_of_gpus():
    assert price(7200, 4, 0, 1) == "8 core-hours"
    assert price(7200, 4, 2, 4) == "0.5 GPU-hours"


# --------------------------------------------------------------------------------------------------------------
# The fit


def study_of(rng, seconds, count=60, noise=0.1):
    """Work of runs of many sizes, and what they took at `seconds` a term."""
    work = np.array(
        [
            [1, steps, 3 * steps, draws, steps * dim, steps * rows * 10, steps * rows * dim]
            for steps, draws, dim, rows in zip(
                *(np.exp(rng.uniform(np.log(low), np.log(high), count)) for low, high in
                  ((1e3, 1e5), (1e2, 1e3), (4, 1e4), (1, 1e3))),
                strict=True,
            )
        ]
    )  # fmt: skip
    return work, work @ seconds * np.exp(noise * rng.normal(size=count))


def test_the_fit_finds_seconds_that_it_was_not_told_among_outliers():
    rng = np.random.default_rng(0)
    defaults = np.array(list(DEFAULTS.values()))
    truth = defaults * [1.0, 3.0, 2.0, 1.0, 0.4, 2.0, 2.5]
    work, seconds = study_of(rng, truth)
    seconds[::10] *= 6
    found = fit_terms(work, seconds, defaults)
    unseen, expected = study_of(np.random.default_rng(1), truth, noise=0.0)
    ratio = unseen @ found / expected
    assert np.all((ratio > 0.7) & (ratio < 1.4))
    assert (unseen @ found).sum() == pytest.approx(expected.sum(), rel=0.15)
    untold = unseen @ defaults / expected
    assert np.abs(np.log(ratio)).mean() < np.abs(np.log(untold)).mean() / 3


def test_few_runs_leave_the_rest_at_the_defaults():
    defaults = np.array(list(DEFAULTS.values()))
    nothing = fit_terms(np.empty((0, len(TERMS))), np.empty(0), defaults)
    assert nothing == pytest.approx(defaults)
    steps = np.zeros((1, len(TERMS)))
    steps[0, TERM["step"]] = 1e5
    one = fit_terms(steps, 2 * steps @ defaults, defaults)
    assert 1.2 < one[TERM["step"]] / defaults[TERM["step"]] < 2
    assert np.delete(one, TERM["step"]) == pytest.approx(np.delete(defaults, TERM["step"]))


def test_no_term_becomes_free():
    defaults = np.array(list(DEFAULTS.values()))
    work, seconds = study_of(np.random.default_rng(2), defaults * [1, 1, 1, 1, 0, 0, 0], noise=0.0)
    assert np.all(fit_terms(work, seconds, defaults) >= 0.099 * defaults)


def _runs(sampler, kind, count, seconds, gradients=None):
    work = [1.0, 1e4, 2e4, 100.0, 1e5, 0.0, 0.0]
    return [Measured(sampler, kind, seconds, 0.02, 3.0 if i == 0 else 0.0, gradients, work) for i in range(count)]


def test_a_sampler_without_runs_is_as_fast_as_the_others():
    defaults = float(np.dot([1.0, 1e4, 2e4, 100.0, 1e5, 0.0, 0.0], list(DEFAULTS.values())))
    fitted = fit(_runs("sgld", "mlp", 100, 2 * defaults))
    assert fitted["scale"] == pytest.approx(2.0, rel=0.05)
    assert (fitted["runs"], fitted["around"], fitted["samplers"]["sgld"]["compile"]) == (100, 0.02, 3.0)


def test_the_length_of_trajectories_is_learned_by_kind():
    fitted = fit([*_runs("nuts", "mlp", 50, 1.0, 100.0), *_runs("nuts", "quadratic", 50, 1.0, 6.0)])
    gradients = fitted["samplers"]["nuts"]["gradients"]
    assert gradients[""] == pytest.approx(53)
    assert gradients["mlp"] == pytest.approx(100, rel=0.05)
    assert gradients["quadratic"] == pytest.approx(6, rel=0.2)


# --------------------------------------------------------------------------------------------------------------
# The store's file


@pytest.fixture
def finished(tmp_path):
    """A study with two finished runs, one that diverged, one that is pending, and its store."""
    content = {
        "targets": [{"target": "quadratic"}],
        "samplers": [{"name": "sgld", "sweep": {"seed": [0, 1, 2]}}, {"name": "nuts"}],
        "store_root": str(tmp_path / "store"),
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = compose_study(tmp_path / "study.yaml")
    store = Store(tmp_path / "store")
    ((target_id, build),) = study.targets.items()
    publish_target(store.target_dir(target_id), build, {}, {"params.npz": b"w", "data.npz": b"d"})
    measured = {"seconds_sample": 9.0, "seconds_compile": 5.0, "seconds_total": 14.1, "num_gradients": 27_000}
    measured |= {"backend": "cpu", "device": "cpu", "cores": 1}
    for run, verdict in zip(study.runs[1:], ("ok", "diverged", "too_short"), strict=True):
        directory = store.run_dir(target_id, run.run_id)
        publish_run(directory, run.cfg, write_config(directory, run.cfg), b"trace", {**measured, "verdict": verdict})
    return study, store


def update(study, store):
    refs = [RunRef(run.target_id, run.run_id, study.targets[run.target_id], run.cfg) for run in study.runs]
    update_costs(store, collect(store, refs), [(shape_of(ref.build), ref.cfg) for ref in refs])


def test_finished_runs_are_measured_and_planning_reads_them(finished):
    study, store = finished
    assert read_costs(store.root, 1, 0) == CostModel()
    update(study, store)
    model = read_costs(store.root, 1, 0)
    assert (model.runs, sorted(model.samplers)) == (2, ["nuts", "sgld"])
    assert model.basis == "measured on 2 finished runs of this store"
    assert model.around == pytest.approx(0.1)
    assert model.compile_seconds("nuts") == 5.0
    assert model.samplers["nuts"].gradients["quadratic"] == pytest.approx(27_000 / (4 * 3000))
    priced = study.priced(model, store.targets_dir)
    assert [run.run_id for run in priced.runs] == [run.run_id for run in study.runs]
    # The defaults expect longer trajectories of nuts, and the file says otherwise.
    for new, old in zip(priced.runs[:3], study.runs[:3], strict=True):
        assert abs(np.log(new.cost / 9.1)) < abs(np.log(old.cost / 9.1))
    assert priced.priced(model, store.targets_dir) is priced


def test_a_second_study_adds_to_what_is_known(finished):
    study, store = finished
    update(study, store)
    update(replace(study, runs=study.runs[1:2]), store)
    assert read_costs(store.root, 1, 0).runs == 2
    before = (store.root / "costs.json").read_bytes()
    update(replace(study, runs=study.runs[:1]), store)
    assert (store.root / "costs.json").read_bytes() == before


def test_the_file_stays_small(finished, monkeypatch):
    study, store = finished
    monkeypatch.setattr("lambda_hat.calibration.MOST_KEPT", 1)
    update(study, store)
    assert MOST_KEPT > 1
    assert len(read_platforms(store.root)["cpu/1"]["measured"]) == 2
    update(replace(study, runs=[study.runs[1]]), store)
    assert len(read_platforms(store.root)["cpu/1"]["measured"]) == 2


def test_platforms_are_kept_apart(finished):
    study, store = finished
    update(study, store)
    record = read_platforms(store.root)
    gpu = json.loads(json.dumps(record["cpu/1"]).replace("9.0", "1.0"))
    gpu["fitted"]["runs"] = 7
    content = {"format": 1, "terms": list(TERMS), "platforms": {**record, "NVIDIA H100": gpu}}
    write_record(store.root / "costs.json", content)
    assert [read_costs(store.root, *site).runs for site in ((1, 0), (8, 0), (1, 4))] == [2, 2, 7]
    assert platform_of("gpu", "NVIDIA H100", 8) == "NVIDIA H100"
    del content["platforms"]["NVIDIA H100"]
    write_record(store.root / "costs.json", content)
    assert read_costs(store.root, 1, 4) == CostModel()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"terms": ["run"]},
        {"platforms": []},
        {"platforms": {"cpu/1": 3}},
        {"platforms": {"cpu/1": {"fitted": {"runs": 1}}}},
        {"platforms": {"cpu/1": {"fitted": {"runs": 1, "around": -1.0, "samplers": {}, "scale": 1.0}}}},
        {"platforms": {"cpu/1": {"measured": {"a/b": [1]}, "fitted": {"runs": 1, "around": None}}}},
    ],
    ids=str,
)
def test_what_is_no_costs_file_costs_only_accuracy(finished, change):
    study, store = finished
    update(study, store)
    content = {"format": 1, "terms": list(TERMS), "platforms": read_platforms(store.root), **change}
    write_record(store.root / "costs.json", content)
    assert read_costs(store.root, 1, 0) == CostModel()
    update(study, store)
    assert read_costs(store.root, 1, 0).runs == 2


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"{}", None])
def test_a_damaged_costs_file_costs_only_accuracy(finished, damage):
    study, store = finished
    update(study, store)
    path = store.root / "costs.json"
    path.write_bytes(path.read_bytes()[:-30] if damage is None else damage)
    assert read_costs(store.root, 1, 0) == CostModel()
    update(study, store)
    assert read_costs(store.root, 1, 0).runs == 2


def test_a_costs_file_that_is_a_folder_is_none(tmp_path):
    (tmp_path / "costs.json").mkdir()
    assert read_costs(Path(tmp_path), 1, 0) == CostModel()
