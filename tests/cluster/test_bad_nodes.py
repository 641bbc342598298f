"""Studies on nodes that fail: they are left out, and the study finishes on the others."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cluster.studies import (
    ON_THIS_MACHINE,
    PACKED,
    PATIENCE,
    QUADRATIC,
    ROOT,
    analyses,
    events,
    numbers,
    packed,
    packs,
    start_packed,
    write_study,
)

pytestmark = [pytest.mark.cluster, pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

SLURM = ["--site", "slurm", *ON_THIS_MACHINE, "site.ranks_per_node=1"]
MINE = """
import os
import signal
import socket
from pathlib import Path

import jax.numpy as jnp
import numpy as np

BAD = Path(__file__).with_name("bad")


def regression(width):
    def loss(params, batch):
        # What a loss does while it is traced happens once for each run.
        if "PMI_RANK" in os.environ:
            if not BAD.exists():
                BAD.write_text(socket.gethostname())
            if BAD.read_text() == socket.gethostname():
                os.kill(os.getpid(), signal.SIGKILL)
        return 0.5 * jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    x = np.random.default_rng(0).normal(size=(100, width))
    return loss, {"w": np.ones(width)}, {"x": x, "y": x.sum(axis=1)}
"""


def write_killer(folder: Path, bad: str | None = None) -> Path:
    """A study of six runs, each with a program of its own, whose ranks die on the node `bad`, or the first they see."""
    (folder / "mine.py").write_text(MINE)
    if bad is not None:
        (folder / "bad").write_text(bad)
    targets = [{"target": {"factory": "mine:regression", "kwargs": {"width": width}}} for width in range(2, 8)]
    return write_study(folder / "study.yaml", seeds=1, thin=2000, targets=targets)


def hosts_of_finished(store: Path) -> set[str]:
    starts = {event["rank_log"]: event["host"] for event in events(store, "start")}
    return {starts[event["rank_log"]] for event in events(store, "run_end") if event["status"] == "finished"}


def test_a_node_is_taken_down_in_the_middle(slurm_lab, tmp_path):
    path, store, log = (
        write_study(tmp_path / "study.yaml", seeds=12, thin=8000, targets=[QUADRATIC]),
        tmp_path / "runs",
        tmp_path / "said",
    )
    words = ["--experiments", path, "--pack=3", *SLURM, "site.nodes_per_block=2", "site.nodes_per_pack=1"]
    driver = start_packed(slurm_lab, *words, cwd=tmp_path, log=log)
    down = ""
    try:
        slurm_lab.wait_for(lambda: len(analyses(store)) >= 2 or driver.poll() is not None, PATIENCE)
        assert driver.poll() is None, log.read_text()
        before = analyses(store)
        down = events(store, "start")[-1]["host"]
        slurm_lab.run("scontrol", "update", f"nodename={down}", "state=down", "reason=test")
        begun = len(events(store, "start"))
        assert driver.wait(PATIENCE) == 0, log.read_text()
    finally:
        driver.kill()
        slurm_lab.run("scontrol", "update", f"nodename={down}", "state=resume", check=False)
    said = log.read_text()
    assert "12 finished" in said
    after = analyses(store)
    assert {run: after[run] for run in before} == before
    later = sorted(events(store, "start"), key=lambda event: event["time"])[begun:]
    assert later and down not in {event["host"] for event in later}


def test_a_node_where_packs_die_is_left_out_and_named(slurm_lab, tmp_path):
    words = ["--experiments", write_killer(tmp_path, "n3"), "--pack=1", *SLURM, "site.nodes_per_block=2"]
    done = packed(slurm_lab, *words, "site.scheduler_options='#SBATCH --nodelist=n3,n4'", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node n3 is left out from now on: 2 launches died there (pack_" in done.stdout
    assert "6 finished" in done.stdout and "; left out: node n3" in done.stdout
    assert hosts_of_finished(tmp_path / "runs") == {"n4"}
    assert [pack.hosts for pack in packs(tmp_path / "runs")].count(["n3"]) == 2
    status = [PACKED[0], "-m", "lambda_hat.entrypoints.cli", "status", "--store", str(tmp_path / "runs")]
    shown = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert "node n3 is left out: 2 launches died there" in shown.stdout, shown.stdout + shown.stderr


def test_a_block_without_a_good_node_is_given_back_and_the_next_has_others(slurm_lab, tmp_path):
    words = ["--experiments", write_killer(tmp_path), "--pack=1", *SLURM, "site.max_blocks=2", "--retries=2"]
    done = packed(slurm_lab, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    bad = (tmp_path / "bad").read_text()
    assert f"node {bad} is left out from now on: 2 launches died there" in done.stdout
    assert f"left for later (not started: no good node is left: {bad} failed; their " in done.stdout
    assert "6 finished" in done.stdout
    assert bad not in hosts_of_finished(tmp_path / "runs")


def test_a_node_that_no_launcher_reaches_is_left_out_of_a_pack_of_several(pbs, tmp_path):
    ssh = pbs.folder / "bin" / "fake_ssh"
    ssh.write_text(ssh.read_text().replace(" pbsnode2", ""))
    words = ["--experiments", write_study(tmp_path / "study.yaml"), "--site", "pbs", *ON_THIS_MACHINE]
    words += ["site.ranks_per_node=1", "site.nodes_per_block=2", "site.nodes_per_pack=2"]
    done = packed(pbs, *words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "node pbsnode2 is left out from now on: ssh: Could not resolve hostname pbsnode2" in done.stdout
    assert "4 finished" in done.stdout
    (pack,) = packs(tmp_path / "runs")
    assert len(pack.hosts) == 1
    assert len(numbers(tmp_path / "runs")) == 4
