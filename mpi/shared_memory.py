"""Removes the names of MPICH's shared memory, so that the memory is freed when the last rank ends, however it ends."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import Any

MAPS = Path("/proc/self/maps")
NAMED = "/dev/shm/mpich_shm_"
"""Start of the names of MPICH's shared memory."""
STARTED_AFTER = 600.0
"""Seconds within which the ranks of any launch have opened their shared memory, or never will."""


def unlink_shared_memory(comm: Any | None) -> None:
    """Remove the names of MPICH's shared memory once all ranks have opened it.

    The memory itself stays until the last rank has ended. With their names, killed ranks would leave megabytes of a
    node's memory behind. All ranks call this before anything else. Other MPIs have no such names.

    Args:
        comm: The communicator of all ranks; None: this process is alone, and there is nothing to do.
    """
    if comm is None or sys.platform != "linux":
        return
    # A rank that is still starting needs the name.
    comm.Barrier()
    _remove_leftovers()
    for line in MAPS.read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if path.startswith(NAMED) and not path.endswith("(deleted)"):
            with contextlib.suppress(OSError):
                os.unlink(path)


def _remove_leftovers() -> None:
    """Remove the names of launches that were killed before they removed them.

    No living rank, of whichever launch, needs a name older than STARTED_AFTER.
    """
    for path in Path(NAMED).parent.glob(f"{Path(NAMED).name}*"):
        with contextlib.suppress(OSError):
            found = path.stat()
            if found.st_uid == os.getuid() and time.time() - found.st_mtime > STARTED_AFTER:
                path.unlink()
