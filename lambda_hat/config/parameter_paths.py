"""Glob patterns over the paths of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import ConfigError

MOST_PATHS = 20
"""A message lists at most this many paths."""


def matching_paths(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The `paths` that match at least one of `patterns`, in the order of `paths`; `*` also matches `/`.

    Raises:
        ConfigError: a pattern matches no path. The message lists the paths.
    """
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            more = "" if len(paths) <= MOST_PATHS else f" and {len(paths) - MOST_PATHS} more"
            raise ConfigError(
                f"restrict: {pattern!r} matches no parameter; the paths are {', '.join(paths[:MOST_PATHS])}{more}"
            )
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def moving_dim(build: BuildConfig, cfg: SampleConfig) -> int | None:
    """Number of a target's parameters that a run moves; None if it is not known before the target is built.

    Raises:
        ConfigError: a pattern of `restrict` matches no parameter.
    """
    shapes = build.param_shapes
    if shapes is None:
        return None
    paths = list(shapes) if cfg.restrict is None else matching_paths(cfg.restrict, list(shapes))
    return sum(math.prod(shapes[path]) for path in paths)
