"""A killed rank leaves no shared memory behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpi import shared_memory
from mpi.launch import Launch, launch_environment, launch_line
from mpi.launchers import LauncherChoice, find_launcher

PROGRAM = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from mpi4py import MPI
from mpi.shared_memory import unlink_shared_memory
comm = MPI.COMM_WORLD
named = [line.split(maxsplit=5)[-1] for line in open("/proc/self/maps") if "/dev/shm/mpich_shm_" in line]
print("had", named[0].strip(), flush=True)
unlink_shared_memory(comm)
assert comm.allreduce(1) == 2 and len(comm.bcast("x" * 300_000)) == 300_000
comm.Barrier()
if comm.rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
comm.Barrier()
"""


@pytest.mark.mpi
def test_a_killed_rank_leaves_no_shared_memory(repo_env):
    launcher, launch = find_launcher(LauncherChoice()), Launch(("localhost",), 2)
    env = repo_env | launch_environment(launcher, launch, repo_env)
    command = [sys.executable, "-c", PROGRAM, repo_env["PYTHONPATH"]]
    line = launch_line(launcher, launch, command, env)
    done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    files = {word for word in done.stdout.split() if word.startswith("/dev/shm/")}
    assert len(files) == 1, done.stdout + done.stderr
    assert not Path(files.pop()).exists()


def test_names_of_launches_that_were_killed_while_they_started_go(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_memory, "NAMED", str(tmp_path / "mpich_shm_"))
    old, young, others = (tmp_path / name for name in ("mpich_shm_1_0", "mpich_shm_2_0", "not_ours"))
    for path in (old, young, others):
        path.touch()
    for path in (old, others):
        os.utime(path, (0, 0))
    shared_memory._remove_leftovers()
    assert sorted(tmp_path.iterdir()) == [young, others]
