"""The settings that no other one beats in both error and cost, and which of them to take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from lambda_hat.tuning.objective import Outcome

Name = TypeVar("Name")


def front(outcomes: Mapping[Name, Outcome]) -> list[Name]:
    """The names of the trusted outcomes on the Pareto front of error and cost, the cheapest first."""
    found: list[Name] = []
    best = float("inf")
    for name, outcome in sorted(outcomes.items(), key=lambda item: (item[1].cost, item[1].error)):
        if outcome.trusted and outcome.error < best:
            found.append(name)
            best = outcome.error
    return found


def winner(outcomes: Mapping[Name, Outcome], tolerance: float) -> Name | None:
    """The cheapest trusted outcome whose error is at most `tolerance`; where there is none, the most accurate one; None
    where no outcome is trusted."""
    names = front(outcomes)
    within = [name for name in names if outcomes[name].error <= tolerance]
    return within[0] if within else names[-1] if names else None
