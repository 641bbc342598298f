"""The attempts of one driver.

Each attempt samples what is left, and the rest is planned again from the store. They end when nothing is left or
nothing more gets done.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from flows.driver.bad_nodes import BadNodes
from flows.driver.deaths import forget
from flows.driver.leftovers import end_leftovers
from flows.driver.plan import Plan
from flows.driver.request import Request
from flows.driver.rounds import POLL, Outcome, Round
from flows.driver.screen import Screen
from flows.driver.stopping import STOP_SECONDS, OutOfTime, Stop, Stopped
from flows.driver.workers import Workers, start_workers
from lambda_hat.errors import LaunchError, StoreUnwritable
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.report.closing import tries_line
from lambda_hat.store import run_files
from lambda_hat.store.heartbeat import Heartbeat, live_heartbeats, tidy_heartbeats
from lambda_hat.store.study_records import StudyLog
from lambda_hat.workflow_config import Study

ELSEWHERE_SECONDS = 2.0
"""Seconds between two looks at runs that another driver samples."""
MOST_NAMED = 3
"""At most so many other drivers are named."""
MOST_EXCUSED = 3
"""Attempts in a row that may get nothing done and find bad nodes. If there are more, it is not the nodes."""
WORKERS_SECONDS = 5.0
"""Seconds for Parsl to see that the worker pool of a local block has died."""


@dataclass
class Tally:
    """What a driver had to do more than once."""

    runs: int = 0
    """Runs that were sampled again, once for each time."""
    causes: Counter[str] = field(default_factory=Counter)
    """Why: keys of `lambda_hat.report.closing.CAUSES`."""
    damaged: int = 0
    """Files that were set aside."""
    quarantined: int = 0
    """Runs that were set aside because their ranks died twice."""
    nodes: list[str] = field(default_factory=list)
    """Nodes that are left out."""

    def line(self) -> str | None:
        """A sentence for the report. None: there is nothing to tell."""
        return tries_line(self.runs, self.causes, self.damaged, self.quarantined, self.nodes)


class Attempts:
    """The attempts of one driver at a request.

    submit: submits the builds of a round and what samples its runs. next_study: called where nothing is left; another
    study to go on with, on the same site and in the same store, or None. on_last_runs: called again and again while a
    pack has more ranks than runs are left, which leaves cores idle.
    """

    def __init__(
        self,
        request: Request,
        submit: Callable[[Round], None],
        screen: Screen,
        stop: Stop,
        log: StudyLog,
        next_study: Callable[[], Study | None] = lambda: None,
        on_last_runs: Callable[[], None] = lambda: None,
    ):
        self._request, self._submit, self._next_study = request, submit, next_study
        self._on_last_runs = on_last_runs
        self._screen, self._stop, self._log = screen, stop, log
        self.pack_dirs: list[Path] = []
        self.tally = Tally()
        self._nodes = BadNodes(request.nodes)
        self._idle = 0
        """Attempts in a row that got nothing done."""
        self._excused = 0
        """Such attempts that found bad nodes."""

    def run(self, plan: Plan) -> None:
        """Sample what is left until nothing is, or nothing more gets done. plan: of the request, as it is now.

        Raises Stopped, OutOfTime, StoreUnwritable where the store alone is in the way, and LaunchError where no pack
        could be started.
        """
        packs_dir = self._request.store.packs_dir
        self._note_damage(plan)
        tidy_heartbeats(packs_dir)
        with self._heartbeat() as heartbeat:
            if end_leftovers(packs_dir, self._screen.say, self._stop):
                plan = self._request.plan(self._request.rerun, heartbeat.path)
                self._note_damage(plan)
            self._discard(plan.runs)
            left = self._with_workers(plan, heartbeat)
        while left is not None:
            # What still computes for workers that died drains, because their heartbeat has been withdrawn.
            with self._heartbeat() as heartbeat:
                left = self._with_workers(left, heartbeat)

    @contextlib.contextmanager
    def _heartbeat(self) -> Iterator[Heartbeat]:
        with Heartbeat(self._request.store.packs_dir) as heartbeat:
            self._log.append("lease", lease=heartbeat.path.name)
            yield heartbeat

    def _with_workers(self, plan: Plan, heartbeat: Heartbeat) -> Plan | None:
        """Rounds with workers of their own. Returns what is left where other workers have to be started, else None."""
        plan = self._further(self._wait_for_others(plan, heartbeat), heartbeat)
        if not plan.runs:
            return None
        builds = bool(plan.builds)
        with start_workers(self._request, heartbeat, builds, self._screen.say, self._log.append) as workers:
            return self._rounds(plan, workers)

    def _rounds(self, plan: Plan, workers: Workers) -> Plan | None:
        for number in itertools.count():
            before = plan
            outcome = self._round(before, workers, number)
            # What failed has been recorded; only what was lost on the way is sampled again.
            plan = self._plan(workers.heartbeat)
            left = {run.key for run in [*plan.runs, *plan.elsewhere]}
            advanced = outcome.advanced or any(run.key not in left for run in before.runs)
            self.tally.quarantined += outcome.quarantined
            if not advanced and outcome.no_good_node:
                for sentence in self._nodes.forgive():
                    self._say_and_note(sentence)
                workers.leave_out(list(self._nodes.left_out))
            self.tally.nodes = list(self._nodes.left_out)
            # Without its bad nodes the next round may get on.
            excused = not advanced and outcome.nodes > 0 and self._excused < MOST_EXCUSED
            self._excused = 0 if advanced else self._excused + excused
            if not advanced and not excused:
                self._raise_what_is_in_the_way(outcome)
            self._check_time(plan, outcome)
            if not excused:
                self._idle = 0 if advanced else self._idle + 1
            tried = {run.key for run in before.runs}
            again = sum(run.key in tried for run in plan.runs)
            retries = self._request.study.settings.retries
            if again and (not retries or self._idle > retries):
                return None
            lost = self._are_lost(workers, outcome)
            if not lost:
                plan = self._wait_for_others(plan, workers.heartbeat)
            plan = self._further(plan, workers.heartbeat)
            if not plan.runs and not (lost and plan.elsewhere):
                return None
            if again:
                rebuilt = set(plan.builds) - set(before.builds)
                self.tally.runs += again
                self.tally.causes += outcome.causes + Counter(rebuilt=len(rebuilt))
                self._say_and_note(f"{again} runs were left unfinished; packing them again")
            if lost or workers.lack(bool(plan.builds)):
                return plan
        raise AssertionError("rounds end by themselves")

    def _raise_what_is_in_the_way(self, outcome: Outcome) -> None:
        """Raise LaunchError or StoreUnwritable where a round got nothing done and another one would not either."""
        if outcome.refusals:
            raise LaunchError(f"no pack could be started: {outcome.refusals[0]}")
        if outcome.store_error is not None:
            raise StoreUnwritable(outcome.store_error)
        # Single processes, and ranks that could not even write an event, do not say that this was the reason.
        self._request.store.ensure_writable()

    def _are_lost(self, workers: Workers, outcome: Outcome) -> bool:
        """Whether the workers have died and nothing replaces them.

        Parsl hears of a lost manager before it looks at the manager's block.
        """
        deadline = time.monotonic() + WORKERS_SECONDS
        while outcome.causes["block"] and workers.blocks is None and not workers.lost and time.monotonic() < deadline:
            self._stop.check()
            time.sleep(POLL)
        return workers.lost

    def _round(self, plan: Plan, workers: Workers, number: int) -> Outcome:
        console = self._screen.console
        more = {"console": console, "stop": self._stop, "log": self._log, "nodes": self._nodes}
        round_ = Round(self._request, plan, workers, number, **more)
        if number == 0:
            workers.leave_out(list(self._nodes.left_out))
        self._log.append("round", name=round_.name, builds=len(plan.builds), runs=len(plan.runs))
        workers.show_on(round_.progress)
        round_.watch(workers.look)
        round_.watch(partial(self._look_for_the_last, round_))
        with round_.progress:
            try:
                self._stop.check()
                self._submit(round_)
                round_.wait(self._request.give_up_at)
            except Stopped:
                round_.progress.say("stopping: runs are checkpointed; Ctrl-C again stops at once")
                self._log.append("note", sentence="it was told to stop: runs are checkpointed")
                workers.heartbeat.withdraw()
                round_.wind_down(STOP_SECONDS)
                self.tally.quarantined += round_.outcome.quarantined
                raise
            finally:
                self.pack_dirs += round_.pack_dirs
        return round_.outcome

    def _look_for_the_last(self, round_: Round) -> bool:
        ranks = self._request.num_ranks if self._request.packed else None
        if ranks is not None and round_.progress.totals["runs"] - round_.progress.done["runs"] < ranks:
            self._on_last_runs()
        return True

    def _check_time(self, plan: Plan, outcome: Outcome) -> None:
        """Raise OutOfTime where runs are left and this allocation has no time for them."""
        if self._request.stop_at is None or not plan.runs:
            return
        # Ranks begin no run that their time is too short for, so packs may end before the time is up.
        if self._request.is_late or (outcome.out_of_time and set(+outcome.causes) <= {"time"}):
            raise OutOfTime

    def _further(self, plan: Plan, heartbeat: Heartbeat) -> Plan:
        """`plan`; where nothing of it is left, that of the next study which has anything to sample."""
        while not plan.runs and not plan.elsewhere and (study := self._next_study()) is not None:
            self._request = replace(self._request, study=study)
            plan = self._plan(heartbeat)
            self._check_time(plan, Outcome())
            plan = self._wait_for_others(plan, heartbeat)
        return plan

    def _wait_for_others(self, plan: Plan, heartbeat: Heartbeat) -> Plan:
        """Wait while other drivers sample all that is left. Returns the plan after that."""
        told = None
        while not plan.runs and plan.elsewhere:
            runs, others = len(plan.elsewhere), self._others(heartbeat)
            sentence = f"{runs} runs are being sampled by another driver ({others}): waiting for them"
            if sentence != told:
                self._say_and_note(sentence)
                told = sentence
            began = time.monotonic()
            plan = self._request.plan(None, heartbeat.path)
            # A plan of a hundred thousand runs takes a while.
            until = time.monotonic() + max(ELSEWHERE_SECONDS, 5 * (time.monotonic() - began))
            while time.monotonic() < until and not plan.runs and plan.elsewhere:
                self._stop.check()
                if self._request.is_late:
                    raise OutOfTime
                time.sleep(POLL)
        return plan

    def _others(self, heartbeat: Heartbeat) -> str:
        found = []
        for path in live_heartbeats(self._request.store.packs_dir):
            if path == heartbeat.path:
                continue
            try:
                record = json.loads(path.read_bytes())
                found.append(f"process {record['pid']} on {record['host']}")
            except (OSError, ValueError, KeyError, TypeError):
                continue
        more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        return ", ".join([*found[:MOST_NAMED], *more]) or "which has just ended"

    def _plan(self, heartbeat: Heartbeat) -> Plan:
        """What is left now. Says what was damaged and set aside."""
        plan = self._request.plan(None, heartbeat.path)
        self._note_damage(plan)
        return plan

    def _note_damage(self, plan: Plan) -> None:
        self.tally.damaged += len(plan.damages)
        for damage in plan.damages:
            self._screen.say(f"damaged: {damage}; it is made again")

    def _say_and_note(self, sentence: str) -> None:
        self._screen.say(sentence)
        self._log.append("note", sentence=sentence)

    def _discard(self, runs: list[PlannedRun]) -> None:
        """Remove what an earlier attempt left of runs that are now sampled.

        That is its failure, or its result if all runs are wanted again. If it stayed, a run that is then lost would
        pass for the old one.
        """
        for run in runs:
            directory = self._request.store.run_dir(*run.key)
            (directory / "error.json").unlink(missing_ok=True)
            run_files.discard(directory)
            if self._request.rerun is not None:
                forget(directory)
