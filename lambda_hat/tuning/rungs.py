"""The step size of an unadjusted sampler without a reference: a geometric ladder of them, and which rung to take.

The bias grows with the step, and what a run costs to burn in and to mix falls with it, so the largest step is wanted
whose bias is small. A Metropolis step would tell: for a Gaussian whose d directions all have curvature h, a Langevin
step of size eps is accepted with probability `2 Phi(-c^1.5 sqrt(d) / 8)`, c = eps h, for small c (Roberts & Rosenthal
1998), and SGLD's variance, and with it the LLC, comes out `1 / (1 - c/4)` too large. Where the curvatures differ, the
c that a given acceptance stands for is at least the mean of the directions' own, by the inequality of power means: it
bounds the bias. None of this holds for a posterior that is far from Gaussian, which is why this is the quick way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from lambda_hat.tuning.objective import Row, diverged, is_decided
from lambda_hat.tuning.space import Value, ladder, space_of, start_of, step_key
from lambda_hat.tuning.wanted import Look, Start, WantedRun, blocked, want

PER_DECADE = 3
"""Rungs to a factor of ten. Arbitrary."""
LEAST_ACCEPTANCE = 0.5
"""Whatever the number of parameters. Arbitrary."""
NOT_BURNT_IN = ("drifting", "unmixed", "stuck")


def acceptance_at(tolerance: float, dim: int) -> float:
    """The acceptance of a Metropolis step at which the bias of a Gaussian's LLC is `tolerance`; `LEAST_ACCEPTANCE`
    where that is less.

    tolerance: relative. dim: parameters that move.
    """
    c = 4 * tolerance / (1 + tolerance)
    return max(LEAST_ACCEPTANCE, 2 * NormalDist().cdf(-(c**1.5) * math.sqrt(dim) / 8))


@dataclass(frozen=True)
class Rung:
    """A step size and what its run came to."""

    step: float
    row: Row
    required: float
    """The acceptance that it has to reach."""

    @property
    def is_stable(self) -> bool:
        """No chain became non-finite, and a Metropolis step would have accepted often enough."""
        if self.row["status"] != "finished" or diverged(self.row):
            return False
        acceptance = self.row["mala_acceptance"]
        return acceptance is not None and acceptance >= self.required

    @property
    def is_burnt_in(self) -> bool:
        """The chains agree, and their halves do."""
        return self.row["verdict"] not in NOT_BURNT_IN


def pick(rungs: Sequence[Rung]) -> int | None:
    """The index of the rung to take, of rungs in ascending order: of those below the first that is not stable, the
    highest that is burnt in, or the highest where none is; None where the lowest is not stable."""
    stable = []
    for index, rung in enumerate(rungs):
        if not rung.is_stable:
            break
        stable.append(index)
    burnt_in = [index for index in stable if rungs[index].is_burnt_in]
    return burnt_in[-1] if burnt_in else stable[-1] if stable else None


class RungSearch:
    """The quick search for the step size of one sampler on one target: one run a rung, all at once."""

    def __init__(self, start: Start, tolerance: float):
        """Raises ConfigError for a sampler that adapts its own step."""
        self.start, self.tolerance = start, tolerance
        self.steps = ladder(start.cfg, PER_DECADE)
        key = step_key(start.cfg)
        assert key is not None
        self.key = key
        self.rungs: list[Rung] = []
        self.lost: str | None = None

    @property
    def label(self) -> str:
        """For a person: target and sampler."""
        return f"{self.start.build.label}, {self.start.name}"

    @property
    def start_values(self) -> dict[str, Value]:
        """What the study has for the key that is searched."""
        return {self.key: start_of(self.start.cfg, space_of(self.start.cfg))[self.key]}

    @property
    def winner(self) -> int | None:
        """The index of the rung to take; None where none is stable, or nothing is sampled yet."""
        return pick(self.rungs)

    def first_runs(self) -> list[WantedRun]:
        """One run a rung."""
        return [want(self.start, {self.key: step, "seed": 0}) for step in self.steps]

    def propose(self, look: Look) -> list[WantedRun]:
        """The runs that have to be sampled next; none at the end."""
        runs = self.first_runs()
        rows = look([run.ref for run in runs])
        needed = [run for run, row in zip(runs, rows, strict=True) if not is_decided(row)]
        self.lost = blocked(self.start, rows)
        if self.lost is not None:
            return []
        if not needed:
            required = acceptance_at(self.tolerance, rows[0]["dim"] or 1)
            self.rungs = [Rung(step, row, required) for step, row in zip(self.steps, rows, strict=True)]
        return needed
