"""The SLURM lab is what the tests of the flows take it for."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.cluster.slurm_lab import NODES, LabError, SlurmLab

pytestmark = pytest.mark.cluster

# Files, not lines: Hydra passes on pieces of the ranks' output as they come.
WORLD = """\
import os, socket
from mpi4py import MPI
comm = MPI.COMM_WORLD
open(f"{comm.rank}-{comm.size}-{socket.gethostname()}.{os.getpid()}", "w").close()
"""

# Signals go to every process of the job: the sleep may end before the shell has got its own.
PATIENT = """\
trap 'echo TERM; exit 3' TERM
touch started
while true; do sleep 60 & wait; done
"""


def script(folder: Path, body: str) -> Path:
    path = folder / "job.sh"
    path.write_text(f"#!/bin/bash\n{textwrap.dedent(body)}")
    return path


@pytest.fixture
def world(tmp_path) -> Path:
    """A program whose every rank leaves a file `rank-size-host.pid` in the folder where it runs."""
    (tmp_path / "ranks").mkdir()
    path = tmp_path / "world.py"
    path.write_text(WORLD)
    return path


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ("srun --mpi=pmi2 -n4 --ntasks-per-node=2", {"0-4-n1", "1-4-n1", "2-4-n2", "3-4-n2"}),
        ("srun -n4 --ntasks-per-node=2", {"0-4-n1", "1-4-n1", "2-4-n2", "3-4-n2"}),
        ("mpiexec -n 4 -ppn 2", {"0-4-n1", "1-4-n1", "2-4-n2", "3-4-n2"}),
        # Hydra reaches its hosts through srun, which puts them into SLURM's order.
        ("mpiexec -n 4 -ppn 2 -hosts n2,n1", {"0-4-n1", "1-4-n1", "2-4-n2", "3-4-n2"}),
        ("mpiexec -n 4 -ppn 4 -hosts n2", {"0-4-n2", "1-4-n2", "2-4-n2", "3-4-n2"}),
        ("srun --mpi=none -n4 --ntasks-per-node=2", {"0-1-n1", "0-1-n2"}),
    ],
)
def test_worlds(slurm_lab: SlurmLab, world, tmp_path, launcher, expected):
    job = script(tmp_path, f"{launcher} {sys.executable} -m mpi4py {world}")
    out = tmp_path / "out"
    number = slurm_lab.submit("-N2", "-w", "n[1-2]", "--exclusive", "-o", out, job, cwd=tmp_path / "ranks")
    assert slurm_lab.wait(number) == "COMPLETED", out.read_text()
    ranks = [path.name.split(".")[0] for path in (tmp_path / "ranks").iterdir()]
    assert (set(ranks), len(ranks)) == (expected, 4)


def test_a_step_from_the_login_node(slurm_lab):
    assert sorted(slurm_lab.run("srun", "-N4", "hostname").stdout.split()) == list(NODES)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-p", "closed", "-A", "nobody"], "Invalid account or account/partition combination specified"),
        (["--gres=gpu:1"], "Invalid generic resource (gres) specification"),
        (["--gpus-per-node=1"], "Invalid generic resource (gres) specification"),
        (["-p", "debgu"], "invalid partition specified: debgu"),
        (["-N", "9"], "Node count specification invalid"),
        (["-t", "02:00:00"], "Requested time limit is invalid"),
    ],
)
def test_refusals(slurm_lab, words, message):
    refused = slurm_lab.run("sbatch", *words, "--wrap", "true", check=False)
    assert refused.returncode == 1
    assert message in refused.stderr
    assert refused.stdout == ""
    assert slurm_lab.jobs() == []


def test_a_job_has_the_umask_of_its_submitter(slurm_lab, tmp_path):
    job = tmp_path / "job.sh"
    job.write_text("#!/bin/bash\numask\nsrun --mpi=none sh -c umask\n")
    before = os.umask(0o007)
    try:
        number = slurm_lab.submit("-N2", "--ntasks-per-node=1", "-o", tmp_path / "out", job, cwd=tmp_path)
    finally:
        os.umask(before)
    assert slurm_lab.wait(number) == "COMPLETED"
    assert (tmp_path / "out").read_text().split() == ["0007"] * 3


def test_scancel_and_partitions(slurm_lab, tmp_path):
    job = script(tmp_path, PATIENT)
    number = slurm_lab.submit("-p", "builds", "-o", "out", job, cwd=tmp_path)
    slurm_lab.wait_for((tmp_path / "started").exists)
    assert [(each.id, each.state, each.partition) for each in slurm_lab.jobs()] == [(number, "RUNNING", "builds")]
    slurm_lab.run("scancel", str(number))
    assert slurm_lab.wait(number) == "CANCELLED"
    assert "TERM" in (tmp_path / "out").read_text().splitlines()


def test_busy_nodes_make_a_job_wait(slurm_lab, tmp_path):
    words = ["-N4", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 60"]
    first, second = slurm_lab.submit(*words), slurm_lab.submit(*words)
    slurm_lab.wait_for(lambda: slurm_lab.job(first)["JobState"] == "RUNNING")
    assert slurm_lab.job(second)["JobState"] == "PENDING"
    slurm_lab.cancel_all()
    assert slurm_lab.jobs() == []
    assert slurm_lab.wait(second) == "CANCELLED"


@pytest.mark.slow
def test_the_time_limit_ends_a_job(slurm_lab, tmp_path):
    job = script(tmp_path, PATIENT)
    number = slurm_lab.submit("-t", "2", "-o", "out", job, cwd=tmp_path)
    slurm_lab.wait_for((tmp_path / "started").exists)
    slurm_lab.expire(number)
    assert slurm_lab.wait(number, timeout=100) == "TIMEOUT"
    assert "DUE TO TIME LIMIT" in (tmp_path / "out").read_text()
    assert "TERM" in (tmp_path / "out").read_text().splitlines()


def running(folder: Path) -> list[str]:
    """The command lines that name a folder."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if str(folder) in line and not line.startswith("ps ")]


def test_a_second_lab_beside_the_first_leaves_nothing(slurm_lab, tmp_path):
    with SlurmLab() as other:
        assert other.folder != slurm_lab.folder
        number = other.submit("-o", "/dev/null", "--wrap", f"setsid sleep 1000 {other.folder} & sleep 1000")
        other.wait_for(lambda: other.job(number)["JobState"] == "RUNNING")
        assert slurm_lab.jobs() == []
        assert running(other.folder)
    assert running(other.folder) == []
    assert not other.folder.exists()
    assert slurm_lab.run("sinfo").returncode == 0


def test_a_lab_that_fails_to_start_leaves_nothing(slurm_lab, monkeypatch):
    monkeypatch.setattr("tests.cluster.slurm_lab.CONFIG", "ClusterName=lab\nNonsense=1\n")
    lab = SlurmLab()
    monkeypatch.setattr(lab, "_wait_until_idle", lambda timeout: SlurmLab._wait_until_idle(lab, timeout=0.5))
    with pytest.raises(LabError, match="did not show 4 idle nodes"), lab:
        pass
    assert running(lab.folder) == []
    assert not os.path.exists(lab.folder)
