"""The process and the device that compute: for records, for a site's preflight, and for the limit on memory."""

from __future__ import annotations

import os
import platform
import socket
import time
from typing import Any

import numpy as np

from lambda_hat.programs.cores import xla_cores
from lambda_hat.programs.memory import memory_of_node


def where_am_i() -> dict[str, Any]:
    """Host, process id, cores, device and versions, as every record of a computation carries them."""
    import jax

    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cores": xla_cores(),
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
    }


def visible_devices() -> list[tuple[str, str]]:
    """Backend (cpu, gpu, ...) and kind of every device that jax sees, the default device first.

    Raises:
        RuntimeError, AssertionError: from jax, when it cannot start any backend that `JAX_PLATFORMS` names.
    """
    import jax

    return [(jax.default_backend(), device.device_kind) for device in jax.devices()]


def memory_of_rank(ranks_on_node: int) -> int | None:
    """Bytes that a run may take: the memory of the device; on CPUs, this rank's share of the memory of the node.

    Returns:
        The number of bytes; None for a device that does not tell its limit.
    """
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return memory_of_node() // ranks_on_node


PROBE_ROWS = 40_000
"""So many that jaxlib 0.10.2 computes some of the sums of `probe` wrong on CPUs (jax issue 39103)."""


def probe() -> dict[str, Any]:
    """Compile and run a small program, for a site's preflight.

    Returns:
        The backend, the device and its memory in bytes, the `result`, the value `expected` of it, and the seconds that
        it took. The two values are equal on every device that computes correctly: they are sums of whole numbers that
        float32 holds exactly, and so do the shorter factors of a GPU's matrix product.
    """
    import jax
    import jax.numpy as jnp

    begun = time.monotonic()
    rows = np.arange(3 * PROBE_ROWS).reshape(-1, 3) % 5 - 2
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=np.float32) @ row) ** 2)))(rows.astype(np.float32))
    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "device_memory": (device.memory_stats() or {}).get("bytes_limit"),
        "result": float(np.sum(squares, dtype=np.float64)),
        "expected": float(np.sum(rows**2)),
        "seconds_compute": time.monotonic() - begun,
    }
