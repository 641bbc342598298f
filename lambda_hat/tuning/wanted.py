"""The runs that tuning asks for: ordinary runs of the study, with their own values for some keys."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.id_utils import Run
from lambda_hat.tuning.objective import Row
from lambda_hat.workflow_config import compose_sample_cfg

Look = Callable[[Sequence[Run]], Sequence[Row]]
"""Gives the rows of some runs, as the store has them now."""


@dataclass(frozen=True)
class Start:
    """What a search begins with: one sampler entry of the study, without its sweep, on one target.

    The lengths of `cfg` are filled in. `source` is the experiments file.
    """

    target_id: str
    build: BuildConfig
    cfg: SampleConfig
    name: str
    overrides: Mapping[str, Any]
    jax_enable_x64: bool
    source: str

    @property
    def label(self) -> str:
        """Target and sampler, for a person."""
        return f"{self.build.label}, {self.name}"

    @property
    def full_label(self) -> str:
        """The label, with the id of the target."""
        return f"{self.label} ({self.target_id})"

    def entry(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """A sampler entry for this target alone, with `values` in place of the study's."""
        return {"name": self.name, "targets": [self.target_id], "overrides": {**self.overrides, **values}}


def blocked(start: Start, rows: Iterable[Row]) -> str | None:
    """Why nothing can be sampled on the target of `start`, and what to do; None if no row is blocked."""
    reason = next((row["reason"] for row in rows if row["status"] == "blocked"), None)
    if reason is None:
        return None
    again = f"lambda-hat run --experiments {shlex.quote(start.source)} --rerun failed"
    return f"{reason}; {again} tries to build it again"


def want(start: Start, values: Mapping[str, Any]) -> Run:
    """The run of `start` with `values` in place of the study's. Raises ConfigError."""
    return want_entry(start, start.entry(values))


def want_entry(start: Start, entry: dict[str, Any]) -> Run:
    """The run of a sampler entry on the target of `start`. Raises ConfigError."""
    cfg = compose_sample_cfg(
        start.target_id, entry, build=start.build, jax_enable_x64=start.jax_enable_x64, source=start.source
    )
    return Run.of(cfg)
