"""The shared search: one setting of a sampler for all targets of a study, over a grid of localisation and temperature.

An LLC is read off where the chains are in equilibrium (temperature 1) and the loss grows along them as in a basin
(degree of growth 2 or more). Which `gamma` and `beta` do that depends on the network, and a curve along a training is
one curve only at one setting. No reference is needed: the verdict of each run says whether it holds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from lambda_hat.config import StochasticGradientConfig
from lambda_hat.id_utils import Run
from lambda_hat.tuning.objective import Row, is_decided
from lambda_hat.tuning.wanted import Look, Start, blocked, want

GAMMA_FACTORS = (1.0, 10.0, 100.0, 1e3, 1e4)
BETAS = (None, 0.03, 0.01)
"""The grid around a single setting: multiples of its gamma; the default `1 / log n`, and hotter. Arbitrary."""
STEP_FACTORS = (0.1, 1.0, 10.0)
"""Multiples of a step size that the study gives. Where it gives none, burn-in learns one for each run."""
OK = "ok"


def settings_of(starts: Sequence[Start]) -> list[dict[str, Any]]:
    """The settings to try, as overrides of the sampler's entry.

    Args:
        starts: The entries of one sampler in the study, on one of its targets.

    Returns:
        Those of the entries if there are several, else a grid around the only one.
    """
    if len(starts) > 1:
        return [dict(start.overrides) for start in starts]
    cfg = starts[0].cfg
    grid: dict[str, Sequence[Any]] = {}
    if cfg.n_beta is None:
        grid["beta"] = BETAS if cfg.beta is None else (cfg.beta,)
    if cfg.prior_radius is None:
        grid["gamma"] = [factor * (1.0 if cfg.gamma is None else cfg.gamma) for factor in GAMMA_FACTORS]
    if isinstance(cfg, StochasticGradientConfig) and cfg.step_size is not None:
        grid["step_size"] = [float(f"{factor * cfg.step_size:.3g}") for factor in STEP_FACTORS]
    points = itertools.product(*grid.values())
    return [{**starts[0].overrides, **dict(zip(grid, point, strict=True))} for point in points]


class SharedSearch:
    """One sampler on all targets: one run per setting and target, all at once.

    Args:
        starts: The entries of one sampler, on every target of the study.

    Attributes:
        name: The sampler.
        settings: What is tried.
        keys: The keys in which the settings differ.
        targets: For every target its id and what a run of it starts from.
        rows: For every setting, what its runs came to on the targets; empty until all are decided.
        lost: Why there are no settings; None while there may be some.
    """

    def __init__(self, starts: Sequence[Start]):
        self.name = starts[0].name
        self.targets: dict[str, Start] = {}
        for start in starts:
            self.targets.setdefault(start.target_id, start)
        first = starts[0].target_id
        self.settings = settings_of([start for start in starts if start.target_id == first])
        every = dict.fromkeys(key for values in self.settings for key in values)
        self.keys = [key for key in every if len({repr(values.get(key)) for values in self.settings}) > 1]
        self.rows: list[Sequence[Row]] = []
        self.lost: str | None = None
        self._runs = [want(start, {**values, "seed": 0}) for values in self.settings for start in self.targets.values()]

    @property
    def label(self) -> str:
        """Sampler and targets, for a person."""
        return f"{self.name} on {len(self.targets)} targets"

    def words(self, index: int) -> str:
        """The values in which a setting differs from others, such as `gamma 100, beta 1/log n`."""
        values = self.settings[index]
        return ", ".join(f"{key} {value_word(key, values.get(key))}" for key in self.keys) or "the study's setting"

    def num_ok(self, index: int) -> int:
        """On how many targets the verdict of a setting is ok."""
        return sum(row["verdict"] == OK for row in self.rows[index])

    def total_growth(self, index: int) -> float:
        """The growth of the loss along the chains, in nats, summed over the targets on which a setting is ok.

        A large gamma makes every run ok, and every estimate one of gamma alone: then nothing grows.
        """
        there = [row["growth"] for row in self.rows[index] if row["verdict"] == OK]
        return math.fsum(value for value in there if _is_number(value))

    def middle(self, index: int, column: str) -> float:
        """The median of a column over the targets on which a setting is ok, or over all where it is ok on none."""
        there = [row for row in self.rows[index] if row["verdict"] == OK] or self.rows[index]
        values = [value for row in there if _is_number(value := row[column])]
        return median(values) if values else math.nan

    def share_of_localisation(self, index: int) -> float:
        """The median over the targets of the share of the temperature that is the pull of gamma towards w_star."""
        there = [row for row in self.rows[index] if row["verdict"] == OK] or self.rows[index]
        pairs = [(row["localisation"], row["growth"]) for row in there]
        shares = [pull / (pull + growth) for pull, growth in pairs if _is_number(pull) and _is_number(growth)]
        return median(shares) if shares else math.nan

    def failures(self, index: int) -> dict[str, str]:
        """The label of every target on which a setting is not ok, and its verdict there."""
        pairs = zip(self.targets.values(), self.rows[index], strict=True)
        return {start.build.label: row["verdict"] or row["status"] for start, row in pairs if row["verdict"] != OK}

    @property
    def winner(self) -> int | None:
        """The index of the setting to take: the one with the largest `total_growth`.

        None if none is ok anywhere, or the runs are not decided yet.
        """
        if not self.rows or max(map(self.num_ok, range(len(self.rows)))) == 0:
            return None
        return max(range(len(self.rows)), key=self.total_growth)

    @property
    def is_within(self) -> bool:
        """Whether there is a winner: verdicts have no tolerance."""
        return self.winner is not None

    @property
    def found(self) -> dict[str, Any]:
        """The sampler entry with the winner's values, for all targets. There is a winner."""
        assert self.winner is not None
        return {"name": self.name, "overrides": self.settings[self.winner]}

    @property
    def why_none(self) -> str:
        """Why a search that is at its end has no winner."""
        return self.lost or (
            "no setting has the verdict ok on any target; more draws, burn-in or thin, or a larger gamma help most "
            "often, and lambda-hat show says for each run what is wrong"
        )

    def plan(self, tried: int) -> list[str]:
        """What a dry run says. tried: is 0, because all settings are tried at once."""
        return [
            f"search {self.label}: {len(self.settings)} settings of {', '.join(self.keys) or 'the study'}",
            *(f"    {self.words(index)}" for index in range(len(self.settings))),
        ]

    def first_runs(self) -> list[Run]:
        """One run per setting and target."""
        return self._runs

    def propose(self, look: Look) -> list[Run]:
        """The runs that have to be sampled next; none if the search is at its end, or lost."""
        rows = look(self._runs)
        needed = [run for run, row in zip(self._runs, rows, strict=True) if not is_decided(row)]
        if needed:
            return needed
        size = len(self.targets)
        if all(row["status"] == "blocked" for row in rows):
            self.lost = blocked(next(iter(self.targets.values())), rows)
            return []
        self.rows = [rows[index : index + size] for index in range(0, len(rows), size)]
        return []


def _is_number(value: object) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def value_word(key: str, value: Any) -> str:
    """A value of a setting, for a person."""
    if value is None:
        return "1/log n" if key == "beta" else "default"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)


def by_sampler(starts: Sequence[Start]) -> list[list[Start]]:
    """The starts of each sampler."""
    found: dict[str, list[Start]] = {}
    for start in starts:
        found.setdefault(start.name, []).append(start)
    return list(found.values())
