"""Tuning through a real Parsl and a real mpiexec, interrupted and gone on with; and what it refuses."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from flows.driver.request import Request
from flows.driver.searches import Tuning
from flows.tune import parse_options, starts_of
from lambda_hat.execute.failure_record import record_failure
from tests.flows.studies import PACKED, ROOT

TUNE = ROOT / "flows" / "tune.py"
TARGETS = [{"target": "quadratic", "overrides": {"target": {"dim": 3, "rank": 3}}}, {"target": "monomial"}]


def command(*words, cwd):
    return subprocess.run(
        [sys.executable, *map(str, words)],
        capture_output=True, text=True, cwd=cwd, timeout=240, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip


@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_an_interrupted_search_goes_on_and_its_settings_are_a_study(make):
    study = make(targets=TARGETS, seeds=2, thin=500)
    words = ["--trials", "20", "--batch", "2", "--seeds", "1", "--tolerance", "0.5", "--ranks", "2"]
    driver = study.start(*words, program=TUNE)
    study.wait_until(lambda: len(study.analyses()) >= 2, driver)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(120) == 130, study.said()
    assert "the search is unfinished: run the same command again to continue" in study.said()
    before = study.analyses()

    assert study.start(*words, program=TUNE).wait(240) == 0, study.said()
    assert set(study.times_computed().values()) == {1}, "no run is sampled twice"
    after = study.analyses()
    assert before.items() <= after.items()
    files = sorted(study.store.glob("tuning/search_sgld_*.json"))
    assert len(files) == 2, "seeds are no settings of their own"
    assert (study.folder / "results" / "tuning.png").read_bytes()[:4] == b"\x89PNG"
    kept = [file.read_bytes() for file in files]

    assert study.start(*words, program=TUNE).wait(240) == 0, study.said()
    assert study.analyses() == after and [file.read_bytes() for file in files] == kept
    assert "quadratic d=3 rank 3" in study.said()

    settings = study.folder / "results" / "tuned.yaml"
    assert len(yaml.safe_load(settings.read_text())["samplers"]) == 2
    done = command(PACKED[1], "--experiments", settings, cwd=study.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "everything is cached; no sampler is started" in done.stdout
    table = pd.read_parquet(study.folder / "results" / "llc_runs.parquet")
    assert (len(table), set(table["verdict"]), set(table["cfg.seed"])) == (2, {"ok"}, {1})


@pytest.mark.parsl
@pytest.mark.mpi
@pytest.mark.slow
def test_quick_takes_a_stable_step_in_one_pack(make):
    study = make(targets=TARGETS[:1], seeds=1, thin=50)
    assert study.start("--quick", "--ranks", "2", program=TUNE).wait(240) == 0, study.said()
    assert len(list(study.store.glob("packs/pack_*"))) == 1
    assert len(study.times_computed()) == 19
    assert not (study.store / "tuning").exists()
    (entry,) = yaml.safe_load((study.folder / "results" / "tuned.yaml").read_text())["samplers"]
    # h = n / log n + 1 = 146: stable below eps = 4 / h, and off by a quarter of eps h.
    assert 0.01 / 146 < entry["overrides"]["step_size"] < 0.4 / 146
    assert (study.folder / "results" / "tuning.png").read_bytes()[:4] == b"\x89PNG"


def test_a_failed_run_is_tried_again_by_the_command_that_asks_for_it(make, monkeypatch):
    monkeypatch.chdir(make(targets=TARGETS[:1], seeds=1, thin=10).folder)

    def tuning(*words):
        args = parse_options(["--shared", "--experiments", "study.yaml", *words])
        request = Request.from_options(args, packed=True)
        return Tuning(request, args, starts_of(request.study, None, False)), request.store

    first, store = tuning()
    study = first._next_study()
    assert study is not None and len(study.runs) == 45
    broken = [store.run_dir(*run.key) for run in study.runs]
    for directory in broken:
        directory.mkdir(parents=True)
        record_failure(directory, RuntimeError("no memory"))
    assert first._next_study() is None and tuning()[0]._next_study() is None
    again, _ = tuning("--rerun", "failed")
    retried = again._next_study()
    assert retried is not None and {run.key for run in retried.runs} == {run.key for run in study.runs}
    assert not any((directory / "error.json").exists() for directory in broken)
    for directory in broken:
        record_failure(directory, RuntimeError("no memory"))
    assert again._next_study() is None, "once in a command"


@pytest.mark.parametrize("words", [["--trials", "8"], ["--quick"]])
def test_a_dry_run_starts_and_writes_nothing(make, words):
    study = make(targets=TARGETS, seeds=1, thin=10)
    said = command(TUNE, "--experiments", "study.yaml", "--dry-run", *words, cwd=study.folder)
    assert said.returncode == 0, said.stderr
    assert re.search(r"search tgt_\w+  w1\^2 w2\^2, sgld, from step_size 0.0001", said.stdout)
    assert ("expected: 36 runs, about " in said.stdout) == (words[0] == "--trials")
    assert "dry run: nothing was started" in said.stdout
    assert [path.name for path in study.folder.iterdir()] == ["study.yaml"]
    handed_over = command("-m", "lambda_hat.entrypoints.cli", "tune", "--dry-run", *words, "--experiments",
                          "study.yaml", cwd=study.folder)  # fmt: skip
    assert handed_over.stdout == said.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--samplers", "sgdl"], "--samplers: unknown 'sgdl'; did you mean 'sgld'?"),
        (["--samplers", "sgld", "pack=4"], "--samplers: unknown 'pack=4'; write key=value words before --samplers"),
        (["--trials", "0"], "--trials: got 0, expected an integer of at least 1"),
        (["--seeds", "0"], "--seeds: got 0, expected an integer of at least 1"),
        (["--batch", "-1"], "--batch: got -1, expected an integer of at least 1"),
        (["--tolerance", "5"], "--tolerance: got 5.0, expected a relative error between 0 and 1"),
        (["--quick", "--trials", "3"], "--trials: goes without --quick"),
        (["--quick", "--samplers", "hmc"], "hmc adapts its own step size, and the study has no other sampler"),
        (["--experiments", "absent.yaml"], "absent.yaml: no such file"),
        (["--store", "study.yaml/store"], "study.yaml/store: the store cannot be written: "),
        (["samplers.0.targets=[tgt_0]"], "samplers[0]: targets: got 'tgt_0', which is no target of this study"),
    ],
)
def test_bad_input_is_one_sentence_exit_2_and_nothing_left_behind(make, words, message):
    study = make(targets=TARGETS, seeds=1, thin=10)
    first = [] if "--experiments" in words else ["--experiments", "study.yaml"]
    done = command(TUNE, *first, *words, cwd=study.folder)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in study.folder.iterdir()] == ["study.yaml"]


def test_every_option_has_a_help_text():
    done = command(TUNE, "--help", cwd=ROOT)
    assert done.returncode == 0
    options = "experiments samplers trials batch seeds tolerance reference quick pack ranks site store results dry-run"
    for option in options.split():
        assert re.search(rf"--{option}\b.*\S", done.stdout), option
