"""The cores and the GPU that a rank takes.

Imports neither jax nor mpi4py: jax looks at cores and GPUs once, when it starts.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lambda_hat.errors import LaunchError
from lambda_hat.programs.cores import Binding, tell_xla
from mpi.launcher_variables import (
    LOCAL_RANK_VARIABLES,
    MPT_RANK,
    first_number,
    launcher_local_rank,
    launcher_local_size,
    launcher_size,
)
from mpi.mps import share_gpu

Vendor = Literal["cuda", "rocm"]
VISIBLE_DEVICES: dict[Vendor, tuple[str, ...]] = {
    "cuda": ("CUDA_VISIBLE_DEVICES",),
    "rocm": ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL"),
}
"""The variables that hide GPUs; the first one is the one to set. ROCm applies each of the others to the GPUs that the
first one left, so that only one may be set. SLURM sets three of them, unless its gres.conf says otherwise."""

MEMORY_FRACTION = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""Variables for the share of a GPU's memory that jax takes. jax refuses both at once."""
DEFAULT_MEMORY_FRACTION = 0.75
"""jax's own default."""


def choose_cores(
    available: Iterable[int], local_rank: int, cores_per_rank: int, local_size: int | None
) -> tuple[tuple[int, ...], bool]:
    """Choose the cores of one rank.

    The available cores are cut into blocks of `cores_per_rank` in ascending order. On machines with two threads per
    core this uses every physical core before the second thread of any. Ranks beyond the last block start again with
    the first.

    Args:
        available: Cores that the process may use.
        local_rank: Number of the rank on its node.
        cores_per_rank: Cores of each rank.
        local_size: Ranks of the node; None: not known.

    Returns:
        The cores, and whether another rank may have them too.
    """
    cores = sorted(available)
    blocks = max(len(cores) // cores_per_rank, 1)
    first = (local_rank % blocks) * cores_per_rank
    alone = local_rank < blocks and (local_size is None or local_rank + blocks >= local_size)
    return tuple(cores[first : first + cores_per_rank]), not alone


def bind_cores(local_rank: int, cores_per_rank: int, local_size: int | None = None) -> Binding:
    """Pin this process, and the processes that it starts, to its own cores, and give XLA as many.

    If a launcher has bound the process already, it chooses among those cores. If there are fewer than `cores_per_rank`,
    XLA still has `cores_per_rank` threads, so that the numbers stay the same.

    Args:
        local_rank: Number of the rank on its node.
        cores_per_rank: Cores of each rank.
        local_size: Ranks of the node; None: not known.

    Raises:
        ConfigError: `cores_per_rank` is below 1.
        RuntimeError: jax was imported already.
    """
    tell_xla(cores_per_rank)
    cores, shared = choose_cores(os.sched_getaffinity(0), local_rank, cores_per_rank, local_size)
    os.sched_setaffinity(0, cores)
    return Binding(cores, cores_per_rank, shared)


# --------------------------------------------------------------------------------------------------------------
# GPUs


def bind_rank(
    rank: int, cores_per_rank: int, gpus_per_node: int, ranks_per_gpu: int, mps: Path | None = None
) -> Binding:
    """Give this process its cores and its GPU, by its rank on the node.

    Args:
        rank: Its number in the world, which replaces the rank on the node where the launcher is unknown.
        cores_per_rank: Cores of each rank.
        gpus_per_node: GPUs that the ranks of a node take. With 0 the process computes on its cores, also on a node with
            GPUs: `JAX_PLATFORMS` becomes cpu unless it is set.
        ranks_per_gpu: Ranks that share a GPU.
        mps: Where the ranks of a launch meet that share GPUs through NVIDIA's MPS; None: they take turns.

    Raises:
        LaunchError: The GPUs do not add up, or MPS does not start; the message has host, rank and environment.
        ConfigError: As of `bind_cores`.
        RuntimeError: As of `bind_cores`.
    """
    local_rank, local_size = launcher_local_rank(os.environ), launcher_local_size(os.environ)
    if rank > 0 and launcher_size(os.environ) is None and MPT_RANK not in os.environ:
        # The launcher is unknown. This way neighbours in the world do not take the same cores.
        local_rank, local_size = rank, None
    binding = bind_cores(local_rank, cores_per_rank, local_size)
    if gpus_per_node == 0:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        return binding
    vendor, before = find_vendor(os.environ), _about_gpus(os.environ)
    try:
        device = choose_gpu(os.environ, vendor, local_rank, local_size, gpus_per_node, ranks_per_gpu)
        changes = gpu_environment(os.environ, vendor, device, ranks_per_gpu)
        if mps is not None:
            told = {**os.environ, **{name: value for name, value in changes.items() if value is not None}}
            changes |= share_gpu(mps, vendor, _slurm_gpus_per_task(told), device, local_rank, ranks_per_gpu, told)
    except LaunchError as error:
        raise LaunchError(f"{_place(rank)}: {error}. {_in_words(before)}") from None
    for name, value in changes.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    fraction = next((float(value) for name, value in changes.items() if name in MEMORY_FRACTION and value), None)
    variable = VISIBLE_DEVICES[vendor][0]
    return replace(binding, device=device, device_variable=variable, memory_fraction=fraction, environment=before)


def find_vendor(environment: Mapping[str, str], exists: Callable[[str], bool] = os.path.exists) -> Vendor:
    """The vendor of this node's GPUs, by its device files; without any, by the scheduler's variables.

    The device files come first, because SLURM sets the variables of every vendor on every node, unless its gres.conf
    says otherwise.
    """
    if exists("/dev/nvidiactl"):
        return "cuda"
    if exists("/dev/kfd"):
        return "rocm"
    rocm = "ROCR_VISIBLE_DEVICES" in environment and "CUDA_VISIBLE_DEVICES" not in environment
    return "rocm" if rocm else "cuda"


def choose_gpu(
    environment: Mapping[str, str],
    vendor: Vendor,
    local_rank: int,
    local_size: int | None,
    gpus_per_node: int,
    ranks_per_gpu: int,
) -> str:
    """Choose the GPU of one rank.

    Rank k of a node gets number `k // ranks_per_gpu` of the GPUs that the scheduler lists, or of all. If SLURM has
    bound each task to a GPU, the rank keeps it.

    Args:
        environment: The environment of the rank.
        vendor: Of the GPUs.
        local_rank: Number of the rank on its node.
        local_size: Ranks of the node; None: not known.
        gpus_per_node: GPUs that the ranks of a node take.
        ranks_per_gpu: Ranks that share a GPU.

    Returns:
        The GPU as the visible-devices variable names it.

    Raises:
        LaunchError: The scheduler gives no GPU or too few, more than `ranks_per_gpu` ranks would share one, or one
            would be idle.
    """
    _check_counts(local_rank, local_size, gpus_per_node, ranks_per_gpu)
    variable, listed = listed_gpus(environment, vendor)
    if listed is None:
        return str(local_rank // ranks_per_gpu)
    told = f"{variable}={environment[variable]}"
    if not listed:
        raise LaunchError(
            f"the pack asks for {gpus_per_node} GPUs on each node, but the scheduler gave this process none ({told}); "
            f"ask it for them (#SBATCH --gpus-per-node={gpus_per_node}, PBS: select=...:ngpus={gpus_per_node}), or "
            "write gpus_per_node: 0"
        )
    if len(set(listed)) < len(listed):
        raise LaunchError(f"{told} lists a GPU twice; let every GPU stand there once")
    task = _slurm_gpus_per_task(environment)
    if task is not None:
        return _gpu_of_task(told, listed, *task, ranks_per_gpu)
    if len(listed) < gpus_per_node:
        several = local_rank > 0 or local_size != 1
        bound = (
            ". Did a wrapper or the launcher bind each rank to a GPU? Ranks choose by their number on the node: leave "
            "that out (srun --gpu-bind=none), or let srun bind with --gpus-per-task=1"
            if len(listed) == 1 and several
            else ""
        )
        raise LaunchError(
            f"the pack asks for {gpus_per_node} GPUs on each node, but {told} lists {len(listed)}; ask the scheduler "
            f"for {gpus_per_node}, or write gpus_per_node: {len(listed)}{bound}"
        )
    return listed[local_rank // ranks_per_gpu]


def _check_counts(local_rank: int, local_size: int | None, gpus_per_node: int, ranks_per_gpu: int) -> None:
    ranks = local_rank + 1 if local_size is None else local_size
    room = gpus_per_node * ranks_per_gpu
    gpus = f"{gpus_per_node} GPUs" if gpus_per_node > 1 else "1 GPU"
    if max(ranks, local_rank + 1) > room:
        needed = -(-ranks // gpus_per_node)
        least = "at least " if local_size is None else ""
        raise LaunchError(
            f"there are {least}{ranks} ranks on this node and {gpus} with ranks_per_gpu {ranks_per_gpu}, which take "
            f"{room}; set ranks_per_node: {room}, or ranks_per_gpu: {needed} for ranks that share a GPU and its memory"
        )
    used = -(-ranks // ranks_per_gpu)
    if local_size is not None and used < gpus_per_node:
        raise LaunchError(
            f"{ranks} {'rank' if ranks == 1 else 'ranks'} on this node with ranks_per_gpu {ranks_per_gpu} would leave "
            f"{gpus_per_node - used} of {gpus} idle; set ranks_per_node: {room}, or gpus_per_node: {used}"
        )


def listed_gpus(environment: Mapping[str, str], vendor: Vendor) -> tuple[str, list[str] | None]:
    """The visible-devices variable that is set, and the indices or UUIDs in it; without any, the first one and None."""
    for variable in VISIBLE_DEVICES[vendor]:
        if variable in environment:
            words = [word.strip() for word in environment[variable].split(",")]
            # The GPU driver reads up to the first word that names no device: -1, SLURM's NoDevFiles, or an empty one.
            end = next((i for i, word in enumerate(words) if not word or word in ("-1", "NoDevFiles")), len(words))
            return variable, words[:end]
    return VISIBLE_DEVICES[vendor][0], None


def _slurm_gpus_per_task(environment: Mapping[str, str]) -> tuple[str, int, int] | None:
    """How SLURM bound this very process to GPUs of its own; None where it did not.

    The options of a job also reach the ranks of Hydra and Open MPI, but those are not the tasks that SLURM bound.

    Returns:
        The variable that says so, the number of GPUs, and the number of tasks that have the same ones.
    """
    found = first_number(LOCAL_RANK_VARIABLES, environment)
    if "SLURM_STEP_NUM_TASKS" not in environment or found is None or found[0] != "SLURM_LOCALID":
        return None
    # SLURMD_TRES_BIND says what the daemon of the node did; the others say what the job or the step asked for.
    for variable in ("SLURMD_TRES_BIND", "SLURM_GPU_BIND"):
        how = environment.get(variable, "")
        match = re.search(r"\b(single|per_task):(\d+)$", how)
        if match:
            number = int(match[2])
            return (f"{variable}={how}", 1, number) if match[1] == "single" else (f"{variable}={how}", number, 1)
        if how:
            return None
    tasks = environment.get("SLURM_NTASKS_PER_GPU", "")
    if tasks.isdecimal():
        return f"SLURM_NTASKS_PER_GPU={tasks}", 1, int(tasks)
    for variable in ("SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK"):
        # Forms are 1, a100:1, gres/gpu:1 and gres:gpu:a100:1. Other parts, such as cpu:4, say nothing about GPUs.
        for part in environment.get(variable, "").split(","):
            match = re.fullmatch(r"(?:.*[:=])?(\d+)", part)
            if match and (variable == "SLURM_GPUS_PER_TASK" or "gpu" in part):
                return f"{variable}={environment[variable]}", int(match[1]), 1
    return None


def _gpu_of_task(
    told: str, listed: Sequence[str], why: str, gpus_per_task: int, tasks_per_gpu: int, ranks_per_gpu: int
) -> str:
    if gpus_per_task != 1 or len(listed) != 1:
        raise LaunchError(
            f"SLURM gave this task GPUs of its own ({why}), {told}, and a rank uses one; write --gpus-per-task=1 and a "
            "task for every GPU, or --gpus-per-node and --gpu-bind=none, so that ranks choose by their number on the "
            "node"
        )
    if tasks_per_gpu != ranks_per_gpu:
        raise LaunchError(
            f"SLURM put {tasks_per_gpu} tasks on each GPU ({why}), but ranks_per_gpu is {ranks_per_gpu}; write "
            f"ranks_per_gpu: {tasks_per_gpu}"
        )
    return listed[0]


def gpu_environment(
    environment: Mapping[str, str], vendor: Vendor, device: str, ranks_per_gpu: int
) -> dict[str, str | None]:
    """The variables with which jax sees `device` alone, and takes its share of the memory.

    Args:
        environment: The environment of the rank.
        vendor: Of the GPU.
        device: The GPU as `choose_gpu` names it.
        ranks_per_gpu: Ranks that share the GPU.

    Returns:
        What to set, by variable; None: to remove it.

    Raises:
        LaunchError: The memory fraction that is set is not a number.
    """
    variable, *others = VISIBLE_DEVICES[vendor]
    changes: dict[str, str | None] = {variable: device}
    changes |= {name: None for name in others if name in environment}
    if vendor == "cuda":
        # This is the order of nvidia-smi, so that both mean the same GPU by an index.
        changes |= {"CUDA_DEVICE_ORDER": environment.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")}
    # Only where a backend is asked for by name does jax say what keeps it from starting.
    changes |= {"JAX_PLATFORMS": environment.get("JAX_PLATFORMS") or f"{vendor},cpu"}
    if ranks_per_gpu > 1:
        name = next((name for name in MEMORY_FRACTION if environment.get(name)), MEMORY_FRACTION[-1])
        text = environment.get(name) or str(DEFAULT_MEMORY_FRACTION)
        try:
            whole = float(text)
        except ValueError:
            raise LaunchError(f"{name}={text} is not a number; write {DEFAULT_MEMORY_FRACTION}, jax's own") from None
        changes |= {name: f"{whole / ranks_per_gpu:.4g}"}
    return changes


def check_gpu(rank: int, binding: Binding, look: Callable[[], Sequence[tuple[str, str]]]) -> None:
    """Refuse to compute on anything but the one GPU of `binding`.

    Args:
        rank: Number of the rank in the world.
        binding: Cores and GPU of the rank.
        look: Asks jax for its devices: backend and kind of each.

    Raises:
        LaunchError: jax does not see exactly one GPU. The message has host, rank, environment, the jax plugins and
            the output of nvidia-smi.
    """
    try:
        seen, reason = look(), ""
    except (RuntimeError, AssertionError) as error:
        seen, reason = [], f" ({str(error).partition(chr(10))[0]})" if str(error) else ""
    if len(seen) == 1 and seen[0][0] == "gpu":
        return
    found = ", ".join(f"{kind} ({backend})" for backend, kind in seen) or "no device"
    plugins = gpu_plugins()
    raise LaunchError(
        f"{_place(rank)}: the pack gives this rank a GPU ({binding.device_variable}={binding.device}), but jax sees "
        f"{found}{reason}. {_in_words(binding.environment)}. jax plugins: {', '.join(plugins) or 'none'}. "
        f"{_nvidia_smi()}. {_remedy(binding.environment, plugins)}"
    )


def _remedy(environment: Mapping[str, str], plugins: Sequence[str]) -> str:
    platforms = set(environment.get("JAX_PLATFORMS", "").split(","))
    if not platforms & {"", "cuda", "rocm", "gpu"}:
        return "Unset JAX_PLATFORMS, or write gpus_per_node: 0"
    if not plugins:
        return "Write pip install 'jax[cuda12]' (AMD: 'jax[rocm7-local]') where the ranks run, or gpus_per_node: 0"
    if environment.get("CUDA_VISIBLE_DEVICES", "").startswith(("GPU-", "MIG-")):
        return (
            "Where nvidia-smi lists other UUIDs, the launcher handed on the environment of another node: unset "
            "CUDA_VISIBLE_DEVICES before the launch"
        )
    return "Ask the scheduler for GPUs on these nodes, or write gpus_per_node: 0"


def gpu_plugins() -> list[str]:
    """The installed packages that let jax use GPUs, with their versions."""
    found = set()
    for distribution in importlib.metadata.distributions():
        name = (distribution.metadata["Name"] or "").lower().replace("_", "-")
        if re.fullmatch(r"jax-(cuda|rocm)\d*-(plugin|pjrt)", name):
            found.add(f"{name} {distribution.version}")
    return sorted(found)


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"nvidia-smi: {error.strerror if isinstance(error, OSError) else 'no answer in 10 s'}"
    return f"nvidia-smi: {'; '.join((done.stdout + done.stderr).split(chr(10))).strip('; ') or 'nothing'}"


def _place(rank: int) -> str:
    local_size = launcher_local_size(os.environ)
    of = f" of {local_size}" if local_size is not None else ""
    return f"rank {rank} (local rank {launcher_local_rank(os.environ)}{of}) on {socket.gethostname()}"


def _about_gpus(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that decide which GPU a process sees."""
    pattern = r"(CUDA|ROCR|HIP|NVIDIA)_VISIBLE_DEVICES|CUDA_DEVICE_ORDER|JAX_PLATFORMS|SLURMD?_\w*(GPU|GRES|TRES)\w*"
    return {name: environment[name] for name in sorted(environment) if re.fullmatch(pattern, name)}


def _in_words(about: Mapping[str, str]) -> str:
    words = [f"{name} not set" for name in ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES") if name not in about]
    return f"Environment: {', '.join([f'{name}={value}' for name, value in about.items()] + words)}"
