"""The store: where targets, runs and packs lie, what it says of them, and what becomes of what is damaged.

`meta.json` of a target and `analysis.json` of a run are written last, and vouch for the other files of their folder:
their presence means built and finished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import StoreError
from lambda_hat.files import (
    EventLog,
    FileSystemClock,
    file_entry,
    finite_or_none,
    read_events,
    read_json,
    read_json_or_none,
    read_record,
    remove_litter,
    write_bytes_atomic,
    write_json_atomic,
    write_record,
    writing,
)
from lambda_hat.id_utils import run_id_for, target_id_for
from lambda_hat.integrity import (
    ANALYSIS_FORMAT,
    META_FORMAT,
    Digests,
    Finding,
    config_digest,
    findings_in_run,
    findings_in_target,
)
from lambda_hat.omegaconf_support import to_yaml

__all__ = [
    "CACHE_OFF",
    "CACHE_VARIABLE",
    "Damage",
    "Digests",
    "EventLog",
    "FileSystemClock",
    "Store",
    "check_folder",
    "error_line",
    "existing_store",
    "file_entry",
    "finite_or_none",
    "programs_folder",
    "publish_run",
    "publish_target",
    "read_events",
    "read_json",
    "read_json_or_none",
    "read_record",
    "remove_litter",
    "write_bytes_atomic",
    "write_config",
    "write_json_atomic",
    "write_record",
    "writing",
]

TargetStatus = Literal["built", "failed", "missing"]
RunStatus = Literal["finished", "failed", "pending"]

CACHE_VARIABLE = "LAMBDA_HAT_CACHE"
"""Environment variable: another folder than the store's `cache` to exchange compiled programs through, or CACHE_OFF."""
CACHE_OFF = "off"
PROBE_BYTES = 16 * 1024
"""More than a file system keeps room for within a file's own entry."""


@dataclass(frozen=True)
class Damage:
    """A file or folder that was not what it should be, and where it lies now."""

    path: Path
    reason: str
    moved_to: Path | None
    """None: it was left, or someone else has moved it."""

    def __str__(self) -> str:
        where = "" if self.moved_to is None else f"; set aside as {self.moved_to}"
        return f"{self.path}: {self.reason}{where}"


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

    @property
    def cache_dir(self) -> Path:
        """Compiled programs; nothing depends on them, and they may be deleted at any time."""
        return self.root / "cache"

    def target_dir(self, target_id: str) -> Path:
        return self.targets_dir / target_id

    def run_dir(self, target_id: str, run_id: str) -> Path:
        return self.target_dir(target_id) / run_id

    def pack_dir(self, pack_id: str) -> Path:
        return self.packs_dir / pack_id

    def ensure_writable(self) -> None:
        """Make the folders, and try whether files can be written there.

        Raises StoreError, with path and reason, for a place that is none, StoreUnwritable where the disk is full.
        """
        remedy = "give another one with --store DIR or store_root: DIR"
        check_folder(self.root, "store", remedy)
        for directory in (self.targets_dir, self.packs_dir):
            with _refused_as(f"{self.root}: the store cannot be written", remedy):
                directory.mkdir(parents=True, exist_ok=True)
            probe = directory / f".probe.{os.urandom(8).hex()}.part"
            with writing(probe):
                try:
                    write_bytes_atomic(probe, bytes(PROBE_BYTES))
                finally:
                    probe.unlink(missing_ok=True)
            remove_litter(directory)

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

    def entries(self, target_id: str) -> frozenset[str] | None:
        """The names of all that lies in a target's folder; None where that cannot be told. It is one look in place of
        several at each of the runs that are not there."""
        try:
            return frozenset(os.listdir(self.target_dir(target_id)))
        except FileNotFoundError:
            return frozenset()
        except OSError:
            return None

    def inspect_target(
        self,
        target_id: str,
        cfg: BuildConfig | None,
        thorough: bool = False,
        move: bool = True,
        digests: Digests | None = None,
    ) -> tuple[TargetStatus, list[Damage]]:
        """A target's status, what is damaged or another's set aside: a target whose record is gone is built again.

        cfg: what it should be; None: what its own files say. thorough: read every file and hold it against its
        checksum, not only the record and all sizes; with `digests`, each file once. move: False tells what is wrong,
        and leaves it where it is.
        Raises StoreError where the system refuses to read, StoreUnwritable where nothing can be moved.
        """
        directory = self.target_dir(target_id)
        found = _looked_at_twice(lambda known: findings_in_target(directory, target_id, cfg, known), thorough, digests)
        if found:
            return "missing", self._set_all_aside(found, move)
        if found is not None:
            return "built", []
        return "failed" if (directory / "error.json").is_file() else "missing", []

    def inspect_run(
        self,
        target_id: str,
        run_id: str,
        cfg: SampleConfig | None,
        thorough: bool = False,
        move: bool = True,
        digests: Digests | None = None,
    ) -> tuple[RunStatus, list[Damage]]:
        """A run's status, what is damaged or another's set aside: a run whose record is gone is sampled again.

        Otherwise as `inspect_target`.
        """
        directory = self.run_dir(target_id, run_id)
        found = _looked_at_twice(
            lambda known: findings_in_run(directory, target_id, run_id, cfg, known), thorough, digests
        )
        if found:
            return "pending", self._set_all_aside(found, move)
        if found is not None:
            return "finished", []
        return "failed" if (directory / "error.json").is_file() else "pending", []

    def _set_all_aside(self, found: list[Finding], move: bool) -> list[Damage]:
        if not move:
            return [Damage(path, reason, None) for path, reason in found]
        return [self.set_aside(path, reason) for path, reason in found]

    def set_aside(self, path: Path, reason: str) -> Damage:
        """Move a file or folder of the store to `damaged/`, under its own path and a number; nothing is overwritten or
        deleted. Where it is gone already, someone else has moved it.

        Raises StoreUnwritable.
        """
        if path == self.root or not path.is_relative_to(self.root):
            raise StoreError(f"{path}: {reason}; it is not within the store {self.root}: move it away and run again")
        beside = self.root / "damaged" / path.relative_to(self.root)
        with writing(beside):
            beside.parent.mkdir(parents=True, exist_ok=True)
            moved_to = _move_to_free_name(path, beside)
            if moved_to is not None:
                with EventLog(self.root / "damaged" / "reasons.jsonl") as log:
                    log.append("set_aside", path=str(path), reason=reason, moved_to=str(moved_to))
        return Damage(path, reason, moved_to)


def _looked_at_twice(
    look: Callable[[Digests | None], list[Finding] | None], thorough: bool, digests: Digests | None
) -> list[Finding] | None:
    """What `look` finds. Damage is believed at the second look: someone may have published the thing anew during the
    first, and what is whole must not be moved."""
    found = look(digests or Digests() if thorough else None)
    return look(Digests() if thorough else None) if found else found


def _move_to_free_name(path: Path, beside: Path) -> Path | None:
    """Move `path` to `beside` with the first free number; None where it is gone."""
    number = 0
    while True:
        number += 1
        goal = beside.with_name(f"{beside.name}.{number}")
        # The name is taken first, by a file or folder of one's own, which a rename may replace.
        folder = path.is_dir()
        try:
            goal.mkdir() if folder else goal.open("x").close()
        except FileExistsError:
            continue
        try:
            os.replace(path, goal)
            return goal
        except BaseException as error:
            with contextlib.suppress(OSError):
                goal.rmdir() if folder else goal.unlink()
            if not isinstance(error, FileNotFoundError):
                raise
            return None


@contextlib.contextmanager
def _refused_as(words: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{words}: {error.strerror or error}; {remedy}") from None


def programs_folder(directory: Path | None = None) -> Path | None:
    """The folder through which compiled programs are exchanged; None: there is none.

    directory: of a target or run, whose store has one; outside a store only CACHE_VARIABLE names one.
    """
    told = os.environ.get(CACHE_VARIABLE)
    if told:
        return None if told == CACHE_OFF else Path(told).expanduser().absolute()
    above = () if directory is None else directory.absolute().parents[:2]
    return next((Store(path.parent).cache_dir for path in above if path.name == "targets"), None)


def existing_store(root: Path) -> Store:
    """The store at `root`; StoreError where there is none."""
    store = Store(root)
    if not store.targets_dir.is_dir():
        raise StoreError(f"{store.root}: no store there; name one with --store DIR, or run python flows/packed.py")
    return store


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


def error_line(path: Path) -> str:
    """One line of an `error.json`: the kind of error, its message, and where."""
    record = read_json_or_none(path)
    try:
        message = record["message"].strip().splitlines() or [""]
        where = f" (rank {record['rank']} on {record['host']})" if "rank" in record else ""
        return f"{record['type']}: {message[0]}{where}"
    except (KeyError, TypeError, AttributeError):
        return f"{path} cannot be read"


def write_config(directory: Path, cfg: BuildConfig | SampleConfig) -> bytes:
    """Write `config.yaml` into `directory`, which is made if it is missing; returns its content."""
    content = to_yaml(cfg).encode()
    write_bytes_atomic(directory / "config.yaml", content)
    return content


def publish_run(run_dir: Path, cfg: SampleConfig, config: bytes, trace: bytes, analysis: dict[str, Any]) -> None:
    """Write `trace.nc`, then `analysis.json`, by which the run is finished; what is left of earlier tries goes.

    config: the content of `config.yaml`, as `write_config` gave it.
    Raises StoreUnwritable; the run is then not finished.
    """
    record = {
        **analysis,
        "format": ANALYSIS_FORMAT,
        "target_id": cfg.target_id,
        "run_id": run_id_for(cfg),
        "config": config_digest(cfg),
        "files": {"config.yaml": file_entry(config), "trace.nc": file_entry(trace)},
    }
    write_bytes_atomic(run_dir / "trace.nc", trace)
    write_record(run_dir / "analysis.json", record)
    for name in ("error.json", "deaths.json", "checkpoint.npz"):
        with contextlib.suppress(OSError):
            (run_dir / name).unlink()


def publish_target(
    directory: Path, cfg: BuildConfig, meta: dict[str, Any], arrays: dict[str, bytes], data_of: str | None = None
) -> None:
    """Write the files of `arrays` and `config.yaml`, then `meta.json`, by which the target is built.

    data_of: the folder beside `directory` that already holds the same `data.npz`.
    Raises StoreUnwritable; the target is then not built.
    """
    remove_litter(directory)
    for name, content in arrays.items():
        if name != "data.npz" or data_of is None:
            write_bytes_atomic(directory / name, content)
    files = {**arrays, "config.yaml": write_config(directory, cfg)}
    record = {
        **meta,
        "format": META_FORMAT,
        "target_id": target_id_for(cfg),
        "config": config_digest(cfg),
        "data_of": data_of,
        "files": {name: file_entry(content) for name, content in files.items()},
    }
    write_record(directory / "meta.json", record)
