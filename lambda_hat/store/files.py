"""Writing and reading single files of the store, safe against full disks, network file systems and kills.

A file that exists is whole: it is written under a temporary name, synced, and renamed. A record has its own checksum,
and the size and checksum of every file that it vouches for.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lambda_hat.errors import CorruptArtifact, StoreError, StoreUnwritable
from lambda_hat.store.run_files import read_bytes

_NO_WRITING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE,
    errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO,
}  # fmt: skip
"""Error numbers of a full disk, a used-up quota, a missing permission, or a file system that is gone."""
DAMAGED_NPZ = (
    ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""Exceptions that numpy and zipfile raise for a file that is not a valid .npz archive."""
_READS = 3
"""Attempts to read a file that is replaced meanwhile."""
_PART = ".part"
"""Suffix of the temporary names of files that are being written."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system inside the block into errors of the store that name the path.

    Raises:
        StoreUnwritable: The system refuses to write: the disk is full, for example, or a permission is missing.
        StoreError: Anything else is wrong with the file.
    """
    try:
        yield
    except OSError as error:
        words = f"{path}: cannot be written: {error.strerror or error}"
        if error.errno in _NO_WRITING:
            raise StoreUnwritable(
                f"{words}; finished runs are kept: once there is room, or the permission, the same command continues"
            ) from error
        raise StoreError(f"{words}; move away what lies there and run the same command again") from error


def create(path: Path) -> int:
    """Create a file and its folder, and return a descriptor to write to it.

    The folder is made only after opening has failed: to ask whether it exists costs a file server as much as opening.

    Raises:
        FileExistsError: The file exists.
        OSError: The system refuses.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


@contextlib.contextmanager
def undone_on_error(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` where an exception, Ctrl-C included, ends the block. An OSError of `undo` itself is dropped."""
    done = False
    try:
        yield
        done = True
    finally:
        if not done:
            with contextlib.suppress(OSError):
                undo()


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`. Readers see the old file or the whole new one, also after a crash.

    Raises:
        StoreUnwritable: The system refuses to write.
        StoreError: Something else lies in the way.
    """
    with writing(path):
        beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}{_PART}")
        descriptor = create(beside)
        with undone_on_error(beside.unlink):
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)


def remove_litter(directory: Path, older_than: float = 60.0) -> int:
    """Remove the temporary files of writers that were killed.

    Args:
        directory: Where they lie.
        older_than: Seconds after which a temporary file no longer counts as being written.

    Returns:
        How many were removed.
    """
    removed = 0
    try:
        names = [name for name in os.listdir(directory) if name.startswith(".") and name.endswith(_PART)]
    except OSError:
        return 0
    clock = FileSystemClock(directory)
    for name in names:
        with contextlib.suppress(OSError):
            path = directory / name
            if clock.now() - path.stat().st_mtime >= older_than:
                path.unlink()
                removed += 1
    return removed


class FileSystemClock:
    """The clock by which the file system of `directory` dates files. It is compared with this host's once."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._ahead: float | None = None

    def now(self) -> float:
        """Seconds since the epoch, as the modification time of a file written now."""
        if self._ahead is None:
            self._ahead = self._measure()
        return time.time() + self._ahead

    def _measure(self) -> float:
        """Seconds by which the file system is ahead of this host; 0 where nothing can be written there."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".clock.", suffix=_PART) as file:
                file.write(b"0")
                file.flush()
                os.fsync(file.fileno())
                return os.fstat(file.fileno()).st_mtime - time.time()
        except OSError:
            return 0.0


# --------------------------------------------------------------------------------------------------------------
# JSON


def write_json_atomic(path: Path, content: Any) -> None:
    """Write JSON. Non-finite floats become null, because JSON has no word for them."""
    write_bytes_atomic(path, _json_bytes(content))


def finite_or_none(content: Any) -> Any:
    """`content` with every non-finite float replaced by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite_or_none(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite_or_none(value) for value in content]
    return content


def _json_bytes(content: Any) -> bytes:
    return (json.dumps(finite_or_none(content), indent=1) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        FileNotFoundError: There is no file.
        CorruptArtifact: The file is not JSON; the message names it.
        StoreError: The system refuses to read; the message names the file.
    """
    return _parsed(path, _read(path))


def _read(path: Path) -> bytes:
    for attempt in range(_READS):
        try:
            return read_bytes(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            # An NFS client returns ESTALE for a file that was replaced after it was opened.
            if error.errno != errno.ESTALE or attempt == _READS - 1:
                raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    raise AssertionError


def _parsed(path: Path, data: bytes) -> Any:
    try:
        return _parse(data)
    except ValueError as error:
        raise CorruptArtifact(f"{path}: not valid JSON ({error}); move it away and run again") from None


def read_json_or_none(path: Path) -> Any:
    """Read JSON that nothing depends on; None where it is missing or damaged."""
    try:
        return read_json(path)
    except (OSError, StoreError):
        return None


def _parse(data: bytes) -> Any:
    """Parse JSON; raises ValueError where it is none."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_object(data: bytes | None) -> dict[str, Any] | None:
    """The JSON object in `data`; None where `data` is anything else."""
    try:
        content = _parse(data or b"")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


_HEAD = b'{\n "sha256": "'
_HEAD_BYTES = len(_HEAD) + 64


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whose first key, `sha256`, is the checksum of the rest of the file."""
    tail = _json_bytes({"": 0, **content}).partition(b'"": 0')[2]
    write_bytes_atomic(path, _HEAD + hashlib.sha256(tail).hexdigest().encode() + b'"' + tail)


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote, without the checksum.

    Raises:
        FileNotFoundError: There is no file.
        CorruptArtifact: The file was changed since it was written.
        StoreError: The system refuses to read.
    """
    return record_in(path, _read(path))


def record_in(path: Path, data: bytes) -> dict[str, Any]:
    """The record in `data`, the content of `path`. Raises CorruptArtifact as `read_record`."""
    expected, tail = data[len(_HEAD) : _HEAD_BYTES], data[_HEAD_BYTES + 1 :]
    if not data.startswith(_HEAD) or hashlib.sha256(tail).hexdigest().encode() != expected:
        raise CorruptArtifact(f"{path}: damaged: its checksum does not fit; move it away and run again")
    record = _parsed(path, data)
    record.pop("sha256")
    return record


def file_entry(data: bytes | memoryview) -> dict[str, Any]:
    """Size and checksum of a file's content, as the record that vouches for the file lists them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --------------------------------------------------------------------------------------------------------------
# Event logs


class EventLog:
    """An append-only file of JSON lines with one writer.

    An event that the disk has no room for is lost without an error: the result of a run is worth more than a line about
    it.
    """

    def __init__(self, path: Path):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        # An earlier writer may have been killed within a line; the next line must not continue it.
        self._torn = self._file.tell() > 0

    def append(self, event: str, **fields: Any) -> None:
        """Append one event with the time (seconds since the epoch)."""
        record = {"time": time.time(), "event": event, **fields}
        line = json.dumps(finite_or_none(record)).encode() + b"\n"
        line = b"\n" + line if self._torn else line
        try:
            self._torn = self._file.write(line) != len(line)
        except OSError:
            self._torn = True

    def close(self) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Read the events of an event log from byte `offset` on.

    An incomplete last line is left for the next call. A line that is not an event is skipped.

    Returns:
        The events, and the offset to go on from; no events where the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except OSError:
        return [], offset
    end = data.rfind(b"\n") + 1
    events = []
    for line in data[:end].split(b"\n"):
        if line.strip():
            event = json_object(line)
            if event is not None and isinstance(event.get("event"), str):
                events.append(event)
    return events, offset + end
