"""The checkpoint of a custom target, a file, several, or a folder, which counts by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from lambda_hat.config.targets import BuildConfig, CustomBuild
from lambda_hat.errors import ConfigError

INDEX = ".index.json"
"""How the name of the file ends that lists the files of a checkpoint in several files."""


def with_checkpoint_hash(cfg: BuildConfig, source: str) -> BuildConfig:
    """`cfg` with the absolute path of its checkpoint, and the hash of the content.

    Raises:
        ConfigError: the checkpoint cannot be read, or `cfg` gives another hash.
    """
    if not isinstance(cfg, CustomBuild) or cfg.target.checkpoint is None:
        return cfg
    path = Path(cfg.target.checkpoint).expanduser().absolute()
    try:
        digest = content_hash(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"{source}: target.checkpoint: {path} cannot be read: {reason}") from None
    if cfg.target.checkpoint_sha256 not in (None, digest):
        raise ConfigError(
            f"{source}: target.checkpoint_sha256: got {cfg.target.checkpoint_sha256}, but the hash of {path} is "
            f"{digest}; leave it out"
        )
    return replace(cfg, target=replace(cfg.target, checkpoint=str(path), checkpoint_sha256=digest))


def content_hash(path: Path) -> str:
    """The sha256 of a file, of an index with the files that it lists, or of all files in a folder with their names.

    Raises:
        OSError: a file cannot be read.
        ValueError: an index is none.
    """
    if path.is_dir():
        return _hash_of_files(path, (file for file in sorted(path.rglob("*")) if file.is_file()))
    if path.name.endswith(INDEX):
        return _hash_of_files(path.parent, [path, *shards_of(path)])
    return _hash_of_file(path)


def shards_of(index: Path) -> list[Path]:
    """The files of a checkpoint in several files, which lie beside the `index` that lists them.

    Raises:
        OSError: the index cannot be read.
        ValueError: it is none.
    """
    expected = "expected {weight_map: {name: file}} with files that lie beside it"
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"it is no index of a checkpoint, {expected}") from None
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise ValueError(f"its weight_map names {sorted(map(str, names))[:3]}, {expected}")
    return [index.parent / name for name in sorted(names)]


def _hash_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_of_files(folder: Path, paths: Iterable[Path]) -> str:
    lines = [f"{_hash_of_file(path)} {path.relative_to(folder).as_posix()}\n" for path in paths]
    if not lines:
        raise ValueError("the folder is empty")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
