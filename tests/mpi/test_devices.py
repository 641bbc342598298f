import json
import os
import subprocess
import sys

import pytest

from lambda_hat.errors import ConfigError, LaunchError
from lambda_hat.programs.cores import Binding, bind_process, tell_xla
from mpi.devices import bind_rank, check_gpu, choose_cores, choose_gpu, find_vendor, gpu_environment
from mpi.launcher_variables import check_world, launcher_local_rank, launcher_local_size, launcher_rank, launcher_size

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
PALS = {"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1", "PMI_LOCAL_SIZE": "2"}
BATCH_SCRIPT = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    "environment, size, rank, local_rank",
    [
        (HYDRA, 4, 3, 1),
        (OPENMPI, 4, 3, 1),
        (SRUN, 4, 3, 1),
        (SRUN_PMI2, 4, 3, 1),
        (HYDRA_IN_SLURM, 4, 3, 1),
        (PALS, 4, 3, 1),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, 4, 3, 3),
    ],
    ids=["hydra", "openmpi", "srun", "srun-pmi2", "hydra-in-slurm", "pals", "pmi-only"],
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
    assert launcher_local_size(HYDRA) == launcher_local_size(OPENMPI) == launcher_local_size(PALS) == 2
    assert launcher_local_size(SRUN) is None
    assert launcher_local_size(BATCH_SCRIPT) == 1


@pytest.mark.parametrize(
    "told, node, size",
    [("2(x2)", "1", 2), ("3,1", "0", 3), ("3,1", "1", 1), ("4(x2),3", "2", 3), ("2", "1", None), ("2(x", "0", None)],
)
def test_srun_says_how_many_tasks_each_node_has(told, node, size):
    step = {"SLURM_STEP_TASKS_PER_NODE": told, "SLURM_NODEID": node}
    assert launcher_local_size({**SRUN, **step}) == size
    assert launcher_local_size({**HYDRA_IN_SLURM, **step}) == 2


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
    # Some of its nodes are left out.
    check_world(1, 4, {"LAMBDA_HAT_RANKS": "1"})
    with pytest.raises(LaunchError, match=r"meant for 2 ranks"):
        check_world(1, 4, {"LAMBDA_HAT_RANKS": "2"})


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
        "from lambda_hat.programs.cores import bind_process\n"
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
    from lambda_hat.programs.cores import bind_process
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


UUIDS = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6,MIG-0b5e1c2a-1111-5222-8333-444455556666"
CUDA, ROCR = "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"


@pytest.mark.parametrize(
    "environment, vendor, ranks, gpus_per_node, ranks_per_gpu, devices",
    [
        ({}, "cuda", 4, 4, 1, ["0", "1", "2", "3"]),
        ({}, "cuda", 4, 2, 2, ["0", "0", "1", "1"]),
        ({}, "cuda", 3, 2, 2, ["0", "0", "1"]),
        ({}, "cuda", 1, 1, 4, ["0"]),
        ({CUDA: "2,3"}, "cuda", 2, 2, 1, ["2", "3"]),
        ({CUDA: " 2 , 3 "}, "cuda", 4, 2, 2, ["2", "2", "3", "3"]),
        ({CUDA: UUIDS}, "cuda", 2, 2, 1, UUIDS.split(",")),
        ({CUDA: "4,5,6,7"}, "cuda", 2, 2, 1, ["4", "5"]),
        ({CUDA: "6,-1,7"}, "cuda", 1, 1, 1, ["6"]),
        ({CUDA: "3"}, "cuda", 2, 1, 2, ["3", "3"]),
        ({ROCR: "5,6", CUDA: "0,1"}, "rocm", 2, 2, 1, ["5", "6"]),
        ({ROCR: "5,6", CUDA: "0,1"}, "cuda", 2, 2, 1, ["0", "1"]),
        ({"HIP_VISIBLE_DEVICES": "5,6"}, "rocm", 2, 2, 1, ["5", "6"]),
    ],
)
def test_ranks_take_gpus_in_order_from_what_the_scheduler_gave(
    environment, vendor, ranks, gpus_per_node, ranks_per_gpu, devices
):
    for size in (ranks, None):
        assert devices == [
            choose_gpu(environment, vendor, rank, size, gpus_per_node, ranks_per_gpu) for rank in range(ranks)
        ]


@pytest.mark.parametrize(
    "environment, local_rank, local_size, gpus_per_node, ranks_per_gpu, told",
    [
        ({}, 0, 3, 2, 1, r"3 ranks on this node and 2 GPUs .* take 2; set ranks_per_node: 2, or ranks_per_gpu: 2"),
        ({}, 2, None, 2, 1, r"at least 3 ranks on this node and 2 GPUs"),
        ({}, 0, 5, 2, 2, r"5 ranks on this node and 2 GPUs with ranks_per_gpu 2, which take 4; .* ranks_per_gpu: 3"),
        ({}, 0, 2, 1, 1, r"2 ranks on this node and 1 GPU with"),
        ({}, 0, 2, 4, 1, r"2 ranks .* leave 2 of 4 GPUs idle; set ranks_per_node: 4, or gpus_per_node: 2"),
        ({}, 0, 1, 2, 1, r"1 rank on .* leave 1 of 2 GPUs idle"),
        ({}, 0, 4, 4, 2, r"4 ranks .* leave 2 of 4 GPUs idle; set ranks_per_node: 8"),
        ({CUDA: ""}, 0, 1, 1, 1, r"asks for 1 GPUs .* gave this process none \(CUDA_VISIBLE_DEVICES=\).*gpus_per_node"),
        ({CUDA: "NoDevFiles"}, 0, 1, 1, 1, r"none \(CUDA_VISIBLE_DEVICES=NoDevFiles\)"),
        ({CUDA: "-1"}, 0, 1, 1, 1, r"none \(CUDA_VISIBLE_DEVICES=-1\)"),
        ({CUDA: "1,1"}, 0, 2, 2, 1, r"CUDA_VISIBLE_DEVICES=1,1 lists a GPU twice"),
        ({CUDA: "0,1"}, 0, 4, 4, 1, r"asks for 4 GPUs .* CUDA_VISIBLE_DEVICES=0,1 lists 2; .* gpus_per_node: 2$"),
        ({CUDA: "2"}, 2, 4, 4, 1, r"CUDA_VISIBLE_DEVICES=2 lists 1; .* wrapper .* --gpus-per-task=1"),
    ],
)
def test_gpus_that_do_not_add_up_are_refused(environment, local_rank, local_size, gpus_per_node, ranks_per_gpu, told):
    with pytest.raises(LaunchError, match=told):
        choose_gpu(environment, "cuda", local_rank, local_size, gpus_per_node, ranks_per_gpu)


@pytest.mark.parametrize(
    "slurm, ranks_per_gpu",
    [
        ({"SLURM_GPUS_PER_TASK": "1"}, 1),
        ({"SLURM_GPUS_PER_TASK": "a100:1"}, 1),
        ({"SLURM_TRES_PER_TASK": "cpu:4,gres/gpu:1"}, 1),
        ({"SLURM_GPU_BIND": "verbose,per_task:1"}, 1),
        ({"SLURM_NTASKS_PER_GPU": "2"}, 2),
        ({"SLURM_GPU_BIND": "single:2"}, 2),
        # As SLURM 22.05 says it to the tasks of srun --gpus-per-task=1, and of --ntasks-per-gpu=2.
        ({"SLURMD_TRES_BIND": "gpu:per_task:1"}, 1),
        ({"SLURMD_TRES_BIND": "gpu:single:2", "SLURM_NTASKS_PER_GPU": "2", "SLURM_STEP_GPUS": "1"}, 2),
    ],
)
@pytest.mark.parametrize("step", [SRUN, SRUN_PMI2], ids=["pmix", "pmi2"])
def test_a_gpu_that_slurm_bound_to_the_task_is_kept(slurm, ranks_per_gpu, step):
    for device in ("0", "3", UUIDS.split(",")[0]):
        environment = {**step, **slurm, CUDA: device}
        assert choose_gpu(environment, "cuda", 3, 4, 4 // ranks_per_gpu, ranks_per_gpu) == device


@pytest.mark.parametrize(
    "slurm, listed, ranks_per_gpu, told",
    [
        (
            {"SLURM_GPUS_PER_TASK": "2"},
            "0,1",
            1,
            r"SLURM_GPUS_PER_TASK=2.*CUDA_VISIBLE_DEVICES=0,1, and a rank uses one",
        ),
        ({"SLURM_GPUS_PER_TASK": "1"}, "0", 2, r"put 1 tasks on each GPU .*ranks_per_gpu is 2; write ranks_per_gpu: 1"),
        ({"SLURM_NTASKS_PER_GPU": "2"}, "0", 1, r"put 2 tasks on each GPU .*write ranks_per_gpu: 2"),
        ({"SLURM_GPU_BIND": "none", "SLURM_GPUS_PER_TASK": "1"}, "0", 1, r"lists 1"),
        ({"SLURMD_TRES_BIND": "gpu:none", "SLURM_GPUS_PER_TASK": "1"}, "0", 1, r"lists 1"),
        ({"SLURMD_TRES_BIND": "gpu:map_gpu:0,1", "SLURM_GPUS_PER_TASK": "1"}, "0", 1, r"lists 1"),
        ({"SLURM_TRES_PER_TASK": "cpu:4"}, "0", 1, r"lists 1"),
        ({}, "0", 1, r"CUDA_VISIBLE_DEVICES=0 lists 1.*gpu-bind=none"),
    ],
)
def test_what_slurm_bound_otherwise_is_refused(slurm, listed, ranks_per_gpu, told):
    with pytest.raises(LaunchError, match=told):
        choose_gpu({**SRUN, **slurm, CUDA: listed}, "cuda", 1, 4, 4 // ranks_per_gpu, ranks_per_gpu)


def test_ranks_of_hydra_are_not_the_tasks_that_slurm_bound():
    environment = {**HYDRA_IN_SLURM, "SLURM_GPUS_PER_TASK": "1", CUDA: "0,1"}
    assert [choose_gpu(environment, "cuda", rank, 2, 2, 1) for rank in (0, 1)] == ["0", "1"]
    with pytest.raises(LaunchError, match="lists 1"):
        choose_gpu({**environment, CUDA: "0"}, "cuda", 0, 2, 2, 1)


@pytest.mark.parametrize(
    "files, environment, vendor",
    [
        (["/dev/nvidiactl"], {CUDA: "0", ROCR: "0"}, "cuda"),
        (["/dev/nvidiactl", "/dev/kfd"], {}, "cuda"),
        (["/dev/kfd"], {CUDA: "0", ROCR: "0"}, "rocm"),
        ([], {ROCR: "0"}, "rocm"),
        ([], {CUDA: "0", ROCR: "0"}, "cuda"),
        ([], {}, "cuda"),
    ],
)
def test_whose_gpus_a_node_has(files, environment, vendor):
    assert find_vendor(environment, files.__contains__) == vendor


@pytest.mark.parametrize(
    "environment, vendor, ranks_per_gpu, changes",
    [
        ({}, "cuda", 1, {CUDA: "3", "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "JAX_PLATFORMS": "cuda,cpu"}),
        ({CUDA: "2,3", ROCR: "2,3"}, "cuda", 1, {CUDA: "3"}),
        ({}, "cuda", 2, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.375"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": ".9"}, "cuda", 3, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.9"}, "cuda", 3, {"XLA_CLIENT_MEM_FRACTION": "0.3"}),
        ({"JAX_PLATFORMS": "cuda", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}, "cuda", 1, {"JAX_PLATFORMS": "cuda"}),
        ({}, "rocm", 1, {ROCR: "3", "JAX_PLATFORMS": "rocm,cpu"}),
        ({ROCR: "2,3", CUDA: "2,3", "GPU_DEVICE_ORDINAL": "0,1"}, "rocm", 1, {CUDA: None, "GPU_DEVICE_ORDINAL": None}),
        ({"HIP_VISIBLE_DEVICES": "2,3"}, "rocm", 1, {ROCR: "3", "HIP_VISIBLE_DEVICES": None}),
    ],
)
def test_a_rank_sees_its_gpu_alone_and_takes_its_share_of_memory(environment, vendor, ranks_per_gpu, changes):
    got = gpu_environment(environment, vendor, "3", ranks_per_gpu)
    assert got | changes == got
    assert not [name for name in got if "FRACTION" in name and name not in changes]
    if vendor == "cuda":
        assert got["CUDA_DEVICE_ORDER"] == environment.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def test_a_memory_fraction_that_is_no_number_is_refused():
    with pytest.raises(LaunchError, match=r"XLA_CLIENT_MEM_FRACTION=half is not a number; write 0.75"):
        gpu_environment({"XLA_CLIENT_MEM_FRACTION": "half"}, "cuda", "0", 2)


@pytest.fixture
def bare(monkeypatch):
    """An environment without GPUs, of rank 1 of two; neither the binding nor the environment outlives the test."""
    affinity = os.sched_getaffinity(0)
    for name in list(os.environ):
        if "GPU" in name or "VISIBLE_DEVICES" in name or name.startswith(("JAX_", "XLA_", "SLURM_")):
            monkeypatch.delenv(name)
    for name, value in {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"}.items():
        monkeypatch.setenv(name, value)
    for name in ("NPROC", CUDA, ROCR, "CUDA_DEVICE_ORDER", "JAX_PLATFORMS", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    yield monkeypatch
    os.sched_setaffinity(0, affinity)


@pytest.mark.parametrize("given, expected", [(None, "cpu"), ("cuda", "cuda")])
def test_a_cpu_pack_leaves_gpus_alone_unless_told(bare, given, expected):
    if given is not None:
        bare.setenv("JAX_PLATFORMS", given)
    binding = bind_rank(5, 1, 0, 1)
    assert os.environ["JAX_PLATFORMS"] == expected
    assert (binding.device, binding.memory_fraction, CUDA in os.environ) == (None, None, False)


def test_a_gpu_pack_binds_and_records(bare):
    bare.setenv(CUDA, "4,7")
    bare.setattr("mpi.devices.find_vendor", lambda environment: "cuda")
    binding = bind_rank(5, 1, 2, 1)
    assert (binding.device_variable, binding.device, binding.memory_fraction) == (CUDA, "7", None)
    assert binding.environment == {CUDA: "4,7"}
    assert (os.environ[CUDA], os.environ["JAX_PLATFORMS"]) == ("7", "cuda,cpu")


def test_ranks_that_share_a_gpu_record_their_share(bare):
    bare.setattr("mpi.devices.find_vendor", lambda environment: "rocm")
    binding = bind_rank(5, 1, 1, 2)
    assert (binding.device_variable, binding.device, binding.memory_fraction) == (ROCR, "0", 0.375)
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.375"


def test_a_rank_that_cannot_be_bound_says_where_and_in_what_environment(bare):
    bare.setenv(CUDA, "")
    bare.setenv("SLURM_JOB_GPUS", "0,1")
    with pytest.raises(
        LaunchError, match=r"rank 5 \(local rank 1 of 2\) on \S+: .*gave this process none.*SLURM_JOB_GPUS=0,1"
    ):
        bind_rank(5, 1, 2, 1)


BOUND = Binding((0,), 1, False, "3", CUDA, None, {CUDA: "2,3"})


@pytest.mark.parametrize(
    "seen, told",
    [
        ([("cpu", "cpu")], r"jax sees cpu \(cpu\)"),
        ([("gpu", "H100"), ("gpu", "H100")], r"jax sees H100 \(gpu\), H100 \(gpu\)"),
        (RuntimeError("Unable to initialize backend 'cuda': no driver\nmore"), r"no device \(Unable .*: no driver\)"),
        (AssertionError(), r"sees no device\. "),
    ],
)
def test_a_rank_that_does_not_see_its_gpu_alone_stops(bare, seen, told):
    def look():
        if isinstance(seen, Exception):
            raise seen
        return seen

    with pytest.raises(LaunchError, match=told) as refused:
        check_gpu(5, BOUND, look)
    message = str(refused.value)
    assert message.startswith("rank 5 (local rank 1 of 2) on ") and "(CUDA_VISIBLE_DEVICES=3)" in message
    assert "CUDA_VISIBLE_DEVICES=2,3" in message and "jax plugins:" in message and "nvidia-smi:" in message
    assert "gpus_per_node: 0" in message


def test_a_rank_that_sees_its_gpu_starts():
    check_gpu(0, BOUND, lambda: [("gpu", "NVIDIA H100 80GB HBM3")])


def test_ranks_of_mpt_take_cores_and_gpus_of_their_own():
    environment = {"MPT_MPI_RANK": "6", "MPT_LRANK": "2"}
    assert (launcher_rank(environment), launcher_local_rank(environment)) == (6, 2)
    assert launcher_local_size(environment) is None
    assert choose_gpu(environment, "cuda", 2, None, 4, 1) == "2"


@pytest.mark.parametrize("given, expected", [({}, 5), ({"MPT_MPI_RANK": "5", "MPT_LRANK": "1"}, 1)])
def test_ranks_of_an_unknown_launcher_do_not_all_take_the_first_core(bare, given, expected):
    for name in [name for name in os.environ if name.startswith(("PMI_", "MPI_LOCAL", "OMPI_", "SLURM_"))]:
        bare.delenv(name)
    for name, value in given.items():
        bare.setenv(name, value)
    seen = []
    bare.setattr("mpi.devices.bind_cores", lambda local_rank, cores, size: seen.append((local_rank, size)))
    bind_rank(5, 1, 0, 1)
    assert seen == [(expected, None)]
