"""What a study was made of: the configuration of its targets and samplers, and the versions that computed it."""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lambda_hat.report.drawing import word
from lambda_hat.store.layout import read_json_or_none

MOST_TARGETS = 100
"""Most targets whose configuration is shown."""
MOST_LOOKED_AT = 100
"""Most runs whose record is opened for its versions. They are evenly spaced."""
PACKAGES = ("lambda_hat", "matplotlib", "itables")


@dataclass(frozen=True)
class Setting:
    """The configuration of one sampler's runs."""

    sampler: str
    runs: int
    fixed: dict[str, str]
    """Keys with one value in all runs."""
    varied: dict[str, str]
    """Keys with several values, separated by commas."""


def settings_of(frame: pd.DataFrame) -> list[Setting]:
    """The configuration of every sampler. Keys that are null in all of its runs are left out."""
    settings = []
    for sampler, part in frame.groupby("sampler"):
        fixed, varied = {}, {}
        for column in (name for name in part.columns if name.startswith("cfg.")):
            words = part[column].map(word)
            distinct = list(dict.fromkeys(words))
            key = column.removeprefix("cfg.")
            if len(distinct) > 1:
                varied[key] = ", ".join(distinct[:10]) + (f", ... ({len(distinct)})" if len(distinct) > 10 else "")
            elif distinct != ["none"]:
                fixed[key] = distinct[0]
        settings.append(Setting(str(sampler), len(part), fixed, varied))
    return settings


def targets_of(frame: pd.DataFrame) -> list[dict[str, str]]:
    """Id, label and configuration (YAML) of each target, of at most MOST_TARGETS."""
    rows = frame.drop_duplicates("target_id").head(MOST_TARGETS)
    return [
        {"id": row["target_id"], "label": row["target"], "config": _as_yaml(row["target_config"])}
        for row in rows.loc[:, ["target_id", "target", "target_config"]].to_dict("records")
    ]


def _as_yaml(text: str) -> str:
    return yaml.safe_dump(json.loads(text), sort_keys=False, default_flow_style=None, width=100).rstrip()


def computed_by(run_dirs: Iterable[str]) -> list[tuple[str, str]]:
    """What finished runs were computed with and where: pairs of a name and its values with their counts."""
    folders = list(run_dirs)
    every = max(1, len(folders) // MOST_LOOKED_AT)
    counts: dict[str, Counter[str]] = {}
    for folder in folders[::every]:
        record = read_json_or_none(Path(folder) / "analysis.json")
        if isinstance(record, dict):
            for name, value in _facts(record):
                counts.setdefault(name, Counter())[value] += 1
    return [(name, _counted(values)) for name, values in counts.items()]


def _facts(record: dict[str, Any]) -> Iterable[tuple[str, str]]:
    versions = record.get("versions")
    if isinstance(versions, dict):
        yield from ((str(name), str(value)) for name, value in versions.items())
    for name in ("backend", "device", "cores", "site", "host"):
        if record.get(name) is not None:
            yield name, str(record[name])


def _counted(values: Counter[str]) -> str:
    if len(values) == 1:
        return next(iter(values))
    shown = values.most_common(10)
    more = f", and {len(values) - 10} more" if len(values) > 10 else ""
    return ", ".join(f"{value} ({count} runs)" for value, count in shown) + more


def made_by() -> str:
    """The versions of the packages that made the report."""
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return f"{packages}, Python {platform.python_version()}"
