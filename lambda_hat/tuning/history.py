"""What was tried: Optuna's journal, in the store, and its sampler, which says what to try next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lambda_hat.errors import CorruptArtifact
from lambda_hat.files import writing
from lambda_hat.tuning.space import Range, Space, Value, rounded

JOURNAL = "journal.log"
RANDOM_TRIALS = 6
"""Until there are so many outcomes, what is not given is drawn at random. Arbitrary."""
MOST_PASSED_OVER = 50
PASSED_OVER = "passed_over"

End = Literal["told", "pruned", "failed"]


@dataclass(frozen=True)
class Trial:
    """One setting that was asked for."""

    number: int
    values: dict[str, Value]
    end: End | None
    """None: its outcome has not been told."""


class History:
    """The trials of one search: error and cost are both made small, by a multi-objective TPE (Ozaki et al. 2022).

    What is asked for next follows from the search and the trials before it alone, so that an interrupted search goes on
    as an undisturbed one does, and one whose journal is lost asks for the same settings again.
    """

    def __init__(self, folder: Path, space: Space, first: Sequence[dict[str, Value]], seed: int):
        """folder: of this search alone. first: the settings to begin with.

        Raises StoreError, StoreUnwritable, and CorruptArtifact for a journal that is none.
        """
        # Optuna takes half a second to import.
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._seed = optuna, space, seed
        self.path = folder / JOURNAL
        with writing(self.path):
            folder.mkdir(parents=True, exist_ok=True)
            self._study = self._load() or self._create(first)

    @staticmethod
    def told(folder: Path) -> int:
        """How many trials of a search have ended, where it has begun; nothing is written. Raises CorruptArtifact."""
        path = folder / JOURNAL
        if not path.is_file():
            return 0
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = _loaded(optuna, path)
        trials = [] if study is None else study.get_trials(deepcopy=False)
        return sum(trial.state.is_finished() and PASSED_OVER not in trial.user_attrs for trial in trials)

    def trials(self) -> list[Trial]:
        """Every trial that was asked for and not passed over, by number."""
        state = self._optuna.trial.TrialState
        ends: dict[Any, End | None] = {
            state.COMPLETE: "told",
            state.PRUNED: "pruned",
            state.FAIL: "failed",
            state.RUNNING: None,
        }
        found = self._study.get_trials(deepcopy=False, states=tuple(ends))
        # One that was interrupted while it was being asked for has not all of its values, and never ran.
        whole = [t for t in found if t.params.keys() == self._space.keys() and PASSED_OVER not in t.user_attrs]
        return [Trial(trial.number, self._plain(trial.params), ends[trial.state]) for trial in whole]

    def ask(self, is_hopeless: Callable[[dict[str, Value]], bool] = lambda values: False) -> Trial:
        """The next setting to try. What `is_hopeless` is passed over, as if it had been tried and were to blame.

        Raises StoreUnwritable.
        """
        for left in reversed(range(MOST_PASSED_OVER)):
            number = len(self._study.get_trials(deepcopy=False))
            self._study.sampler = self._sampler(number)
            with writing(self.path):
                trial = self._study.ask(fixed_distributions=self._distributions())
                values = self._plain(trial.params)
                if not left or not is_hopeless(values):
                    return Trial(trial.number, values, None)
                trial.set_user_attr(PASSED_OVER, True)
            self.tell(trial.number, "pruned")
        raise AssertionError("the last one is taken")

    def tell(self, number: int, end: End, error: float | None = None, cost: float | None = None) -> None:
        """How a trial ended: with error and cost where it was `told`; `pruned` where the setting is to blame that there
        is no estimate, so that its neighbours are avoided; `failed` where something else is. Raises StoreUnwritable."""
        state = self._optuna.trial.TrialState
        with writing(self.path):
            if end == "told":
                self._study.tell(number, [error, cost], skip_if_finished=True)
            else:
                ended = state.PRUNED if end == "pruned" else state.FAIL
                self._study.tell(number, state=ended, skip_if_finished=True)

    def _load(self) -> Any:
        if not self.path.is_file():
            return None
        _drop_torn_line(self._optuna, self.path)
        return _loaded(self._optuna, self.path)

    def _create(self, first: Sequence[dict[str, Value]]) -> Any:
        study = self._optuna.create_study(
            storage=_storage(self._optuna, self.path), study_name=self.path.parent.name, directions=["minimize"] * 2
        )
        for values in first:
            study.enqueue_trial(values)
        return study

    def _sampler(self, number: int) -> Any:
        return self._optuna.samplers.TPESampler(
            seed=(self._seed + number) % 2**32, n_startup_trials=RANDOM_TRIALS, multivariate=True
        )

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

    def _plain(self, params: dict[str, Any]) -> dict[str, Value]:
        return {key: rounded(params[key]) for key in self._space}


def _storage(optuna: Any, path: Path) -> Any:
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


def _loaded(optuna: Any, path: Path) -> Any:
    """The study of a journal; None where it holds none yet."""
    try:
        return optuna.load_study(study_name=path.parent.name, storage=_storage(optuna, path))
    except KeyError as error:
        if "does not exist" in str(error):
            return None
        raise _damaged(path, error) from None
    except (ValueError, TypeError, AttributeError, IndexError, AssertionError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> CorruptArtifact:
    return CorruptArtifact(
        f"{path}: damaged ({type(error).__name__}: {error}); move it away and run the same command again: the same "
        "settings are asked for, and what was sampled of them is kept"
    )


def _drop_torn_line(optuna: Any, path: Path) -> None:
    """Remove the beginning of a line at the end, which a driver that was killed left: the next would be glued to it."""
    lock = optuna.storages.journal.JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        with path.open("r+b") as file:
            data = file.read()
            if data and not data.endswith(b"\n"):
                file.truncate(data.rfind(b"\n") + 1)
    finally:
        lock.release()
