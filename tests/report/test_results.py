"""The table: typed, a row per run of the plan, finished or not."""

from __future__ import annotations

import io
import os
from dataclasses import fields

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from lambda_hat.config import HmcConfig, MlpBuild, QuadraticBuild, SgldConfig
from lambda_hat.id_utils import Run, target_id_for
from lambda_hat.report.closing import agreement, print_summary, truth_line
from lambda_hat.report.estimates import draw_estimates
from lambda_hat.report.results import SCHEMA, collect, runs_in_store, to_frame, write_table
from lambda_hat.store.layout import Store, write_json_atomic
from lambda_hat.store.publish import publish_run, publish_target, write_config

ASKED_FOR = """target_id run_id sampler status reason llc_mean llc_std_error llc_per_chain rhat_max ess_bulk_min
acceptance num_divergent loss_at_w_star loss_mean n dim beta gamma n_beta true_llc true_llc_t rel_error verdict fge
programs_compiled programs_loaded seconds_compile seconds_sample rank host pack_id run_dir""".split()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


TARGETS = {}
"""The targets of all runs, by id."""


def _run(build, cfg_type, **values):
    target_id = target_id_for(build)
    TARGETS[target_id] = build
    return Run.of(cfg_type(target_id=target_id, **values))


def _finish(store, run, **values):
    target, build = store.target_dir(run.target_id), TARGETS[run.target_id]
    numbers = {"n": build.n, "dim": build.dim, "loss_at_w_star": 0.0}
    meta = numbers | {"true_llc": 2.0, "true_multiplicity": 1}
    publish_target(target, build, meta, {"params.npz": b"w", "data.npz": b"d"})
    directory = store.run_dir(*run.key)
    analysis = {
        "llc_mean": 1.98, "llc_std_error": 0.02, "llc_per_chain": [1.9, None], "verdict": "ok", "num_divergent": 0,
        "verdict_sentence": "ok", "true_llc": 2.0, "true_llc_t": 1.99, "seconds_compile": 1.0, "seconds_sample": 2.0,
        "programs_compiled": 3, "programs_loaded": 1,
        "rank": 0, "host": "here", "pack_id": "pack_1", "notes": [], "step_size": [0.1, 0.1], "unknown": 1,
    }  # fmt: skip
    publish_run(directory, run, write_config(directory, run.cfg), b"trace", analysis | values)


def test_the_columns_that_were_promised():
    assert set(ASKED_FOR) <= set(SCHEMA.names)
    for schema in (SgldConfig, HmcConfig):
        keys = {field.name for field in fields(schema)} - {"target_id", "name", "runtime"}
        assert {f"cfg.{key}" for key in keys} <= set(SCHEMA.names)
    assert "cfg.runtime.cores_per_rank" in SCHEMA.names


def test_an_empty_table_is_typed(store, tmp_path):
    path = write_table(collect(store, [], TARGETS), tmp_path)
    table = pq.read_table(path)
    assert (table.num_rows, table.schema.names) == (0, SCHEMA.names)
    assert table.schema.field("llc_mean").type == pa.float64()
    assert table.schema.field("cfg.num_chains").type == pa.int64()
    assert len(pd.read_parquet(path)) == 0


def test_a_row_per_run_whatever_its_state(store, tmp_path):
    good, other = QuadraticBuild(), MlpBuild(seed=3)
    finished = _run(good, SgldConfig)
    failed = _run(good, SgldConfig, seed=1)
    pending = _run(good, HmcConfig)
    blocked = _run(other, SgldConfig)
    _finish(store, finished)
    error = {"type": "ValueError", "message": "too\nlong", "rank": 2, "host": "here"}
    write_json_atomic(store.run_dir(failed.target_id, failed.run_id) / "error.json", error)
    write_json_atomic(store.target_dir(blocked.target_id) / "error.json", {"type": "BuildFailed", "message": "no"})
    rows = pq.read_table(
        write_table(collect(store, [finished, failed, pending, blocked], TARGETS), tmp_path)
    ).to_pylist()
    assert [row["status"] for row in rows] == ["finished", "failed", "pending", "blocked"]
    assert rows[0]["llc_mean"] == 1.98
    assert rows[0]["llc_per_chain"] == [1.9, None]
    assert rows[0]["cfg.seed"] == 0
    assert rows[0]["cfg.precond"] is None
    assert rows[1]["reason"] == "ValueError: too (rank 2 on here)"
    assert rows[2]["cfg.num_integration_steps"] == 10
    assert rows[2]["n_beta"] == pytest.approx(1000 / 6.907755, rel=1e-6)
    assert rows[3]["reason"] == "its target could not be built: BuildFailed: no"
    assert [row["true_llc"] for row in rows] == [2.0, 2.0, 2.0, None]
    assert rows[3]["dim"] == other.dim


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"llc_mean": 1.0}', b"\xff", b"[" * 100_000])
def test_a_damaged_result_is_no_result(store, damage):
    run = _run(QuadraticBuild(), SgldConfig)
    _finish(store, run)
    path = store.run_dir(*run.key) / "analysis.json"
    path.write_bytes(damage)
    (row,) = collect(store, [run], TARGETS).to_pylist()
    assert (row["status"], row["llc_mean"], row["n"]) == ("pending", None, 1000)
    assert row["reason"].startswith(f"its result cannot be read: {path}: ")


@pytest.mark.parametrize("damage", [b"", b"[3]", b'{"type": 1}', b'{"type": "E", "message": 3}'])
def test_other_damaged_files_stop_no_table(store, damage, tmp_path):
    """The meta of a target, a record of a failure, a configuration, and the table that was there."""
    run, failed, lost = (_run(QuadraticBuild(), SgldConfig, seed=seed) for seed in range(3))
    for each in (run, failed, lost):
        _finish(store, each)
    (store.run_dir(failed.target_id, failed.run_id) / "analysis.json").unlink()
    (store.run_dir(failed.target_id, failed.run_id) / "error.json").write_bytes(damage)
    (store.run_dir(lost.target_id, lost.run_id) / "config.yaml").write_bytes(damage)
    (store.target_dir(run.target_id) / "meta.json").write_bytes(damage)
    (tmp_path / "llc_runs.parquet").write_bytes(damage)
    (tmp_path / ".llc_runs.parquet.0123.part").write_bytes(damage)
    os.utime(tmp_path / ".llc_runs.parquet.0123.part", (0, 0))
    rows = pq.read_table(write_table(collect(store, [run, failed], TARGETS), tmp_path)).to_pylist()
    assert [row["status"] for row in rows] == ["finished", "failed"]
    assert rows[1]["reason"].endswith("error.json cannot be read")
    assert not list(tmp_path.glob(".*"))
    assert {found.run_id for found in runs_in_store(store)[0]} == {run.run_id, failed.run_id}


def test_runs_are_found_in_the_store_without_a_study(store):
    runs = [_run(QuadraticBuild(seed=seed), SgldConfig) for seed in (0, 1)]
    for run in runs:
        _finish(store, run)
    assert sorted(r.run_id for r in runs_in_store(store)[0]) == sorted(r.run_id for r in runs)


def test_agreement_allows_for_bias_only_where_there_is_one():
    row = {"true_llc_t": 1.0, "llc_mean": 1.04, "llc_std_error": 0.01}
    assert agreement({**row, "sampler": "hmc"}) == "off"
    assert agreement({**row, "sampler": "hmc", "llc_mean": 1.029}) == "agrees"
    assert agreement({**row, "sampler": "sgld", "llc_mean": 1.029}) == "agrees"
    assert agreement({**row, "sampler": "sgld"}) == "within_allowance"
    assert agreement({**row, "sampler": "sgld", "llc_mean": 0.93}) == "within_allowance"
    assert agreement({**row, "sampler": "sgld", "llc_mean": 1.09}) == "off"
    assert agreement({**row, "sampler": "hmc", "true_llc_t": None}) is None
    assert agreement({**row, "sampler": "hmc", "llc_mean": None}) == "off"
    assert agreement({"sampler": "hmc", "true_llc_t": 0.0, "llc_mean": 0.0, "llc_std_error": 0.0}) == "agrees"


def test_a_line_tells_those_that_need_the_allowance_of_their_step_from_those_that_agree():
    assert truth_line([None, None]) is None
    line = truth_line(["agrees", None, "within_allowance", "off", "agrees"])
    assert line.startswith(
        "2 of 4 runs with an exact λ_t agree with it within 3 standard errors, 1 only within 5 % more"
    )
    assert line.endswith("1 is off (✗)")
    assert truth_line(["agrees"]) == "1 of 1 runs with an exact λ_t agree with it within 3 standard errors"


def test_the_numbers_of_the_temperature_are_columns(store):
    numbers = {"temperature": 1.02, "temperature_std_error": 0.03, "growth": 4.0, "localisation": 0.1, "distance": 0.3,
               "degree": 2.02, "llc_variance": None, "rel_error": -0.005, "rel_error_llc": -0.01}  # fmt: skip
    run, odd = _run(QuadraticBuild(), SgldConfig), _run(QuadraticBuild(), SgldConfig, seed=1)
    _finish(store, run, **numbers)
    _finish(store, odd, temperature="hot")
    row, other = collect(store, [run, odd], TARGETS).to_pylist()
    assert {key: row[key] for key in numbers} == numbers
    assert (other["status"], other["temperature"]) == ("pending", None)
    assert "temperature: got 'hot', expected double" in other["reason"]


def test_summary_and_picture(store, tmp_path):
    runs = [_run(QuadraticBuild(), SgldConfig, seed=seed) for seed in range(5)]
    _finish(store, runs[0])
    _finish(store, runs[3], verdict="heated", llc_mean=2.1)
    _finish(store, runs[4], verdict="not_equilibrated", llc_mean=1.2)
    _finish(store, runs[1], verdict="diverged", llc_mean=None, llc_std_error=None, true_llc_t=None)
    table = collect(store, runs, TARGETS)
    assert draw_estimates(to_frame(table)).png[:4] == b"\x89PNG"
    console = Console(width=200, record=True, file=io.StringIO())
    usage = {"ranks": 2, "busy": 6.0, "total": 8.0}
    print_summary(table, console, seconds=1.0, usage=usage, where={"table": tmp_path})
    text = console.export_text()
    for expected in (
        "1.980",
        "0.020",
        "1.990",
        "diverged",
        "4 finished, 1 pending",
        "1 diverged, 1 heated, 1 not_equilibrated, 1 ok",
        "1 of 3 runs with an exact λ_t agree with it within 3 standard errors, 1 only within 5 % more (≈)",
        "2.100 ≈  0.020",
        "1.200 ✗  0.020",
        "2 rank processes spent 75% of their time in runs, compiling included (6 of 8 s, start-up included)",
        "12 compiled, 4 loaded, in 4.0 s of all processes",
        str(tmp_path),
    ):
        assert expected in text
    assert draw_estimates(to_frame(collect(store, runs[2:3], TARGETS))) is None
