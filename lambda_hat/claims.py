"""Claims: a run is sampled by one process at a time, whichever drivers and hosts share the store.

A claim is a file made with O_EXCL, which local and network file systems alike grant to one process only; there are no
locks. A claim whose owner has died is never taken away, for between the look and the removal it could be another's:
the next generation is taken instead (`claim-1`, `claim-2`, ...). The owner of the last one holds the run. Generations
go when the run is finished, lowest first; whoever claims it then finds `analysis.json`, and gives its claim back.
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
from lambda_hat.files import FileSystemClock, create, json_object, remove_litter, write_bytes_atomic, writing
from lambda_hat.lease import is_here, lease_over, process_lives, whoami

UNREADABLE_KEPT = 60.0
"""Seconds for which a claim without readable content counts as one that is being written."""
WITHOUT_LEASE_KEPT = 3600.0
"""Seconds for which the claim of a process on another host counts where no lease tells of its life."""


class Claim:
    """Held by this process. `run_dir` is the run's folder, `generation` the number in the file's name."""

    def __init__(self, run_dir: Path, generation: int, record: dict[str, Any]):
        self.run_dir, self.generation, self._record = run_dir, generation, record

    def release(self) -> None:
        """The run is given up unfinished: paused, failed or not begun. Never raises for want of room on the disk."""
        path = _path(self.run_dir, self.generation)
        try:
            write_bytes_atomic(path, json.dumps({**self._record, "state": "released"}).encode())
        except (OSError, StoreError):
            # Removing it is as good while nobody has gone past it, and needs no room.
            if not _path(self.run_dir, self.generation + 1).exists():
                with contextlib.suppress(OSError):
                    path.unlink()

    def finished(self) -> None:
        """The run's `analysis.json` is there: remove every generation up to this one, and what earlier owners left of
        writing when they were killed."""
        if self.generation > 1:
            remove_litter(self.run_dir, older_than=0)
        for generation in range(1, self.generation + 1):
            with contextlib.suppress(OSError):
                _path(self.run_dir, generation).unlink()


def take(run_dir: Path, lease: Path | None, **who: Any) -> Claim | None:
    """Claim a run for this process; None where another one holds it (`holder` says which).

    lease: that of the driver that started this process. who: what else the record should say, `rank` and `pack_id`;
    a driver hands a run to one pack at a time, so a claim under the same lease from another pack is an old one.
    The caller looks for `analysis.json` after this, and calls `finished` where it is there.
    Raises StoreUnwritable.
    """
    me = {**whoami(), "lease": None if lease is None else str(lease), "time": time.time(), "state": "held"}
    me |= {"id": uuid.uuid4().hex, **who}
    while True:
        generation, before = _first_free(run_dir, lambda record: _lives(run_dir, record, lease_over, me))
        if generation is None:
            return None
        if not _create(_path(run_dir, generation), me):
            continue
        if generation == 1 or _read(_path(run_dir, generation - 1)) == before:
            if generation > 1:
                remove_litter(run_dir)
            return Claim(run_dir, generation, me)
        # The run was finished in between, its claims removed, and this number may belong to no sequence any more.
        with contextlib.suppress(OSError):
            _path(run_dir, generation).unlink()


def holder(
    run_dir: Path, own_lease: Path | None = None, is_over: Callable[[Path], bool] = lease_over
) -> dict[str, Any] | None:
    """The record of the process that holds a run; None where it is free to be taken.

    own_lease: claims under it count as old, as those of a driver none of whose packs runs at the moment do, unless
    their process is seen to live. is_over: a driver with many runs to ask about hands in `lease_over` with a memory.
    """
    asking = {"lease": None if own_lease is None else str(own_lease), "pack_id": None}
    for generation in itertools.count(1):
        content = _read(_path(run_dir, generation))
        if content is None:
            return None
        record = _parse(content)
        if _lives_or_is_young(run_dir, generation, record, lambda r: _lives(run_dir, r, is_over, asking)):
            return record or {}
    raise AssertionError


def _first_free(run_dir: Path, lives: Callable[[dict[str, Any]], bool]) -> tuple[int | None, bytes | None]:
    """The first generation that does not exist, and the content of the one before; no number where the run is held."""
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
        return _age(_path(run_dir, generation)) < WITHOUT_LEASE_KEPT
    return lives(record)


def _lives(run_dir: Path, record: dict[str, Any], is_over: Callable[[Path], bool], asking: dict[str, Any]) -> bool:
    """Whether the owner of a held claim, on this host or under a lease, may still be at work."""
    if is_here(record):
        return process_lives(record)
    lease = Path(record["lease"])
    ours = asking["lease"] is not None and Path(asking["lease"]).name == lease.name
    if ours and record.get("pack_id") != asking.get("pack_id"):
        return False
    # The store may have another path on the owner's host.
    above = run_dir.absolute().parents
    beside = above[2] / "packs" / lease.name if len(above) > 2 else lease
    return not is_over(beside if beside.exists() else lease)


def _path(run_dir: Path, generation: int) -> Path:
    return run_dir / f"claim-{generation}"


def _create(path: Path, record: dict[str, Any]) -> bool:
    """Make the file with its content; False where it is there already."""
    with writing(path):
        try:
            descriptor = create(path)
        except FileExistsError:
            return False
        try:
            # Not synced: after a crash of the host its owner is dead anyway.
            with os.fdopen(descriptor, "wb") as file:
                file.write(json.dumps(record).encode())
        except BaseException:
            with contextlib.suppress(OSError):
                path.unlink()
            raise
    return True


def _read(path: Path) -> bytes | None:
    """The content of a claim; None where it does not exist. One that cannot be read is as good as empty.

    Raises StoreError where not even that can be told.
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
    """Seconds since a claim was written, by the file system's clock; infinite where it is gone."""
    try:
        return FileSystemClock(path.parent).now() - path.stat().st_mtime
    except OSError:
        return float("inf")
