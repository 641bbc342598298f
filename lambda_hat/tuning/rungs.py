"""The quick search: one sampler on one target, a geometric ladder of step sizes, and which rung of it to take.

It needs no reference. The bias grows with the step, and the cost of burning in and of mixing falls with it, so the
largest step is wanted whose bias is small. A Metropolis step tells: for a Gaussian whose d directions all have
curvature h, a Langevin step of size eps is accepted with probability `2 Phi(-c^1.5 sqrt(d) / 8)`, c = eps h, for small
c (Roberts & Rosenthal 1998), and SGLD's variance, and with it the LLC, is `1 / (1 - c/4)` too large. Where curvatures
differ, the c of a given acceptance is at least the mean over the directions, by the inequality of power means, so that
it bounds the bias. None of this holds for a posterior that is far from Gaussian: hence the quick way.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

from lambda_hat.id_utils import Run
from lambda_hat.tuning.objective import Row, diverged, is_decided
from lambda_hat.tuning.space import Value, ladder, step_key, words
from lambda_hat.tuning.wanted import Look, Start, blocked, want

PER_DECADE = 3
"""Rungs to a factor of ten. Arbitrary."""
LEAST_ACCEPTANCE = 0.5
"""Required whatever the number of parameters. Arbitrary."""
NOT_BURNT_IN = ("drifting", "unmixed", "not_equilibrated", "stuck")
"""Verdicts of runs whose chains, or whose halves, do not agree."""


def acceptance_at(tolerance: float, dim: int) -> float:
    """The acceptance of a Metropolis step at which the bias of a Gaussian's LLC is `tolerance`.

    Args:
        tolerance: Relative bias.
        dim: Parameters that move.

    Returns:
        A probability, at least `LEAST_ACCEPTANCE`.
    """
    c = 4 * tolerance / (1 + tolerance)
    return max(LEAST_ACCEPTANCE, 2 * NormalDist().cdf(-(c**1.5) * math.sqrt(dim) / 8))


def is_stable(row: Row, required: float) -> bool:
    """Whether all chains of a run stayed finite, and a Metropolis step would have accepted often enough."""
    if row["status"] != "finished" or diverged(row):
        return False
    return row["mala_acceptance"] is not None and row["mala_acceptance"] >= required


def pick(rows: Sequence[Row], required: float) -> int | None:
    """The index of the rung to take.

    Args:
        rows: Of the runs, by ascending step size.
        required: The acceptance that a rung has to reach.

    Returns:
        Of the rungs below the first one that is not stable, the highest that is burnt in, or the highest if none is;
        None if the lowest rung is not stable.
    """
    stable = list(itertools.takewhile(lambda row: is_stable(row, required), rows))
    burnt_in = [index for index, row in enumerate(stable) if row["verdict"] not in NOT_BURNT_IN]
    return burnt_in[-1] if burnt_in else len(stable) - 1 if stable else None


class RungSearch:
    """One sampler on one target: one run per rung, all at once.

    Args:
        start: Target and sampler.
        tolerance: The relative bias that is good enough.

    Attributes:
        label: Target and sampler, for a person.
        key: What is searched, `step_size` or `heat`.
        steps: Its values, ascending.
        rows: What their runs came to; empty until all are decided.
        required: The acceptance that a rung has to reach, once `rows` are there.
        lost: Why there are no settings; None while there may be some.

    Raises:
        ConfigError: The sampler adapts its own step size.
    """

    def __init__(self, start: Start, tolerance: float):
        self.start, self.tolerance, self.label = start, tolerance, start.full_label
        self.steps = ladder(start.cfg, PER_DECADE)
        key = step_key(start.cfg)
        assert key is not None
        self.key = key
        self.rows: Sequence[Row] = []
        self.required = LEAST_ACCEPTANCE
        self.lost: str | None = None
        self._runs = [want(start, {key: step, "seed": 0, "mala_checks": True}) for step in self.steps]

    def plan(self, tried: int) -> list[str]:
        """What a dry run says. tried: is 0, because all rungs are tried at once."""
        return [
            f"search {self.start.target_id}  {self.start.label}, from {words(self.start_values)}",
            f"    {self.key} from {self.steps[0]:g} to {self.steps[-1]:g}, {len(self.steps)} rungs",
        ]

    @property
    def start_values(self) -> dict[str, Value]:
        """The study's value of the key that is searched."""
        return {self.key: getattr(self.start.cfg, self.key)}

    @property
    def winner(self) -> int | None:
        """The index of the rung to take; None if none is stable, or the runs are not decided yet."""
        return pick(self.rows, self.required)

    @property
    def is_within(self) -> bool:
        """Whether there is a winner: a rung that is stable is within the tolerance."""
        return self.winner is not None

    @property
    def found(self) -> dict[str, Any]:
        """The sampler entry with the winner's step size. There is a winner."""
        assert self.winner is not None
        return self.start.entry({self.key: self.steps[self.winner]})

    @property
    def why_none(self) -> str:
        """Why a search that is at its end has no winner."""
        return self.lost or (
            f"the smallest step size of the ladder, {self.steps[0]:g}, is not stable, or is accepted too rarely; "
            "start from a smaller one"
        )

    def first_runs(self) -> list[Run]:
        """One run per rung."""
        return self._runs

    def propose(self, look: Look) -> list[Run]:
        """The runs that have to be sampled next; none if the search is at its end, or lost."""
        rows = look(self._runs)
        needed = [run for run, row in zip(self._runs, rows, strict=True) if not is_decided(row)]
        self.lost = blocked(self.start, rows)
        if self.lost is not None:
            return []
        if not needed:
            self.rows, self.required = rows, acceptance_at(self.tolerance, rows[0]["dim"] or 1)
        return needed
