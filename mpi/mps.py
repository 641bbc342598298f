"""NVIDIA's Multi-Process Service (MPS): ranks that share a GPU compute on it at the same time, not in turn.

Each GPU has a control daemon of its own, which the first of its ranks starts and which sees that GPU alone. A shell
keeps watch beside it, and ends the daemon when this rank is gone, however it went.
"""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lambda_hat.errors import LaunchError

PROGRAM = "nvidia-cuda-mps-control"
SECONDS = 30.0
"""Longest time to wait for a daemon's start. Arbitrary."""
_KEEPER = f"""\
{PROGRAM} -d
echo $? > "$CUDA_MPS_PIPE_DIRECTORY/status.part"
mv "$CUDA_MPS_PIPE_DIRECTORY/status.part" "$CUDA_MPS_PIPE_DIRECTORY/status"
read -r nothing
echo quit | {PROGRAM}
rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
"""
"""Nobody writes to the shell that reads this: its `read` ends when the rank does."""
_keepers: list[subprocess.Popen[bytes]] = []
"""Until this process ends: a pipe that nothing refers to is closed."""


def place_of_mps(pack: Mapping[str, Any]) -> Path | None:
    """Where the ranks of a pack, or of a check, meet on their node; None for one that does without MPS."""
    # Names of sockets are short, and a file system of several nodes may have none.
    return Path(tempfile.gettempdir(), f"lambda_hat-{pack['pack_id']}") if pack["gpu_sharing"] == "mps" else None


def share_gpu(
    beside: Path,
    vendor: str,
    bound: tuple[str, int, int] | None,
    device: str,
    local_rank: int,
    ranks_per_gpu: int,
    environment: Mapping[str, str],
) -> dict[str, str]:
    """Let this rank reach its GPU through MPS.

    Args:
        beside: With the number of the GPU after it, the folder of a daemon's sockets and logs. It is on this node, of
            this launch alone, and removed at the end.
        vendor: Of the GPU.
        bound: How SLURM bound this task to GPUs of its own; None where it did not.
        device: The GPU as CUDA_VISIBLE_DEVICES names it.
        local_rank: Number of the rank on its node.
        ranks_per_gpu: Ranks that share a GPU. The first of them starts the daemon, and the others wait for it.
        environment: That of the rank.

    Returns:
        The variables to set.

    Raises:
        LaunchError: The GPU is not NVIDIA's or is seen by this task alone, or the daemon does not start.
    """
    if vendor != "cuda":
        raise LaunchError("gpu_sharing: mps is NVIDIA's, and the GPUs of this node are AMD's; write gpu_sharing: none")
    if bound is not None:
        raise LaunchError(
            f"gpu_sharing: mps: SLURM gave this task GPUs of its own ({bound[0]}), which the others may not see; write "
            "--gpu-bind=none"
        )
    place = beside.with_name(f"{beside.name}-{local_rank // ranks_per_gpu}")
    variables = {"CUDA_MPS_PIPE_DIRECTORY": str(place), "CUDA_MPS_LOG_DIRECTORY": str(place)}
    if local_rank % ranks_per_gpu == 0:
        _start(place, {**environment, **variables, "CUDA_VISIBLE_DEVICES": device})
    _wait(place)
    # The daemon counts its GPUs anew, so that the only one has number 0. A UUID stays as it is.
    return variables | {"CUDA_VISIBLE_DEVICES": "0" if device.isdecimal() else device}


def _start(place: Path, environment: dict[str, str]) -> None:
    try:
        # Others may neither look in nor have made it.
        place.mkdir(mode=0o700)
        with (place / "keeper.log").open("wb") as log:
            # In a session of its own, which the end of the launch leaves alone.
            keeper = subprocess.Popen(
                ["sh", "-c", _KEEPER], stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment,
                start_new_session=True,
            )  # fmt: skip
    except OSError as error:
        raise LaunchError(f"gpu_sharing: mps: {place}: {error.strerror or error}; write gpu_sharing: none") from None
    _keepers.append(keeper)


def _wait(place: Path) -> None:
    """Wait until the daemon has started; raises LaunchError where it does not."""
    until = time.monotonic() + SECONDS
    while not (place / "status").exists():
        if time.monotonic() > until:
            raise LaunchError(f"gpu_sharing: mps: {PROGRAM} did not start within {SECONDS:.0f} s{_said(place)}")
        time.sleep(0.05)
    status = (place / "status").read_text().strip()
    if status != "0":
        raise LaunchError(f"gpu_sharing: mps: {PROGRAM} -d ended with status {status}{_said(place)}")


def _said(place: Path) -> str:
    try:
        lines = (place / "keeper.log").read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    return f" ({'; '.join(filter(None, lines)) or 'without a word'}); write gpu_sharing: none, or ranks_per_gpu: 1"
