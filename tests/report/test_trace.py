"""A study's results in Python: the table as pandas, a run's draws as xarray."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lambda_hat
from benchmarks.made_up import finish, write_study
from lambda_hat.errors import ConfigError, CorruptArtifact, StoreError
from lambda_hat.report.results import collect, runs_in_store, write_table
from lambda_hat.store.layout import write_json_atomic
from lambda_hat.workflow_config import compose_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path):
    """Two runs, the second of which has not begun."""
    experiments = write_study(tmp_path, [2], [{"name": "hmc", "sweep": {"seed": [0, 1]}}], [])
    study = compose_study(experiments)
    store = finish(study, pending=1, num_draws=40)
    run = study.runs[-1]
    store.run_dir(run.target_id, run.run_id).mkdir()
    (store.run_dir(run.target_id, run.run_id) / "config.yaml").write_bytes(
        next(store.root.rglob("run_*/config.yaml")).read_bytes()
    )
    write_table(collect(store, *runs_in_store(store)), tmp_path / "results")
    return lambda_hat.load_results(tmp_path / "results").sort_values("status")


def test_the_table_and_the_draws_of_its_rows(table):
    assert table["status"].tolist() == ["finished", "pending"]
    assert str(table["cfg.num_chains"].dtype) == "Int64"
    row = table.iloc[0]
    for run in (row, row.to_dict(), row["run_dir"], Path(row["run_dir"]), next(table.itertuples())):
        trace = lambda_hat.load_trace(run)
        assert dict(trace.posterior.sizes) == {"chain": 4, "draw": 40}
        assert trace.posterior["loss"].dtype == np.float64
    llc = trace.attrs["n_beta"] * (trace.posterior["loss"] - trace.attrs["loss_at_w_star"])
    assert float(llc.mean()) == pytest.approx(row["llc_mean"])


def test_a_run_that_has_no_draws_says_why(table):
    pending = table.iloc[1]
    with pytest.raises(StoreError, match=r"no finished run there \(analysis.json is missing\); run its study again"):
        lambda_hat.load_trace(pending)
    write_json_atomic(Path(pending["run_dir"]) / "error.json", {"type": "ValueError", "message": "too large"})
    with pytest.raises(StoreError, match="the run failed: ValueError: too large"):
        lambda_hat.load_trace(pending)
    with pytest.raises(ConfigError, match=r"got DataFrame, expected the folder of a run or one row .*\.iloc\[0\]"):
        lambda_hat.load_trace(table)
    with pytest.raises(ConfigError, match="got int, expected"):
        lambda_hat.load_trace(3)
    with pytest.raises(StoreError, match=r"absent: no folder of a run there, expected runs/targets/tgt_"):
        lambda_hat.load_trace("absent")
    with pytest.raises(StoreError, match="if the store was moved, give the run's folder in it instead"):
        lambda_hat.load_trace({"run_dir": "absent"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.unlink(), "trace.nc: it is gone, though the run is finished; lambda-hat verify --store "),
        (lambda path: path.write_bytes(b"CDF"), "trace.nc: damaged: its checksum does not fit; lambda-hat verify"),
        (lambda path: (path.parent / "analysis.json").write_text("{"), "analysis.json: damaged: its checksum"),
    ],
)
def test_what_is_damaged_is_not_read(table, damage, message):
    run = Path(table.iloc[0]["run_dir"])
    damage(run / "trace.nc")
    with pytest.raises(CorruptArtifact, match=message):
        lambda_hat.load_trace(run)


def test_a_table_that_is_not_there(tmp_path):
    with pytest.raises(StoreError, match=r"no table there; lambda-hat results --store runs --results .* collects it"):
        lambda_hat.load_results(tmp_path)
    (tmp_path / "llc_runs.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptArtifact, match=r"llc_runs.parquet: not a Parquet file"):
        lambda_hat.load_results(tmp_path)
    with pytest.raises(ConfigError, match="load_results: got int, expected a results folder"):
        lambda_hat.load_results(3)


def test_neither_takes_jax():
    code = (
        "import lambda_hat, sys; early = {'pandas', 'pyarrow', 'xarray', 'jax'} & set(sys.modules); "
        "lambda_hat.load_results, lambda_hat.load_trace; print(early, 'jax' in sys.modules, 'xarray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "set() False False"), done.stderr
