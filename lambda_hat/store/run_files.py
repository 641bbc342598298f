"""Where the files of a run lie: in the run's folder, or in the archive of its target.

`lambda-hat compact` puts finished runs into `runs.zip` in the folder of their target, as members `run_.../name`, which
are not compressed. All that reads a run asks here. A file in the run's folder counts before that in the archive. A file
`discarded` in the folder says that the run's files in the archive count no more.
"""

from __future__ import annotations

import calendar
import errno
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lambda_hat.errors import StoreError

ARCHIVE = "runs.zip"
"""In the folder of a target: its finished runs that are in one file."""
DISCARDED = "discarded"
"""In the folder of a run: what the archive has of it counts no more."""
_BROKEN = (
    zipfile.BadZipFile, ValueError, LookupError, EOFError, RuntimeError, OverflowError, MemoryError, struct.error,
)  # fmt: skip
"""Exceptions that zipfile raises for a file that is not a valid archive."""
_HEAD = struct.Struct("<26xHH")
"""Of a member: the lengths of its name and of its extra field, which precede the content."""


class Member(NamedTuple):
    """One file in an archive."""

    offset: int
    size: int
    """Bytes."""
    written: float
    """When the file was written, rounded up to two seconds; seconds since the epoch."""


Runs = Mapping[str, Mapping[str, Member]]
"""The files of every run in an archive, by the run's id and the file's name."""
_known: dict[Path, tuple[tuple[int, int, int], Runs | None]] = {}
"""What each archive has, None for a damaged one, and by what it is seen to be another file than then."""


def runs_in(target_dir: Path) -> Runs:
    """The runs in the archive of a target; none where there is no archive, or a damaged one.

    Raises:
        StoreError: The system refuses to read.
    """
    return _look(target_dir / ARCHIVE) or {}


def is_damaged(target_dir: Path) -> bool:
    """Whether a target has an archive that is none. Raises StoreError as `runs_in`."""
    return _look(target_dir / ARCHIVE) is None


def archived(path: Path) -> Member | None:
    """What the archive has of a run's file, and counts where the run's folder has no such file; otherwise None.

    Raises:
        StoreError: The system refuses to read.
    """
    run_dir = path.parent
    if not run_dir.name.startswith("run_"):
        return None
    member = runs_in(run_dir.parent).get(run_dir.name, {}).get(path.name)
    return None if member is None or os.path.lexists(run_dir / DISCARDED) else member


def read_bytes(path: Path) -> bytes:
    """The content of a run's file, wherever it lies; of any other file as `Path.read_bytes`.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: The system refuses to read.
        StoreError: It refuses to read the archive.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        if archived(path) is None:
            raise
        return content_in(path.parent.parent / ARCHIVE, path.parent.name, path.name)


def content_in(archive: Path, run_id: str, name: str) -> bytes:
    """What an archive has as the content of a file, discarded or not; checksums are the caller's.

    Raises:
        FileNotFoundError: There is no archive, or no such file in it.
        OSError: The system refuses to read.
    """
    with archive.open("rb") as file:
        member = (_runs_of(archive, file) or {}).get(run_id, {}).get(name)
        if member is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(archive / run_id / name))
        return content(file, member)


def content(file: BinaryIO, member: Member) -> bytes:
    """What an open archive has as the content of a file; checksums are the caller's."""
    file.seek(member.offset)
    head = file.read(_HEAD.size)
    if len(head) == _HEAD.size:
        file.seek(sum(_HEAD.unpack(head)), os.SEEK_CUR)
    return file.read(member.size)


def has(path: Path) -> bool:
    """Whether a run has this file."""
    return path.is_file() or archived(path) is not None


def file_status(path: Path) -> tuple[int, float]:
    """Bytes of a run's file, and when it was written in seconds since the epoch; raises OSError without a file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        member = archived(path)
        if member is None:
            raise
        return member.size, member.written
    return found.st_size, found.st_mtime


def names(run_dir: Path) -> frozenset[str]:
    """The names of all files of a run, and of what else lies in its folder; raises OSError where it cannot be read."""
    try:
        there = frozenset(os.listdir(run_dir))
    except FileNotFoundError:
        there = frozenset()
    return there if DISCARDED in there else there | runs_in(run_dir.parent).get(run_dir.name, {}).keys()


def is_there(run_dir: Path) -> bool:
    """Whether a run has a folder, or is in the archive of its target."""
    return run_dir.is_dir() or run_dir.name in runs_in(run_dir.parent)


def discard(run_dir: Path) -> None:
    """Remove a run's result, so that it counts as not sampled.

    Raises:
        OSError: The system refuses.
    """
    (run_dir / "analysis.json").unlink(missing_ok=True)
    hide(run_dir)


def hide(run_dir: Path) -> None:
    """Let what the archive has of a run count no more; raises OSError where the system refuses."""
    if run_dir.name in runs_in(run_dir.parent):
        run_dir.mkdir(exist_ok=True)
        (run_dir / DISCARDED).touch()


def _look(archive: Path) -> Runs | None:
    """As `_runs_of`; no runs where there is no archive."""
    try:
        kept = _known.get(archive)
        # An NFS client may not know yet that there is a new archive: a run that it misses is sampled again at worst.
        if _identity(archive.stat()) == (kept and kept[0]):
            return kept and kept[1]
        with archive.open("rb") as file:
            return _runs_of(archive, file)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except IsADirectoryError:
        return None
    except OSError as error:
        raise StoreError(f"{archive}: cannot be read: {error.strerror or error}") from error


def _runs_of(archive: Path, file: BinaryIO) -> Runs | None:
    """The runs in an open archive; None where it is damaged."""
    identity = _identity(os.fstat(file.fileno()))
    kept = _known.get(archive)
    if kept is None or kept[0] != identity:
        try:
            kept = identity, listed(file)
        except _BROKEN:
            kept = identity, None
        except OSError as error:
            # A damaged archive may name a place before its beginning.
            if error.errno != errno.EINVAL:
                raise
            kept = identity, None
        _known[archive] = kept
    return kept[1]


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_size, found.st_mtime_ns


def listed(file: BinaryIO) -> Runs:
    """The runs in an open archive; raises what zipfile raises where it is damaged."""
    found: dict[str, dict[str, Member]] = {}
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            run_id, slash, name = info.filename.partition("/")
            # Names may not lead out of the folder of the target.
            plain = run_id.startswith("run_") and slash and name not in ("", ".", "..") and "/" not in name
            if not plain or info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise zipfile.BadZipFile(f"{info.filename!r} is not as compact writes it")
            written = calendar.timegm((*info.date_time, 0, 0, 0))
            found.setdefault(run_id, {})[name] = Member(info.header_offset, info.file_size, written)
    return found
