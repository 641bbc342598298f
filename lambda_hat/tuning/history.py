"""Which settings a search has tried, and which one it tries next: Optuna's TPE, and a file that lists the settings.

The file has the settings alone. What they came to is read off their runs in the store, and Optuna's study is made from
both, in memory, each time.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lambda_hat.store.files import read_record, write_record
from lambda_hat.tuning.space import Range, Space, Value, rounded

RANDOM_TRIALS = 6
"""Optuna draws at random until so many trials have ended. Arbitrary."""
MOST_SKIPPED = 49
"""Hopeless settings that are skipped in a row before one is tried all the same. Arbitrary."""

End = Literal["told", "pruned", "failed"]


@dataclass
class Trial:
    """A setting to try.

    Attributes:
        number: Counts the settings of the search from 0, skipped ones included.
        values: By key, as runs have them.
        end: How it ended; None until its outcome is told.
    """

    number: int
    values: dict[str, Value]
    end: End | None = None


def settings_tried(path: Path, space: Space) -> list[dict[str, Value]]:
    """The settings in the file of a search; none if there is no file. Raises StoreError."""
    asked, skipped = _read(path)
    return [_values(params, space) for number, params in enumerate(asked) if number not in skipped]


class History:
    """The trials of one search, which makes both error and cost small (multi-objective TPE, Ozaki et al. 2022).

    The next setting depends only on the search and on the trials before it. So an interrupted search goes on as an
    undisturbed one does, and a search whose file is lost asks for the same settings again.

    Args:
        path: The file of this search.
        space: What is searched.
        first: The settings to begin with.
        seed: Of Optuna's sampler.

    Attributes:
        trials: Every setting that was asked for and not skipped, by number.

    Raises:
        StoreError: The file cannot be read, or is damaged.
    """

    def __init__(self, path: Path, space: Space, first: Sequence[dict[str, Value]], seed: int):
        # Optuna takes half a second to import.
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._path, self._space, self._first, self._seed = optuna, path, space, first, seed
        self._study = optuna.create_study(directions=["minimize", "minimize"])
        self._asked: list[dict[str, Any]] = []
        """As Optuna drew them, not rounded: the next draw depends on every digit."""
        self._skipped: list[int] = []
        self.trials: list[Trial] = []
        asked, skipped = _read(path)
        for number, params in enumerate(asked):
            self._keep(self._draw(params), number in skipped)

    def ask(self, count: int, is_hopeless: Callable[[dict[str, Value]], bool] = lambda values: False) -> list[Trial]:
        """The next settings to try, which are in the file from here on.

        Args:
            count: How many.
            is_hopeless: Settings for which it holds are recorded as pruned and skipped.

        Raises:
            StoreError: The file cannot be written.
        """
        before = len(self.trials)
        for _ in range(count):
            for left in reversed(range(1 + MOST_SKIPPED)):
                trial = self._draw()
                skip = left > 0 and is_hopeless(trial.values)
                self._keep(trial, skip)
                if not skip:
                    break
        write_record(self._path, {"asked": self._asked, "skipped": self._skipped})
        return self.trials[before:]

    def tell(self, trial: Trial, end: End, error: float | None = None, cost: float | None = None) -> None:
        """Record how a trial ended.

        Args:
            trial: One of `trials` that has not ended.
            end: `told`: it has an error and a cost. `pruned`: it has no estimate because of its setting, whose
                neighbours are avoided. `failed`: it has no estimate for another reason.
            error: Relative.
            cost: Full-gradient equivalents.
        """
        trial.end = end
        state = self._optuna.trial.TrialState
        if end == "told":
            assert error is not None and cost is not None
            self._study.tell(trial.number, [error, cost])
        else:
            self._study.tell(trial.number, state=state.PRUNED if end == "pruned" else state.FAIL)

    def _draw(self, params: dict[str, Any] | None = None) -> Trial:
        """The next setting: `params` if they are given."""
        number = len(self._asked)
        if params is None and number < len(self._first):
            params = self._first[number]
        if params is not None:
            self._study.enqueue_trial(params)
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(self._seed + number) % 2**32, n_startup_trials=RANDOM_TRIALS, multivariate=True
        )
        with warnings.catch_warnings():
            # The ends of the ladder of step sizes are rounded, and may lie just outside of the range.
            warnings.filterwarnings("ignore", "Fixed parameter .* is out of range")
            drawn = self._study.ask(fixed_distributions=self._distributions()).params
        self._asked.append(drawn)
        return Trial(number, _values(drawn, self._space))

    def _keep(self, trial: Trial, skip: bool) -> None:
        if skip:
            self._skipped.append(trial.number)
            self.tell(trial, "pruned")
        else:
            self.trials.append(trial)

    def _distributions(self) -> dict[str, Any]:
        made = self._optuna.distributions
        found: dict[str, Any] = {}
        for key, values in self._space.items():
            if not isinstance(values, Range):
                found[key] = made.CategoricalDistribution(values.values)
            elif values.whole:
                found[key] = made.IntDistribution(values.low, values.high, log=values.log)
            else:
                found[key] = made.FloatDistribution(values.low, values.high, log=values.log)
        return found


def _read(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The settings in the file, and the numbers of the skipped ones."""
    try:
        record = read_record(path)
    except FileNotFoundError:
        return [], []
    return record["asked"], record["skipped"]


def _values(params: dict[str, Any], space: Space) -> dict[str, Value]:
    return {key: rounded(params[key]) for key in space}
