"""`lambda-hat compact`: every command says of a store afterwards what it said before."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import lambda_hat
from benchmarks.made_up import finish, write_study
from flows.driver.plan import make_plan
from lambda_hat.entrypoints.cli import main
from lambda_hat.store import run_files
from lambda_hat.store.layout import Store
from lambda_hat.workflow_config import Study, compose_study

SAMPLERS = [{"name": "hmc", "sweep": {"seed": [0, 1]}}, {"name": "sgld", "overrides": {"step_size": 1e-4}}]


@pytest.fixture
def study(tmp_path) -> Study:
    """Two targets times three settings; one run has failed, one has not begun."""
    study = compose_study(write_study(tmp_path, [1, 4], SAMPLERS, []))
    finish(study, failed=1, pending=1, num_draws=40)
    return study


@pytest.fixture
def command(tmp_path, capsys, monkeypatch):
    """Exit status and output of a command on the study's store."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main([*words, "--store", "runs"])
        return ended.value.code, "".join(capsys.readouterr())

    return run


def looked_at(command, study: Study) -> dict[str, object]:
    """What all that looks at a store says of it."""
    commands = [["ls"], ["verify"], ["results"], ["report"], ["results", "--experiments", "study.yaml"]]
    found: dict[str, object] = {" ".join(words): command(*words) for words in commands}
    for run in study.runs:
        _, said = command("show", "/".join(run.key))
        # Where the files lie is what differs.
        found[f"show {run.key}"] = re.sub(r"^(folder|archive) (\n? .*)+\n", "", said, flags=re.MULTILINE)
        found[f"logs {run.key}"] = command("logs", "/".join(run.key))
    table = lambda_hat.load_results("results")
    found["table"] = table.to_json()
    figures = sorted(Path("results/figures").iterdir())
    found["figures"] = {path.name: path.read_bytes() for path in figures}
    for row in table[table["status"] == "finished"].to_dict("records"):
        trace = lambda_hat.load_trace(row)
        found[row["run_dir"]] = trace["posterior"]["loss"].values.tobytes(), dict(trace.attrs)
        assert lambda_hat.load_observed(row).equals(trace["posterior"].to_dataset())
        assert lambda_hat.load_trace(row["run_dir"])["posterior"].equals(trace["posterior"])
    return found


def test_every_command_says_what_it_said(command, study):
    store = Store("runs")
    before = looked_at(command, study)
    planned = make_plan(store, study)
    status, said = command("compact")
    assert (status, said) == (
        0,
        f"{store.root}: 4 finished runs, 16 files and folders, went into 2 archives; 0 were there before; 1 are "
        "unfinished or being sampled, and stay as they are\n",
    )
    assert len(list(store.root.rglob("trace.nc"))) == 0
    after = looked_at(command, study)
    assert [key for key in before if before[key] != after[key]] == []
    assert make_plan(store, study) == planned
    _, shown = command("show", str(store.run_dir(*planned.cached_runs[0].key)))
    archive = store.target_dir(planned.cached_runs[0].target_id) / "runs.zip"
    assert f"archive{archive},{planned.cached_runs[0].run_id}/" in re.sub(r"\s", "", shown)


def test_all_runs_again_are_all_runs(study, tmp_path):
    store = Store(tmp_path / "runs")
    with pytest.raises(SystemExit):
        main(["compact", "--store", str(store.root)])
    plan = make_plan(store, study, "all")
    assert len(plan.runs) == len(study.runs)
    for run in plan.runs:
        run_files.discard(store.run_dir(*run.key))
    assert make_plan(store, study).cached_runs == []
    assert pd.Series([store.run_status(*run.key) for run in study.runs]).value_counts().to_dict() == {
        "pending": 5,
        "failed": 1,
    }


def test_a_refusal_is_one_sentence(tmp_path, repo_env):
    done = subprocess.run(
        [sys.executable, "-m", "lambda_hat.entrypoints.cli", "compact", "--store", str(tmp_path / "none")],
        env=repo_env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'none'}: no store there")
