"""How good a setting is: the error of its estimates against their cost, over a few seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Row = Mapping[str, Any]
"""A row of the table of estimates, `lambda_hat.report.results.SCHEMA`."""

Name = TypeVar("Name")


@dataclass(frozen=True)
class Outcome:
    """What one setting came to on one target.

    Attributes:
        llc: Mean over the seeds.
        std_error: Standard error of that mean.
        error: Relative to the reference; see `outcome_of`.
        cost: Full-gradient equivalents of a run, mean over the seeds.
        verdicts: One per seed.
    """

    llc: float
    std_error: float
    error: float
    cost: float
    verdicts: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        """Whether the verdict of every run is ok."""
        return set(self.verdicts) == {"ok"}


def cost_to(tolerance: float, outcome: Outcome) -> float:
    """The cost that the optimiser is told: `cost * max(1, error / tolerance)^2`.

    If all of the error is noise, a run of this cost has the error `tolerance`. With the plain cost, a run that costs
    nothing and says nothing would be on the Pareto front.
    """
    return outcome.cost * max(1.0, outcome.error / tolerance) ** 2


def is_decided(row: Row) -> bool:
    """Whether the run has finished or failed, or cannot start, so that there is nothing to wait for."""
    return row["status"] in ("finished", "failed", "blocked")


def diverged(row: Row) -> bool:
    """Whether the run has finished without an estimate, because chains became non-finite."""
    return row["status"] == "finished" and (row["verdict"] == "diverged" or row["llc_mean"] is None)


def outcome_of(rows: Sequence[Row], reference: float) -> Outcome | None:
    """Judge a setting by its runs.

    The error is the mean over seeds of `sqrt((llc - reference)^2 + std_error^2) / |reference|`. The standard error is
    in it so that a short run that hits the reference by luck does not count as good.

    Args:
        rows: One per seed.
        reference: The value that the runs estimate, not 0.

    Returns:
        The outcome; None if a run failed, diverged or has no standard error.
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


def winner(outcomes: Mapping[Name, Outcome], tolerance: float) -> Name | None:
    """The cheapest trusted outcome whose error is at most `tolerance`.

    Returns:
        Its name; that of the most accurate trusted outcome if no error is that small; None if no outcome is trusted.
    """
    trusted = [name for name, outcome in outcomes.items() if outcome.trusted]
    within = [name for name in trusted if outcomes[name].error <= tolerance]
    if within:
        return min(within, key=lambda name: (outcomes[name].cost, outcomes[name].error))
    return min(trusted, key=lambda name: (outcomes[name].error, outcomes[name].cost), default=None)
