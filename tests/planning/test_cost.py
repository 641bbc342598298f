"""What runs are expected to cost: what is counted, what a store learns, and what is left of a damaged file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

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
from lambda_hat.planning.calibration import (
    COSTS_FORMAT,
    Finished,
    platform_of,
    read_costs,
    read_platforms,
    update_costs,
)
from lambda_hat.planning.cost import (
    BFLOAT16,
    COMPILE,
    RANDOM,
    CostModel,
    Shape,
    expected_seconds,
    measured_shape,
    price,
    shape_of,
)
from lambda_hat.report.results import collect
from lambda_hat.store.layout import Store, write_record
from lambda_hat.store.publish import publish_run, publish_target, write_config
from lambda_hat.workflow_config import compose_study

MLP = MlpBuild(data=DataConfig(n=1000))


# --------------------------------------------------------------------------------------------------------------
# What is counted


BATCHES = {"num_chains": 2, "num_draws": 100, "num_burnin": 50, "thin": 10, "step_size": 1e-5, "batch_size": 64}
PLAIN = SgldConfig(**BATCHES, gradient="plain", loss_estimate="full")
STEPS = 50 + 100 * 10


def row_gradients(cfg, rows=1000, num_data=1000):
    """Gradients of rows that a run computes: its seconds where one takes a second, and nothing else does."""
    return expected_seconds(Shape("mlp", 0, rows, num_data, row=1.0), cfg)


def counts(number):
    # The steps themselves take a few microseconds each.
    return pytest.approx(number, rel=1e-5)


def test_a_run_on_batches_counts_their_rows_and_the_losses():
    full = (1 + 2 * 100) / 3
    assert row_gradients(PLAIN) == counts(2 * STEPS * 64 + full * 1000)
    more = replace(PLAIN, singular_fluctuation=True)
    assert row_gradients(more) - row_gradients(PLAIN) == counts(2 * 100 / 3 * 1000)


def test_steps_that_follow_one_another_are_counted_once_for_all_chains():
    deep = Shape("mlp", 0, 1000, 1000, row=0.0, layers=10**9)
    alone = replace(PLAIN, num_chains=1)
    assert expected_seconds(deep, PLAIN) == expected_seconds(deep, alone) == counts(STEPS * 2.5e-6 * 1e9)


def test_a_control_variate_takes_a_second_gradient_and_brings_the_paired_loss():
    plain = replace(PLAIN, loss_estimate="paired")
    assert row_gradients(replace(plain, gradient="control_variate")) == counts(2 * 2 * STEPS * 64 + 1000 / 3)
    paired = 2 * 100 * 2 / 3 * 64
    assert row_gradients(plain) == counts(2 * STEPS * 64 + 1000 / 3 + paired)


@pytest.mark.parametrize(("rows", "seen"), [(1000, 1000), (40_960, 4096)])
def test_metropolis_checks_are_counted_where_they_are_asked_for(rows, seen):
    checked = replace(PLAIN, mala_checks=True)
    assert row_gradients(checked, rows, rows) - row_gradients(PLAIN, rows, rows) == counts(2 * 50 * 2 * seen)


def test_the_second_gradient_by_which_burn_in_learns_is_counted():
    learning = replace(PLAIN, step_size=None, precond="none")
    assert row_gradients(learning) - row_gradients(PLAIN) == counts(2 * 50 * 64)


def test_nulls_are_what_they_become_on_the_target():
    # 30 transitions between draws, and the whole loss, where batches and their losses are wanted of the larger network.
    cfg = SgldConfig(step_size=1e-6)
    small, large = (Shape("mlp", dim, rows, rows, 1.0) for dim, rows in ((25, 1000), (50_000, 100_000)))
    filled = {"num_burnin": 15_000, "thin": 30, "gradient": "control_variate", "loss_estimate": "full"}
    assert expected_seconds(small, cfg) == expected_seconds(small, replace(cfg, **filled))
    filled = {"num_burnin": 500, "thin": 1, "gradient": "control_variate", "loss_estimate": "paired"}
    assert expected_seconds(large, cfg) == expected_seconds(large, replace(cfg, **filled))


def test_a_trajectory_counts_its_gradients_and_float64_its_width():
    cfg = HmcConfig(num_integration_steps=7, precision="float32", num_draws=100, num_burnin=50)
    count = 4 * 7 * 150 * 1000 + (1 + 4 * 100) / 3 * 1000
    assert row_gradients(cfg) == counts(count)
    assert row_gradients(replace(cfg, precision="float64")) == counts(2 * count)


def test_chains_and_slices_that_wait_for_each_other_take_longer_and_compute_the_same():
    steps = Shape("mlp", 0, 1000, 1000, row=0.0)
    one, other = (expected_seconds(steps, cfg) for cfg in (PLAIN, replace(PLAIN, chains_at_once=1, accumulate=4)))
    assert other == pytest.approx(2 * 4 * one)
    assert row_gradients(replace(PLAIN, chains_at_once=1, accumulate=4)) == counts(row_gradients(PLAIN))


def test_rough_gradients_bring_no_losses_along():
    paired = replace(PLAIN, gradient="control_variate", loss_estimate="paired")
    rough = replace(paired, compute_dtype="bfloat16")
    # A loss at w and a gradient at w* for every draw.
    per_draw = 2 * 100 * 64 * (1 / 3 + 1)
    gradients = row_gradients(paired) - 1000 / 3
    assert row_gradients(rough) - 1000 / 3 == counts(BFLOAT16 * gradients + per_draw)


@pytest.mark.parametrize("name", SAMPLE_SCHEMAS)
@pytest.mark.parametrize(
    "build", [QuadraticBuild(), MLP, DlnBuild(), DlnBuild(target=DlnTarget(data="empirical"))], ids=lambda b: b.kind
)
def test_every_sampler_has_a_cost_on_every_target(build, name):
    seconds = CostModel().seconds(shape_of(build), SAMPLE_SCHEMAS[name](name=name))
    assert 0.01 < seconds < 1000


def test_what_is_longer_or_larger_costs_more():
    # At a length that is given: by itself a larger network gets fewer transitions.
    model, cfg = CostModel(), SgldConfig(step_size=1e-5, thin=20)
    seconds = model.seconds(shape_of(MLP), cfg)
    larger = MlpBuild(model=replace(MLP.model, widths=[100, 100]), data=MLP.data)
    assert model.seconds(shape_of(MLP), replace(cfg, num_draws=4000)) > 1.5 * seconds
    assert model.seconds(shape_of(larger), cfg) > 5 * seconds


def test_a_custom_target_is_a_guess_until_it_is_built(tmp_path):
    build = CustomBuild(target=CustomTarget(factory="package:function"))
    guess = shape_of(build, tmp_path)
    write_record(tmp_path / "meta.json", {"num_data": 50, "dim": 7, "measured": {"gradient": 1e-4, "loss": 0.25}})
    known = shape_of(build, tmp_path)
    assert (guess.rows, guess.dim, guess.num_data, guess.is_known) == (1000, 1000, 1000, False)
    assert (known.rows, known.dim, known.num_data, known.is_known) == (50, 7, 50, True)
    assert (known.row, known.loss) == (1e-4, 0.25)
    assert not measured_shape(7, 50, None).is_known
    (tmp_path / "meta.json").write_bytes(b"damaged")
    assert shape_of(build, tmp_path) == shape_of(build) == guess


def test_what_a_gradient_of_a_custom_loss_takes_was_measured():
    seconds = 2e-4
    shape = measured_shape(100_000, 2000, {"gradient": seconds, "loss": 0.3})
    cfg = SgldConfig(num_chains=2, num_draws=100, num_burnin=0, step_size=1e-6, batch_size=32, thin=1)
    cfg = replace(cfg, gradient="plain", loss_estimate="full")
    batches = 2 * 100 * 32 * (seconds + RANDOM)
    full = (0.3 + 2 * 100 * 0.3) * 2000 * seconds
    assert CostModel().seconds(shape, cfg) == pytest.approx(batches + full, rel=0.1)


def test_a_study_counts_what_it_has_to_guess_and_prices_it_once_it_is_known(tmp_path):
    target = {"target": {"factory": "package:function"}}
    content = {"targets": [target], "samplers": [{"name": "sgld", "overrides": {"step_size": 1e-6}}]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    study = compose_study(tmp_path / "study.yaml")
    ((target_id, build),) = study.targets.items()
    assert study.guessed(tmp_path) == 1
    guess = study.priced(CostModel(), tmp_path).runs[0].cost
    record = {"num_data": 1000, "dim": 1000, "measured": {"gradient": 1e-3, "loss": 0.3}}
    publish_target(tmp_path / target_id, build, record, {"params.npz": b"w", "data.npz": b"d"})
    assert study.guessed(tmp_path) == 0
    assert study.priced(CostModel(), tmp_path).runs[0].cost > 10 * guess


def test_every_rank_of_a_pack_compiles_what_it_samples():
    model = CostModel()
    runs = [("sgld", "a", 1.0)] * 3 + [("hmc", "b", 2.0)]
    assert model.pack_seconds(runs, 2) == 5 + 3 * COMPILE
    assert model.pack_seconds(runs, 64) == 5 + 4 * COMPILE
    assert model.pack_seconds(runs) == 5 + 2 * COMPILE
    assert replace(model, compile={"hmc": 1.0}).pack_seconds(runs) == 5 + COMPILE + 1


def test_hours_of_cores_or_of_gpus():
    assert price(7200, 4, 0, 1) == "8 core-hours"
    assert price(7200, 4, 2, 4) == "0.5 GPU-hours"


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
        publish_run(directory, run, write_config(directory, run.cfg), b"trace", {**measured, "verdict": verdict})
    return study, store


def update(study, store):
    update_costs(store, collect(store, study.runs, study.targets), study.runs, study.targets)


def test_finished_runs_are_measured_and_planning_reads_them(finished):
    study, store = finished
    assert read_costs(store.root, 1, 0) == CostModel()
    update(study, store)
    model = read_costs(store.root, 1, 0)
    assert model.basis == "measured on 2 finished runs of this store"
    assert model.run == pytest.approx(0.1)
    assert [model.compile_seconds(sampler) for sampler in ("nuts", "hmc")] == [5.0, COMPILE]
    priced = study.priced(model, store.targets_dir)
    assert [run.run_id for run in priced.runs] == [run.run_id for run in study.runs]
    assert [run.cost for run in priced.runs] == pytest.approx([9.1] * 4)
    assert priced.priced(model, store.targets_dir) is priced


def test_a_run_follows_its_sampler_on_its_kind_of_target_else_the_sampler_else_all(tmp_path):
    def measured(*ratios):
        return {f"t/{i}": Finished(ratio, 3.0 * (i == 0), None) for i, ratio in enumerate(ratios)}

    # One of the five was disturbed.
    runs = {"sgld/mlp": measured(2.0, 2.0, 2.0, 30.0, 2.0), "sgld/dln": measured(8.0), "hmc/mlp": measured(*[4.0] * 9)}
    write_record(tmp_path / "costs.json", {"format": COSTS_FORMAT, "platforms": {"cpu/1": runs}})
    model = read_costs(tmp_path, 1, 0)
    assert (model.runs, model.compile) == (15, {"sgld": 3.0, "hmc": 3.0})
    for kind, name, factor in (
        ("mlp", "sgld", 2.0), ("dln", "sgld", 8.0), ("tanh", "sgld", 2.0), ("tanh", "hmc", 4.0), ("mlp", "mala", 4.0),
    ):  # fmt: skip
        shape, cfg = Shape(kind, 10, 1000, 1000, 1e-6), SAMPLE_SCHEMAS[name](name=name)
        assert model.seconds(shape, cfg) - model.run == pytest.approx(factor * expected_seconds(shape, cfg))


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
    monkeypatch.setattr("lambda_hat.planning.calibration.MOST_KEPT", 2)
    kept = {name: Finished(1.0, 1.0, None) for name in "abcdefgh"}
    content = {"cpu/1": {"sgld/quadratic": kept, "hmc/mlp": {"a": kept["a"]}}}
    write_record(store.root / "costs.json", {"format": COSTS_FORMAT, "platforms": content})
    update(study, store)
    numbers = {key: len(runs) for key, runs in read_platforms(store.root)["cpu/1"].items()}
    assert numbers == {"sgld/quadratic": 2, "hmc/mlp": 1, "nuts/quadratic": 1}
    before = (store.root / "costs.json").read_bytes()
    update(study, store)
    assert (store.root / "costs.json").read_bytes() == before


def test_platforms_are_kept_apart(finished):
    study, store = finished
    update(study, store)
    gpu = {"sgld/mlp": {f"t/{i}": Finished(0.1, 1.0, None) for i in range(7)}}
    platforms = read_platforms(store.root) | {"NVIDIA H100": gpu}
    write_record(store.root / "costs.json", {"format": COSTS_FORMAT, "platforms": platforms})
    assert [read_costs(store.root, *site).runs for site in ((1, 0), (8, 0), (1, 4))] == [2, 2, 7]
    assert platform_of("gpu", "NVIDIA H100", 8) == "NVIDIA H100"
    del platforms["NVIDIA H100"]
    write_record(store.root / "costs.json", {"format": COSTS_FORMAT, "platforms": platforms})
    assert read_costs(store.root, 1, 4) == CostModel()


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2, "terms": ["run"], "platforms": {"cpu/1": {"measured": {}, "fitted": {"runs": 1}}}},
        {"platforms": []},
        {"platforms": {"cpu/1": 3}},
        {"platforms": {"cpu/1": {"sgld/mlp": {"a/b": [1]}}}},
    ],
    ids=str,
)
def test_what_is_no_costs_file_costs_only_accuracy(finished, change):
    study, store = finished
    update(study, store)
    content = {"format": COSTS_FORMAT, "platforms": read_platforms(store.root), **change}
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
