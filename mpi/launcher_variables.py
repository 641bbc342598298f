"""The environment variables in which a launcher tells a process its rank and the number of ranks, also of its node.

Imports neither jax nor mpi4py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from lambda_hat.errors import LaunchError
from mpi.launch import RANKS_VARIABLE

# Hydra and Open MPI come before SLURM. Inside a SLURM job their ranks also see the variables of the batch step, or of
# the step that carries Hydra's proxies. In a batch script without a launcher, SLURM_LOCALID and SLURM_NTASKS are those
# of the script. So only the variables of a step count, and only beside SLURM_STEP_NUM_TASKS.
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
MPT_RANK, MPT_LOCAL_RANK = "MPT_MPI_RANK", "MPT_LRANK"
"""Variables of HPE MPT, which radical.pilot and LAMMPS read. MPT does not tell ranks how many they are."""
LOCAL_RANK_VARIABLES = (
    "MPI_LOCALRANKID",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "PMI_LOCAL_RANK",
    "SLURM_LOCALID",
    "PMI_RANK",
)
LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMI_LOCAL_SIZE")


def first_number(variables: Iterable[str], environment: Mapping[str, str]) -> tuple[str, int] | None:
    """The first of these variables that has a number, and the number; None where none has."""
    for name in variables:
        value = environment.get(name, "")
        if value.isdecimal():
            return name, int(value)
    return None


def launcher_size(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """The number of processes that the launcher started, after the variable that says so; None: no known launcher."""
    return first_number(SIZE_VARIABLES, environment)


def launcher_rank(environment: Mapping[str, str]) -> int:
    """The number of this process among all that the launcher started; 0 without a known launcher."""
    found = first_number(RANK_VARIABLES if launcher_size(environment) else (MPT_RANK,), environment)
    return found[1] if found else 0


def launcher_local_rank(environment: Mapping[str, str]) -> int:
    """The number of this process among those that the launcher started on this node; 0 without a known launcher.

    `PMI_RANK` is the last resort. If a launcher numbers ranks only globally, neighbours still differ by one.
    """
    found = first_number(LOCAL_RANK_VARIABLES if launcher_size(environment) else (MPT_LOCAL_RANK,), environment)
    return found[1] if found else 0


def launcher_local_size(environment: Mapping[str, str]) -> int | None:
    """The number of processes that the launcher started on this node; 1 without one, None where it does not say."""
    if launcher_size(environment) is None:
        return None if MPT_RANK in environment else 1
    found = first_number(LOCAL_SIZE_VARIABLES, environment)
    return found[1] if found else _slurm_local_size(environment)


def _slurm_local_size(environment: Mapping[str, str]) -> int | None:
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        # "4(x2),3" is two nodes with four tasks, then one with three.
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            return None
        counts += [int(match[1])] * int(match[2] or 1)
    node = environment.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else None


def check_world(size: int, expected: int | None, environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes that each believe to be alone.

    A world of more than one rank passes even if it is smaller than expected: it does the same work.

    Args:
        size: Ranks of the MPI world.
        expected: Ranks that the pack is meant for; None: not known.
        environment: The environment of this process; its LAMBDA_HAT_RANKS takes the place of `expected`.

    Raises:
        LaunchError: The world has one rank, and more were started or expected; the message has both numbers.
    """
    if size > 1:
        return
    told = launcher_size(environment)
    if told is not None and told[1] > 1:
        raise LaunchError(
            f"the launcher started {told[1]} processes ({told[0]}={told[1]}), but the MPI world of this one has size "
            "1: each would do the whole work alone. The launcher and mpi4py's MPI library do not belong together. "
            "Start the ranks with the mpiexec of that library (mpi: bundled is the one beside this python), or under "
            "srun with the --mpi plugin that the library was built for (mpich: pmi2, Open MPI: pmix)"
        )
    launched = first_number((RANKS_VARIABLE,), environment)
    expected = launched[1] if launched else expected
    if expected is not None and expected > 1:
        raise LaunchError(
            f"this pack is meant for {expected} ranks, but the MPI world of this process has size 1. The launcher and "
            "mpi4py's MPI library do not belong together, or there was no launcher: write "
            f"mpiexec -n {expected} python mpi/run_pack.py PACK.json, with the mpiexec of that library"
        )
