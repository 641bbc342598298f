"""Which nodes of a block or an allocation a pack takes, where some are left out.

Parsl deals a block's nodes out in shares, and knows nothing of bad ones. So a pack takes its nodes anew from all of the
block, by locks on files of the block's first node, which the end of a process frees.
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from lambda_hat.store.files import json_object, undone_on_error
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE
from mpi.launch import node_name

BLOCK_VARIABLE = "LAMBDA_HAT_TMPDIR"
"""The folder that a block's processes share."""
NO_GOOD_NODE = "no-good-node"
"""A file there: the block ends itself."""
LOOK_SECONDS = 1.0
GIVEN_UP_SECONDS = 60.0
"""Longer than a block takes to end itself. Until then a pack keeps its place, so that no other comes there."""


class NoGoodNode(Exception):
    """All nodes of a block are left out."""


def choose(nodes: Sequence[str], free: Collection[str], bad: Collection[str], wanted: int) -> tuple[str, ...]:
    """The nodes for a pack that wants `wanted` of them; none where it has to wait.

    nodes: all there are, those that it would take first. It gets fewer only where bad ones are the reason. Raises
    NoGoodNode where all are bad.
    """
    good = [node for node in nodes if node_name(node) not in bad]
    if not good:
        raise NoGoodNode(f"no good node is left: {', '.join(nodes)} failed")
    found = tuple(node for node in good if node in free)[:wanted]
    return found if wanted - len(found) <= len(nodes) - len(good) else ()


def left_out(lease: Path) -> set[str]:
    """The nodes that a driver leaves out, as its heartbeat tells now; none where that cannot be read."""
    try:
        nodes = (json_object(lease.read_bytes()) or {}).get("left_out")
    except OSError:
        return set()
    return set(map(str, nodes)) if isinstance(nodes, list) else set()


@contextlib.contextmanager
def nodes_in_block(
    share: Sequence[str], environ: Mapping[str, str], env: Mapping[str, str]
) -> Iterator[tuple[str, ...]]:
    """The nodes of a pack, which are its own in the block of code.

    share: those that Parsl gave it. environ, env: the environment of the block, and what the driver adds to it. Raises
    NoGoodNode, and then the block ends itself.
    """
    folder = environ.get(BLOCK_VARIABLE)
    if not folder or HEARTBEAT_VARIABLE not in env:
        # A block of a site in Python.
        yield tuple(share)
        return
    from flows.sites.site_schemas import allocated_nodes

    nodes = list(dict.fromkeys([*share, *allocated_nodes(environ)]))
    locks: dict[str, IO] = {}
    while not locks:
        with _lock(Path(folder) / "nodes.lock", fcntl.LOCK_EX):
            try:
                locks = _take(nodes, Path(folder), left_out(Path(env[HEARTBEAT_VARIABLE])), len(share))
            except NoGoodNode:
                (Path(folder) / NO_GOOD_NODE).touch()
                raise
        if not locks:
            time.sleep(LOOK_SECONDS)
    with contextlib.ExitStack() as stack:
        for lock in locks.values():
            stack.enter_context(lock)
        yield tuple(locks)


def _take(nodes: Sequence[str], folder: Path, bad: Collection[str], wanted: int) -> dict[str, IO]:
    """Lock nodes that no other pack has; none where there are too few."""
    with contextlib.ExitStack() as stack:
        locks = {}
        for node in nodes:
            with contextlib.suppress(BlockingIOError):
                locks[node] = stack.enter_context(_lock(folder / f"node-{node}.lock", fcntl.LOCK_EX | fcntl.LOCK_NB))
        found = choose(nodes, locks, bad, wanted)
        if found:
            stack.pop_all()
        for node in locks.keys() - set(found):
            locks[node].close()
    return {node: locks[node] for node in found}


def _lock(path: Path, how: int) -> IO:
    """Open a file and lock it; its end is that of the lock. Raises BlockingIOError."""
    file = path.open("a")
    with undone_on_error(file.close):
        fcntl.flock(file, how)
    return file
