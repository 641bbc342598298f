"""Checks that a target or a run in the store is whole, and is the one that was asked for.

A finding is a path and what is wrong with it. The record, `meta.json` or `analysis.json`, is named first, because the
other files count for nothing without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import CorruptArtifact, LambdaHatError, StoreError
from lambda_hat.id_utils import config_digest
from lambda_hat.omegaconf_support import load_build_config, load_sample_config
from lambda_hat.store.files import read_record
from lambda_hat.store.run_files import file_status, read_bytes

META_FORMAT = 3
"""Format of `meta.json`, by which other versions of the package know it."""
ANALYSIS_FORMAT = 3
"""Format of `analysis.json`."""
OBSERVED = "observed.nc"
"""In the folder of a run that watched arrays: their values."""

Config = BuildConfig | SampleConfig
_ID = re.compile("tgt_[0-9a-f]{12}|run_[a-z_]+_[0-9a-f]{8}")


class Finding(NamedTuple):
    """A file or folder that is not what it should be."""

    path: Path
    reason: str


class Digests:
    """Size in bytes and sha256 of files. Each file is read once."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, str]] = {}

    def __call__(self, path: Path) -> tuple[int, str]:
        """Size and sha256 of a file; raises OSError where it cannot be read."""
        if path not in self._known:
            try:
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                    self._known[path] = file.tell(), digest
            except FileNotFoundError:
                content = read_bytes(path)
                self._known[path] = len(content), hashlib.sha256(content).hexdigest()
        return self._known[path]


def findings_in_run(
    run_dir: Path, target_id: str, run_id: str, digest: str | None, digests: Digests | None = None
) -> list[Finding] | None:
    """What is wrong with a finished run.

    Args:
        run_dir: The folder of the run.
        target_id: The id that its target should have.
        run_id: The id that it should have.
        digest: The `config_digest` that it should have; None: that of its own files.
        digests: Reads every file and compares its checksum; None: only sizes are compared.

    Returns:
        The findings, none for a run that is whole; None where the run is not finished.

    Raises:
        StoreError: The system refuses to read.
    """
    path = run_dir / "analysis.json"
    try:
        record = _record(path)
    except _Missing:
        return None
    except _Found as found:
        return [found.finding]
    reason = _foreign(record, {"target_id": target_id, "run_id": run_id}, ANALYSIS_FORMAT, digest)
    if reason is not None:
        return [Finding(path, reason)]
    files = record.get("files")
    watched = isinstance(files, dict) and OBSERVED in files
    places = {name: run_dir / name for name in ("config.yaml", "trace.nc", *([OBSERVED] if watched else []))}
    return _findings_in_files(path, record, places, lambda path: load_sample_config(path, read_bytes), digests)


def findings_in_target(
    directory: Path, target_id: str, digest: str | None, digests: Digests | None = None
) -> list[Finding] | None:
    """What is wrong with a built target; None where it is not built. Otherwise as `findings_in_run`."""
    path = directory / "meta.json"
    try:
        record = _record(path)
    except _Missing:
        return None
    except _Found as found:
        return [found.finding]
    reason = _foreign(record, {"target_id": target_id}, META_FORMAT, digest)
    if reason is not None:
        return [Finding(path, reason)]
    places = {name: directory / name for name in ("config.yaml", "params.npz", "data.npz")}
    data_of = record.get("data_of")
    if data_of is not None:
        if not is_target_name(data_of):
            return [Finding(path, f"its data lie with {data_of!r}, which is not the name of a target")]
        places["data.npz"] = directory.parent / data_of / "data.npz"
    return _findings_in_files(path, record, places, load_build_config, digests)


def is_target_name(name: object) -> bool:
    """Whether a target's folder may have this name, which must not lead out of the store."""
    return isinstance(name, str) and Path(name).name == name and name not in ("", ".", "..") and "\0" not in name


class _Missing(Exception):
    """There is no record."""


class _Found(Exception):
    """Something is wrong with the record."""

    def __init__(self, path: Path, reason: str):
        super().__init__(reason)
        self.finding = Finding(path, reason)


def _record(path: Path) -> dict[str, Any]:
    """Read a record; raises _Missing, _Found or StoreError."""
    try:
        return read_record(path)
    except FileNotFoundError:
        raise _Missing from None
    except CorruptArtifact as error:
        raise _Found(path, str(error).removeprefix(f"{path}: ").partition("; ")[0]) from None
    except StoreError as error:
        if isinstance(error.__cause__, NotADirectoryError):
            for above in path.parents:
                if above.exists() and not above.is_dir():
                    raise _Found(above, "a file lies where a folder belongs") from None
        if isinstance(error.__cause__, IsADirectoryError):
            raise _Found(path, "a folder lies where a file belongs") from None
        raise


def _foreign(record: dict[str, Any], ids: dict[str, str], format_: int, digest: str | None) -> str | None:
    if record.get("format") != format_:
        return f"its format is {record.get('format')!r}, expected {format_}"
    for key, value in ids.items():
        # A folder whose name is not an id was made by hand, and may hold anything.
        if record.get(key) != value and _ID.fullmatch(value):
            return f"foreign: it belongs to {record.get(key)!r}"
    if digest is not None and record.get("config") != digest:
        return "foreign: it belongs to another configuration"
    return None


def _findings_in_files(
    record_path: Path,
    record: dict[str, Any],
    places: dict[str, Path],
    load: Callable[[Path], Config],
    digests: Digests | None,
) -> list[Finding]:
    files = record.get("files")
    found = []
    for name, path in places.items():
        entry = files.get(name) if isinstance(files, dict) else None
        if not isinstance(entry, dict):
            return [Finding(record_path, f"it does not vouch for {name}")]
        reason = _reason(path, entry, digests)
        if reason is not None and not (name == "config.yaml" and _says_the_same(path, load, record)):
            found.append(Finding(path, reason))
    if found:
        names = ", ".join(finding.path.name for finding in found)
        found.insert(0, Finding(record_path, f"it vouches for {names}, which changed after it was written"))
    return found


def _reason(path: Path, entry: dict[str, Any], digests: Digests | None) -> str | None:
    """What is wrong with a file; raises StoreError where it cannot be read."""
    try:
        if digests is None:
            size, digest = file_status(path)[0], entry.get("sha256")
        else:
            size, digest = digests(path)
    except FileNotFoundError:
        return "it is missing"
    except NotADirectoryError:
        return "its folder is a file"
    except IsADirectoryError:
        return "a folder lies where a file belongs"
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    if size != entry.get("bytes"):
        return f"it has {size} bytes, expected {entry.get('bytes')}"
    if digest != entry.get("sha256"):
        return f"its sha256 is {digest}, expected {entry.get('sha256')}"
    return None


def _says_the_same(path: Path, load: Callable[[Path], Config], record: dict[str, Any]) -> bool:
    """Whether a configuration with other bytes than recorded decides the same numbers.

    A second driver may have written one for other cores, for example.
    """
    try:
        return config_digest(load(path)) == record.get("config")
    except LambdaHatError:
        return False
