"""The memory that a process may take."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60
"""Least limit that counts as none: where there is no limit, cgroups of version 1 give about this number or more."""


def memory_of_node(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process may take: those of the node, or fewer where a batch system or a container limits them.

    Args:
        cgroups: Where the cgroups are mounted.
        own: The file that names the cgroups of this process.
    """
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *memory_limits(cgroups, own)])


def memory_limits(cgroups: Path, own: Path) -> Iterator[int]:
    """The limits in bytes of this process's cgroups and of every cgroup above them, of both versions.

    The arguments are as of `memory_of_node`.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for above in (folder, *folder.parents):
            try:
                limit = int((above / name).read_text())
            except (OSError, ValueError):
                limit = UNLIMITED
            if limit < UNLIMITED:
                yield limit
            if above == root:
                break
