"""Which process wrote a record, and whether it still runs."""

from __future__ import annotations

import functools
import os
import socket
from pathlib import Path
from typing import Any


def whoami() -> dict[str, Any]:
    """This process as heartbeats and claims name it, so that `process_lives` can tell whether it still runs."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_ticks(pid), "place": place()}


@functools.cache
def place() -> str:
    """The scope of process ids: host, boot, and the namespace of a container."""
    words = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            words.append(read().strip())
        except OSError:
            words.append("?")
    return "/".join(words)


def is_here(record: dict[str, Any]) -> bool:
    """Whether the process of a record ran in this scope of process ids, where its id can be looked up."""
    return record.get("place") == place() and record.get("started") is not None


def process_lives(record: dict[str, Any]) -> bool:
    """Whether the process of a record of this scope still runs."""
    pid = record.get("pid")
    if type(pid) is not int or pid <= 0:
        return False
    ticks = _start_ticks(pid)
    if ticks is not None:
        return ticks == record.get("started")
    try:
        os.kill(pid, 0)
    except PermissionError:
        # It is another user's process, and this /proc hides those.
        return True
    except (OSError, OverflowError):
        return False
    return False


def _start_ticks(pid: int) -> str | None:
    """When a process started, in kernel ticks, which tells it from a later process of the same number.

    None: it has ended, even if its parent has not noticed yet.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
