"""The search for settings of one sampler on one target: which runs it wants next, and which settings it takes.

Only the settings that were tried are kept. What their runs came to is read off the store each time, so that a search
goes on from wherever it was interrupted, and samples nothing twice.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lambda_hat.id_utils import Run, canonical_json, identity_payload
from lambda_hat.tuning.history import History, Trial, settings_tried
from lambda_hat.tuning.objective import Outcome, Row, cost_to, diverged, is_decided, outcome_of, winner
from lambda_hat.tuning.reference import Reference
from lambda_hat.tuning.space import Value, first_settings, space_of, span, step_key, words
from lambda_hat.tuning.wanted import Look, Start, blocked, want

SEARCH_FORMAT = 1
HOPELESS = 2.0
"""A step more than so many times as large as one that diverged is skipped: the other keys move the limit of stability
less. Arbitrary."""
MOST_AGAIN = 6
"""At most so many settings are sampled again with fresh seeds. Arbitrary."""


class Search:
    """One sampler on one target.

    After the trials, the settings that would be taken are sampled again with fresh seeds: the best of many is also
    lucky. If they do not hold with all of their seeds, others are taken and sampled again, until some do.

    Args:
        start: Target and sampler.
        reference: What the estimates are held against.
        folder: That of all searches.
        trials: Settings to try.
        batch: Settings to try at a time.
        seeds: Runs of a setting.
        tolerance: The relative error that is good enough.

    Attributes:
        label: Target and sampler, for a person.
        lost: Why there are no settings; None while there may be some.
        outcomes: What each trial that gave an estimate came to, by number.
        judged: The same, with the fresh seeds of those that were sampled again.
        settings: What each trial that has ended tried, by number.
    """

    def __init__(
        self, start: Start, reference: Reference, folder: Path, *, trials: int, batch: int, seeds: int, tolerance: float
    ):
        self.start, self.reference, self.label = start, reference, start.full_label
        self.trials_wanted, self._batch, self.seeds, self.tolerance = trials, batch, seeds, tolerance
        self.space = space_of(start.cfg)
        payload = {
            **identity_payload(replace(start.cfg, seed=0)),
            "target_id": start.target_id,
            "space": {key: repr(values) for key, values in self.space.items()},
            "seeds": seeds,
            "search": SEARCH_FORMAT,
        }
        digest = hashlib.sha1(canonical_json(payload).encode()).hexdigest()
        self.path = folder / f"search_{start.name}_{digest[:8]}.json"
        self._seed = int(digest[8:15], 16)
        self._history: History | None = None
        self._composed: dict[tuple, Run] = {}
        self.lost: str | None = None
        self.outcomes: dict[int, Outcome] = {}
        self.judged: dict[int, Outcome] = {}
        self.settings: dict[int, dict[str, Value]] = {}
        self._fresh: dict[int, Outcome | None] = {}
        """What trials that were sampled again came to with their fresh seeds alone; None if that was no estimate."""

    def plan(self, tried: int) -> list[str]:
        """What a dry run says. tried: settings that earlier commands have tried."""
        return [
            f"search {self.start.target_id}  {self.start.label}, from {words(self.start_values)}",
            f"    {tried} of {self.trials_wanted} settings tried",
            f"    {span(self.space)}",
        ]

    @property
    def start_values(self) -> dict[str, Value]:
        """The study's values of the keys that are searched."""
        return {key: getattr(self.start.cfg, key) for key in self.space}

    @property
    def confirmed(self) -> Outcome | None:
        """What the winner came to with fresh seeds alone; None before it was sampled again."""
        return None if self.winner is None else self._fresh.get(self.winner)

    @property
    def winner(self) -> int | None:
        """The number of the trial whose settings are taken, as far as is known; None if no trial is trusted."""
        judged = self.judged
        if len(self._fresh) >= MOST_AGAIN:
            judged = {number: outcome for number, outcome in judged.items() if number in self._fresh}
        return winner(judged, self.tolerance)

    @property
    def is_within(self) -> bool:
        """Whether there is a winner, and its error is within the tolerance."""
        return self.winner is not None and self.judged[self.winner].error <= self.tolerance

    @property
    def found(self) -> dict[str, Any]:
        """The sampler entry with the winner's settings and fresh seeds. There is a winner."""
        assert self.winner is not None
        return {**self.start.entry(self.settings[self.winner]), "sweep": {"seed": list(self._fresh_seeds)}}

    @property
    def why_none(self) -> str:
        """Why a search that is at its end has no winner."""
        if self.lost is not None:
            return self.lost
        told = f"of {len(self.settings)} settings {len(self.outcomes)} gave an estimate, and none had the verdict ok"
        return f"{told}; start from more draws or burn-in, or give more --trials"

    @property
    def _fresh_seeds(self) -> range:
        return range(self.seeds, 2 * self.seeds)

    def num_tried(self, look: Look) -> int:
        """Settings that earlier commands have tried; nothing is written. Raises StoreError."""
        tried = settings_tried(self.path, self.space)
        rows = look([run for values in tried for run in self._runs(values)])
        return sum(all(map(is_decided, rows[i : i + self.seeds])) for i in range(0, len(rows), self.seeds))

    def random_runs(self, count: int, rng: random.Random) -> list[Run]:
        """Single runs of `count` random settings, for an estimate of what a run costs."""
        drawn = [{key: values.draw(rng) for key, values in self.space.items()} for _ in range(count)]
        return [run for values in drawn for run in self._runs(values, [0])]

    def first_runs(self) -> list[Run]:
        """The runs of the first batch, if nothing has been tried."""
        settings = first_settings(self.start.cfg, self.space)[: min(self._batch, self.trials_wanted)]
        return [run for values in settings for run in self._runs(values)]

    def propose(self, look: Look) -> list[Run]:
        """The runs that have to be sampled next; none if the search is at its end, or lost.

        Raises:
            StoreError: The file of the search is damaged, or cannot be read or written.
        """
        if self.lost is not None:
            return []
        if self._history is None:
            first = first_settings(self.start.cfg, self.space)
            self._history = History(self.path, self.space, first, self._seed)
        history = self._history
        while True:
            opened = [trial for trial in history.trials if trial.end is None]
            left = self.trials_wanted - len(history.trials)
            if not opened and left > 0:
                opened = history.ask(min(self._batch, left), self._is_hopeless)
            runs = [run for trial in opened for run in self._runs(trial.values)]
            rows = look(runs)
            needed = self._needed(runs, rows, look)
            if needed or self.lost is not None:
                return needed
            for index, trial in enumerate(opened):
                self._settle(trial, rows[index * self.seeds :][: self.seeds])
            if len(history.trials) >= self.trials_wanted:
                return self._confirm(look)

    def _is_hopeless(self, values: dict[str, Value]) -> bool:
        """Whether the step is far larger than one that diverged."""
        assert self._history is not None
        key = step_key(self.start.cfg)
        if key is None:
            return False
        lost = [trial.values[key] for trial in self._history.trials if trial.end == "pruned"]
        return values[key] > HOPELESS * min(lost, default=math.inf)

    def _needed(self, runs: list[Run], rows: Sequence[Row], look: Look) -> list[Run]:
        """The runs that are still missing before trials can be told."""
        self.lost = blocked(self.start, rows)
        if self.lost is not None:
            return []
        needed = [run for run, row in zip(runs, rows, strict=True) if not is_decided(row)]
        finished = [row for row in rows if row["status"] == "finished"]
        self.reference.offer(finished)
        # A row tells whether an exact value is known; until there is one, the reference can wait.
        if finished or not needed or not self.reference.may_be_exact:
            needed += self.reference.needed(look)
        self.lost = self.reference.lost
        return [] if self.lost is not None else needed

    def _settle(self, trial: Trial, rows: Sequence[Row]) -> None:
        """Tell the optimiser what a trial came to."""
        assert self._history is not None and self.reference.value is not None
        outcome = outcome_of(rows, self.reference.value)
        self.settings[trial.number] = trial.values
        if outcome is not None:
            self.outcomes[trial.number] = self.judged[trial.number] = outcome
            self._history.tell(trial, "told", outcome.error, cost_to(self.tolerance, outcome))
        else:
            self._history.tell(trial, "pruned" if any(map(diverged, rows)) else "failed")

    def _confirm(self, look: Look) -> list[Run]:
        """The runs with fresh seeds that are still needed; none once the winner holds."""
        assert self.reference.value is not None
        while (number := self.winner) is not None and number not in self._fresh:
            values = self.settings[number]
            runs = self._runs(values, self._fresh_seeds)
            rows = look(runs)
            if needed := [run for run, row in zip(runs, rows, strict=True) if not is_decided(row)]:
                return needed
            before = look(self._runs(values))
            self._fresh[number] = outcome_of(rows, self.reference.value)
            whole = outcome_of([*before, *rows], self.reference.value)
            if whole is None:
                del self.judged[number]
            else:
                self.judged[number] = whole
        return []

    def _runs(self, values: dict[str, Value], seeds: Iterable[int] | None = None) -> list[Run]:
        """One run per seed; by default those of a trial."""
        # The same runs are looked at in every round, and composing a configuration takes milliseconds.
        found = []
        for seed in range(self.seeds) if seeds is None else seeds:
            key = (*values.items(), seed)
            if key not in self._composed:
                self._composed[key] = want(self.start, {**values, "seed": seed})
            found.append(self._composed[key])
        return found
