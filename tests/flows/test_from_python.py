"""`estimate_llcs` through a real driver: in a notebook, with a target that fails, and interrupted."""

from __future__ import annotations

import os
import re
import signal

import nbclient
import nbformat
import pytest

import lambda_hat
from tests.flows.studies import PATIENCE, ROOT

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

IN_A_NOTEBOOK = """
import sys
sys.path.insert(0, {root!r})
from lambda_hat import estimate_llcs
quick = {{"num_draws": 100, "num_burnin": 50, "num_chains": 2}}
table = estimate_llcs(["quadratic", "monomial"], [{{"name": "hmc", "overrides": quick}}], ranks=2)
print(len(table), set(table["status"]), "jax" in sys.modules, "parsl" in sys.modules)
"""


def test_a_notebook_shows_bars_in_one_output_and_a_second_call_computes_nothing(tmp_path):
    code = IN_A_NOTEBOOK.format(root=str(ROOT))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for _ in range(2)])
    nbclient.NotebookClient(notebook, timeout=PATIENCE, resources={"metadata": {"path": str(tmp_path)}}).execute()
    for cell in notebook.cells:
        shown = [output for output in cell.outputs if output["output_type"] == "display_data"]
        text = re.sub(r"\x1b\[[\d;]*m", "", shown[0]["data"]["text/plain"])
        assert len(shown) == 1 and re.search(r"targets .* 2/2 ", text) and re.search(r"runs .* 2/2 ", text)
        assert "<pre" in shown[0]["data"]["text/html"]
        printed = [output["text"] for output in cell.outputs if output.get("name") == "stdout"]
        assert printed == ["2 {'finished'} False False\n"]
    # The second driver planned everything as cached and started no pack.
    assert len(list(tmp_path.glob("runs/packs/pack_*"))) == 1
    assert len(list(tmp_path.glob("runs/studies/*.json"))) == 2
    assert len(list(tmp_path.glob("runs/studies/estimate_llcs-*.yaml"))) == 1


MODULE = """
import jax.numpy as jnp
import numpy as np

def loss(params, batch):
    return 0.5 * jnp.mean((batch["x"] @ params - batch["y"]) ** 2)

def make(width, is_ready):
    if not is_ready:
        raise RuntimeError("no such data set")
    x = np.random.default_rng(0).normal(size=(300, width))
    return loss, np.ones(width), {"x": x, "y": x.sum(axis=1)}
"""


def test_the_table_is_that_of_the_command_and_failures_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MODULE)
    make = {"factory": "mine:make", "kwargs": {"width": 3, "is_ready": True}}
    targets = {"target": make, "sweep": {"target.kwargs.is_ready": (True, False)}}
    sampler = {"name": "hmc", "overrides": {"num_draws": 1000, "num_burnin": 200}}
    options = {"store": tmp_path / "a store", "results": tmp_path / "out", "ranks": 1, "pack": 1, "progress": True}
    with pytest.warns(UserWarning, match=r"1 of 2 runs failed: .*no such data set.* rerun='failed' tries them again"):
        table = lambda_hat.estimate_llcs(targets, sampler, **options)
    assert table.equals(lambda_hat.load_results(tmp_path / "out"))
    finished, blocked = table.itertuples()
    assert (finished.status, blocked.status) == ("finished", "blocked")
    assert finished.verdict == "ok" and abs(finished.llc_mean - 1.5) < 4 * finished.llc_std_error + 0.05
    assert capsys.readouterr().err.splitlines()[-1] == "2 of 2 runs, 1 failed"

    (tmp_path / "mine.py").write_text(MODULE.replace("not is_ready", "False"))
    again = lambda_hat.estimate_llcs(targets, sampler, **{**options, "rerun": "failed", "progress": None})
    assert list(again["status"]) == ["finished"] * 2
    assert again["llc_mean"][0] == finished.llc_mean
    assert capsys.readouterr().err == ""


CALL = """
import sys, yaml
sys.path.insert(0, {root!r})
from lambda_hat import estimate_llcs
print(set(estimate_llcs(**yaml.safe_load(open("study.yaml")), ranks=2)["status"]))
"""


def test_ctrl_c_checkpoints_the_runs_and_the_next_call_goes_on(long):
    program = long.folder / "call.py"
    program.write_text(CALL.format(root=str(ROOT)))
    caller = long.start(program=program)
    long.wait_until(lambda: len(list(long.store.rglob("checkpoint.npz"))) == 2, caller)
    # A terminal sends it to the caller's group; jupyter does so too.
    os.killpg(caller.pid, signal.SIGINT)
    assert caller.wait(60) != 0
    said = long.said()
    assert said.count("stopping: runs are checkpointed; interrupt again to stop at once") == 1
    assert said.splitlines()[-1] == "KeyboardInterrupt"
    long.assert_nothing_runs_within(10)
    assert list(long.store.rglob("checkpoint.npz"))
    assert (long.folder / "results" / "llc_runs.parquet").is_file()
    assert long.start(program=program).wait(PATIENCE) == 0, long.said()
    assert long.said() == "{'finished'}\n"
    long.assert_finished_once(4)


def test_a_second_ctrl_c_ends_it_at_once(long):
    program = long.folder / "call.py"
    program.write_text(CALL.format(root=str(ROOT)))
    caller = long.start(program=program)
    long.wait_until(lambda: len(long.events("run_start")) >= 2, caller)
    os.killpg(caller.pid, signal.SIGINT)
    long.wait_until(lambda: "stopping: runs are checkpointed" in long.said(), caller)
    os.killpg(caller.pid, signal.SIGINT)
    assert caller.wait(30) != 0
    assert long.said().splitlines()[-1] == "KeyboardInterrupt"
    long.assert_nothing_runs_within(10)


def test_a_driver_that_is_killed_is_an_error_with_its_last_words(long):
    program = long.folder / "call.py"
    program.write_text(CALL.format(root=str(ROOT)))
    caller = long.start(program=program)
    long.wait_until(lambda: len(long.events("run_start")) >= 1, caller)
    (record,) = long.store.glob("studies/*.json")
    os.kill(int(re.search(r'"pid":(\d+)', record.read_text()).group(1)), signal.SIGKILL)
    assert caller.wait(60) == 1
    assert re.search(
        r"LambdaHatError: the driver of the study ended with status -9; what is finished is kept", long.said()
    )
