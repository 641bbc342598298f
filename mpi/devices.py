"""What the launcher says about this process, and the cores that the process takes. Imports neither jax nor mpi4py."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from lambda_hat.cores import Binding, tell_xla
from lambda_hat.errors import LaunchError

# Hydra and Open MPI come before SLURM: inside a SLURM job their ranks also see the variables of the batch step, or of
# the step that carries Hydra's proxies. SLURM_LOCALID and SLURM_NTASKS of a batch script without any launcher are those
# of the script, hence only the variables of a step count, and only beside SLURM_STEP_NUM_TASKS.
SIZE_VARIABLES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")
RANK_VARIABLES = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID")
LOCAL_RANK_VARIABLES = ("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID", "PMI_RANK")
LOCAL_SIZE_VARIABLES = ("MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE")


def _first(variables: Iterable[str], environment: Mapping[str, str]) -> tuple[str, int] | None:
    for name in variables:
        value = environment.get(name, "")
        if value.isdecimal():
            return name, int(value)
    return None


def launcher_size(environment: Mapping[str, str]) -> tuple[str, int] | None:
    """The variable and the number of processes that the launcher started, or None without a known launcher."""
    return _first(SIZE_VARIABLES, environment)


def launcher_rank(environment: Mapping[str, str]) -> int:
    """This process's number among all that the launcher started; 0 without a known launcher."""
    found = _first(RANK_VARIABLES, environment) if launcher_size(environment) else None
    return found[1] if found else 0


def launcher_local_rank(environment: Mapping[str, str]) -> int:
    """This process's number among those that the launcher started on this node; 0 without a known launcher.

    `PMI_RANK` is the last resort: of a launcher that numbers ranks only globally, neighbours still differ by one.
    """
    if launcher_size(environment) is None:
        return 0
    found = _first(LOCAL_RANK_VARIABLES, environment)
    return found[1] if found else 0


def launcher_local_size(environment: Mapping[str, str]) -> int | None:
    """How many processes the launcher started on this node, where it says so."""
    found = _first(LOCAL_SIZE_VARIABLES, environment)
    return found[1] if found else None


def check_world(size: int, expected: int | None, environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes that each believe to be alone.

    `size` is MPI's, `expected` the pack's number of ranks. A smaller world than expected, of more than one rank, is
    let through: it does the same work.

    Raises LaunchError naming both numbers.
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
    if expected is not None and expected > 1:
        raise LaunchError(
            f"this pack is meant for {expected} ranks, but the MPI world of this process has size 1. The launcher and "
            "mpi4py's MPI library do not belong together, or there was no launcher: write "
            f"mpiexec -n {expected} python mpi/run_pack.py PACK.json, with the mpiexec of that library"
        )


def choose_cores(
    available: Iterable[int], local_rank: int, cores_per_rank: int, local_size: int | None
) -> tuple[tuple[int, ...], bool]:
    """The cores of one rank, and whether another rank has them too.

    `available` is cut into blocks of `cores_per_rank` in ascending order, which on machines with two threads per core
    uses every physical core before a second thread of one. Ranks beyond the last block start again with the first.
    """
    cores = sorted(available)
    blocks = max(len(cores) // cores_per_rank, 1)
    first = (local_rank % blocks) * cores_per_rank
    alone = local_rank < blocks and (local_size is None or local_rank + blocks >= local_size)
    return tuple(cores[first : first + cores_per_rank]), not alone


def bind_cores(local_rank: int, cores_per_rank: int, local_size: int | None = None) -> Binding:
    """Pin this process, and what it starts, to its own cores, and give XLA as many.

    A launcher that has bound the process already leaves it a choice among the cores of that binding only. Where there
    are fewer than `cores_per_rank`, XLA still has `cores_per_rank` threads, so that the numbers stay the same.

    Raises ConfigError where `cores_per_rank` is below 1, and RuntimeError where jax was imported already.
    """
    tell_xla(cores_per_rank)
    cores, shared = choose_cores(os.sched_getaffinity(0), local_rank, cores_per_rank, local_size)
    os.sched_setaffinity(0, cores)
    return Binding(cores, cores_per_rank, shared)
