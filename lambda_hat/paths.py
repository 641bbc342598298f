"""Glob patterns over the paths of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import ConfigError

MOST_PATHS = 20


def matching_paths(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The `paths` that match one of `patterns`, in their order; `*` also matches `/`.

    Raises ConfigError, listing the paths, for a pattern that matches none.
    """
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in paths):
            more = "" if len(paths) <= MOST_PATHS else f" and {len(paths) - MOST_PATHS} more"
            raise ConfigError(
                f"restrict: {pattern!r} matches no parameter; the paths are {', '.join(paths[:MOST_PATHS])}{more}"
            )
    return [path for path in paths if any(fnmatchcase(path, pattern) for pattern in patterns)]


def moving_dim(build: BuildConfig, cfg: SampleConfig) -> int | None:
    """Parameters of a target that a run moves; None where they are not known before the target is built.

    Raises ConfigError as `matching_paths` does.
    """
    shapes = build.param_shapes
    if shapes is None:
        return None
    paths = list(shapes) if cfg.restrict is None else matching_paths(cfg.restrict, list(shapes))
    return sum(math.prod(shapes[path]) for path in paths)
