"""The commands alone, as processes: what they print, write, and return."""

from __future__ import annotations

import json
import subprocess

import pandas as pd
import pytest

from lambda_hat import load_trace
from lambda_hat.workflow_config import compose_study
from tests.users import USERS_PYTHON

TARGET = "target: {kind: quadratic, dim: 3}\n"
RUN = "name: hmc\nnum_draws: 200\nnum_burnin: 100\nnum_chains: 2\n"


def command(module, *words, env, cwd=None):
    return subprocess.run(
        [USERS_PYTHON, "-m", f"lambda_hat.entrypoints.{module}", *map(str, words)],
        capture_output=True, text=True, env=env, cwd=cwd, timeout=120,
    )  # fmt: skip


@pytest.fixture
def files(awkward_dir):
    (awkward_dir / "target.yaml").write_text(TARGET)
    (awkward_dir / "run.yaml").write_text(RUN)
    return awkward_dir


def test_build_sample_and_collect_each_alone(files, repo_env):
    target, run = files / "store" / "targets" / "tgt_mine", files / "store" / "targets" / "tgt_mine" / "run_hmc_1"
    built = command(
        "build_target", "--config-yaml", files / "target.yaml", f"--target-dir={target}", env=repo_env, cwd=files
    )
    assert (built.returncode, built.stderr) == (0, "")
    assert "(quadratic d=3 rank 3)" in built.stdout
    assert "lambda = 1.5" in built.stdout
    again = command(
        "cli", "build-target", "--config-yaml", files / "target.yaml", f"--target-dir={target}", env=repo_env, cwd=files
    )
    assert again.returncode == 0
    assert "already built" in again.stdout

    words = ["--config-yaml", files / "run.yaml", f"--run-dir={run}"]
    sampled = command("sample", *words, env=repo_env, cwd=files)
    assert (sampled.returncode, sampled.stderr) == (0, "")
    assert "exact lambda_t = 1.49" in sampled.stdout
    analysis = json.loads((run / "analysis.json").read_text())
    assert abs(analysis["llc_mean"] - 1.49) < 5 * analysis["llc_std_error"]
    for key, exact in (("rel_error", "true_llc_t"), ("rel_error_llc", "true_llc")):
        assert analysis[key] == pytest.approx(analysis["llc_mean"] / analysis[exact] - 1)
    assert analysis["growth"] + analysis["localisation"] == pytest.approx(analysis["dim"] * analysis["temperature"])
    assert sorted(p.name for p in run.iterdir()) == ["analysis.json", "config.yaml", "trace.nc"]
    assert "already finished" in command("cli", "sample", *words, env=repo_env, cwd=files).stdout

    listed = command("cli", "ls", f"--store={files / 'store'}", env=repo_env, cwd=files)
    assert listed.returncode == 0
    assert "quadratic d=3" in listed.stdout
    words = [f"--store={files / 'store'}", f"--results={files / 'out'}"]
    collected = command("cli", "results", *words, env=repo_env, cwd=files)
    assert collected.returncode == 0, collected.stderr
    table = pd.read_parquet(files / "out" / "llc_runs.parquet")
    assert table.loc[0, "llc_mean"] == analysis["llc_mean"]
    assert not (files / "pwned").exists()


@pytest.mark.slow
def test_a_trace_opens_in_arviz(tmp_path, repo_env):
    import arviz_stats

    (tmp_path / "target.yaml").write_text(TARGET)
    (tmp_path / "run.yaml").write_text(RUN)
    command("build_target", "--config-yaml", "target.yaml", "--target-dir", "t", env=repo_env, cwd=tmp_path)
    done = command("sample", "--config-yaml", "run.yaml", "--run-dir", "t/run", env=repo_env, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    trace = load_trace(tmp_path / "t" / "run")
    assert arviz_stats.summary(trace).loc["loss", "r_hat"] == pytest.approx(1, abs=0.05)
    assert dict(trace.posterior.sizes) == {"chain": 2, "draw": 200}
    analysis = json.loads((tmp_path / "t" / "run" / "analysis.json").read_text())
    losses = trace.posterior["loss"].values
    assert losses.mean() * analysis["n_beta"] == pytest.approx(analysis["llc_mean"])


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("build_target", ["--config-yaml", "absent.yaml"], "absent.yaml: no such file"),
        ("build_target", ["--config-yaml", "run.yaml"], "run.yaml: target.kind: unknown None"),
        ("build_target", ["--config-yaml", "typo.yaml"], "typo.yaml: unknown key 'target.dims'; did you mean 'dim'"),
        ("build_target", ["--config-yaml", "tag.yaml"], "tag.yaml:1: not plain YAML"),
        ("build_target", ["--config-yaml", "target.yaml", "--target-id", "tgt_no"], "--target-id tgt_no: target.yaml"),
        ("build_target", ["--config-yaml", "target.yaml", "--target-dir", "run.yaml/x"], "run.yaml/x: cannot be made"),
        ("sample", ["--config-yaml", "target.yaml", "--run-dir", "r"], "target.yaml: name: unknown None"),
        (
            "sample",
            ["--config-yaml", "run.yaml", "--run-dir", "r", "--target-id", "tgt_1"],
            "--target-id tgt_1: run.yaml",
        ),
        ("cli", ["ls", "--store", "absent"], "absent: no store there"),
        ("cli", ["results", "--store", "absent"], "absent: no store there"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path, repo_env, module, words, message):
    (tmp_path / "target.yaml").write_text(TARGET)
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "typo.yaml").write_text("target: {kind: quadratic, dims: 3}\n")
    (tmp_path / "tag.yaml").write_text("a: !!python/object/apply:os.system [touch pwned]\n")
    before = sorted(tmp_path.iterdir())
    done = command(module, *words, env=repo_env, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_without_its_target(tmp_path, repo_env):
    (tmp_path / "run.yaml").write_text(RUN)
    done = command("sample", "--config-yaml", "run.yaml", "--run-dir", "t/run", env=repo_env, cwd=tmp_path)
    assert done.returncode == 1
    assert "no built target there (meta.json is missing); build it with lambda-hat-build-target" in done.stderr


def test_a_build_that_fails_is_recorded(tmp_path, repo_env):
    config = "target: {kind: mlp}\ndata: {n: 20, noise_std: 1.0e+300}\n"
    (tmp_path / "target.yaml").write_text(config)
    done = command("build_target", "--config-yaml", "target.yaml", "--target-dir", "t", env=repo_env, cwd=tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    error = json.loads((tmp_path / "t" / "error.json").read_text())
    assert error["type"] == "BuildFailed"
    assert error["message"] in done.stderr
    assert "Traceback" in error["traceback"]
    assert not (tmp_path / "t" / "meta.json").exists()


def test_init_writes_a_study_once_and_says_how_to_run_it(awkward_dir, repo_env):
    said = command("cli", "init", "--", "my study", env=repo_env, cwd=awkward_dir)
    assert (said.returncode, said.stderr) == (0, "")
    folder = awkward_dir / "my study"
    assert sorted(path.name for path in folder.iterdir()) == ["model.py", "study.yaml"]
    last = said.stdout.splitlines()[-1]
    assert last == "to run it: cd 'my study' && lambda-hat run --experiments study.yaml --pack 32"
    study = compose_study(folder / "study.yaml")
    assert (len(study.targets), len(study.runs)) == (2, 6)

    (folder / "study.yaml").write_text("mine")
    (folder / "model.py").unlink()
    said = command("cli", "init", env=repo_env, cwd=folder)
    assert said.returncode == 2
    assert said.stderr.startswith("error: study.yaml: is there already, and nothing was written; give another folder")
    assert [path.read_text() for path in folder.iterdir()] == ["mine"]
    said = command("cli", "init", "study.yaml", env=repo_env, cwd=folder)
    assert said.returncode == 2
    assert said.stderr.startswith("error: study.yaml: cannot be made: File exists; give another folder")


WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from lambda_hat.entrypoints.cli import main; main()"
"""A command in an installation that lacks a package."""


@pytest.mark.parametrize(
    ("package", "words", "message"),
    [
        ("rich", ["ls"], "this command: needs rich, which is not installed; write pip install 'lambda-hat[study]'"),
        (
            "pyarrow",
            ["report"],
            "this command: needs pyarrow, which is not installed; write pip install 'lambda-hat[st",
        ),
    ],
)
def test_a_command_says_which_extra_it_lacks(package, words, message, tmp_path, repo_env):
    (tmp_path / "runs" / "targets").mkdir(parents=True)
    done = subprocess.run(
        [USERS_PYTHON, "-c", WITHOUT, package, *words], capture_output=True, text=True, env=repo_env, cwd=tmp_path,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}") and len(done.stderr.splitlines()) == 1


def test_a_missing_package_of_nobodys_extra_keeps_its_traceback(tmp_path, repo_env):
    code = "from lambda_hat.errors import run_command; run_command(lambda: __import__('no_such_package'))"
    done = subprocess.run([USERS_PYTHON, "-c", code], capture_output=True, text=True, env=repo_env, timeout=60)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: No module named 'no_such_package'"
