"""Nodes without work take runs of a pack that is under way."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.cluster.studies import (
    ON_THIS_MACHINE,
    PACKED,
    PATIENCE,
    QUADRATIC,
    ROOT,
    events,
    job_logs,
    numbers,
    packed,
    start_packed,
    write_study,
)

pytestmark = [pytest.mark.cluster, pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

SHARED = re.compile(r"pack_\S+: (\d+) runs go to nodes that have no work")


def assert_each_once(store: Path, runs: int) -> None:
    """Every run was sampled to its end by one rank, and two nodes worked."""
    ended = [event for event in events(store, "run_end") if event["status"] == "finished" and not event.get("cached")]
    assert len(ended) == len({event["run_id"] for event in ended}) == runs
    assert len({event["host"] for event in events(store, "start")}) == 2


def test_a_block_that_starts_late_takes_runs_of_the_pack_under_way(slurm_lab, tmp_path):
    path, store, log = tmp_path / "study.yaml", tmp_path / "runs", tmp_path / "said"
    write_study(path, seeds=24, thin=16000, targets=[QUADRATIC])
    sleeper = tmp_path / "sleeper.sh"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    busy = slurm_lab.submit("-N3", "--exclusive", "-o", "/dev/null", sleeper)
    words = ["--experiments", path, "--pack=12", "--site", "slurm", *ON_THIS_MACHINE, "site.ranks_per_node=1"]
    driver = start_packed(slurm_lab, *words, "site.max_blocks=2", cwd=tmp_path, log=log)
    try:
        # The one block that has a node has begun its second pack.
        slurm_lab.wait_for(lambda: len(events(store, "start")) == 2 or driver.poll() is not None, PATIENCE)
        assert driver.poll() is None, log.read_text()
        slurm_lab.run("scancel", str(busy))
        assert driver.wait(PATIENCE) == 0, log.read_text()
    finally:
        driver.kill()
        slurm_lab.run("scancel", str(busy), check=False)
    said = log.read_text()
    assert "24 finished" in said and SHARED.search(said), said
    assert "tried again" not in said and "lost" not in said
    assert_each_once(store, 24)

    here = tmp_path / "here"
    here.mkdir()
    words = [PACKED[0], ROOT / "mpi" / "run_pack.py", "--experiments", tmp_path / "few.yaml", "--store", here]
    write_study(tmp_path / "few.yaml", seeds=4, thin=16000, targets=[QUADRATIC])
    done = subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout + done.stderr
    there = numbers(store)
    assert numbers(here) == {run: there[run] for run in numbers(here)} and len(numbers(here)) == 4


def test_nodes_of_an_allocation_that_have_no_pack_take_runs(slurm_lab, tmp_path):
    path = write_study(tmp_path / "study.yaml", seeds=12, thin=50000, targets=[QUADRATIC])
    words = ["--submit=slurm", "--nodes=2", "--walltime=00:10:00", "site.ranks_per_node=1", "site.nodes_per_pack=1"]
    assert packed(slurm_lab, "--experiments", path, "--pack=12", *words, cwd=tmp_path).returncode == 0
    slurm_lab.wait_for(lambda: not slurm_lab.jobs(), PATIENCE)
    (said,) = job_logs(tmp_path / "runs").values()
    assert "12 finished" in said and SHARED.search(said), said
    assert_each_once(tmp_path / "runs", 12)
