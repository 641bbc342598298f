"""The store: where targets, runs and packs lie, and how files get there.

A file that is there is whole: everything is written beside its place, synced, and renamed. `meta.json` of a target
and `analysis.json` of a run are written last, so their presence means built and finished.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import CorruptArtifact, StoreError
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


def write_config(directory: Path, cfg: BuildConfig | SampleConfig) -> None:
    """Write `config.yaml` into `directory`, which is made if it is missing."""
    write_bytes_atomic(directory / "config.yaml", to_yaml(cfg).encode())


def write_bytes_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: readers see the old file or the whole new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _umask() -> int:
    # mkstemp makes files private, and the process's umask can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


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
