"""Who died in a launch, by what launchers really said: of four ranks it was rank 2, unless a test says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from lambda_hat.errors import ConfigError
from mpi.launch import Launch, launch_environment, launch_line
from mpi.launchers import LauncherChoice, dead_ranks, find_launcher, unreached_nodes

RANKS = {("vm", 25632): 2, ("vm", 25633): 3, ("other", 25632): 1, ("n2.cluster", 202): 2}

HYDRA = """\
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   PID {pid} RUNNING AT {host}
=   EXIT CODE: {code}
=   CLEANING UP REMAINING PROCESSES
=   YOU CAN IGNORE THE BELOW CLEANUP MESSAGES
===================================================================================
YOUR APPLICATION TERMINATED WITH THE EXIT STRING: Segmentation fault (signal 11)
"""
INTEL = """\
===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   RANK 1 PID 2447371 RUNNING AT node0009
=   KILLED BY SIGNAL: 9 (Killed)
===================================================================================

===================================================================================
=   BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES
=   RANK 2 PID 2447372 RUNNING AT node0009
=   KILLED BY SIGNAL: 11 (Segmentation fault)
===================================================================================
"""
OPEN_MPI_KILLED = """\
--------------------------------------------------------------------------
Primary job  terminated normally, but 1 process returned
a non-zero exit code. Per user-direction, the job has been aborted.
--------------------------------------------------------------------------
--------------------------------------------------------------------------
mpirun.openmpi noticed that process rank 2 with PID 0 on node vm exited on signal 9 (Killed).
--------------------------------------------------------------------------
"""
OPEN_MPI_EXITED = """\
--------------------------------------------------------------------------
mpirun.openmpi detected that one or more processes exited with non-zero status, thus causing
the job to be terminated. The first process to do so was:

  Process name: [[4037,1],2]
  Exit code:    3
--------------------------------------------------------------------------
"""
SRUN = """\
srun: error: n2: task 2: {how}
srun: launch/slurm: _step_signal: Terminating StepId=1.0
slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT 2026-11-25T03:30:20 ***
srun: error: n2: task 3: Terminated
srun: error: n1: tasks 0-1: Killed
srun: Force Terminated StepId=1.0
"""
PALS = """\
x3102c0s25b1n0.hsn.cm.polaris.alcf.anl.gov: rank 2 died from signal 11 and dumped core
x3102c0s25b1n0.hsn.cm.polaris.alcf.anl.gov: rank 3 died from signal 15
"""
MPT = "MPT: --------stack traceback-------\nMPT ERROR: Rank 2(g:2) received signal SIGSEGV(11).\n"


@pytest.mark.parametrize(
    ("flavour", "said"),
    [
        ("auto", HYDRA.format(pid=25632, host="vm", code=11)),
        ("hydra", HYDRA.format(pid=202, host="n2", code=139)),
        ("hydra", INTEL),
        ("auto", OPEN_MPI_KILLED),
        ("openmpi", OPEN_MPI_EXITED),
        ("openmpi", OPEN_MPI_KILLED.replace("exited on signal", "exited on\nsignal")),
        ("srun", SRUN.format(how="Killed")),
        ("srun", SRUN.format(how="Segmentation fault")),
        ("srun", SRUN.format(how="Exited with exit code 3")),
        ("srun", SRUN.format(how="Out Of Memory")),
        ("pals", PALS),
        ("mpt", MPT),
    ],
)
def test_the_rank_that_died_is_named(flavour, said):
    assert dead_ranks(f"before\n{said}after\n", flavour, RANKS) == {2}


@pytest.mark.parametrize(
    ("flavour", "said"),
    [
        # Seen: Hydra names one of those that it killed after rank 2 was.
        ("hydra", HYDRA.format(pid=25633, host="vm", code=9)),
        ("hydra", HYDRA.format(pid=25633, host="vm", code=15)),
        ("hydra", HYDRA.format(pid=77, host="vm", code=11)),
        # Hydra's daemons are tasks of an srun of its own.
        ("hydra", "srun: error: n1: task 0: Exited with exit code 7\n"),
        ("srun", "srun: error: Unable to create step for job 3: More processors requested than permitted\n"),
        ("openmpi", ""),
    ],
)
def test_nobody_is_named_on_suspicion(flavour, said):
    assert dead_ranks(said, flavour, RANKS) == set()


def test_several_dead_tasks_of_srun():
    said = "srun: error: n1: tasks 0-1,5: Killed\nsrun: error: n2: task 2: Killed\nsrun: Force Terminated StepId=1.0\n"
    assert dead_ranks(said, "srun", {}) == {0, 1, 2, 5}


DYING = """
import ctypes, os, socket, time
from mpi4py import MPI

world = MPI.COMM_WORLD
rows = world.gather((socket.gethostname(), os.getpid(), world.rank))
if world.rank == 0:
    print("RANKS", rows, flush=True)
world.barrier()
if world.rank == 2:
    time.sleep(1)
    ctypes.string_at(0)
time.sleep(60)
"""


@pytest.mark.mpi
@pytest.mark.parametrize("choice", [LauncherChoice(), LauncherChoice("system", "openmpi")], ids=["hydra", "openmpi"])
def test_a_launcher_of_this_machine_names_the_rank_that_crashed(choice):
    environ = {key: value for key, value in os.environ.items() if key != "MPI4PY_LIBMPI"}
    # Open MPI refuses root unless told twice.
    environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    try:
        launcher = find_launcher(choice, environ)
    except ConfigError as error:
        pytest.skip(f"not here: {error}")
    launch = Launch(("localhost",), 4)
    environ |= launch_environment(launcher, launch, environ)
    line = launch_line(launcher, launch, [sys.executable, "-c", DYING], environ)
    done = subprocess.run(line, env=environ, capture_output=True, text=True, timeout=100, stdin=subprocess.DEVNULL)
    assert done.returncode != 0
    (told,) = (text for text in done.stdout.splitlines() if text.startswith("RANKS "))
    ranks = {(host, pid): rank for host, pid, rank in eval(told.removeprefix("RANKS "))}
    # Which of the two Hydra names is a matter of luck; it is never an innocent one.
    expected = [{2}] if launcher.flavour == "openmpi" else [{2}, set()]
    assert dead_ranks(done.stdout + done.stderr, choice.flavour, ranks) in expected


UNREACHED = """\
srun: error: Task launch for StepId=1.1 failed on node n2: Communication connection failure
srun: error: Application launch failed: Communication connection failure
srun: error: Node failure on n3
ssh: Could not resolve hostname pbsnode2: Name or service not known
ssh: connect to host x3.site.org port 22: No route to host
[proxy:0:1@n5] HYDU_create_process (lib/utils/launch.c:73): execvp error on file /env/python (No such file or directory)
srun: error: n9: task 1: Exited with exit code 9
"""


def test_launchers_name_the_nodes_that_they_could_not_reach():
    """srun's first line and Hydra's were seen, and so was ssh's first; the others are as their sources have them."""
    assert unreached_nodes(UNREACHED) == {
        "n2": "Task launch for StepId=1.1 failed on node n2: Communication connection failure",
        "n3": "Node failure on n3",
        "pbsnode2": "ssh: Could not resolve hostname pbsnode2: Name or service not known",
        "x3.site.org": "ssh: connect to host x3.site.org port 22: No route to host",
        "n5": "execvp error on file /env/python (No such file or directory)",
    }
    for said in (OPEN_MPI_KILLED, INTEL, HYDRA):
        assert unreached_nodes(said) == {}
