"""All searches of one command side by side: what they want next is sampled together, as packs of one study."""

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

from flows.packed import show_dry_run
from flows.packs import submit_packs
from flows.rounds import OutOfTime
from flows.scheduler import require_scheduler
from flows.sites import BatchSite
from flows.stopping import Stopped
from flows.study import Flow
from flows.tries import Tries
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_UNFINISHED, StoreError
from lambda_hat.id_utils import canonical_json
from lambda_hat.workflow_config import Study, with_samplers

if TYPE_CHECKING:
    from lambda_hat.results import RunRef
    from lambda_hat.tuning.rungs import RungSearch
    from lambda_hat.tuning.search import Search
    from lambda_hat.tuning.wanted import Start, WantedRun

LEAST_BATCH, LEAST_ROUNDS = 2, 4
"""Trials of a search at a time, at least, and batches that its trials are spread over: those of a batch know nothing of
each other's outcomes. Arbitrary."""
DRAWN = 4
"""Settings of each search, of which the expected cost is the mean."""


class Tuning:
    """The searches of one command, and how they stand."""

    def __init__(self, flow: Flow, args: argparse.Namespace, starts: Sequence[Start]):
        self._flow, self._quick, self._started = flow, args.quick, time.monotonic()
        self._base = flow.study
        self._costs = flow.study.costs
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        """Of runs that are finished: nothing changes them any more."""
        self._sampled: dict[tuple[str, str], RunRef] = {}
        self._batches = 0
        self._ended = False
        """Whether no search wants anything more."""
        search = self._quick_searches if args.quick else self._searches
        self.searches: Sequence[Any] = search(args, starts)

    def _quick_searches(self, args: argparse.Namespace, starts: Sequence[Start]) -> list[RungSearch]:
        from lambda_hat.tuning.rungs import RungSearch

        searches = [RungSearch(start, args.tolerance) for start in starts]
        if args.pack is None:
            # The ladder is to be judged as a whole: it goes out as one pack.
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
                    start, reference, self._flow.store.root / "tuning",
                    trials=trials, batch=min(batch, trials), seeds=args.seeds, tolerance=args.tolerance,
                )
            )  # fmt: skip
        return searches

    # ------------------------------------------------------------------------------------------------------
    # Running

    def run(self) -> int:
        """Search until every search is at its end; the exit status."""
        flow = self._flow
        flow.check_folders()
        if isinstance(flow.site, BatchSite):
            require_scheduler(flow.site.kind).check_server()
        flow.make_folders()
        flow.more = self._more
        tries, stopped = Tries(flow, submit_packs), False
        with flow.stop.on_signals():
            try:
                # What is cached needs no workers.
                if self._more():
                    plan = flow.plan(None)
                    if not flow.quiet:
                        flow.show_plan(plan)
                    tries.run(plan)
            except Stopped:
                stopped = True
            except OutOfTime:
                flow.say("the allocation ends soon: stopped; what is finished is kept")
        status = self._report(tries)
        return EXIT_INTERRUPTED if stopped else status

    def _more(self) -> bool:
        """Put what the searches want next in the place of the study; False where they want nothing more.

        Raises StoreError where a result that is there cannot be read, Stopped, OutOfTime.
        """
        flow = self._flow
        before: list[str] = []
        while wanted := self._propose():
            flow.stop.check()
            if flow.stop_at is not None and time.time() >= flow.stop_at:
                raise OutOfTime
            flow.study = self._study_of(wanted)
            plan = flow.plan(None)
            if plan.runs or plan.elsewhere:
                self._batches += 1
                self._sampled |= {(run.ref.target_id, run.ref.run_id): run.ref for run in wanted}
                self._say_batch(len(wanted))
                return True
            ids = [run.ref.run_id for run in wanted]
            if ids == before:
                (row,) = self._look([wanted[0].ref])
                raise StoreError(f"{row['run_dir']}: {row['reason']}; move it away and run the same command again")
            before = ids
        self._ended = True
        return False

    def _propose(self) -> list[WantedRun]:
        """What all searches want next, a reference that several wait for once."""
        found: dict[tuple[str, str], WantedRun] = {}
        for search in self.searches:
            for run in search.propose(self._look):
                found[run.ref.target_id, run.ref.run_id] = run
        return list(found.values())

    def _study_of(self, wanted: Sequence[WantedRun]) -> Study:
        study = with_samplers(self._base, [run.entry for run in wanted], f"{self._base.source}: tuning")
        own = {run.target_id for run in study.runs}
        study = replace(study, targets={t: build for t, build in study.targets.items() if t in own}, notes=[])
        return study.priced(self._costs, self._flow.store.targets_dir)

    def _look(self, refs: Sequence[RunRef]) -> list[dict[str, Any]]:
        """The rows of some runs as they are now."""
        from lambda_hat.results import collect

        missing = [ref for ref in refs if (ref.target_id, ref.run_id) not in self._rows]
        now = dict(self._rows)
        for row in collect(self._flow.store, missing).to_pylist() if missing else ():
            key = row["target_id"], row["run_id"]
            now[key] = row
            if row["status"] == "finished":
                self._rows[key] = row
        return [now[ref.target_id, ref.run_id] for ref in refs]

    def _say_batch(self, runs: int) -> None:
        if self._flow.quiet:
            return
        told = f"batch {self._batches}: {runs} runs"
        if not self._quick:
            tried = sum(search.num_told for search in self.searches)
            within = sum(search.is_within for search in self.searches)
            told += (
                f"; {tried} of {sum(s.trials_wanted for s in self.searches)} settings tried, "
                f"{within} of {len(self.searches)} searches within their tolerance so far"
            )
        self._flow.say(told)

    # ------------------------------------------------------------------------------------------------------
    # What comes of it

    def _report(self, tries: Tries) -> int:
        """Write the experiments file and the picture, print the table; the exit status says how the searches stand."""
        from lambda_hat.tuning import picture
        from lambda_hat.tuning.experiments import NAME
        from lambda_hat.tuning.table import print_rungs, print_searches

        flow = self._flow
        self._learn_costs()
        (print_rungs if self._quick else print_searches)(self.searches, flow.console)
        draw = picture.draw_rungs if self._quick else picture.draw_searches
        drawn = draw(self.searches, flow.results_root / picture.NAME)
        written = self._write(flow.results_root / NAME)
        lost = [
            search for search in self.searches if search.lost is not None or (self._ended and search.winner is None)
        ]
        for search in lost:
            flow.say(
                f"no settings for {search.label} ({search.start.target_id}): {search.lost or self._why_none(search)}"
            )
        if line := tries.tally.line():
            flow.say(f"tries     {line}")
        flow.say(f"time      {time.monotonic() - self._started:.1f} s")
        if drawn is not None:
            flow.say(f"picture   {drawn}")
        if written is not None:
            flow.say(f"settings  {written}")
            flow.say(f"to sample with them: python flows/packed.py --experiments {shlex.quote(str(written))}")
        if not self._ended:
            flow.say("the search is unfinished: run the same command again to continue")
            return EXIT_UNFINISHED
        off = [] if self._quick else [s for s in self.searches if s.winner is not None and not s.is_within]
        for search in off:
            flow.say(
                f"nothing within {search.tolerance:.0%} was found for {search.label}: the most accurate setting was "
                "taken; more --trials go on from here"
            )
        return EXIT_FAILED if lost or off else EXIT_OK

    def _write(self, path: Path) -> Path | None:
        from lambda_hat.tuning.experiments import Taken, write_experiments
        from lambda_hat.tuning.table import comment_of, percent, words

        taken = []
        for search in self.searches:
            if search.winner is None:
                continue
            if self._quick:
                rung = search.rungs[search.winner]
                entry = search.start.entry({search.key: rung.step})
                told = f"{words({search.key: rung.step})}, acceptance {rung.row['mala_acceptance']:.3f}"
                taken.append(Taken(entry, f"{search.label}: {told}, at least {rung.required:.3f}"))
            else:
                entry = {**search.start.entry(search.settings[search.winner]), "sweep": {"seed": search.fresh_seeds()}}
                taken.append(Taken(entry, comment_of(search)))
        if not taken:
            return None
        how = f"{len(taken)} of {len(self.searches)} searches, by flows/tune.py"
        if not self._quick:
            how += f"; the cheapest settings with an error of at most {percent(self.searches[0].tolerance)}"
        write_experiments(path, self._base, taken, how)
        return path

    def _why_none(self, search: Search | RungSearch) -> str:
        if self._quick:
            return (
                f"the smallest step size of the ladder, {search.steps[0]:g}, is not stable, or is accepted too rarely; "
                "start from a smaller one"
            )
        told = f"of {search.num_told} settings {len(search.outcomes)} gave an estimate, and none had the verdict ok"
        return f"{told}; start from more draws or burn-in, or give more --trials"

    def _learn_costs(self) -> None:
        """Let the costs of later studies follow what was sampled."""
        from lambda_hat.calibration import update_costs
        from lambda_hat.cost import shape_in_store
        from lambda_hat.results import collect

        refs = list(self._sampled.values())
        shapes = {t: shape_in_store(build, self._flow.store.target_dir(t)) for t, build in self._base.targets.items()}
        with contextlib.suppress(StoreError):
            table = collect(self._flow.store, refs)
            update_costs(self._flow.store, table, [(shapes[ref.target_id], ref.cfg) for ref in refs])

    # ------------------------------------------------------------------------------------------------------

    def dry_run(self) -> int:
        """Show the searches, about what all of them will cost, and the first batch; nothing is started or written."""
        from lambda_hat.tuning.table import span, words

        flow = self._flow
        for search in self.searches:
            flow.say(f"search {search.start.target_id}  {search.label}, from {words(search.start_values)}")
            if self._quick:
                flow.say(
                    f"    {search.key} from {search.steps[0]:g} to {search.steps[-1]:g}, {len(search.steps)} rungs"
                )
            else:
                flow.say(f"    {search.num_told_earlier()} of {search.trials_wanted} settings tried")
                flow.say(f"    {span(search.space)}")
        if not self._quick:
            self._say_cost()
        fresh = [search for search in self.searches if self._quick or not search.num_told_earlier()]
        if not fresh:
            flow.say("the next batch depends on what was tried; dry run: nothing was started")
            return EXIT_OK
        flow.study = self._study_of([run for search in fresh for run in search.first_runs()])
        plan = flow.plan(None, look_only=True)
        flow.say("the first batch:")
        flow.show_plan(plan)
        show_dry_run(flow, plan)
        return EXIT_OK

    def _say_cost(self) -> None:
        """About what is still to be paid, from a few settings of each search drawn at random."""
        flow, rng, total, runs = self._flow, random.Random(0), 0.0, 0
        for search in self.searches:
            left = search.trials_wanted - search.num_told_earlier()
            if left > 0:
                drawn = self._study_of(search.random_runs(DRAWN, rng)).runs
                # Those with fresh seeds at the end are as many as one more trial.
                total += (left + 1) * search.seeds * sum(run.cost for run in drawn) / len(drawn)
                total += (flow.num_ranks or 1) * self._costs.compile_seconds(search.start.name)
                runs += (left + 1) * search.seeds
        flow.say(f"expected: {runs} runs, about {flow.price(total)}, {self._costs.basis}")
        references = {id(s.reference): s.reference for s in self.searches if not s.reference.may_be_exact}
        wanted = [reference.runs()[0] for reference in references.values() if reference.runs()]
        if wanted:
            runs_of = self._study_of(wanted).runs
            cost = flow.price(sum(run.cost + self._costs.compile_seconds(run.cfg.name) for run in runs_of))
            several = "s" if len(wanted) > 1 else ""
            flow.say(f"and {len(wanted)} long run{several} where no exact value is known, about {cost}")
