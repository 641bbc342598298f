"""Finished runs of a target put into one file, so that a store of many runs takes few files.

Whenever this is killed, every run is whole in its folder or in the archive, and the next call goes on:

1. The new archive is written beside the old one, synced, and read back against the checksums of what went in.
2. It takes the place of the old one. From now on the folders of its runs are not needed.
3. Each of these folders is renamed, so that it is gone at once for every reader, and removed, `analysis.json` last.

Drivers may be at work meanwhile. Where one discards a run between 1 and 3, its folder has no `analysis.json`, and takes
its place again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import shutil
import stat
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lambda_hat.errors import StoreError
from lambda_hat.store import claims, run_files
from lambda_hat.store.files import create, file_entry, record_in, undone_on_error, writing
from lambda_hat.store.heartbeat import Heartbeat, older_drivers
from lambda_hat.store.layout import CHECKPOINT, Store

_BESIDE = f".{run_files.ARCHIVE}."
"""Beginning of the names of archives that are being written. A build removes files that end on .part."""
_REMOVED = ".archived"
"""Suffix of the names of folders that are being removed."""
_MEMBER_BYTES = 512
"""Of an archive, for each file in it beside its content. More than it takes."""
_RECORD = "analysis.json"


class Loose(NamedTuple):
    """A finished run in a folder of its own."""

    run_id: str
    names: list[str]
    """Its files that go into the archive."""
    size: int
    """Bytes of these."""
    inodes: int
    """Everything in the folder, and the folder."""


@dataclass
class Compaction:
    """The finished runs of one target, and what becomes of them."""

    store: Store
    target_id: str
    loose: list[Loose]
    """Those that go into the archive."""
    kept: Mapping[str, Mapping[str, run_files.Member]]
    """Those that are in the archive and stay there."""
    left: int
    """Runs that are unfinished or being sampled, or have something other than files in their folder."""
    damaged: int = 0
    """Finished runs that are not whole, and were left."""

    @property
    def size(self) -> int:
        """Most bytes that the new archive takes."""
        kept = sum(member.size + _MEMBER_BYTES for members in self.kept.values() for member in members.values())
        return kept + sum(run.size + _MEMBER_BYTES * len(run.names) for run in self.loose)

    def run(self) -> None:
        """Put the runs into the archive, and remove their folders.

        Raises:
            StoreUnwritable: There is no room, for example.
            StoreError: Something else is in the way.
        """
        directory = self.store.target_dir(self.target_id)
        archive = directory / run_files.ARCHIVE
        beside = directory / f"{_BESIDE}{os.urandom(8).hex()}"
        with writing(archive):
            with undone_on_error(beside.unlink):
                with os.fdopen(create(beside), "wb") as file:
                    digests = self._written(file, archive)
                    file.flush()
                    os.fsync(file.fileno())
                _check(beside, digests)
                if not self.loose:
                    beside.unlink()
                    return
                os.replace(beside, archive)
            _sync(directory)
            for run in self.loose:
                aside = directory / f".{run.run_id}{_REMOVED}"
                with contextlib.suppress(FileNotFoundError):
                    os.rename(directory / run.run_id, aside)
                    _remove(aside, digests[run.run_id, _RECORD])

    def _written(self, file: BinaryIO, archive: Path) -> dict[tuple[str, str], bytes]:
        """Write the archive. Returns the checksum of each file in it, by run and name."""
        digests: dict[tuple[str, str], bytes] = {}
        with zipfile.ZipFile(file, "w") as new:

            def add(run_id: str, name: str, content: bytes, written: float) -> None:
                # Times in an archive are even seconds, and no earlier than 1980.
                when = max(time.gmtime(2 * math.ceil(written / 2))[:6], (1980, 1, 1, 0, 0, 0))
                entry = zipfile.ZipInfo(f"{run_id}/{name}", when)
                entry.external_attr = 0o644 << 16
                new.writestr(entry, content)
                digests[run_id, name] = hashlib.sha256(content).digest()

            with archive.open("rb") if self.kept else contextlib.nullcontext(file) as old:
                for run_id, members in self.kept.items():
                    for name, member in members.items():
                        add(run_id, name, run_files.content(old, member), member.written)
            whole = []
            for run in self.loose:
                contents = self._contents(run)
                if contents is None:
                    continue
                whole.append(run)
                for name, (content, written) in contents.items():
                    add(run.run_id, name, content, written)
            self.loose = whole
        return digests

    def _contents(self, run: Loose) -> dict[str, tuple[bytes, float]] | None:
        """The content of each file of a run, and when it was written; None where the run stays in its folder."""
        run_dir = self.store.run_dir(self.target_id, run.run_id)
        status, damages = self.store.inspect_run(self.target_id, run.run_id, None, thorough=True, move=False)
        if damages:
            self.damaged += 1
            return None
        found = {}
        with contextlib.suppress(FileNotFoundError):
            paths = {name: run_dir / name for name in run.names}
            found = {name: (path.read_bytes(), path.stat().st_mtime) for name, path in paths.items()}
        # It may have been discarded, or sampled anew, since it was inspected.
        files = record_in(run_dir / _RECORD, found[_RECORD][0])["files"] if found else {}
        same = (name == "config.yaml" or file_entry(found[name][0]) == entry for name, entry in files.items())
        if status != "finished" or not files or not all(same):
            self.left += 1
            return None
        return found


def survey(store: Store, target_id: str) -> Compaction:
    """What there is to do for a target.

    Raises:
        StoreError: Its archive is damaged, or the system refuses to read.
    """
    directory = store.target_dir(target_id)
    if run_files.is_damaged(directory):
        raise StoreError(f"{directory / run_files.ARCHIVE}: not a whole archive; lambda-hat verify sets it aside")
    kept, loose, left = dict(run_files.runs_in(directory)), [], 0
    for run_dir in sorted(directory.glob("run_*")):
        if run_dir.is_symlink() or not run_dir.is_dir():
            continue
        found = _sizes(run_dir)
        if _RECORD not in found:
            left += 1
            if run_files.DISCARDED in found:
                kept.pop(run_dir.name, None)
        elif None in found.values() or claims.holder(run_dir) is not None:
            left += 1
        else:
            kept.pop(run_dir.name, None)
            names = [name for name in sorted(found) if not _is_left_over(name)]
            size = sum(found[name] or 0 for name in names)
            loose.append(Loose(run_dir.name, names, size, len(found) + 1))
    return Compaction(store, target_id, loose, kept, left)


def _sizes(run_dir: Path) -> dict[str, int | None]:
    """The bytes of each file in a folder by its name; None for what is no file. Raises StoreError."""
    found: dict[str, int | None] = {}
    try:
        with os.scandir(run_dir) as entries:
            for entry in entries:
                # A file may be removed meanwhile.
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat()
                    found[entry.name] = status.st_size if stat.S_ISREG(status.st_mode) else None
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{run_dir}: cannot be read: {error.strerror or error}") from error
    return found


def _is_left_over(name: str) -> bool:
    """Whether no one needs this file of a run once the run is finished."""
    return name.startswith((".", "claim-")) or name in (CHECKPOINT, run_files.DISCARDED)


def check_room(store: Store, planned: list[Compaction]) -> None:
    """Refuse archives that the disk has no room for. An archive is written while the folders of its runs are there.

    Raises:
        StoreError: There is too little room.
    """
    largest = max((one for one in planned if one.loose), key=lambda one: one.size, default=None)
    free = shutil.disk_usage(store.targets_dir).free
    if largest is not None and largest.size > free:
        raise StoreError(
            f"{store.target_dir(largest.target_id) / run_files.ARCHIVE}: it would take {largest.size / 2**20:.1f} MiB, "
            f"and the disk has room for {free / 2**20:.1f} MiB; nothing was changed"
        )


def refuse_older_drivers(store: Store) -> None:
    """Refuse a store in which a driver is at work that would not find runs in archives.

    Raises:
        StoreError: There is one.
    """
    for driver in older_drivers(store.packs_dir):
        raise StoreError(
            f"{store.root}: process {driver.get('pid')} on {driver.get('host')} is at work here with an older version "
            "of lambda_hat, which finds no runs in archives; wait for its end, or stop it; nothing was changed"
        )


@contextlib.contextmanager
def alone(store: Store) -> Iterator[None]:
    """Let no other process put runs of this store into archives meanwhile, and tidy up after one that was killed.

    Raises:
        StoreError: Another process does.
    """
    # A claim's folder lies as deep in the store as that of a run.
    lock = store.targets_dir / ".compact" / "lock"
    with contextlib.ExitStack() as stack:
        heartbeat = Heartbeat(store.packs_dir)
        stack.callback(heartbeat.path.unlink, missing_ok=True)
        stack.enter_context(heartbeat)
        claim = claims.take(lock, heartbeat.path)
        if claim is None:
            who = claims.holder(lock) or {}
            raise StoreError(
                f"{store.root}: process {who.get('pid')} on {who.get('host')} compacts this store now; wait for its "
                "end; nothing was changed"
            )
        try:
            for target_id in store.target_ids():
                _tidy(store.target_dir(target_id))
            yield
        finally:
            claim.finished()
            for folder in (lock, lock.parent):
                with contextlib.suppress(OSError):
                    folder.rmdir()


def _tidy(directory: Path) -> None:
    """Finish what a killed process has begun."""
    with writing(directory):
        for path in directory.glob(f"{_BESIDE}*"):
            path.unlink()
        for aside in directory.glob(f".run_*{_REMOVED}"):
            run_id = aside.name[1 : -len(_REMOVED)]
            try:
                record = run_files.content_in(directory / run_files.ARCHIVE, run_id, _RECORD)
            except FileNotFoundError:
                record = None
            _remove(aside, None if record is None else hashlib.sha256(record).digest())


def _remove(aside: Path, digest: bytes | None) -> None:
    """Remove a renamed folder whose run is in the archive, or rename it back.

    Args:
        aside: The folder.
        digest: The checksum of the run's `analysis.json` in the archive; None: it is not there.
    """
    names = [name for name in os.listdir(aside) if not name.startswith(".nfs")]
    try:
        same = hashlib.sha256((aside / _RECORD).read_bytes()).digest() == digest
    except FileNotFoundError:
        # With nothing else there either, the removal was under way.
        same = not names
    if not same:
        _put_back(aside)
        return
    for name in sorted(names, key=lambda name: name == _RECORD):
        (aside / name).unlink()
    # Files that another host has open may keep the folder for a while.
    with contextlib.suppress(OSError):
        aside.rmdir()


def _put_back(aside: Path) -> None:
    """Rename a folder back: its run was discarded, or sampled anew, while it was put into the archive."""
    run_dir = aside.with_name(aside.name[1 : -len(_REMOVED)])
    (aside / run_files.DISCARDED).touch()
    try:
        os.rename(aside, run_dir)
    except OSError:
        # Whoever samples it has made a new folder, and what the run had before counts no more.
        run_files.hide(run_dir)
        shutil.rmtree(aside)


def _check(archive: Path, digests: dict[tuple[str, str], bytes]) -> None:
    """Read an archive back; raises StoreError where it does not have what was written."""
    with archive.open("rb") as file:
        runs = run_files.listed(file)
        for (run_id, name), digest in digests.items():
            if hashlib.sha256(run_files.content(file, runs[run_id][name])).digest() != digest:
                raise StoreError(f"{archive}: {run_id}/{name} reads back as something else; nothing was changed")


def _sync(directory: Path) -> None:
    """Let what was renamed in a folder last."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        # Some file systems have no such thing, and need none.
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
