"""The experiments file that tuning writes: the targets of the study, and its samplers with the settings found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lambda_hat.files import write_bytes_atomic
from lambda_hat.plain_yaml import dump_line
from lambda_hat.workflow_config import Study

NAME = "tuned.yaml"


@dataclass(frozen=True)
class Taken:
    """The settings that were found for one sampler on one target."""

    entry: dict[str, Any]
    comment: str
    """What they came to, in one line."""


def write_experiments(path: Path, study: Study, taken: Iterable[Taken], how: str) -> None:
    """Write an experiments file that `flows/packed.py` takes. study: what was tuned. how: in one line, by what.

    Raises StoreUnwritable, StoreError.
    """
    lines = [f"# {how}", f"store_root: {dump_line(study.settings.store_root)}"]
    if not study.settings.jax_enable_x64:
        lines.append("jax_enable_x64: false")
    lines += ["targets:", *(f"  - {dump_line(entry)}" for entry in study.settings.targets), "samplers:"]
    for one in taken:
        lines += [f"  # {one.comment}", f"  - {dump_line(one.entry)}"]
    write_bytes_atomic(path, ("\n".join(lines) + "\n").encode())
