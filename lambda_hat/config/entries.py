"""Entries of a study's grid: their keys, and the points of their sweeps."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lambda_hat.config.dotted_keys import set_key
from lambda_hat.config.unknown_keys import hint_beside_name, nested
from lambda_hat.errors import ConfigError, nearest

_OVERRIDES = "A mapping of configuration keys to values that differ from the groups and defaults."
_SWEEP = "A mapping of dotted configuration keys to lists of values. There is one entry for every combination."
TARGET_ENTRY_KEYS = {
    "target": "A kind of target or a name in `conf/target`, by default `mlp`; or `{factory: ..., kwargs: ..., "
    "version: ...}`, whose Python function is called.",
    "model": "mlp: a name in `conf/model`, the student.",
    "data": "mlp: a name in `conf/data`.",
    "teacher": "mlp: a name in `conf/teacher`; `_null`, or none: a network of the student's architecture.",
    "seed": "The target's seed.",
    "site": "Where its runs are sampled: a name in `conf/site`, or the path of a file; by default the study's `site`. "
    "It is part of no id.",
    "checkpoints": "mlp: `{every: N}`, a target at every N-th Adam step of the training.",
    "overrides": _OVERRIDES,
    "sweep": _SWEEP,
}
SAMPLER_ENTRY_KEYS = {
    "name": "The sampler.",
    "targets": "Ids of the targets to sample, as `--dry-run` prints them; by default all targets.",
    "site": "Where its runs are sampled, in place of the `site` of their targets.",
    "overrides": _OVERRIDES,
    "sweep": _SWEEP,
}
"""The keys of an entry of the grid, and their meaning."""
MOST_ENTRIES = 1_000_000
"""Most runs of a study: a sweep multiplies quickly."""


@dataclass(frozen=True)
class Entry:
    """One point of an entry's sweep."""

    where: str
    content: dict[str, Any]
    """The entry, with the values of its point of the sweep among the overrides."""
    bare: dict[str, Any]
    """The entry without its sweep: the same object for all of its points."""
    swept: dict[str, Any]


def expand(entries: list[Any], where: str, valid: Collection[str]) -> list[Entry]:
    """The points of the sweeps of all entries; an entry without a sweep is one point."""
    expanded = []
    for index, entry in enumerate(entries):
        source = f"{where}[{index}]"
        check_entry(entry, valid, source)
        sweep = entry.get("sweep") or {}
        if not isinstance(sweep, dict):
            raise ConfigError(f"{source}: sweep: expected a mapping of dotted keys to lists, got {sweep!r}")
        for key, values in sweep.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{source}: sweep.{key}: expected a list of values, got {values!r}")
        size = math.prod(map(len, sweep.values()))
        if len(expanded) + size > MOST_ENTRIES:
            raise ConfigError(f"{source}: sweep: expands to {size} entries, expected at most {MOST_ENTRIES} in a study")
        bare = {key: value for key, value in entry.items() if key != "sweep"}
        for values in itertools.product(*sweep.values()):
            swept = dict(zip(sweep, values, strict=True))
            expanded.append(Entry(source, _with_overrides(bare, swept, source), bare, swept))
    return expanded


def _with_overrides(entry: dict[str, Any], swept: dict[str, Any], source: str) -> dict[str, Any]:
    if not swept:
        return entry
    overrides = copy.deepcopy(entry.get("overrides") or {})
    if not isinstance(overrides, dict):
        raise ConfigError(f"{source}: overrides: expected a mapping of keys to values, got {overrides!r}")
    for key, value in swept.items():
        if key == "seed" and "seed" in entry:
            raise ConfigError(f"{source}: seed: given twice, as seed: {entry['seed']} and under sweep")
        set_key(overrides, key, copy.deepcopy(value), f"{source}: sweep.{key}")
    return {**entry, "overrides": overrides}


def check_entry(entry: Any, valid: Collection[str], source: str) -> None:
    """Refuse an entry of the grid that is no mapping, or has an unknown key. Raises ConfigError."""
    if not isinstance(entry, dict):
        raise ConfigError(f"{source}: expected a mapping with some of {', '.join(valid)}, got {entry!r}")
    for key in entry:
        if key in valid:
            continue
        head = str(key).partition(".")[0]
        if head != key and head in ("overrides", "sweep"):
            raise ConfigError(f"{source}: unknown key '{key}'; {nested(key, entry[key])}")
        said = hint_beside_name(key, valid) if valid is SAMPLER_ENTRY_KEYS else nearest(key, valid)
        raise ConfigError(f"{source}: unknown key '{key}'; {said}")


class Sites:
    """The sites that entries name. own: that of the study, for which the empty name stands."""

    def __init__(self, own: str):
        self._own = own
        self.named: dict[str, str] = {}
        """Each but that of the study, and the entry that names it first."""
        self.of_target: dict[str, str] = {}

    def read(self, entry: Entry) -> str | None:
        """The site of an entry; None where it names none. Raises ConfigError."""
        site = entry.content.get("site")
        if site is None or site == self._own:
            return None if site is None else ""
        if not isinstance(site, str) or not site:
            raise ConfigError(f"{entry.where}: site: got {site!r}, expected a name in conf/site or the path of a file")
        self.named.setdefault(site, entry.where)
        return site


def chosen_targets(entries: list[Entry], targets: Collection[str], where: str) -> list[frozenset[str] | None]:
    """The ids of the targets that each sampler entry names; None if it names none, and is for all."""
    chosen = [_chosen_targets(entry, targets) for entry in entries]
    if sum(len(targets) if own is None else len(own) for own in chosen) > MOST_ENTRIES:
        raise ConfigError(
            f"{where}: {len(targets)} targets times {len(entries)} sampler settings, expected at most "
            f"{MOST_ENTRIES} runs; split it into several studies"
        )
    return chosen


def _chosen_targets(entry: Entry, targets: Collection[str]) -> frozenset[str] | None:
    own = entry.content.get("targets")
    if own is None:
        return None
    if not isinstance(own, list) or not own:
        raise ConfigError(f"{entry.where}: targets: expected a list of target ids, got {own!r}; leave it out for all")
    for target_id in own:
        if not isinstance(target_id, str) or target_id not in targets:
            raise ConfigError(
                f"{entry.where}: targets: got {target_id!r}, which is no target of this study; --dry-run prints their "
                "ids, and a target's id changes with its configuration"
            )
    return frozenset(own)
