"""The number of cores that a process uses. It has to be set before jax is imported.

XLA splits CPU reductions by the number of cores that the process may use, so the last bits of a run depend on it. Every
process that samples or builds therefore tells XLA the same number, wherever it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from lambda_hat.errors import ConfigError

NPROC_VARIABLE = "NPROC"
"""Environment variable in which XLA reads the number of cores."""


@dataclass(frozen=True)
class Binding:
    """The cores and the GPU of a process. Of these only `num_cores` decides the bits of a run."""

    cores: tuple[int, ...]
    """CPUs that the operating system may run this process on."""
    num_cores: int
    """Cores that XLA counts."""
    shared: bool
    """Another rank of this launch has the same cores."""
    device: str | None = None
    """The GPU as `device_variable` names it: an index or a UUID. None: the process computes on cores."""
    device_variable: str | None = None
    """The environment variable that hides the other GPUs from this process."""
    memory_fraction: float | None = None
    """Share of the GPU's memory that XLA may take; None: jax decides."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """The variables about GPUs that the launcher and the scheduler had set."""


def bind_process(num_cores: int) -> Binding:
    """Give XLA `num_cores` cores in a process of its own, such as a command or an app of one run.

    The process is not pinned. Several such processes may run on one machine without knowing of each other, and all
    would pick the same first core. XLA's thread pool and its split of reductions follow `NPROC` alone, so an unpinned
    process gives the bits of a pinned rank.

    Raises:
        ConfigError: `num_cores` is below 1.
        RuntimeError: jax was imported already, and XLA may have counted the cores.
    """
    tell_xla(num_cores)
    return Binding(tuple(sorted(os.sched_getaffinity(0))), num_cores, shared=False)


def tell_xla(num_cores: int) -> None:
    """Set `NPROC`, also for child processes; raises as `bind_process`."""
    if num_cores < 1:
        raise ConfigError(f"cores_per_rank: got {num_cores}, expected an integer of at least 1")
    if "jax" in sys.modules:
        raise RuntimeError("cores must be bound before jax is imported: XLA counts them once, when it starts")
    os.environ[NPROC_VARIABLE] = str(num_cores)


def xla_cores() -> int:
    """The number of cores that XLA counts in this process."""
    told = os.environ.get(NPROC_VARIABLE)
    return len(os.sched_getaffinity(0)) if told is None else int(told)
