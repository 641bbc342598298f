"""Files of the user's that have the names of modules, beside a study or in the folder where a command is started."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from flows.sites.shell_lines import with_checkout
from lambda_hat import user_folder
from lambda_hat.errors import ConfigError
from lambda_hat.targets.imports import imported
from tests.users import USERS_PYTHON

ROOT = Path(__file__).resolve().parents[1]
BYSTANDERS = ("parsl", "yaml", "numpy", "random", "flows", "mpi", "lambda_hat", "apps", "pack")
MODULE = """
import jax.numpy as jnp
import numpy as np

def loss(w, batch):
    return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2

def planar():
    x = np.random.default_rng(0).normal(size=(200, 2))
    return loss, np.ones(2), {"x": x, "y": x @ np.ones(2)}

def norm(w, data):
    return jnp.sum(w**2)
"""
STUDY = """
targets:
  - {target: {factory: "NAME:planar"}}
samplers:
  - name: sgld
    overrides: {num_draws: 60, num_burnin: 20, step_size: 1.0e-3, observe: {norm: {function: "NAME:norm"}}}
"""


def write_study(folder: Path, name: str, bystanders: tuple[str, ...] = ()) -> None:
    for each in bystanders:
        (folder / f"{each}.py").write_text(f"raise SystemExit('{each}.py of the user was imported')\n")
    (folder / f"{name}.py").write_text(MODULE)
    (folder / "study.yaml").write_text(STUDY.replace("NAME", name))


def run(
    folder: Path, *words: str, python_path: str = "", python: str = USERS_PYTHON
) -> subprocess.CompletedProcess[str]:
    command = [python, *words]
    env = {**os.environ, "PYTHONPATH": python_path}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def packed(folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return run(folder, str(ROOT / "flows" / "packed.py"), "--experiments", "study.yaml", *words, **more)


@pytest.mark.slow
@pytest.mark.parsl
@pytest.mark.mpi
def test_a_study_runs_beside_files_with_the_names_of_modules(tmp_path):
    """Its own module is called `devices`, as a module of the ranks, and PYTHONPATH has the folder first."""
    write_study(tmp_path, "devices", BYSTANDERS)
    done = packed(tmp_path, "--ranks", "2", python_path=".")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = pd.read_parquet(tmp_path / "results" / "llc_runs.parquet").itertuples()
    assert (row.status, row.target, row.dim) == ("finished", "devices:planar()", 2)


@pytest.mark.slow
@pytest.mark.parsl
def test_a_study_of_single_processes_runs_beside_them(tmp_path):
    write_study(tmp_path, "mine", BYSTANDERS)
    done = run(tmp_path, str(ROOT / "flows" / "parsl_llc.py"), "--experiments", "study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.mpi
def test_a_pack_by_hand_runs_beside_them(tmp_path):
    write_study(tmp_path, "rank", BYSTANDERS)
    done = run(tmp_path, str(ROOT / "mpi" / "run_pack.py"), "--experiments", "study.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_suites_run_beside_them(tmp_path):
    write_study(tmp_path, "mine", BYSTANDERS)
    script = str(Path(USERS_PYTHON).with_name("lambda-hat"))
    words = ["validate", "--sampler", "hmc", "--only", "quadratic*", "--processes", "1", "--json"]
    done = run(tmp_path, script, *words, python_path=str(ROOT))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


OWNERS = {
    "random": "Python's standard library",
    "yaml": "an installed package",
    "mpi": "lambda_hat",
    "flows": "lambda_hat",
}
SCRIPTS = ("flows/packed.py", "flows/tune.py", "flows/parsl_llc.py")


@pytest.mark.parametrize(
    ("script", "name"),
    [
        *((script, name) for script in SCRIPTS for name in OWNERS),
        ("mpi/run_pack.py", "random"),
        ("mpi/run_pack.py", "mpi"),
    ],
)
def test_a_module_whose_name_is_taken_is_refused_before_anything_starts(tmp_path, script, name):
    write_study(tmp_path, name)
    done = run(tmp_path, str(ROOT / script), "--experiments", "study.yaml", python=sys.executable)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"error: study.yaml: target.factory: {name}:planar: the name {name} is taken by {OWNERS[name]} ("
    )
    assert line.endswith(f"), so that {tmp_path}/{name}.py would not be imported; give it another name")
    assert not (tmp_path / "runs").exists()


def test_a_function_of_an_observable_is_looked_at_too(tmp_path):
    write_study(tmp_path, "mine", ("yaml",))
    text = (tmp_path / "study.yaml").read_text()
    (tmp_path / "study.yaml").write_text(text.replace("mine:norm", "yaml:norm"))
    done = packed(tmp_path, "--dry-run", python=sys.executable)
    assert done.returncode == 2
    assert "observe.norm.function: yaml:norm: the name yaml is taken by an installed package" in done.stderr


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", os.curdir)])
    return tmp_path


def test_a_folder_of_data_takes_no_name(here):
    (here / "json").mkdir()
    user_folder.refuse_taken("target.factory", "json:loads")
    assert imported("target.factory", "json:loads") is json.loads
    (here / "json" / "mine.py").write_text(MODULE)
    with pytest.raises(ConfigError, match=r"json\.mine:planar: the name json is taken by Python's standard library"):
        imported("target.factory", "json.mine:planar")


def test_a_module_in_a_folder_that_python_path_names_is_meant(here, monkeypatch):
    (here / "yaml.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(here))
    user_folder.refuse_taken("target.factory", "yaml:planar")
    assert with_checkout(os.environ) == f"{ROOT}{os.pathsep}{here}"


def test_the_folder_itself_is_no_entry_of_what_processes_inherit():
    entries = ["", "/mine", ".", "lib", ""]
    assert with_checkout({"PYTHONPATH": os.pathsep.join(entries)}) == os.pathsep.join([str(ROOT), "/mine", "lib"])
    assert with_checkout({}) == str(ROOT)


def test_a_file_in_the_checkout_that_hides_a_module_is_refused(tmp_path):
    """The checkout comes first on the path, and so would the file."""
    for folder in ("flows", "mpi", "lambda_hat", "conf"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    write_study(tmp_path, "mine", ("yaml",))
    done = run(tmp_path, "flows/packed.py", "--experiments", "study.yaml", python=sys.executable)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path}/yaml.py: hides yaml of an installed package (")
    (tmp_path / "yaml.py").unlink()
    done = run(tmp_path, "flows/packed.py", "--experiments", "study.yaml", "--dry-run", python=sys.executable)
    assert done.returncode == 0, done.stderr
