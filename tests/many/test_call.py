"""What `estimate_llcs` makes of its arguments, what it refuses, and what it shows."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path, PurePosixPath

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from lambda_hat import estimate_llcs
from lambda_hat.config import plain_yaml
from lambda_hat.errors import ConfigError, StoreError
from lambda_hat.many.bars import showing
from lambda_hat.many.grid import grid_of
from lambda_hat.status import Driver, Running, StudyStatus
from lambda_hat.store.study_records import StudyRecord
from lambda_hat.workflow_config import compose_study

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path, monkeypatch):
    """Every call here is refused, and leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.glob("**/runs*")) and not list(tmp_path.glob("results"))


def test_entries_become_plain_content_that_a_file_keeps():
    sweep = {"step_size": np.geomspace(1e-6, 1e-4, 3), "seed": range(2), "gamma": (np.float32(0.5), jnp.asarray(2.0))}
    samplers = [{"name": "sgld", "sweep": sweep, "overrides": {"thin": np.int64(3), "precision": None}}, "hmc"]
    target = {"target": {"factory": "mine:make", "checkpoint": PurePosixPath("a/b.npz"), "version": "1e-5"}}
    content = grid_of(target, samplers, "here")
    assert content == {
        "targets": [{"target": {"factory": "mine:make", "checkpoint": "a/b.npz", "version": "1e-5"}}],
        "samplers": [
            {
                "name": "sgld",
                "sweep": {"step_size": pytest.approx([1e-6, 1e-5, 1e-4]), "seed": [0, 1], "gamma": [0.5, 2.0]},
                "overrides": {"thin": 3, "precision": None},
            },
            {"name": "hmc"},
        ],
    }
    assert plain_yaml.parse(plain_yaml.dump(content), "dumped") == content
    assert grid_of("quadratic", "hmc", "here")["targets"] == [{"target": "quadratic"}]


def make():
    """A factory of this module."""


def made_in_a_notebook():
    """A factory of `__main__`."""


made_in_a_notebook.__module__ = "__main__"


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"target": {"factory": make}}, f"write its name, {{'target': {{'factory': '{__name__}:make'}}}}"),
        ({"target": {"factory": made_in_a_notebook}}, r"mymodel.py, and write .*'mymodel:made_in_a_notebook'"),
        ((lambda p, b: 0.0, np.ones(3), None), r"targets\[0\]: got <function .* but ranks are other processes: put"),
        ({"target": {"factory": "m:f", "kwargs": {"x": {1, 2}}}}, r"target: kwargs: x: got a set, expected text"),
    ],
    ids=["a function of a module", "a function of a notebook", "a loss with its parameters", "a set"],
)  # fmt: skip
def test_python_objects_are_refused_with_the_line_to_write(target, sentence):
    with pytest.raises(ConfigError, match=sentence):
        estimate_llcs(target, "hmc")


@pytest.mark.parametrize(
    ("targets", "samplers"),
    [
        ([{"taget": "quadratic"}], ["hmc"]),
        (["quadratic"], [{"name": "hmc", "overrides": {"num_drawz": 3}}]),
        (["quadratic"], []),
        (["quadratic"], ["hcm"]),
    ],
    ids=["a mistyped key", "a mistyped override", "no sampler", "a mistyped sampler"],
)
def test_a_mistake_is_told_as_the_command_tells_it(targets, samplers, tmp_path):
    file = tmp_path / "study.yaml"
    file.write_text(plain_yaml.dump(grid_of(targets, samplers, "")))
    with pytest.raises(ConfigError) as by_command:
        compose_study(file)
    with pytest.raises(ConfigError) as by_call:
        estimate_llcs(targets, samplers)
    assert str(by_call.value) == str(by_command.value).replace(str(file), "estimate_llcs")


def test_an_option_that_the_driver_refuses_is_a_config_error():
    with pytest.raises(ConfigError, match=r"^--ranks: got 0, expected an integer of at least 1$"):
        estimate_llcs("quadratic", "hmc", ranks=0)


def test_a_store_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"the store cannot be written: .* is not a folder; give another one with"):
        estimate_llcs("quadratic", "hmc", store=tmp_path / "file")


def test_what_is_missing_is_named():
    """A package without the extra [mpi]."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); sys.modules['parsl'] = None\nimport lambda_hat\n"
    code += "lambda_hat.estimate_llcs('quadratic', 'hmc')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": ""}
    )
    sentence = "estimate_llcs: needs parsl, which is not installed; write pip install 'lambda-hat[mpi]'"
    assert done.stderr.splitlines()[-1] == f"lambda_hat.errors.MissingExtra: {sentence}"


# ------------------------------------------------------------------------------------------------------- progress


def status(finished: int, failed: int = 0, running: int = 0, left: float | None = None) -> StudyStatus:
    record = StudyRecord("s", [], "", "", {}, 0.0, "local", True, 2, 0, 0, {}, [], [])
    record.runs.extend([None] * 8)
    return StudyStatus(
        record, Driver("alive"), None, None, [], {"built": 1, "failed": 0, "missing": 1}, {}, 1, 2, finished, failed, 0,
        [Running(("t", "r"), 0, "host", 1.0, 2.0)] * running, {}, [], None, left,
    )  # fmt: skip


def shown(wanted: bool | None, **console) -> str:
    out = io.StringIO()
    with showing(wanted, Console(file=out, width=100, **console)) as show:
        for each in (status(0), status(3, 0, 2, 41.3), status(3, 0, 2, 40.0), status(6, 1, 1)):
            show(each)
    return out.getvalue()


def test_progress_is_a_line_for_news_where_there_is_no_terminal():
    assert shown(True) == "0 of 8 runs\n3 of 8 runs, 2 running, about 41 s left\n7 of 8 runs, 1 failed, 1 running\n"
    assert shown(None) == shown(False) == shown(False, force_terminal=True) == ""


def test_progress_is_bars_on_a_terminal():
    text = shown(None, force_terminal=True)
    assert "targets" in text and "1/2" in text and "7/8" in text and "1 failed, 1 running" in text
