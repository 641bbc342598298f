"""A module beside the study file, imported by builds and ranks alike, through a real Parsl and a real mpiexec."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = """
import jax.numpy as jnp
import numpy as np

def loss(params, batch):
    return 0.5 * jnp.mean((batch["x"] @ params["first"] + params["second"] - batch["y"]) ** 2)

def regression(width):
    x = np.random.default_rng(0).normal(size=(300, width))
    return loss, {"first": np.ones(width), "second": np.zeros(())}, {"x": x, "y": x.sum(axis=1)}

def broken(width):
    raise RuntimeError("no such data set")
"""
STUDY = """
targets:
  - {target: {factory: "mine:regression", kwargs: {width: 3}}}
  - {target: {factory: "mine:regression", kwargs: {width: 4}}}
  - {target: {factory: "mine:broken", kwargs: {width: 4}}}
  - {target: {factory: "nowhere:regression"}}
  - {model: tiny, data: small, checkpoints: {every: 20}, overrides: {training: {steps: 40}}}
samplers:
  - {name: hmc, overrides: {num_draws: 1000, num_burnin: 200, num_chains: 4}}
"""


@pytest.mark.slow
@pytest.mark.parsl
@pytest.mark.mpi
def test_a_packed_study_of_a_users_own_module_and_of_checkpoints(tmp_path):
    here = tmp_path / "a folder with spaces"
    here.mkdir()
    (here / "mine.py").write_text(MODULE)
    (here / "study.yaml").write_text(STUDY)
    done = subprocess.run(
        [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", "study.yaml", "--ranks", "2"],
        capture_output=True, text=True, cwd=here, timeout=300, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    assert "RuntimeError: no such data set" in done.stdout
    assert "target.factory: nowhere:regression cannot be imported: ModuleNotFoundError" in done.stdout
    table = pd.read_parquet(here / "results" / "llc_runs.parquet")
    rows = {row.target: row for row in table.itertuples()}
    assert set(table["status"]) == {"finished", "blocked"} and len(table) == 6
    for width in (3, 4):
        row = rows[f"mine:regression(width={width})"]
        assert (row.status, row.n, row.dim, row.verdict) == ("finished", 300, width + 1, "ok")
        exact = (width + 1) / 2
        assert abs(row.llc_mean - exact) < 4 * row.llc_std_error + 0.05 * exact
    steps = table[table["step"].notna()]
    assert sorted(steps["step"]) == [20, 40] and set(steps["status"]) == {"finished"}
    assert len(list(here.glob("runs/targets/*/build.log"))) == 5, "one process for the two checkpoints"
    assert (here / "results" / "llc_training.png").is_file()
