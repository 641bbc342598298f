"""Patterns that say which parameters move: globs over paths, with or without an index of a part of an array."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.errors import ConfigError

MOST_PATHS = 20
"""A message lists at most this many paths."""
INDEX = re.compile(r"(.*)\[([-\d:, ]+)\]")
AXIS = re.compile(r"(-?\d+)?\s*:\s*(-?\d+)?|(-?\d+)")


class Box(NamedTuple):
    """A part of an array: the entries from `start` to before `stop` along every axis."""

    start: tuple[int, ...]
    stop: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The lengths of its axes."""
        return tuple(stop - start for start, stop in zip(self.start, self.stop, strict=True))

    @property
    def slices(self) -> tuple[slice, ...]:
        """The index of this part."""
        return tuple(map(slice, self.start, self.stop))

    def contains(self, other: Box) -> bool:
        """Whether all entries of `other` lie in this part."""
        return all(a <= b for a, b in zip(self.start, other.start, strict=True)) and all(
            a >= b for a, b in zip(self.stop, other.stop, strict=True)
        )


def moving_parts(patterns: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[Box] | None]:
    """The parameters that match at least one of `patterns`, in the order of `shapes`.

    A pattern is a glob over paths, in which `*` also matches `/`. An index of a part of the array may follow, as in
    `layers/0/weight[:, 0:64]`, where `3` stands for `3:4`, and axes that are not named are whole. What several patterns
    take of an array is united. A single number in brackets is a part of a glob where that matches a path, as in
    `layers/[01]`.

    Args:
        patterns: The patterns.
        shapes: The shapes of the parameters by path.

    Returns:
        The parts by path, which have no entry in common; None for an array that moves as a whole.

    Raises:
        ConfigError: A pattern matches no path, or its index does not fit the array or is empty.
    """
    found: dict[str, list[Box]] = {}
    for pattern in patterns:
        glob, index = _split(pattern, list(shapes))
        matching = [path for path in shapes if fnmatchcase(path, glob)]
        if not matching:
            paths = list(shapes)
            more = "" if len(paths) <= MOST_PATHS else f" and {len(paths) - MOST_PATHS} more"
            raise ConfigError(
                f"restrict: {pattern!r} matches no parameter; the paths are {', '.join(paths[:MOST_PATHS])}{more}"
            )
        for path in matching:
            found.setdefault(path, []).append(_box(pattern, index, path, shapes[path]))
    united = {path: _disjoint(found[path]) for path in shapes if path in found}
    return {path: None if _size(boxes) == math.prod(shapes[path]) else boxes for path, boxes in united.items()}


def moving_dim(build: BuildConfig, cfg: SampleConfig) -> int | None:
    """Number of a target's parameters that a run moves; None if it is not known before the target is built.

    Raises:
        ConfigError: As `moving_parts`.
    """
    shapes = build.param_shapes
    if shapes is None:
        return None
    if cfg.restrict is None:
        return sum(map(math.prod, shapes.values()))
    parts = moving_parts(cfg.restrict, shapes)
    return sum(math.prod(shapes[path]) if boxes is None else _size(boxes) for path, boxes in parts.items())


def _split(pattern: str, paths: list[str]) -> tuple[str, list[str]]:
    """The glob of a pattern, and the texts of its index by axis."""
    found = INDEX.fullmatch(pattern)
    if found is None or (found[2].isdecimal() and any(fnmatchcase(path, pattern) for path in paths)):
        return pattern, []
    return found[1], [text.strip() for text in found[2].split(",")]


def _box(pattern: str, index: list[str], path: str, shape: tuple[int, ...]) -> Box:
    if len(index) > len(shape):
        raise ConfigError(f"restrict: {pattern!r}: an index of length {len(index)}, but {path} has the shape {shape}")
    whole = [(0, size) for size in shape[len(index) :]]
    ends = [_ends(pattern, text, path, shape, size) for text, size in zip(index, shape, strict=False)] + whole
    return Box(tuple(start for start, _ in ends), tuple(stop for _, stop in ends))


def _ends(pattern: str, text: str, path: str, shape: tuple[int, ...], size: int) -> tuple[int, int]:
    """Start and stop of the index of one axis of length `size`."""
    found = AXIS.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"restrict: {pattern!r}: got {text!r} for an axis, expected start:stop, a number, or : for the whole axis"
        )
    first, last, single = (None if word is None else int(word) for word in found.groups())
    if single is not None:
        first, last = single, single + 1 or None
    start, stop = (end + size if end < 0 else end for end in (first or 0, size if last is None else last))
    if not 0 <= start < stop <= size:
        wrong = "is empty" if 0 <= stop <= start <= size else "does not fit"
        raise ConfigError(f"restrict: {pattern!r}: {text!r} {wrong}, because {path} has the shape {shape}")
    return start, stop


def _disjoint(boxes: list[Box]) -> list[Box]:
    """Boxes with the same entries as `boxes` have, each entry in one of them."""
    num_axes = len(boxes[0].start)
    if len(boxes) == 1 or num_axes == 0:
        return boxes[:1]
    edges = (sorted({end for box in boxes for end in (box.start[axis], box.stop[axis])}) for axis in range(num_axes))
    cells = (Box(*zip(*cell, strict=True)) for cell in itertools.product(*map(itertools.pairwise, edges)))
    return [cell for cell in cells if any(box.contains(cell) for box in boxes)]


def _size(boxes: list[Box]) -> int:
    return sum(math.prod(box.shape) for box in boxes)
