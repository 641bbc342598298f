"""All searches of one command: the runs that they want next are sampled together, as packs of one study."""

from __future__ import annotations

import argparse
import contextlib
import random
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.driver.attempts import Attempts
from flows.driver.deaths import forget
from flows.driver.dry_run import show_packs
from flows.driver.packs import submit_packs
from flows.driver.pricing import plan_sentences, price_of
from flows.driver.request import Request
from flows.driver.screen import Screen
from flows.driver.stopping import OutOfTime, Stop, Stopped, early_end
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFINISHED, StoreError
from lambda_hat.id_utils import Run, canonical_json
from lambda_hat.planning.calibration import update_costs
from lambda_hat.store.study_records import StudyLog
from lambda_hat.workflow_config import Study, with_runs

if TYPE_CHECKING:
    from lambda_hat.tuning.rungs import RungSearch
    from lambda_hat.tuning.search import Search
    from lambda_hat.tuning.surface import SharedSearch
    from lambda_hat.tuning.wanted import Start

LEAST_BATCH, LEAST_ROUNDS = 2, 4
"""By default a search tries at least so many settings at a time, and spreads its trials over at least so many batches:
the settings of one batch are chosen without each other's outcomes. Arbitrary."""
DRAWN = 4
"""The expected cost of a run of a search is the mean over so many random settings."""


class Tuning:
    """The searches of one command.

    Args:
        request: The study on its site.
        args: The options of the command.
        starts: What the searches begin with.
    """

    def __init__(self, request: Request, args: argparse.Namespace, starts: Sequence[Start]):
        self._request, self._started = request, time.monotonic()
        self._shared, self._at_once = args.shared, args.quick or args.shared
        """Whether one setting is wanted for all targets; whether all settings are tried at once."""
        self._screen, self._stop = Screen(), Stop()
        self._base = request.study
        """The study whose targets are tuned for."""
        self._tally: str | None = None
        """What was sampled more than once, in one line."""
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        """Of finished runs, which nothing changes any more."""
        self._failed: set[tuple[str, str]] = set()
        """Runs that have failed, when they were last looked at."""
        self._sampled: dict[tuple[str, str], Run] = {}
        self._batches = 0
        self._ended = False
        """Whether no search wants another run."""
        search = self._shared_searches if args.shared else self._quick_searches if args.quick else self._searches
        self.searches: Sequence[Any] = search(args, starts)

    def _shared_searches(self, args: argparse.Namespace, starts: Sequence[Start]) -> list[SharedSearch]:
        from lambda_hat.tuning.surface import SharedSearch, by_sampler

        return [SharedSearch(own) for own in by_sampler(starts)]

    def _quick_searches(self, args: argparse.Namespace, starts: Sequence[Start]) -> list[RungSearch]:
        from lambda_hat.tuning.rungs import RungSearch

        searches = [RungSearch(start, args.tolerance) for start in starts]
        if args.pack is None:
            # A ladder is judged as a whole, so that all of it goes into one pack.
            self._base = replace(
                self._base, settings=replace(self._base.settings, pack=sum(len(s.steps) for s in searches))
            )
        return searches

    def _searches(self, args: argparse.Namespace, starts: Sequence[Start]) -> list[Search]:
        from lambda_hat.tuning.reference import POSTERIOR, Reference
        from lambda_hat.tuning.search import Search

        trials, batch = args.trials, args.batch
        if batch is None:
            filling = self._base.settings.pack // (len(starts) * args.seeds)
            batch = max(LEAST_BATCH, min(filling, trials // LEAST_ROUNDS))
        sampler = None if args.reference == "none" else args.reference
        references: dict[str, Reference] = {}
        searches = []
        for start in starts:
            # One value for all searches on one posterior.
            key = canonical_json([start.target_id, *(getattr(start.cfg, name) for name in POSTERIOR)])
            reference = references.setdefault(key, Reference(start, sampler, args.tolerance))
            searches.append(
                Search(
                    start, reference, self._request.store.root / "tuning",
                    trials=trials, batch=min(batch, trials), seeds=args.seeds, tolerance=args.tolerance,
                )
            )  # fmt: skip
        return searches

    # ------------------------------------------------------------------------------------------------------
    # Running

    def run(self) -> int:
        """Sample what the searches want until they are at their ends. Returns the exit status."""
        self._request.prepare()
        with self._stop.on_signals():
            end = early_end(self._sample, self._screen.say)
        status = self._report()
        return EXIT_INTERRUPTED if isinstance(end, Stopped) else status

    def _sample(self) -> None:
        """Raises as `Attempts.run` and `_next_study`."""
        study = self._next_study()
        # Results that are cached need no workers.
        if study is None:
            return
        request = replace(self._request, study=study)
        plan = request.plan(None)
        if not request.quiet:
            self._screen.say_all(plan_sentences(request, plan))
        attempts = Attempts(request, submit_packs, self._screen, self._stop, StudyLog(), self._next_study)
        try:
            attempts.run(plan)
        finally:
            self._tally = attempts.tally.line()

    def _next_study(self) -> Study | None:
        """What the searches want next, as a study. None: they want nothing more.

        Raises StoreError if a result in the store cannot be read, Stopped, OutOfTime.
        """
        before: list[str] = []
        while wanted := self._propose():
            self._stop.check()
            if self._request.is_late:
                raise OutOfTime
            self._discard_failures(wanted)
            study = self._study_of(wanted)
            plan = replace(self._request, study=study).plan(None)
            if plan.runs or plan.elsewhere:
                self._batches += 1
                self._sampled |= {run.key: run for run in wanted}
                self._say_batch(len(wanted))
                return study
            ids = [run.run_id for run in wanted]
            if ids == before:
                (row,) = self._look(wanted[:1])
                raise StoreError(f"{row['run_dir']}: {row['reason']}; move it away and run the same command again")
            before = ids
        self._ended = True
        return None

    def _propose(self) -> list[Run]:
        """The runs that all searches want next, each of them once."""
        return list({run.key: run for search in self.searches for run in search.propose(self._look)}.values())

    def _is_tried_again(self, key: tuple[str, str]) -> bool:
        """Whether the failure of a run is an earlier command's, and this one is to try it again."""
        return self._request.rerun is not None and key not in self._sampled

    def _discard_failures(self, runs: Sequence[Run]) -> None:
        for run in runs:
            if run.key in self._failed and self._is_tried_again(run.key):
                directory = self._request.store.run_dir(*run.key)
                (directory / "error.json").unlink(missing_ok=True)
                forget(directory)
                self._failed.discard(run.key)

    def _study_of(self, wanted: Sequence[Run]) -> Study:
        return with_runs(self._base, wanted).priced(self._base.costs, self._request.store.targets_dir)

    def _look(self, runs: Sequence[Run]) -> list[dict[str, Any]]:
        """The rows of some runs as they are now."""
        from lambda_hat.report.results import collect

        missing = [run for run in runs if run.key not in self._rows]
        now = dict(self._rows)
        for row in collect(self._request.store, missing, self._base.targets).to_pylist() if missing else ():
            key = row["target_id"], row["run_id"]
            now[key] = row
            (self._failed.add if row["status"] == "failed" else self._failed.discard)(key)
            if row["status"] == "failed" and self._is_tried_again(key):
                row["status"] = "pending"
            if row["status"] == "finished":
                self._rows[key] = row
        return [now[run.key] for run in runs]

    def _say_batch(self, runs: int) -> None:
        if self._request.quiet:
            return
        told = f"batch {self._batches}: {runs} runs"
        if not self._at_once:
            tried = sum(len(search.settings) for search in self.searches)
            within = sum(search.is_within for search in self.searches)
            told += (
                f"; {tried} of {sum(s.trials_wanted for s in self.searches)} settings tried, "
                f"{within} of {len(self.searches)} searches within their tolerance so far"
            )
        self._screen.say(told)

    # ------------------------------------------------------------------------------------------------------
    # What comes of it

    def _report(self) -> int:
        """Write the experiments file and the picture, print the table. Returns the exit status."""
        from lambda_hat.tuning import findings, picture, surface_picture

        say, results_root = self._screen.say, self._request.results_root
        self._learn_costs()
        print_all, draw = (
            (findings.print_shared, surface_picture.draw_shared)
            if self._shared
            else (findings.print_rungs, picture.draw_rungs)
            if self._at_once
            else (findings.print_searches, picture.draw_searches)
        )
        print_all(self.searches, self._screen.console)
        drawn = draw(self.searches, results_root / picture.NAME)
        written = self._write(results_root / findings.EXPERIMENTS_NAME)
        lost = [
            search for search in self.searches if search.lost is not None or (self._ended and search.winner is None)
        ]
        for search in lost:
            say(f"no settings for {search.label}: {search.why_none}")
        if self._failed:
            say(f"failed    {len(self._failed)} runs: the same command with --rerun failed tries them again")
        if self._tally is not None:
            say(f"tries     {self._tally}")
        say(f"time      {time.monotonic() - self._started:.1f} s")
        if drawn is not None:
            say(f"picture   {drawn}")
        if written is not None:
            say(f"settings  {written}")
            say(f"to sample with them: lambda-hat run --experiments {shlex.quote(str(written))}")
        if not self._ended:
            say("the search is unfinished: run the same command again to continue")
            return EXIT_UNFINISHED
        off = [search for search in self.searches if search.winner is not None and not search.is_within]
        for search in off:
            say(
                f"nothing within {search.tolerance:.0%} was found for {search.label}: the most accurate setting "
                "was taken; more --trials go on from here"
            )
        return EXIT_FAILED if lost or off else EXIT_OK

    def _write(self, path: Path) -> Path | None:
        from lambda_hat.tuning.findings import comment_of, percent, write_experiments

        taken = [(search.found, comment_of(search)) for search in self.searches if search.winner is not None]
        if not taken:
            return None
        how = f"{len(taken)} of {len(self.searches)} searches, by lambda-hat tune"
        if not self._at_once:
            how += f"; the cheapest settings with an error of at most {percent(self.searches[0].tolerance)}"
        write_experiments(path, self._base, taken, how)
        return path

    def _learn_costs(self) -> None:
        """Learn from the runs that were sampled what runs of later studies cost."""
        from lambda_hat.report.results import collect

        runs, targets, store = list(self._sampled.values()), self._base.targets, self._request.store
        with contextlib.suppress(StoreError):
            update_costs(store, collect(store, runs, targets), runs, targets)

    # ------------------------------------------------------------------------------------------------------

    def dry_run(self) -> int:
        """Show the searches, what they are expected to cost, and the first batch. Nothing is started or written.

        Returns the exit status.
        """
        say, first = self._screen.say, []
        for search in self.searches:
            tried = 0 if self._at_once else search.num_tried(self._look)
            self._screen.say_all(search.plan(tried))
            if not tried:
                first += search.first_runs()
        if not self._at_once:
            self._say_cost()
        if not first:
            say("the next batch depends on what was tried; dry run: nothing was started")
            return EXIT_OK
        request = replace(self._request, study=self._study_of(first))
        plan = request.plan(request.rerun, look_only=True)
        say("the first batch:")
        self._screen.say_all(plan_sentences(request, plan))
        self._screen.say_all(show_packs(request, plan))
        return EXIT_OK

    def _say_cost(self) -> None:
        """Say what the rest of the searches is expected to cost, by a few random settings of each."""
        request, say, costs = self._request, self._screen.say, self._base.costs
        rng, total, runs = random.Random(0), 0.0, 0
        for search in self.searches:
            left = search.trials_wanted - search.num_tried(self._look)
            if left > 0:
                drawn = self._study_of(search.random_runs(DRAWN, rng)).runs
                # The fresh seeds at the end are as many runs as one more trial.
                total += (left + 1) * search.seeds * sum(run.cost for run in drawn) / len(drawn)
                total += (request.num_ranks or 1) * costs.compile_seconds(search.start.name)
                runs += (left + 1) * search.seeds
        say(f"expected: {runs} runs, about {price_of(request, total)}, {costs.basis}")
        references = {id(s.reference): s.reference for s in self.searches if not s.reference.may_be_exact}
        wanted = [reference.runs[0] for reference in references.values() if reference.runs]
        if wanted:
            runs_of = self._study_of(wanted).runs
            seconds = sum(run.cost + costs.compile_seconds(run.cfg.name) for run in runs_of)
            cost = price_of(request, seconds)
            several = "s" if len(wanted) > 1 else ""
            say(f"and {len(wanted)} long run{several} where no exact value is known, about {cost}")
