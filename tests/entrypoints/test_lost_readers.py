"""Commands whose output nobody reads: `| head`, and `>&-`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.made_up import finish, write_study
from lambda_hat.workflow_config import compose_study

ROOT = Path(__file__).resolve().parents[2]
LAMBDA_HAT = ["-m", "lambda_hat.entrypoints.cli"]
STUDY = ["--experiments", "study.yaml"]
COMMANDS = [
    [*LAMBDA_HAT, "--help"],
    [*LAMBDA_HAT, "--version"],
    *([*LAMBDA_HAT, name] for name in ("ls", "results", "verify", "report", "compact")),
    *([*LAMBDA_HAT, name, "hmc"] for name in ("show", "logs")),
    [*LAMBDA_HAT, "tune", "--dry-run", *STUDY],
    ["-m", "lambda_hat.entrypoints.sample", "--help"],
    ["-m", "lambda_hat.entrypoints.build_target", "--help"],
    *([str(ROOT / "flows" / script), "--dry-run", *STUDY] for script in ("packed.py", "parsl_llc.py", "tune.py")),
    [str(ROOT / "mpi" / "run_pack.py"), "--dry-run", *STUDY],
]
every_command = pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(map(str, words[:3]))[-40:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a study of one run was made."""
    place = tmp_path_factory.mktemp("here")
    finish(compose_study(write_study(place, [1], [{"name": "hmc"}], [])), num_draws=40)
    return place


def run(words: Sequence[str], folder: Path, redirected: str = "", **more) -> subprocess.CompletedProcess[bytes]:
    line = ["sh", "-c", f'exec "$@" {redirected}', "sh", sys.executable, *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLCONFIGDIR": str(folder)}
    # With it argparse would meet the broken pipe itself, and pass over it.
    env.pop("PYTHONUNBUFFERED", None)
    return subprocess.run(line, cwd=folder, env=env, timeout=120, **more)


def run_without_reader(words: Sequence[str], folder: Path, redirected: str = "") -> subprocess.CompletedProcess[bytes]:
    read, write = os.pipe()
    os.close(read)
    try:
        return run(words, folder, redirected, stdout=write, stderr=subprocess.PIPE)
    finally:
        os.close(write)


@every_command
def test_a_command_that_nobody_reads_ends_as_others_do(folder, words):
    done = run_without_reader(words, folder)
    assert (done.returncode, done.stderr) == (141, b"")
    assert run_without_reader(words, folder, "2>&1").returncode == 141


@every_command
def test_a_command_with_a_closed_stdout_does_its_work(folder, words):
    done = run(words, folder, ">&-", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_is_told_without_stdout_and_its_status_without_both(folder):
    words = [*LAMBDA_HAT, "ls", "--store", "nowhere"]
    done = run(words, folder, ">&-", stderr=subprocess.PIPE)
    assert done.returncode == 2 and b"nowhere: no store there" in done.stderr
    done = run(words, folder, "2>&-", stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout) == (2, b"")


@pytest.mark.slow
@pytest.mark.parsl
@pytest.mark.mpi
def test_a_study_that_nobody_reads_ends_with_all_that_it_started_and_goes_on(tmp_path):
    (tmp_path / "study.yaml").write_text("targets: [{target: quadratic}]\nsamplers: [{name: hmc}]\n")
    words = [str(ROOT / "flows" / "packed.py"), *STUDY, "--ranks", "1"]
    done = run_without_reader(words, tmp_path)
    assert (done.returncode, done.stderr) == (141, b"")
    done = run(words, tmp_path, ">&-", stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "results" / "llc_runs.parquet").is_file()
    assert run_without_reader([*LAMBDA_HAT, "status"], tmp_path).returncode == 141
