"""A real study, looked at while it runs, when its driver has been killed, and when it is over."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys

import pytest

from lambda_hat.store.files import read_events
from lambda_hat.store.study_records import read_study, study_names
from tests.flows.studies import ROOT

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]
BAD_BUILD = {"model": "small", "data": "small", "overrides": {"data": {"n": 20, "noise_std": 1e300}}}


def lambda_hat(study, *words: str, status: int = 0) -> str:
    """What `lambda-hat WORDS` says in the folder of a study."""
    command = [sys.executable, "-m", "lambda_hat.entrypoints.cli", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    done = subprocess.run(command, cwd=study.folder, env=env, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (status, ""), done.stdout + done.stderr
    assert "Traceback" not in done.stdout
    return done.stdout


def test_a_study_is_seen_from_its_store_alone(make):
    study = make(targets=[{"target": "quadratic"}, BAD_BUILD], seeds=6, thin=12000)
    driver = study.start("--pack=3", "--ranks=1")
    study.wait_until(lambda: len(study.analyses()) >= 2, driver)
    said = lambda_hat(study, "status")
    assert re.search(rf"^driver   at work on \S+ \(process {driver.pid}\), started ", said, re.M)
    assert re.search(r"^ranks    1 of 1 at work$", said, re.M)
    assert re.search(r"^runs     12: \d+ finished, .*1 running, ", said, re.M)
    assert re.search(r"^pace     [\d.]+ runs per minute\nleft     about ", said, re.M)
    assert re.search(r"^sgld [0-9a-f]{8} tgt_[0-9a-f]{12} quadratic.* 0 ", said, re.M)

    driver.kill()
    driver.wait()
    said = lambda_hat(study, "status", "--watch")
    assert re.search(rf"^driver   died on \S+ \(process {driver.pid}\)", said, re.M)
    words = shlex.split(re.search(r"run the same command again to continue:\n    (.+)\n", said)[1])
    assert words[:2] == ["lambda-hat", "run"] and words[-4:] == ["--experiments", "study.yaml", "--pack=3", "--ranks=1"]
    assert study.run(*words[2:], status=1)

    said = lambda_hat(study, "status")
    assert re.search(r"^driver   ended \S+, started \S+: some runs failed$", said, re.M)
    assert re.search(r"^targets  2: 1 built, 1 failed$", said, re.M)
    assert re.search(r"^runs     12: 6 finished, 6 blocked", said, re.M)
    assert re.search(r"^tgt_[0-9a-f]{12} +BuildFailed: ", said, re.M)
    assert "lambda-hat rerun --failed\n" in said

    (target_id, run_id) = next(iter(study.analyses())).parts[-3:-1]
    said = lambda_hat(study, "show", run_id)
    assert f"target    {target_id} (quadratic" in said
    assert "λ̂ " in said and "running λ̂ of every chain, and the exact λ_t = " in said
    said = lambda_hat(study, "logs", run_id)
    assert re.search(r"^== rank 0 on \S+, pack_\S+, \S+: finished in .* s$", said, re.M)
    assert re.search(rf"^\[rank 0\] run {target_id}/{run_id}: finished in ", said, re.M)

    said = lambda_hat(study, "rerun", "--failed", status=1)
    folder = re.escape(str(study.folder))
    assert re.match(rf"in {folder}: lambda-hat run --rerun failed --experiments study.yaml", said)
    assert "0 to sample" not in said and "1 to build" in said
    newest = study_names(study.store)[0]
    assert len(study_names(study.store)) == 3
    record = read_study(study.store, newest)
    assert (record.cached_runs, len(record.runs), record.packed, record.site) == (6, 6, True, "local")
    events = [event["event"] for event in read_events(study.store / "studies" / f"{newest}.jsonl")[0]]
    assert events[:2] == ["lease", "round"] and events[-1] == "end"
    assert events.count("pack") == events.count("pack_end") == 2
