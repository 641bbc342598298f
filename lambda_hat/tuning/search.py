"""One sampler on one target: which runs are wanted next, until the settings to take are known.

Nothing is remembered but Optuna's journal: what runs came to is read off the store each time, so that a search goes on
from wherever it was interrupted, and samples nothing twice.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from lambda_hat.id_utils import canonical_json, identity_payload
from lambda_hat.results import RunRef
from lambda_hat.tuning.front import front, winner
from lambda_hat.tuning.history import End, History, Trial
from lambda_hat.tuning.objective import Outcome, Row, cost_to, diverged, is_decided, outcome_of
from lambda_hat.tuning.reference import Reference
from lambda_hat.tuning.space import Value, first_settings, space_of, start_of, step_key
from lambda_hat.tuning.wanted import Look, Start, WantedRun, blocked, want

SEARCH_FORMAT = 1
HOPELESS = 2.0
"""A step so many times one that diverged is not tried: other keys move the limit of stability less. Arbitrary."""
MOST_AGAIN = 6
"""Settings that are sampled again at most. Arbitrary."""


class Search:
    """The search for settings of one sampler on one target.

    After the trials, the settings that would be taken are sampled again, with fresh seeds: the best of many is also
    lucky. Where they do not hold with all of their seeds, others are taken and sampled again, until some do.
    """

    def __init__(
        self, start: Start, reference: Reference, folder: Path, *, trials: int, batch: int, seeds: int, tolerance: float
    ):
        """folder: of all searches. seeds: runs of a setting. tolerance: the relative error that is good enough."""
        self.start, self.reference = start, reference
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
        self.folder = folder / f"search_{start.name}_{digest[:8]}"
        self._seed = int(digest[8:15], 16)
        self._history: History | None = None
        self._composed: dict[tuple, WantedRun] = {}
        self.lost: str | None = None
        """Why there are no settings."""
        self.outcomes: dict[int, Outcome] = {}
        """By the number of the trial, for those that gave an estimate."""
        self.settings: dict[int, dict[str, Value]] = {}
        """What each trial tried, by its number."""
        self._fresh: dict[int, Outcome | None] = {}
        """By number, with fresh seeds alone, of the trials that were sampled again; None where that was no estimate."""
        self._whole: dict[int, Outcome] = {}
        """The same with all seeds."""

    @property
    def label(self) -> str:
        """For a person: target and sampler."""
        return f"{self.start.build.label}, {self.start.name}"

    @property
    def num_told(self) -> int:
        """Trials whose outcome is known."""
        return len(self.settings)

    @property
    def start_values(self) -> dict[str, Value]:
        """What the study has for the keys that are searched."""
        return start_of(self.start.cfg, self.space)

    @property
    def judged(self) -> dict[int, Outcome]:
        """What each trial came to, with all of its seeds, by its number; those that have no estimate are left out."""
        return {
            number: self._whole.get(number, outcome)
            for number, outcome in self.outcomes.items()
            if number in self._whole or number not in self._fresh
        }

    @property
    def confirmed(self) -> Outcome | None:
        """What the settings that are taken came to with fresh seeds; None before they were sampled again."""
        return None if self.winner is None else self._fresh.get(self.winner)

    @property
    def front(self) -> list[int]:
        """The numbers of the trials on the Pareto front, the cheapest first."""
        return front(self.judged)

    @property
    def winner(self) -> int | None:
        """The number of the trial whose settings are taken, as far as is known; None where none is to be trusted."""
        judged = self.judged
        if len(self._fresh) >= MOST_AGAIN:
            judged = {number: outcome for number, outcome in judged.items() if number in self._fresh}
        return winner(judged, self.tolerance)

    @property
    def is_within(self) -> bool:
        """Whether the settings that are taken are within the tolerance."""
        return self.winner is not None and self.judged[self.winner].error <= self.tolerance

    def fresh_seeds(self) -> list[int]:
        """The seeds that settings which would be taken are sampled again with."""
        return list(range(self.seeds, 2 * self.seeds))

    def num_told_earlier(self) -> int:
        """Trials whose outcome the journal has; nothing is written. Raises CorruptArtifact."""
        return History.told(self.folder)

    def random_runs(self, count: int, rng: random.Random) -> list[WantedRun]:
        """Single runs of some settings out of all that could be tried, for an estimate of what they cost."""
        drawn = [{key: values.draw(rng) for key, values in self.space.items()} for _ in range(count)]
        return [run for values in drawn for run in self._runs(values, [0])]

    def first_runs(self) -> list[WantedRun]:
        """The runs of the first batch where nothing has been tried; nothing is asked for."""
        settings = first_settings(self.start.cfg, self.space)[: self.trials_wanted]
        return [run for values in settings[: self._batch] for run in self._runs(values, range(self.seeds))]

    def propose(self, look: Look) -> list[WantedRun]:
        """The runs that have to be sampled next; none where the search is at its end, or lost.

        Raises StoreError, StoreUnwritable, CorruptArtifact of the journal.
        """
        if self.lost is not None:
            return []
        if self._history is None:
            first = first_settings(self.start.cfg, self.space)
            self._history = History(self.folder, self.space, first, self._seed)
        while True:
            trials = self._history.trials()
            opened = [trial for trial in trials if trial.end is None]
            if not opened and len(trials) < self.trials_wanted:
                count = min(self._batch, self.trials_wanted - len(trials))
                is_hopeless = self._hopeless(trials, look)
                opened = [self._history.ask(is_hopeless) for _ in range(count)]
                trials += opened
            rows = {trial.number: look(self._refs(trial)) for trial in trials}
            needed = self._needed(opened, rows, look)
            if needed or self.lost is not None:
                return needed
            self._settle(trials, rows)
            if len(trials) >= self.trials_wanted:
                return self._confirm(look)

    def _hopeless(self, trials: list[Trial], look: Look) -> Callable[[dict[str, Value]], bool]:
        """Whether a setting need not be tried: its step is far larger than one that diverged."""
        key = step_key(self.start.cfg)
        if key is None:
            return lambda values: False
        lost = [trial.values[key] for trial in trials if any(map(diverged, look(self._refs(trial))))]
        limit = HOPELESS * min(lost, default=math.inf)
        return lambda values: values[key] > limit

    def _needed(self, opened: list[Trial], rows: dict[int, Sequence[Row]], look: Look) -> list[WantedRun]:
        """What has to be sampled before the trials that are open can be told."""
        self.lost = blocked(self.start, (row for own in rows.values() for row in own))
        if self.lost is not None:
            return []
        needed = [
            run
            for trial in opened
            for run, row in zip(self._runs_of(trial), rows[trial.number], strict=True)
            if not is_decided(row)
        ]
        known = [row for own in rows.values() for row in own if row["status"] == "finished"]
        self.reference.offer(known)
        # Whether an exact value is known, a row will tell.
        if known or not needed or not self.reference.may_be_exact:
            needed += self.reference.needed(look)
        if self.reference.lost is not None:
            self.lost = self.reference.lost
            return []
        return needed

    def _settle(self, trials: list[Trial], rows: dict[int, Sequence[Row]]) -> None:
        """Tell what is open, and take in what all trials came to."""
        assert self._history is not None and self.reference.value is not None
        for trial in trials:
            outcome = outcome_of(rows[trial.number], self.reference.value)
            self.settings[trial.number] = trial.values
            if outcome is not None:
                self.outcomes[trial.number] = outcome
            if trial.end is None:
                end: End = "told" if outcome is not None else "failed"
                if any(map(diverged, rows[trial.number])):
                    end = "pruned"
                values = () if outcome is None else (outcome.error, cost_to(self.tolerance, outcome))
                self._history.tell(trial.number, end, *values)

    def _confirm(self, look: Look) -> list[WantedRun]:
        assert self.reference.value is not None
        while (number := self.winner) is not None and number not in self._fresh:
            values, seeds = self.settings[number], self.fresh_seeds()
            runs = self._runs(values, seeds)
            rows = look([run.ref for run in runs])
            if needed := [run for run, row in zip(runs, rows, strict=True) if not is_decided(row)]:
                return needed
            before = look([run.ref for run in self._runs(values, range(self.seeds))])
            self._fresh[number] = outcome_of(rows, self.reference.value)
            if (whole := outcome_of([*before, *rows], self.reference.value)) is not None:
                self._whole[number] = whole
        return []

    def _refs(self, trial: Trial) -> list[RunRef]:
        return [run.ref for run in self._runs_of(trial)]

    def _runs_of(self, trial: Trial) -> list[WantedRun]:
        return self._runs(trial.values, range(self.seeds))

    def _runs(self, values: dict[str, Value], seeds: Iterable[int]) -> list[WantedRun]:
        # Every round looks at all trials, and composing a configuration takes milliseconds.
        found = []
        for seed in seeds:
            key = (*values.items(), seed)
            if key not in self._composed:
                self._composed[key] = want(self.start, {**values, "seed": seed})
            found.append(self._composed[key])
        return found
