import json
import os
import subprocess
import sys

import pytest

from lambda_hat.cores import bind_process, tell_xla
from lambda_hat.errors import ConfigError, LaunchError
from mpi.devices import (
    check_world,
    choose_cores,
    launcher_local_rank,
    launcher_local_size,
    launcher_rank,
    launcher_size,
)

HYDRA = {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
SRUN = {"SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4"}
SRUN_PMI2 = {**SRUN, "PMI_RANK": "3", "PMI_SIZE": "4"}
# Hydra reaches the nodes of a SLURM job through srun, one proxy per node: the proxies' variables are inherited.
HYDRA_IN_SLURM = {**HYDRA, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
BATCH_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    "environment, size, rank, local_rank",
    [
        (HYDRA, 4, 3, 1),
        (OPENMPI, 4, 3, 1),
        (SRUN, 4, 3, 1),
        (SRUN_PMI2, 4, 3, 1),
        (HYDRA_IN_SLURM, 4, 3, 1),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, 4, 3, 3),
    ],
    ids=["hydra", "openmpi", "srun", "srun-pmi2", "hydra-in-slurm", "pmi-only"],
)
def test_the_launcher_is_read_from_its_environment(environment, size, rank, local_rank):
    assert launcher_size(environment)[1] == size
    assert launcher_rank(environment) == rank
    assert launcher_local_rank(environment) == local_rank


@pytest.mark.parametrize("environment", [{}, BATCH_SCRIPT, {"PMI_SIZE": ""}])
def test_without_a_launcher_a_process_is_alone(environment):
    assert launcher_size(environment) is None
    assert launcher_rank(environment) == 0
    assert launcher_local_rank(environment) == 0
    check_world(1, None, environment)


def test_local_size_where_the_launcher_says_it():
    assert launcher_local_size(HYDRA) == launcher_local_size(OPENMPI) == 2
    assert launcher_local_size(SRUN) is None


@pytest.mark.parametrize("environment", [HYDRA, OPENMPI, SRUN, SRUN_PMI2])
def test_singletons_are_refused_with_both_numbers(environment):
    with pytest.raises(LaunchError, match=r"started 4 processes .*=4.* has size 1.*mpiexec"):
        check_world(1, None, environment)
    check_world(4, 4, environment)


def test_a_lone_process_is_refused_where_the_pack_wants_several():
    with pytest.raises(LaunchError, match=r"meant for 4 ranks.* has size 1.*mpiexec -n 4"):
        check_world(1, 4, {})
    check_world(1, 1, {})
    check_world(2, 4, {"PMI_SIZE": "2"})


@pytest.mark.parametrize(
    "local_rank, cores_per_rank, local_size, cores, shared",
    [
        (0, 1, 4, (0,), False),
        (3, 1, 4, (9,), False),
        (1, 2, 2, (7, 9), False),
        (0, 1, None, (0,), False),
        (0, 1, 5, (0,), True),
        (4, 1, 5, (0,), True),
        (3, 1, 5, (9,), False),
        (4, 1, None, (0,), True),
        (1, 3, 2, (0, 2, 7), True),
        (0, 8, 1, (0, 2, 7, 9), False),
    ],
)
def test_ranks_get_blocks_of_cores_and_wrap_round(local_rank, cores_per_rank, local_size, cores, shared):
    assert choose_cores({9, 0, 7, 2}, local_rank, cores_per_rank, local_size) == (cores, shared)


def in_process(code: str) -> dict:
    """Run `code`, which prints JSON, in a process of its own: binding cannot be undone."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_rank_is_pinned_and_tells_xla():
    last = sorted(os.sched_getaffinity(0))[-1]
    got = in_process(
        "import json, os, sys\n"
        "from mpi.devices import bind_cores\n"
        "n = len(os.sched_getaffinity(0))\n"
        "b = bind_cores(n - 1, 1, n)\n"
        "heavy = [m for m in ('jax', 'mpi4py') if m in sys.modules]\n"
        "print(json.dumps([b.cores, b.num_cores, b.shared, list(os.sched_getaffinity(0)), os.environ['NPROC'], heavy]))"
    )
    assert got == [[last], 1, False, [last], "1", []]


def test_a_lone_process_is_not_pinned():
    everywhere = sorted(os.sched_getaffinity(0))
    got = in_process(
        "import json, os\n"
        "from lambda_hat.cores import bind_process\n"
        "b = bind_process(1)\n"
        "print(json.dumps([b.cores, b.num_cores, b.shared, sorted(os.sched_getaffinity(0)), os.environ['NPROC']]))"
    )
    assert got == [everywhere, 1, False, everywhere, "1"]


GRADIENT = """
import hashlib, json, os, sys
how, cores = sys.argv[1], int(sys.argv[2])
if how == "pinned":
    from mpi.devices import bind_cores
    bind_cores(0, cores, 1)
elif how == "alone":
    from lambda_hat.cores import bind_process
    bind_process(cores)
import jax, numpy as np
rng = np.random.default_rng(0)
x = rng.standard_normal((20000, 32)).astype(np.float32)
y = rng.standard_normal((20000, 1)).astype(np.float32)
sizes = [32, 72, 72, 1]
w = [rng.standard_normal((a, b)).astype(np.float32) / a**0.5 for a, b in zip(sizes[:-1], sizes[1:])]
def loss(w, x, y):
    h = x
    for layer in w[:-1]:
        h = jax.nn.relu(h @ layer)
    return ((h @ w[-1] - y) ** 2).mean()
value, gradient = jax.jit(jax.value_and_grad(loss))(w, x, y)
digest = hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in [value, *gradient])).hexdigest()
print(json.dumps([digest, float(value)]))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core: there is nothing to tell apart")
def test_the_bits_follow_what_xla_is_told_not_where_the_process_may_run(tmp_path, repo_env):
    program = tmp_path / "gradient.py"
    program.write_text(GRADIENT)

    def digest(how: str, cores: int) -> str:
        done = subprocess.run(
            [sys.executable, str(program), how, str(cores)], capture_output=True, text=True, timeout=120, env=repo_env
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)[0]

    assert digest("pinned", 1) == digest("alone", 1)


def test_binding_after_jax_or_below_one_core_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="cores_per_rank: got 0"):
        bind_process(0)
    monkeypatch.setitem(sys.modules, "jax", object())
    with pytest.raises(RuntimeError, match="before jax is imported"):
        tell_xla(1)
