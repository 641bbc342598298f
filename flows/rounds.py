"""One pass over what is left of a study: builds, then what the flow submits, until all of it has ended."""

from __future__ import annotations

import math
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.deadlines import DEADLINE_VARIABLE
from flows.executors import InterchangeLost
from flows.plan import Plan
from flows.progress import StudyProgress
from lambda_hat.id_utils import trajectory_id
from lambda_hat.lease import LEASE_VARIABLE, Lease
from lambda_hat.logs import tail_of
from lambda_hat.store import CACHE_OFF, CACHE_VARIABLE, error_line, read_json, write_config
from lambda_hat.workflow_config import PlannedRun

if TYPE_CHECKING:
    from flows.blocks import Blocks
    from flows.study import Flow

POLL = 0.1
LAST_TASKS_SECONDS = 4.0
"""In which single processes end once their driver has stopped: those that sample write a checkpoint first."""


class OutOfTime(Exception):
    """The allocation ends before the study does."""


class Unresolved(Exception):
    """Something has ended, and Parsl has not said so."""


@dataclass
class Outcome:
    """What a round came to, beside what the store tells."""

    advanced: bool = False
    """A run finished, or got beyond its earlier checkpoint."""
    causes: Counter[str] = field(default_factory=Counter)
    """Why runs were left unfinished: keys of `lambda_hat.summary.CAUSES`."""
    out_of_time: bool = False
    """Something stopped because its deadline came."""
    refusals: list[str] = field(default_factory=list)
    """Why packs refused to start."""
    store_error: str | None = None
    """Why a run was left, where its rank could not write the store."""
    quarantined: int = 0
    """Runs set aside because their ranks died twice."""


@dataclass(frozen=True)
class _Pending:
    then: Callable[[Future], None]
    running: Callable[[], bool]
    overdue: Callable[[], str | None]


class Round:
    """One pass over what is left: builds, then whatever the flow submits for the runs."""

    def __init__(self, flow: Flow, plan: Plan, lease: Lease, name: str):
        packs = math.ceil(len(plan.runs) / flow.study.settings.pack) if flow.packed else 0
        self.flow, self.plan, self.name, self.lease = flow, plan, name, lease
        self.environment = {LEASE_VARIABLE: str(lease.path)}
        if flow.stop_at is not None:
            self.environment[DEADLINE_VARIABLE] = repr(flow.stop_at)
        if not flow.study.settings.compile_cache:
            self.environment[CACHE_VARIABLE] = CACHE_OFF
        """What every process of the study gets beside its inherited environment."""
        self.progress = StudyProgress(
            flow.console, targets=len(plan.builds), packs=packs, runs=len(plan.runs), quiet=flow.quiet
        )
        self.blocks: Blocks | None = None
        """What the scheduler gives for this round, where there is one."""
        self.pack_dirs: list[Path] = []
        self.outcome = Outcome()
        self._pending: dict[Future, _Pending] = {}
        self._watchers: dict[Callable[[], bool], tuple[float, float]] = {}
        """What to call how often, and when next."""
        self._builds: dict[str, Future] = {}

    def submit_builds(self) -> None:
        """Submit one app per missing target; one for all the missing checkpoints of a training."""
        from flows.apps import run_task

        store = self.flow.store
        targets = self.flow.study.targets
        trainings: dict[str, list[str]] = {}
        for target_id in self.plan.builds:
            trainings.setdefault(trajectory_id(targets[target_id]) or target_id, []).append(target_id)
        for target_ids in trainings.values():
            for target_id in target_ids:
                write_config(store.target_dir(target_id), self.flow.on_site(targets[target_id]))
                (store.target_dir(target_id) / "error.json").unlink(missing_ok=True)
            directory = store.target_dir(target_ids[0])
            argv = module_command("lambda_hat.entrypoints.build_target", directory)
            argv += ["--target-id", target_ids[0], "--target-dir", str(directory)]
            argv, env = self.flow.place(argv, self.environment)
            future = run_task(argv, str(directory / "build.log"), str(directory / "build.err"), env)
            self._builds |= dict.fromkeys(target_ids, future)
            self.on_done(future, partial(self._builds_ended, target_ids))

    def settled(self, target_ids: set[str]) -> list[Future]:
        """Futures that are done once the builds of these targets have ended, well or badly: Parsl would take a pack
        down with a failed dependency."""
        return [_settled(self._builds[t]) for t in sorted(target_ids) if t in self._builds]

    def on_done(
        self,
        future: Future,
        then: Callable[[Future], None],
        running: Callable[[], bool] = lambda: False,
        overdue: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Call `then(future)` from `wait` once `future` is done.

        running: whether it is known to be at work. overdue: why it must have ended, though the future does not say so;
        `then` gets a future that failed as Unresolved.
        """
        self._pending[future] = _Pending(then, running, overdue)

    def watch(self, look: Callable[[], bool], period: float = POLL) -> None:
        """Call `look()` from `wait` every `period` seconds, and ten times less often while it returns False."""
        self._watchers[look] = (period, 0.0)

    def unwatch(self, look: Callable[[], bool]) -> None:
        """Call `look()` no more."""
        self._watchers.pop(look, None)

    def _look(self) -> None:
        now = time.monotonic()
        for look, (period, due) in list(self._watchers.items()):
            if now >= due:
                self._watchers[look] = (period, now + period * (1 if look() else 10))

    def wait(self, give_up_at: float | None = None) -> None:
        """Until everything submitted has ended.

        Raises Stopped where the driver is told to stop, and OutOfTime at `give_up_at` (seconds since the epoch).
        """
        while self._pending:
            self._look()
            self.flow.stop.check()
            if give_up_at is not None and time.time() >= give_up_at:
                raise OutOfTime
            self._settle()
            time.sleep(POLL)

    def wind_down(self, seconds: float) -> None:
        """The lease has been withdrawn: wait until what is at work has ended, for at most so many seconds."""
        begun = time.monotonic()
        while self._pending and time.monotonic() - begun < seconds:
            self._settle()
            running = any(pending.running() for pending in self._pending.values())
            # What waits in a scheduler's queue, or for a place in a block, never ends by itself.
            if not running and time.monotonic() - begun > LAST_TASKS_SECONDS:
                return
            time.sleep(POLL)

    def _settle(self) -> None:
        for future, pending in list(self._pending.items()):
            if future.done():
                self._pending.pop(future).then(future)
            elif (reason := pending.overdue()) is not None:
                settled: Future = Future()
                settled.set_exception(Unresolved(f"Parsl has not told of its end; {reason}"))
                self._pending.pop(future).then(settled)

    def _builds_ended(self, target_ids: list[str], future: Future) -> None:
        for target_id in target_ids:
            self._build_ended(target_id, self.flow.store.target_dir(target_ids[0]), future)

    def _build_ended(self, target_id: str, where: Path, future: Future) -> None:
        flow, directory = self.flow, self.flow.store.target_dir(target_id)
        label = flow.study.targets[target_id].label
        if flow.store.target_status(target_id) == "built":
            self.progress.finished("targets", f"built {target_id} ({label})")
            for warning in read_json(directory / "meta.json")["build"]["warnings"]:
                self.progress.say(f"warning: {target_id} ({label}): {warning}", style="yellow")
            return
        reason = explain(future, directory / "error.json", where / "build.err")
        self.progress.finished("targets", f"target {target_id} ({label}) was not built: {reason}", failed=True)

    def run_ended(self, run: PlannedRun, sentence: str, *, failed: bool) -> None:
        """Say that a run has finished or failed."""
        self.progress.finished("runs", self._told(run, sentence), failed=failed)

    def run_goes_on(self, run: PlannedRun, sentence: str) -> None:
        """Say why a run is neither finished nor failed."""
        self.progress.event(self._told(run, sentence))

    def _told(self, run: PlannedRun, sentence: str) -> str:
        label = self.flow.study.targets[run.target_id].label
        return f"{run.target_id}/{run.run_id} ({label}): {sentence}"


def module_command(module: str, directory: Path) -> list[str]:
    """`python -m module --config-yaml directory/config.yaml`, by this interpreter."""
    return [sys.executable, "-m", module, "--config-yaml", str(directory / "config.yaml")]


def explain(future: Future, error_file: Path, log: Path) -> str:
    """Why something has no result: its `error.json`, else Parsl's exception, and the tail of its log with the path."""
    if error_file.is_file():
        reason = error_line(error_file)
    elif is_lost_block(future.exception()):
        reason = "the workers that it ran on are gone"
    elif future.exception() is not None:
        reason = f"{type(future.exception()).__name__}: {future.exception()}"
    else:
        reason = f"exit status {future.result()}"
    return f"{reason}{log_tail(log)}"


def is_lost_block(failure: BaseException | None) -> bool:
    """Whether something failed because the nodes, or the worker processes, that it ran on are gone."""
    from parsl.executors.errors import BadStateException
    from parsl.executors.high_throughput.errors import ManagerLost

    return isinstance(failure, (ManagerLost, BadStateException, InterchangeLost))


def log_tail(log: Path) -> str:
    """The last lines of a log with its path, for a message; empty where there are none."""
    lines = tail_of(log)
    if not lines:
        return ""
    return "\n    " + "\n    ".join([f"{log} ends with:", *lines])


def _settled(future: Future) -> Future:
    plain: Future = Future()
    future.add_done_callback(lambda _: plain.set_result(None))
    return plain
