"""How many cores a process may use, settled before jax is imported.

XLA splits CPU reductions by the number of cores that the process may use, so the last bits of a run depend on it: every
process that samples or builds tells XLA the same number, wherever it runs. `NPROC` is the variable that XLA reads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

from lambda_hat.errors import ConfigError

NPROC_VARIABLE = "NPROC"


@dataclass(frozen=True)
class Binding:
    """What a process was given. It decides the bits of a run only through `num_cores`."""

    cores: tuple[int, ...]
    """CPUs that the operating system may run this process on."""
    num_cores: int
    """Cores that XLA believes to have."""
    shared: bool
    """Another rank of this launch was put on the same cores."""
    device: str | None = None
    """The GPU, as `device_variable` names it: an index or a UUID. None where the process computes on cores."""
    device_variable: str | None = None
    """The variable that shows this process no other GPU."""
    memory_fraction: float | None = None
    """Share of the GPU's memory that XLA may take; None leaves it to jax."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the launcher and the scheduler had said about GPUs."""


def bind_process(num_cores: int) -> Binding:
    """Give XLA `num_cores` cores in a process that stands alone (a command, an app that is one run).

    The process is not pinned: several of these may run side by side on one machine without knowing of each other, and
    each would pick the same first core. XLA's thread pool and its split of reductions follow `NPROC` alone, so an
    unpinned process gives the bits of a pinned rank.

    Raises ConfigError below 1, and RuntimeError where jax was imported already, since XLA may have counted by then.
    """
    tell_xla(num_cores)
    return Binding(tuple(sorted(os.sched_getaffinity(0))), num_cores, shared=False)


def tell_xla(num_cores: int) -> None:
    """Set `NPROC`, also for child processes. Raises as `bind_process`."""
    if num_cores < 1:
        raise ConfigError(f"cores_per_rank: got {num_cores}, expected an integer of at least 1")
    if "jax" in sys.modules:
        raise RuntimeError("cores must be bound before jax is imported: XLA counts them once, when it starts")
    os.environ[NPROC_VARIABLE] = str(num_cores)


def xla_cores() -> int:
    """The number of cores that XLA counts in this process."""
    told = os.environ.get(NPROC_VARIABLE)
    return len(os.sched_getaffinity(0)) if told is None else int(told)
