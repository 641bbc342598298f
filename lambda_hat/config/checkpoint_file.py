"""The checkpoint file of a custom target, which counts by its content."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from lambda_hat.config.targets import BuildConfig, CustomBuild
from lambda_hat.errors import ConfigError


def with_checkpoint_hash(cfg: BuildConfig, source: str) -> BuildConfig:
    """`cfg` with the absolute path of its checkpoint file, and the hash of the file's content.

    Raises:
        ConfigError: the file cannot be read, or `cfg` gives another hash.
    """
    if not isinstance(cfg, CustomBuild) or cfg.target.checkpoint is None:
        return cfg
    path = Path(cfg.target.checkpoint).expanduser().absolute()
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{source}: target.checkpoint: {path} cannot be read: {error.strerror or error}") from None
    if cfg.target.checkpoint_sha256 not in (None, digest):
        raise ConfigError(
            f"{source}: target.checkpoint_sha256: got {cfg.target.checkpoint_sha256}, but the hash of {path} is "
            f"{digest}; leave it out"
        )
    return replace(cfg, target=replace(cfg.target, checkpoint=str(path), checkpoint_sha256=digest))
