"""The checkpoints of a training that an entry of a study names together, and their steps."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lambda_hat.config.targets import MOST_CHECKPOINTS, BuildConfig, CustomBuild
from lambda_hat.errors import ConfigError

_MAGIC = re.compile(r"\*|\?|\[.*?\]")


def checkpoints_of(entry: dict[str, Any], source: str) -> dict[int, str] | None:
    """The files of a target entry that names several checkpoints, by their steps in ascending order.

    `target.checkpoint` is a pattern, a list of files, or a mapping from steps to files. The step is the last
    whole number in what the wildcards match, or in the path of a list.

    Args:
        entry: an entry of a study's targets without `sweep`.
        source: what messages call the entry.

    Returns:
        None if it names one checkpoint or none.

    Raises:
        ConfigError: nothing matches, a name has no step, or two files have the same one.
    """
    target, overrides = entry.get("target"), entry.get("overrides")
    if not isinstance(target, dict):
        return None
    named = target.get("checkpoint")
    if isinstance(overrides, dict) and isinstance(overrides.get("target"), dict):
        named = overrides["target"].get("checkpoint", named)
    where = f"{source}: target.checkpoint"
    if isinstance(named, str):
        path = Path(named).expanduser()
        if not glob.has_magic(named) or path.exists():
            return None
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise ConfigError(f"{where}: no file matches {named} in {Path.cwd()}")
        # What the wildcards match lies between the text before the first and the text after the last of them.
        before, after = _MAGIC.split(str(path))[0], _MAGIC.split(str(path))[-1]
        steps = [(_step_in(one[len(before) : len(one) - len(after)], one, where), one) for one in found]
    elif isinstance(named, list):
        files = [_file(one, where) for one in named]
        steps = [(_step_in(one, one, where), one) for one in files]
    elif isinstance(named, dict):
        for step in named:
            if not str(step).isdecimal():
                raise ConfigError(f"{where}: got the step {step!r}, expected whole numbers of at least 0")
        steps = [(int(step), _file(one, where)) for step, one in named.items()]
    else:
        return None
    return _ordered(steps, where)


def with_checkpoint(entry: dict[str, Any], step: int, path: str) -> dict[str, Any]:
    """The entry of one of the checkpoints of `entry`."""
    overrides = entry.get("overrides") or {}
    target = {**(overrides.get("target") or {}), "checkpoint": path, "step": step}
    bare = {key: value for key, value in entry["target"].items() if key != "checkpoint"}
    return {**entry, "target": bare, "overrides": {**overrides, "target": target}}


def _step_in(text: str, path: str, where: str) -> int:
    numbers = re.findall(r"\d+", text)
    if not numbers:
        raise ConfigError(f"{where}: the name of {path} has no step; write a mapping from steps to files")
    return int(numbers[-1])


def _file(named: Any, where: str) -> str:
    if not isinstance(named, str):
        raise ConfigError(f"{where}: got {named!r}, expected the name of a file")
    return named


def _ordered(steps: Sequence[tuple[int, str]], where: str) -> dict[int, str]:
    if not 0 < len(steps) <= MOST_CHECKPOINTS:
        raise ConfigError(f"{where}: got {len(steps)} files, expected 1 to {MOST_CHECKPOINTS}")
    ordered: dict[int, str] = {}
    for step, path in sorted(steps):
        if step in ordered:
            raise ConfigError(
                f"{where}: {ordered[step]} and {path} both have the step {step}; write a mapping from steps to files"
            )
        ordered[step] = path
    return ordered


def same_target(first: BuildConfig, second: BuildConfig, target_id: str, where: str) -> str:
    """What to say of the entry `where`, which gives the target of an earlier one."""
    if isinstance(first, CustomBuild) and isinstance(second, CustomBuild):
        one, other = first.target.checkpoint, second.target.checkpoint
        if one != other:
            return f"{where}: {other} has the content of {one}; the two are one target ({target_id})"
    return f"{where} is the same target as an earlier entry ({target_id}); it is built once"


def refuse_second_trajectory(
    steps: dict[tuple[str | None, int], str], trajectory: str | None, step: int, target_id: str, where: str
) -> None:
    """Add a checkpoint to the `steps` of all trainings. Raises ConfigError where another target has its step."""
    if steps.setdefault((trajectory, step), target_id) != target_id:
        raise ConfigError(
            f"{where}: target.checkpoint: an earlier entry has another file of step {step}, and nothing tells the two "
            "trainings apart; give each a name, target.trajectory: ..."
        )
