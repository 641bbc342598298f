"""Claims: one process at a time samples a run, whichever drivers and hosts share the store.

A claim is a file made with O_EXCL, which local and network file systems grant to one process only. There are no locks.
The claim of a dead owner is never removed, because another process may have taken it between the look and the removal.
Instead the next generation is taken (`claim-1`, `claim-2`, ...), and the owner of the last generation holds the run.

The generations are removed when the run is finished, lowest first. A process that claims the run after that finds
`analysis.json`, and gives its claim back.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lambda_hat.errors import StoreError
from lambda_hat.store.files import (
    FileSystemClock,
    create,
    json_object,
    remove_litter,
    undone_on_error,
    write_bytes_atomic,
    writing,
)
from lambda_hat.store.heartbeat import heartbeat_over
from lambda_hat.store.process_identity import is_here, process_lives, whoami

UNREADABLE_KEPT = 60.0
"""Seconds for which a claim without readable content counts as one that is being written. Longer than any write."""
WITHOUT_HEARTBEAT_KEPT = 3600.0
"""Seconds for which the claim of a process on another host counts where no heartbeat shows that the process lives."""


class Claim:
    """A claim that this process holds.

    Args:
        run_dir: The folder of the run.
        generation: The number in the file's name.
        record: The content of the file.
    """

    def __init__(self, run_dir: Path, generation: int, record: dict[str, Any]):
        self.run_dir, self.generation, self._record = run_dir, generation, record

    def release(self) -> None:
        """Give up the run unfinished: paused, failed or not begun. A full disk raises nothing."""
        path = _path(self.run_dir, self.generation)
        try:
            write_bytes_atomic(path, json.dumps({**self._record, "state": "released"}).encode())
        except (OSError, StoreError):
            # Removing the file does the same while there is no later generation, and needs no room.
            if not _path(self.run_dir, self.generation + 1).exists():
                with contextlib.suppress(OSError):
                    path.unlink()

    def finished(self) -> None:
        """Remove every generation up to this one, and temporary files of killed owners; `analysis.json` exists now."""
        if self.generation > 1:
            remove_litter(self.run_dir, older_than=0)
        for generation in range(1, self.generation + 1):
            with contextlib.suppress(OSError):
                _path(self.run_dir, generation).unlink()


def take(run_dir: Path, heartbeat: Path | None, **who: Any) -> Claim | None:
    """Claim a run for this process.

    Afterwards the caller looks for `analysis.json`, and calls `finished` where it exists.

    Args:
        run_dir: The folder of the run.
        heartbeat: The file of the driver that started this process; None: there is none.
        **who: Further entries of the record, `rank` and `pack_id`. A driver hands a run to one pack at a time, so a
            claim under the same heartbeat from another pack is an old one.

    Returns:
        The claim; None where another process holds the run (`holder` says which).

    Raises:
        StoreUnwritable: The claim cannot be written.
    """
    me = {**whoami(), "lease": None if heartbeat is None else str(heartbeat), "time": time.time(), "state": "held"}
    me |= {"id": uuid.uuid4().hex, **who}
    while True:
        generation, before = _first_free(run_dir, lambda record: _lives(run_dir, record, heartbeat_over, me))
        if generation is None:
            return None
        if not _create(_path(run_dir, generation), me):
            continue
        if generation == 1 or _read(_path(run_dir, generation - 1)) == before:
            if generation > 1:
                remove_litter(run_dir)
            return Claim(run_dir, generation, me)
        # Meanwhile the run was finished and its claims were removed, so this number may not continue them.
        with contextlib.suppress(OSError):
            _path(run_dir, generation).unlink()


def holder(
    run_dir: Path, own_heartbeat: Path | None = None, is_over: Callable[[Path], bool] = heartbeat_over
) -> dict[str, Any] | None:
    """The record of the process that holds a run; None where the run is free.

    Args:
        run_dir: The folder of the run.
        own_heartbeat: Of a driver that asks while none of its packs runs: a claim under it counts as old, unless its
            process is seen to live.
        is_over: A driver that asks about many runs gives `heartbeat_over` with a cache.
    """
    asking = {"lease": None if own_heartbeat is None else str(own_heartbeat), "pack_id": None}
    for generation in itertools.count(1):
        content = _read(_path(run_dir, generation))
        if content is None:
            return None
        record = _parse(content)
        if _lives_or_is_young(run_dir, generation, record, lambda r: _lives(run_dir, r, is_over, asking)):
            return record or {}
    raise AssertionError


def _first_free(run_dir: Path, lives: Callable[[dict[str, Any]], bool]) -> tuple[int | None, bytes | None]:
    """The first generation that does not exist, and the content of the one before; (None, None) for a held run."""
    before = None
    for generation in itertools.count(1):
        content = _read(_path(run_dir, generation))
        if content is None:
            return generation, before
        if _lives_or_is_young(run_dir, generation, _parse(content), lives):
            return None, None
        before = content
    raise AssertionError


def _lives_or_is_young(
    run_dir: Path, generation: int, record: dict[str, Any] | None, lives: Callable[[dict[str, Any]], bool]
) -> bool:
    if record is None:
        return _age(_path(run_dir, generation)) < UNREADABLE_KEPT
    if record.get("state") != "held":
        return False
    if not is_here(record) and not record.get("lease"):
        return _age(_path(run_dir, generation)) < WITHOUT_HEARTBEAT_KEPT
    return lives(record)


def _lives(run_dir: Path, record: dict[str, Any], is_over: Callable[[Path], bool], asking: dict[str, Any]) -> bool:
    """Whether the owner of a held claim, on this host or with a heartbeat, may still be at work."""
    if is_here(record):
        return process_lives(record)
    heartbeat = Path(record["lease"])
    ours = asking["lease"] is not None and Path(asking["lease"]).name == heartbeat.name
    if ours and record.get("pack_id") != asking.get("pack_id"):
        return False
    # The store may have another path on the owner's host.
    above = run_dir.absolute().parents
    beside = above[2] / "packs" / heartbeat.name if len(above) > 2 else heartbeat
    return not is_over(beside if beside.exists() else heartbeat)


def _path(run_dir: Path, generation: int) -> Path:
    return run_dir / f"claim-{generation}"


def _create(path: Path, record: dict[str, Any]) -> bool:
    """Make the file of a claim; False where it exists."""
    with writing(path):
        try:
            descriptor = create(path)
        except FileExistsError:
            return False
        # The file is not synced: after a crash of the host its owner is dead anyway.
        with undone_on_error(path.unlink), os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(record).encode())
    return True


def _read(path: Path) -> bytes | None:
    """The content of a claim; None where it does not exist, empty where it exists and cannot be read.

    Raises:
        StoreError: The system does not even say whether it exists.
    """
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if os.path.lexists(path):
            return b""
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(content: bytes) -> dict[str, Any] | None:
    record = json_object(content)
    whole = record is not None and isinstance(record.get("lease"), (str, type(None)))
    return record if whole else None


def _age(path: Path) -> float:
    """Seconds since a claim was written, by the file system's clock; infinite where the file is gone."""
    try:
        return FileSystemClock(path.parent).now() - path.stat().st_mtime
    except OSError:
        return float("inf")
