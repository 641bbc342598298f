"""What is asked of a setting: how far its estimates are from the reference, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]
"""A row of the table of estimates, `lambda_hat.results.SCHEMA`."""


@dataclass(frozen=True)
class Outcome:
    """One setting on one target, over a few seeds."""

    llc: float
    """Mean over the seeds."""
    std_error: float
    """Of that mean."""
    error: float
    """Relative to the reference; see `outcome_of`."""
    cost: float
    """Full-gradient equivalents of a run, mean over the seeds."""
    verdicts: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether every run's verdict is ok."""
        return set(self.verdicts) == {"ok"}


def cost_to(tolerance: float, outcome: Outcome) -> float:
    """The cost that is told to the optimiser: that of a run as long as would bring the error to `tolerance`, were all
    of it noise, and the cost itself where it is there already. A run that costs nothing and says nothing would
    otherwise be among the best in one of the two objectives."""
    return outcome.cost * max(1.0, outcome.error / tolerance) ** 2


def is_decided(row: Row) -> bool:
    """Whether sampling again would change nothing: finished, failed, or its target has."""
    return row["status"] in ("finished", "failed", "blocked")


def diverged(row: Row) -> bool:
    """Whether a finished run is no estimate: chains became non-finite."""
    return row["status"] == "finished" and (row["verdict"] == "diverged" or row["llc_mean"] is None)


def outcome_of(rows: Sequence[Row], reference: float) -> Outcome | None:
    """What the runs of a setting, one a seed, come to beside `reference`; None where one failed or diverged.

    The error is the mean over seeds of `sqrt((llc - reference)^2 + std_error^2) / |reference|`: the standard error is
    counted in, so that a short run that hits the reference by luck is no good setting.
    """
    if not rows or any(row["status"] != "finished" or diverged(row) for row in rows):
        return None
    errors = [row["llc_std_error"] for row in rows]
    if any(value is None or not math.isfinite(value) for value in errors):
        return None
    means = [row["llc_mean"] for row in rows]
    off = [math.hypot(mean - reference, error) for mean, error in zip(means, errors, strict=True)]
    count = len(rows)
    return Outcome(
        llc=math.fsum(means) / count,
        std_error=math.sqrt(math.fsum(error**2 for error in errors)) / count,
        error=math.fsum(off) / count / abs(reference),
        cost=math.fsum(row["fge"] for row in rows) / count,
        verdicts=tuple(row["verdict"] for row in rows),
    )
