"""A study's rounds: packed, sampled, planned again from the store, until nothing is left or nothing more gets done."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flows.deaths import forget
from flows.leftovers import end_leftovers
from flows.plan import Plan
from flows.rounds import POLL, Outcome, OutOfTime, Round
from flows.stopping import STOP_SECONDS, Stopped, kill_under
from lambda_hat.errors import LaunchError, StoreUnwritable
from lambda_hat.lease import Lease, live_leases, tidy_leases
from lambda_hat.summary import tries_line
from lambda_hat.workflow_config import PlannedRun

if TYPE_CHECKING:
    from flows.study import Flow, Workers

ELSEWHERE_SECONDS = 2.0
"""Between two looks at runs that another driver samples."""
MOST_NAMED = 3
WORKERS_SECONDS = 5.0
"""For Parsl to see that the worker pool of a local block has died."""


@dataclass
class Tally:
    """What a driver had to do more than once."""

    runs: int = 0
    """Runs that were tried again, once for each time."""
    causes: Counter[str] = field(default_factory=Counter)
    damaged: int = 0
    quarantined: int = 0

    def line(self) -> str | None:
        """A sentence for the report, None where there is nothing to tell."""
        return tries_line(self.runs, self.causes, self.damaged, self.quarantined)


class Tries:
    """The rounds of one driver."""

    def __init__(self, flow: Flow, submit: Callable[[Flow, Round], None]):
        self._flow, self._submit = flow, submit
        self.pack_dirs: list[Path] = []
        self.tally = Tally()
        self._idle_tries = 0
        """Tries in a row that got nothing done."""

    def run(self, plan: Plan) -> None:
        """Pack what is left until nothing is, or nothing more gets done.

        Raises Stopped, OutOfTime, StoreUnwritable where the store alone is in the way, and LaunchError where no pack
        could be started.
        """
        flow = self._flow
        self._note(plan)
        tidy_leases(flow.store.packs_dir)
        with self._lease() as lease:
            if end_leftovers(flow.store.packs_dir, flow.say, flow.stop):
                plan = flow.plan(flow.rerun, lease.path)
                self._note(plan)
            self._discard(plan.runs)
            left = self._with_workers(plan, lease)
        while left is not None:
            # What still computes for workers that died drains, because their lease has been withdrawn.
            with self._lease() as lease:
                left = self._with_workers(left, lease)

    @contextlib.contextmanager
    def _lease(self) -> Iterator[Lease]:
        with Lease(self._flow.store.packs_dir) as lease:
            self._flow.journal.append("lease", lease=lease.path.name)
            yield lease

    def _with_workers(self, plan: Plan, lease: Lease) -> Plan | None:
        """Rounds with workers of their own; what is left where others have to be started, else None."""
        flow = self._flow
        plan = self._further(self._wait_for_others(plan, lease), lease)
        if not plan.runs:
            return None
        with flow.workers(lease, bool(plan.builds)) as workers:
            try:
                return self._rounds(plan, workers)
            except KeyboardInterrupt:
                kill_under(lease.path)
                raise

    def _rounds(self, plan: Plan, workers: Workers) -> Plan | None:
        flow = self._flow
        for attempt in itertools.count():
            before = plan
            outcome = self._round(before, workers, attempt)
            # What failed has been recorded; only what was lost on the way is tried again.
            plan = flow.plan(None, workers.lease.path)
            self._note(plan)
            left = {_key(run) for run in [*plan.runs, *plan.elsewhere]}
            advanced = outcome.advanced or any(_key(run) not in left for run in before.runs)
            self.tally.quarantined += outcome.quarantined
            if outcome.refusals and not advanced:
                raise LaunchError(f"no pack could be started: {outcome.refusals[0]}")
            if not advanced:
                if outcome.store_error is not None:
                    raise StoreUnwritable(outcome.store_error)
                # Single processes, and ranks that could not even write an event, do not say that this was the reason.
                flow.store.ensure_writable()
            self._check_time(plan, outcome)
            self._idle_tries = 0 if advanced else self._idle_tries + 1
            tried = {_key(run) for run in before.runs}
            again = sum(_key(run) in tried for run in plan.runs)
            retries = flow.study.settings.retries
            if again and (not retries or self._idle_tries > retries):
                return None
            lost = self._are_lost(workers, outcome)
            if not lost:
                plan = self._wait_for_others(plan, workers.lease)
            plan = self._further(plan, workers.lease)
            if not plan.runs and not (lost and plan.elsewhere):
                return None
            if again:
                rebuilt = set(plan.builds) - set(before.builds)
                self.tally.runs += again
                self.tally.causes += outcome.causes + Counter(rebuilt=len(rebuilt))
                sentence = f"{again} runs were left unfinished; packing them again"
                flow.say(sentence)
                flow.journal.append("note", sentence=sentence)
            if lost or workers.lack(bool(plan.builds)):
                return plan
        raise AssertionError("rounds end by themselves")

    def _are_lost(self, workers: Workers, outcome: Outcome) -> bool:
        """Whether the workers have died, and nothing replaces them. Parsl hears of a lost manager before it looks at
        the block that it was in."""
        deadline = time.monotonic() + WORKERS_SECONDS
        while outcome.causes["block"] and workers.blocks is None and not workers.lost and time.monotonic() < deadline:
            self._flow.stop.check()
            time.sleep(POLL)
        return workers.lost

    def _round(self, plan: Plan, workers: Workers, attempt: int) -> Outcome:
        flow = self._flow
        round_ = Round(flow, plan, workers.lease, f"{workers.name}-{attempt}")
        flow.journal.append("round", name=round_.name, builds=len(plan.builds), runs=len(plan.runs))
        workers.progress, round_.blocks = round_.progress, workers.blocks
        round_.watch(workers.look)
        with round_.progress:
            try:
                flow.stop.check()
                try:
                    self._submit(flow, round_)
                finally:
                    self.pack_dirs += round_.pack_dirs
                round_.wait(flow.give_up_at)
            except Stopped:
                round_.progress.say("stopping: runs are checkpointed; Ctrl-C again stops at once")
                flow.journal.append("note", sentence="it was told to stop: runs are checkpointed")
                workers.lease.withdraw()
                round_.wind_down(STOP_SECONDS)
                self.tally.quarantined += round_.outcome.quarantined
                raise
        return round_.outcome

    def _check_time(self, plan: Plan, outcome: Outcome) -> None:
        """Raise OutOfTime where runs are left and this allocation has no time for them."""
        flow = self._flow
        if flow.stop_at is None or not plan.runs:
            return
        # Ranks begin no run that their time is too short for, so packs may end before the time is up.
        if time.time() >= flow.stop_at or (outcome.out_of_time and set(+outcome.causes) <= {"time"}):
            raise OutOfTime

    def _further(self, plan: Plan, lease: Lease) -> Plan:
        """`plan`, or, where nothing of it is left, that of what the flow then puts into the study."""
        flow = self._flow
        while not plan.runs and not plan.elsewhere and flow.more():
            plan = flow.plan(None, lease.path)
            self._note(plan)
            self._check_time(plan, Outcome())
            plan = self._wait_for_others(plan, lease)
        return plan

    def _wait_for_others(self, plan: Plan, lease: Lease) -> Plan:
        """Wait while all that is left is being sampled by other drivers; the plan after that."""
        flow, told = self._flow, None
        while not plan.runs and plan.elsewhere:
            runs, others = len(plan.elsewhere), self._others(lease)
            sentence = f"{runs} runs are being sampled by another driver ({others}): waiting for them"
            if sentence != told:
                flow.say(sentence)
                flow.journal.append("note", sentence=sentence)
                told = sentence
            began = time.monotonic()
            plan = flow.plan(None, lease.path)
            # A plan of a hundred thousand runs takes a while.
            until = time.monotonic() + max(ELSEWHERE_SECONDS, 5 * (time.monotonic() - began))
            while time.monotonic() < until and not plan.runs and plan.elsewhere:
                flow.stop.check()
                if flow.stop_at is not None and time.time() >= flow.stop_at:
                    raise OutOfTime
                time.sleep(POLL)
        return plan

    def _others(self, lease: Lease) -> str:
        found = []
        for path in live_leases(self._flow.store.packs_dir):
            if path == lease.path:
                continue
            try:
                record = json.loads(path.read_bytes())
                found.append(f"process {record['pid']} on {record['host']}")
            except (OSError, ValueError, KeyError, TypeError):
                continue
        more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
        return ", ".join([*found[:MOST_NAMED], *more]) or "which has just ended"

    def _note(self, plan: Plan) -> None:
        """Say what was damaged and set aside."""
        self.tally.damaged += len(plan.damages)
        for damage in plan.damages:
            self._flow.say(f"damaged: {damage}; it is made again")

    def _discard(self, runs: list[PlannedRun]) -> None:
        """Remove what an earlier try left of runs that are now to be sampled: its failure, or, when all runs are wanted
        again, its result. Were it left, a run that is then lost would pass for the old one."""
        for run in runs:
            directory = self._flow.store.run_dir(run.target_id, run.run_id)
            for name in ("error.json", "analysis.json"):
                (directory / name).unlink(missing_ok=True)
            if self._flow.rerun is not None:
                forget(directory)


def _key(run: PlannedRun) -> tuple[str, str]:
    return run.target_id, run.run_id
