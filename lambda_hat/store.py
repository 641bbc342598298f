"""The store: where targets, runs and packs lie, and how files get there.

A file that is there is whole: everything is written beside its place, synced, and renamed. `meta.json` of a target
and `analysis.json` of a run are written last, so their presence means built and finished.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import CorruptArtifact, StoreError, StoreUnwritable
from lambda_hat.id_utils import canonical_json, identity_payload
from lambda_hat.omegaconf_support import load_build_config, load_sample_config, to_yaml

TargetStatus = Literal["built", "failed", "missing"]
RunStatus = Literal["finished", "failed", "pending"]


class Store:
    """A folder with every target, run and pack."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().absolute()

    @property
    def targets_dir(self) -> Path:
        return self.root / "targets"

    @property
    def packs_dir(self) -> Path:
        return self.root / "packs"

    def target_dir(self, target_id: str) -> Path:
        return self.targets_dir / target_id

    def run_dir(self, target_id: str, run_id: str) -> Path:
        return self.target_dir(target_id) / run_id

    def pack_dir(self, pack_id: str) -> Path:
        return self.packs_dir / pack_id

    def ensure_writable(self) -> None:
        """Make the folders; StoreError with path and reason where that, or writing a file, fails."""
        remedy = "give another one with --store DIR or store_root: DIR"
        check_folder(self.root, "store", remedy)
        try:
            for directory in (self.targets_dir, self.packs_dir):
                directory.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=directory):
                    pass
        except OSError as error:
            raise StoreError(f"{self.root}: the store cannot be written: {error.strerror or error}; {remedy}") from None

    def target_status(self, target_id: str) -> TargetStatus:
        directory = self.target_dir(target_id)
        if (directory / "meta.json").is_file():
            return "built"
        return "failed" if (directory / "error.json").is_file() else "missing"

    def run_status(self, target_id: str, run_id: str) -> RunStatus:
        directory = self.run_dir(target_id, run_id)
        if (directory / "analysis.json").is_file():
            return "finished"
        return "failed" if (directory / "error.json").is_file() else "pending"

    def target_ids(self) -> list[str]:
        """Every target folder, sorted."""
        return sorted(p.name for p in _directories(self.targets_dir, "tgt_"))

    def run_ids(self, target_id: str) -> list[str]:
        """Every run folder of a target, sorted."""
        return sorted(p.name for p in _directories(self.target_dir(target_id), "run_"))

    def check_target_config(self, target_id: str, cfg: BuildConfig) -> None:
        """StoreError where the stored target was built from another configuration than `cfg`."""
        path = self.target_dir(target_id) / "config.yaml"
        if path.is_file():
            _check_same(path, load_build_config(path), cfg)

    def check_run_config(self, target_id: str, run_id: str, cfg: SampleConfig) -> None:
        """StoreError where the stored run has another configuration than `cfg`."""
        path = self.run_dir(target_id, run_id) / "config.yaml"
        if path.is_file():
            _check_same(path, load_sample_config(path), cfg)


def check_folder(path: Path, what: str, remedy: str) -> None:
    """StoreError, without making anything, where `path` is no folder that could be made and written."""
    above = path
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        reason = f"{above} is not a folder"
    elif not os.access(above, os.W_OK | os.X_OK):
        reason = f"no permission to write in {above}"
    else:
        return
    raise StoreError(f"{path}: the {what} cannot be written: {reason}; {remedy}")


def _directories(parent: Path, prefix: str) -> Iterator[Path]:
    if parent.is_dir():
        yield from (p for p in parent.iterdir() if p.name.startswith(prefix) and p.is_dir())


def _check_same(path: Path, stored: BuildConfig | SampleConfig, asked: BuildConfig | SampleConfig) -> None:
    old, new = identity_payload(stored), identity_payload(asked)
    if canonical_json(old) == canonical_json(new):
        return
    differing = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    raise StoreError(
        f"{path}: the stored configuration differs from the one asked for in {', '.join(differing)}, though the id is "
        "the same; the file was edited or the store is damaged: move that folder away and run again"
    )


_NO_WRITING = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG, errno.ESTALE,
    errno.ENOTCONN, errno.ESHUTDOWN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EREMOTEIO,
}  # fmt: skip
"""The disk is full, a quota used up, the permission gone, or the file system."""


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


def write_config(directory: Path, cfg: BuildConfig | SampleConfig) -> None:
    """Write `config.yaml` into `directory`, which is made if it is missing."""
    write_bytes_atomic(directory / "config.yaml", to_yaml(cfg).encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: readers see the old file or the whole new one, also after a crash.

    Raises StoreUnwritable, or StoreError where something else lies in the way.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.urandom(8).hex()}{_LITTER}")
        descriptor = os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
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


_LITTER = ".part"


def remove_litter(directory: Path, older_than: float = 60.0) -> int:
    """Remove what writers that were killed left beside the files that they were writing; returns how many there were.

    older_than: seconds for which such a file counts as being written.
    """
    removed = 0
    try:
        names = [name for name in os.listdir(directory) if name.startswith(".") and name.endswith(_LITTER)]
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
            with tempfile.NamedTemporaryFile(dir=self._directory, prefix=".clock.", suffix=_LITTER) as file:
                file.write(b"0")
                file.flush()
                os.fsync(file.fileno())
                return os.fstat(file.fileno()).st_mtime - time.time()
        except OSError:
            return 0.0


def write_json_atomic(path: Path, content: Any) -> None:
    """Write JSON. Non-finite floats become null, since JSON has no word for them."""
    write_bytes_atomic(path, (json.dumps(finite_or_none(content), indent=1) + "\n").encode())


def finite_or_none(content: Any) -> Any:
    """`content` with every non-finite float replaced by None."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: finite_or_none(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite_or_none(value) for value in content]
    return content


def read_json(path: Path) -> Any:
    """Read JSON; CorruptArtifact naming the file where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise CorruptArtifact(f"{path}: not valid JSON ({error}); move it away and run again") from None


class EventLog:
    """An append-only file of JSON lines, one writer each."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", encoding="utf-8")

    def append(self, event: str, **fields: Any) -> None:
        """Append one event with the time (seconds since the epoch)."""
        record = {"time": time.time(), "event": event, **fields}
        self._file.write(json.dumps(finite_or_none(record)) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def read_events(path: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines after byte `offset`, and the offset to go on from. A line half-written is left for later."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    return [json.loads(line) for line in data[:end].splitlines() if line.strip()], offset + end
