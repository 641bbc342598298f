"""Shared memory that outlives nobody: its file's name goes as soon as all ranks have it open."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

MAPS = Path("/proc/self/maps")
NAMED = "/dev/shm/mpich_shm_"
STARTED_AFTER = 600.0
"""Seconds after which the ranks of any launch have opened what they share, or never will."""


def unlink_shared_memory(comm: Any | None) -> None:
    """Remove the names of MPICH's shared memory, which stays until the last rank has ended, however it ends: killed
    ranks would leave megabytes of a node's memory behind. All ranks call this, first of all. Nothing is there to do for
    other MPIs, nor where `comm` is None."""
    if comm is None or sys.platform != "linux":
        return
    # A rank that is still starting has to find the name.
    comm.Barrier()
    _remove_leftovers()
    for line in MAPS.read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith(NAMED) and not path.endswith("(deleted)"):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _remove_leftovers() -> None:
    """Remove the names that launches left which were killed before they came this far. Living ranks need none of that
    age, whosever they are."""
    for path in Path(NAMED).parent.glob(f"{Path(NAMED).name}*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > STARTED_AFTER:
                path.unlink()
