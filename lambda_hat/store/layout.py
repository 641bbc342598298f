"""The store: where targets, runs and packs lie, their status, and the treatment of damaged files.

`meta.json` of a target and `analysis.json` of a run are written last, and vouch for the other files of their folder.
A target with its `meta.json` is built, and a run with its `analysis.json` is finished.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from lambda_hat.errors import StoreError
from lambda_hat.store import run_files
from lambda_hat.store.checksums import Digests, Finding, findings_in_run, findings_in_target
from lambda_hat.store.files import (
    EventLog,
    FileSystemClock,
    file_entry,
    finite_or_none,
    read_events,
    read_json,
    read_json_or_none,
    read_record,
    remove_litter,
    undone_on_error,
    write_bytes_atomic,
    write_json_atomic,
    write_record,
    writing,
)

__all__ = [
    "CACHE_OFF",
    "CACHE_VARIABLE",
    "CHECKPOINT",
    "DEATHS",
    "Damage",
    "Digests",
    "EventLog",
    "FileSystemClock",
    "Store",
    "check_folder",
    "deaths_of",
    "error_line",
    "existing_store",
    "file_entry",
    "finite_or_none",
    "programs_folder",
    "read_events",
    "read_json",
    "read_json_or_none",
    "read_record",
    "remove_litter",
    "write_bytes_atomic",
    "write_json_atomic",
    "write_record",
    "writing",
]

TargetStatus = Literal["built", "failed", "missing"]
RunStatus = Literal["finished", "failed", "pending"]

CACHE_VARIABLE = "LAMBDA_HAT_CACHE"
"""Environment variable: a folder in place of the store's `cache` for exchanging compiled programs, or CACHE_OFF."""
CACHE_OFF = "off"
CHECKPOINT = "checkpoint.npz"
"""In the folder of a run: its state while it is not finished."""
DEATHS = "deaths.json"
"""In the folder of a run: the deaths of ranks that sampled it, until it finishes."""
PROBE_BYTES = 16 * 1024
"""Size of the file that tests whether the disk has room: larger than what fits into a file's own entry."""


@dataclass(frozen=True)
class Damage:
    """A file or folder that is not what it should be, and where it lies now."""

    path: Path
    reason: str
    moved_to: Path | None
    """None: it was left in place, or someone else has moved it."""

    def __str__(self) -> str:
        where = "" if self.moved_to is None else f"; set aside as {self.moved_to}"
        return f"{self.path}: {self.reason}{where}"


class Store:
    """A folder with every target, run and pack."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().absolute()

    @property
    def targets_dir(self) -> Path:
        """The folder of all targets."""
        return self.root / "targets"

    @property
    def packs_dir(self) -> Path:
        """The folder of all packs, and of the heartbeats of drivers."""
        return self.root / "packs"

    @property
    def cache_dir(self) -> Path:
        """The folder of compiled programs. Nothing depends on them, and they may be deleted at any time."""
        return self.root / "cache"

    def target_dir(self, target_id: str) -> Path:
        """The folder of a target."""
        return self.targets_dir / target_id

    def run_dir(self, target_id: str, run_id: str) -> Path:
        """The folder of a run."""
        return self.target_dir(target_id) / run_id

    def pack_dir(self, pack_id: str) -> Path:
        """The folder of a pack."""
        return self.packs_dir / pack_id

    def ensure_writable(self) -> None:
        """Make the folders, and test that files can be written there.

        Raises:
            StoreError: No store can be there; the message has the path and the reason.
            StoreUnwritable: The disk is full.
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
        """The status of a target by the presence of its files."""
        directory = self.target_dir(target_id)
        if (directory / "meta.json").is_file():
            return "built"
        return "failed" if (directory / "error.json").is_file() else "missing"

    def run_status(self, target_id: str, run_id: str) -> RunStatus:
        """The status of a run by the presence of its files."""
        directory = self.run_dir(target_id, run_id)
        if run_files.has(directory / "analysis.json"):
            return "finished"
        return "failed" if (directory / "error.json").is_file() else "pending"

    def target_ids(self) -> list[str]:
        """The names of all target folders, sorted."""
        return sorted(p.name for p in _directories(self.targets_dir, "tgt_"))

    def run_ids(self, target_id: str) -> list[str]:
        """The names of all runs of a target that have a folder or are in its archive, sorted."""
        directory = self.target_dir(target_id)
        return sorted({p.name for p in _directories(directory, "run_")} | run_files.runs_in(directory).keys())

    def entries(self, target_id: str) -> frozenset[str] | None:
        """The names of everything in a target's folder, and of the runs in its archive; None where it cannot be read.

        One such look replaces several looks at every run that is not there.
        """
        directory = self.target_dir(target_id)
        try:
            return frozenset(os.listdir(directory)) | run_files.runs_in(directory).keys()
        except FileNotFoundError:
            return frozenset()
        except (OSError, StoreError):
            return None

    def inspect_target(
        self,
        target_id: str,
        digest: str | None,
        thorough: bool = False,
        move: bool = True,
        digests: Digests | None = None,
    ) -> tuple[TargetStatus, list[Damage]]:
        """Check a target and set damaged or foreign files aside, a damaged archive of runs included.

        Without its record a target is built again.

        Args:
            target_id: The target.
            digest: The `config_digest` of the configuration that it should have; None: that of its own files.
            thorough: Compare the checksums of all files, not only the record and all sizes.
            move: False leaves everything in place.
            digests: Checksums that are known; each file is read once.

        Returns:
            The status that is left, and the damage.

        Raises:
            StoreError: The system refuses to read.
            StoreUnwritable: Nothing can be moved.
        """
        directory = self.target_dir(target_id)
        found = _looked_at_twice(
            lambda known: findings_in_target(directory, target_id, digest, known), thorough, digests
        )
        archive = [Finding(directory / run_files.ARCHIVE, "not a whole archive of runs")]
        damages = self._set_all_aside([*(found or []), *(archive if run_files.is_damaged(directory) else [])], move)
        if found:
            return "missing", damages
        if found is not None:
            return "built", damages
        return "failed" if (directory / "error.json").is_file() else "missing", damages

    def inspect_run(
        self,
        target_id: str,
        run_id: str,
        digest: str | None,
        thorough: bool = False,
        move: bool = True,
        digests: Digests | None = None,
    ) -> tuple[RunStatus, list[Damage]]:
        """Check a run and set damaged or foreign files aside; otherwise as `inspect_target`.

        Without its record a run is sampled again.
        """
        directory = self.run_dir(target_id, run_id)
        found = _looked_at_twice(
            lambda known: findings_in_run(directory, target_id, run_id, digest, known), thorough, digests
        )
        if found:
            if move and found[0].path == directory / "analysis.json" and not found[0].path.exists():
                self._take_out(directory)
            return "pending", self._set_all_aside(found, move)
        if found is not None:
            return "finished", []
        return "failed" if (directory / "error.json").is_file() else "pending", []

    def _take_out(self, run_dir: Path) -> None:
        """Put the files of a run that are in the archive of its target into its folder, where they count from now on.

        Raises:
            StoreUnwritable: There is no room for them.
        """
        archive = run_dir.parent / run_files.ARCHIVE
        with writing(run_dir):
            for name in run_files.runs_in(run_dir.parent).get(run_dir.name, ()):
                if run_files.archived(run_dir / name) and not (run_dir / name).exists():
                    write_bytes_atomic(run_dir / name, run_files.content_in(archive, run_dir.name, name))
            run_files.hide(run_dir)

    def _set_all_aside(self, found: list[Finding], move: bool) -> list[Damage]:
        if not move:
            return [Damage(path, reason, None) for path, reason in found]
        return [self.set_aside(path, reason) for path, reason in found]

    def set_aside(self, path: Path, reason: str) -> Damage:
        """Move a file or folder of the store to `damaged/`, under its own path and a number.

        Nothing is overwritten or deleted. If `path` is gone already, someone else has moved it.

        Raises:
            StoreError: `path` is not within the store.
            StoreUnwritable: It cannot be moved.
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
    """What `look` finds, or finds again where it was damage.

    Someone may publish the target or run during the first look, and whole files must not be moved.
    """
    found = look(digests or Digests() if thorough else None)
    return look(Digests() if thorough else None) if found else found


def _move_to_free_name(path: Path, beside: Path) -> Path | None:
    """Move `path` to `beside` with the first free number appended; None where `path` is gone."""
    number = 0
    while True:
        number += 1
        goal = beside.with_name(f"{beside.name}.{number}")
        # An empty file or folder takes the name first; the rename may replace it.
        folder = path.is_dir()
        try:
            goal.mkdir() if folder else goal.open("x").close()
        except FileExistsError:
            continue
        try:
            with undone_on_error(goal.rmdir if folder else goal.unlink):
                os.replace(path, goal)
        except FileNotFoundError:
            return None
        return goal


@contextlib.contextmanager
def _refused_as(words: str, remedy: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"{words}: {error.strerror or error}; {remedy}") from None


def programs_folder(directory: Path | None = None) -> Path | None:
    """The folder through which compiled programs are exchanged; None: there is none.

    Args:
        directory: The folder of a target or run. If it is in no store, or not given, the folder is the user's own.
    """
    told = os.environ.get(CACHE_VARIABLE)
    if told:
        return None if told == CACHE_OFF else Path(told).expanduser().absolute()
    above = () if directory is None else directory.absolute().parents[:2]
    of_store = (Store(path.parent).cache_dir for path in above if path.name == "targets")
    return next(of_store, platformdirs.user_cache_path("lambda_hat"))


def existing_store(root: Path) -> Store:
    """The store at `root`; raises StoreError where there is none."""
    store = Store(root)
    if not store.targets_dir.is_dir():
        raise StoreError(f"{store.root}: no store there; name one with --store DIR, or run lambda-hat run")
    return store


def check_folder(path: Path, what: str, remedy: str) -> None:
    """Refuse a path at which no folder could be made and written; nothing is made.

    Args:
        path: The folder.
        what: What it is for, in the message.
        remedy: What to write instead, in the message.

    Raises:
        StoreError: No such folder can be made, or it cannot be written.
    """
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
    """An `error.json` on one line: the kind of error, the first line of its message, rank and host."""
    record = read_json_or_none(path)
    try:
        message = record["message"].strip().splitlines() or [""]
        where = f" (rank {record['rank']} on {record['host']})" if "rank" in record else ""
        return f"{record['type']}: {message[0]}{where}"
    except (KeyError, TypeError, AttributeError):
        return f"{path} cannot be read"


def deaths_of(run_dir: Path) -> list[dict[str, Any]]:
    """The deaths of ranks that sampled a run, oldest first; none where the record of them is damaged."""
    content = read_json_or_none(run_dir / DEATHS)
    return [death for death in content if isinstance(death, dict)] if isinstance(content, list) else []
