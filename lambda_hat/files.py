"""How single files of the store are written and read, whatever the disk, the network or a kill does to them.

A file that is there is whole: it is written beside its place, synced, and renamed. A record carries its own checksum,
and the size and checksum of the files that it vouches for.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lambda_hat.errors import CorruptArtifact, StoreError, StoreUnwritable

_NO_WRITING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE,
    errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO,
}  # fmt: skip
"""The disk is full, a quota used up, the permission gone, or the file system."""
DAMAGED_NPZ = (
    ValueError, KeyError, EOFError, OSError, RuntimeError, MemoryError, struct.error, zipfile.BadZipFile, zlib.error
)  # fmt: skip
"""What numpy and zipfile raise of an npz file that is none."""
_READS = 3
_PART = ".part"
"""How the names of files end that are being written."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Inside the block the system's refusal to write becomes StoreUnwritable, any other trouble with a file
    StoreError, both with the path."""
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
    """A descriptor to write a new file, whose folder is made only where it is missing: asking costs a server as much.

    Raises FileExistsError, or what else the system says.
    """
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, flags, 0o666)


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path`: readers see the old file or the whole new one, also after a crash.

    Raises StoreUnwritable, or StoreError where something else lies in the way.
    """
    with writing(path):
        beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}{_PART}")
        descriptor = create(beside)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise


def remove_litter(directory: Path, older_than: float = 60.0) -> int:
    """Remove what writers that were killed left beside the files that they were writing; returns how many there were.

    older_than: seconds for which such a file counts as being written.
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
    """The time that a file written in `directory` now would get; it is asked for once, at the first use."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._ahead: float | None = None

    def now(self) -> float:
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
    """Write JSON. Non-finite floats become null, since JSON has no word for them."""
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
    """Read JSON. Raises FileNotFoundError, CorruptArtifact where it is not JSON, StoreError where the system refuses,
    the last two naming the file."""
    return _parsed(path, _read(path))


def _read(path: Path) -> bytes:
    for attempt in range(_READS):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            # An NFS client says ESTALE of a file that was replaced after it was opened.
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
    """Raises ValueError."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def json_object(data: bytes | None) -> dict[str, Any] | None:
    """The JSON object in `data`; None where there is none."""
    try:
        content = _parse(data or b"")
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


_HEAD = b'{\n "sha256": "'
_HEAD_BYTES = len(_HEAD) + 64


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write JSON whose first key, `sha256`, is the checksum of all that follows it in the file."""
    tail = _json_bytes({"": 0, **content}).partition(b'"": 0')[2]
    write_bytes_atomic(path, _HEAD + hashlib.sha256(tail).hexdigest().encode() + b'"' + tail)


def read_record(path: Path) -> dict[str, Any]:
    """Read what `write_record` wrote.

    Raises FileNotFoundError, CorruptArtifact where it was changed since, StoreError where the system refuses.
    """
    data = _read(path)
    expected, tail = data[len(_HEAD) : _HEAD_BYTES], data[_HEAD_BYTES + 1 :]
    if not data.startswith(_HEAD) or hashlib.sha256(tail).hexdigest().encode() != expected:
        raise CorruptArtifact(f"{path}: damaged: its checksum does not fit; move it away and run again")
    record = _parsed(path, data)
    record.pop("sha256")
    return record


def file_entry(data: bytes) -> dict[str, Any]:
    """Size and checksum of a file, as the record that vouches for it has them."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --------------------------------------------------------------------------------------------------------------
# Event logs


class EventLog:
    """An append-only file of JSON lines, one writer each. An event that the disk has no room for is lost, and nothing
    else: what a run computed is worth more than a line about it."""

    def __init__(self, path: Path):
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab", buffering=0)
        # Where an earlier writer was killed within a line, the first one of ours must not be glued to it.
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
        with contextlib.suppress(OSError):
            self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events in the whole lines after byte `offset`, and the offset to go on from. A line half-written is left for
    later, one that is no event is passed over."""
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
