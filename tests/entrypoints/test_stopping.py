"""A run by hand that is stopped, and gone on with; and one that another process samples already."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lambda_hat.store import claims
from tests.entrypoints.test_commands import command

TARGET = "target: {kind: quadratic, dim: 3}\n"
RUN = (
    "name: sgld\nstep_size: 0.001\nnum_draws: 400\nthin: 10000\nnum_burnin: 50\nnum_chains: 2\n"
    "runtime: {checkpoint_every: 1}\n"
)


@pytest.fixture
def words(tmp_path, repo_env):
    """The words that sample the run; its target is built."""
    (tmp_path / "target.yaml").write_text(TARGET)
    (tmp_path / "run.yaml").write_text(RUN)
    target = tmp_path / "mine"
    built = command("build_target", "--config-yaml", tmp_path / "target.yaml", f"--target-dir={target}", env=repo_env)
    assert built.returncode == 0, built.stderr
    return ["--config-yaml", tmp_path / "run.yaml", f"--target-dir={target}"]


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path, repo_env, words):
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    line = [sys.executable, "-m", "lambda_hat.entrypoints.sample", *map(str, words), f"--run-dir={stopped}"]
    process = subprocess.Popen(line, env=repo_env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (stopped / "checkpoint.npz").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 75
    assert err == ("error: stopped before its end: SIGTERM came; what is sampled is kept, run the same command again\n")
    assert not (stopped / "error.json").exists()
    for directory in (stopped, whole):
        done = command("sample", *words, f"--run-dir={directory}", env=repo_env)
        assert done.returncode == 0, done.stderr
        assert sorted(p.name for p in directory.iterdir()) == ["analysis.json", "config.yaml", "trace.nc"]
    assert (stopped / "trace.nc").read_bytes() == (whole / "trace.nc").read_bytes()
    one, other = (json.loads((directory / "analysis.json").read_text()) for directory in (stopped, whole))
    assert one["llc_mean"] == other["llc_mean"] and one["num_gradients"] == other["num_gradients"]


def test_a_run_that_another_process_samples_is_left_to_it(tmp_path, repo_env, words):
    directory = tmp_path / "taken"
    claims.take(directory, None)
    done = command("sample", *words, f"--run-dir={directory}", env=repo_env)
    assert done.returncode == 2
    assert f"another process samples this run: process {os.getpid()} on " in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in directory.iterdir()] == ["claim-1"]


def test_a_ctrl_c_that_comes_inside_a_destructor_is_not_lost(repo_env):
    script = (
        "import os, signal, time\n"
        "from lambda_hat.errors import run_command\n"
        "class Thing:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "def main():\n"
        "    Thing()\n"
        "    time.sleep(30)\n"
        "    return 0\n"
        "run_command(main)\n"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env=repo_env, capture_output=True, text=True)
    assert time.monotonic() - began < 20
    assert (done.returncode, done.stderr) == (130, "interrupted; run the same command again to continue\n")
