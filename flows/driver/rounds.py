"""One pass over what is left of a study: builds and runs are submitted, and waited for until all of them have ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.console import Console

from flows.driver.bad_nodes import BadNodes
from flows.driver.plan import Plan
from flows.driver.reasons import explain
from flows.driver.request import Request
from flows.driver.screen import StudyProgress
from flows.driver.single_processes import SingleProcesses
from flows.driver.stopping import OutOfTime, Stop
from flows.driver.workers import Workers
from lambda_hat.config import CustomBuild, MlpBuild
from lambda_hat.id_utils import trajectory_id
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.store.drain import DEADLINE_VARIABLE
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, Heartbeat
from lambda_hat.store.layout import CACHE_OFF, CACHE_VARIABLE, read_json
from lambda_hat.store.study_records import StudyLog
from lambda_hat.store.umask import UMASK_VARIABLE, umask_word

POLL = 0.1
LAST_TASKS_SECONDS = 4.0
"""Seconds for single processes to end once their driver has stopped. Those that sample write a checkpoint first."""


def process_environment(heartbeat: Heartbeat) -> dict[str, str]:
    """What every process that a driver starts gets beside its inherited environment."""
    return {HEARTBEAT_VARIABLE: str(heartbeat.path), UMASK_VARIABLE: umask_word()}


class Unresolved(Exception):
    """Something has ended, and Parsl has not said so."""


@dataclass
class Outcome:
    """What a round came to, beside what the store tells."""

    advanced: bool = False
    """A run finished, or got beyond its earlier checkpoint."""
    causes: Counter[str] = field(default_factory=Counter)
    """Why runs were left unfinished: keys of `lambda_hat.report.closing.CAUSES`."""
    out_of_time: bool = False
    """Something stopped because its deadline came."""
    refusals: list[str] = field(default_factory=list)
    """Why packs refused to start."""
    store_error: str | None = None
    """Why a run was left, where its rank could not write the store."""
    quarantined: int = 0
    """Runs set aside because their ranks died twice."""
    nodes: int = 0
    """How often nodes were left out, or used again."""
    no_good_node: int = 0
    """Blocks that had none left."""


@dataclass(frozen=True)
class _Pending:
    then: Callable[[Future], None]
    running: Callable[[], bool]
    overdue: Callable[[], str | None]


class Round:
    """One pass over what is left. Whoever submits something tells the round with `on_done`; `wait` is its main loop.

    number: of the round, among those of `workers`. nodes: what the driver knows of them.
    """

    def __init__(
        self,
        request: Request,
        plan: Plan,
        workers: Workers,
        number: int,
        *,
        console: Console,
        stop: Stop,
        log: StudyLog,
        nodes: BadNodes | None = None,
    ):
        packs = len(plan.packs(request.study.settings.pack)) if request.packed else 0
        self.request, self.plan, self.workers, self.stop, self.log = request, plan, workers, stop, log
        self.name = f"{workers.name}-{number}"
        self.environment = process_environment(workers.heartbeat)
        """What every process of the study gets beside its inherited environment."""
        if request.stop_at is not None:
            self.environment[DEADLINE_VARIABLE] = repr(request.stop_at)
        if not request.study.settings.compile_cache:
            self.environment[CACHE_VARIABLE] = CACHE_OFF
        self.processes = SingleProcesses(request.site, self.environment)
        self.progress = StudyProgress(
            console, targets=len(plan.builds), packs=packs, runs=len(plan.runs), quiet=request.quiet
        )
        self.nodes = BadNodes(request.nodes) if nodes is None else nodes
        self.pack_dirs: list[Path] = []
        self.outcome = Outcome()
        self.going_on = True
        """It may still submit something."""
        self._pending: dict[Future, _Pending] = {}
        self._watchers: dict[Callable[[], bool], tuple[float, float]] = {}
        """What to call how often, and when next."""
        self._builds: dict[str, Future] = {}
        self._first_failure: dict[str, str] = {}
        """By a reason with the end of the log, without its path: the first target that was not built for it."""

    def tell_of_nodes(self, news: list[str]) -> None:
        """Leave out the nodes that are bad now. news: what `BadNodes.judge` says."""
        if not news:
            return
        self.workers.leave_out(list(self.nodes.left_out))
        for sentence in news:
            self.progress.say(sentence, style="yellow")
        self.log.append("nodes", left_out=self.nodes.left_out)
        self.outcome.nodes += 1

    def submit_builds(self) -> None:
        """Submit one process per missing target; one for all the missing checkpoints of a training."""
        store, targets = self.request.store, self.request.study.targets
        trainings: dict[str, list[str]] = {}
        for target_id in self.plan.builds:
            trainings.setdefault(trajectory_id(targets[target_id]) or target_id, []).append(target_id)
        # A network that is trained, or code of the user's, may take longer than all other builds together.
        slow = (MlpBuild, CustomBuild)
        for target_ids in sorted(trainings.values(), key=lambda ids: not isinstance(targets[ids[0]], slow)):
            for target_id in target_ids:
                self.processes.configure(store.target_dir(target_id), targets[target_id])
                (store.target_dir(target_id) / "error.json").unlink(missing_ok=True)
            directory = store.target_dir(target_ids[0])
            words = ["--target-id", target_ids[0], "--target-dir", str(directory)]
            if isinstance(targets[target_ids[0]], CustomBuild):
                words += [word for other in target_ids[1:] for word in ("--other", other)]
            future = self.processes.start("lambda_hat.entrypoints.build_target", words, directory, "build")
            self._builds |= dict.fromkeys(target_ids, future)
            self.on_done(future, partial(self._builds_ended, target_ids))

    def settled(self, target_ids: set[str]) -> list[Future]:
        """Futures that are done once the builds of these targets have ended, well or badly.

        Parsl would not start a pack with a failed future among its inputs.
        """
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
        """Wait until everything submitted has ended.

        Raises Stopped where the driver is told to stop, and OutOfTime at `give_up_at` (seconds since the epoch).
        """
        while self._pending:
            self._look()
            self.stop.check()
            if give_up_at is not None and time.time() >= give_up_at:
                raise OutOfTime
            self._settle()
            time.sleep(POLL)

    def wind_down(self, seconds: float) -> None:
        """Wait until what is at work has ended, for `seconds` at most. The heartbeat has been withdrawn."""
        begun, self.going_on = time.monotonic(), False
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
            self._build_ended(target_id, self.request.store.target_dir(target_ids[0]), future)

    def _build_ended(self, target_id: str, where: Path, future: Future) -> None:
        store, label = self.request.store, self.request.study.targets[target_id].label
        directory = store.target_dir(target_id)
        if store.target_status(target_id) == "built":
            self.progress.finished("targets", f"built {target_id} ({label})")
            for warning in read_json(directory / "meta.json")["build"]["warnings"]:
                self.progress.say(f"warning: {target_id} ({label}): {warning}", style="yellow")
            return
        reason = explain(future, directory / "error.json", where / "build.err")
        # A defect of a factory often fails every target of a sweep. One screen of its log is enough.
        first = self._first_failure.setdefault(reason.replace(str(where), ""), target_id)
        if first != target_id and "\n" in reason:
            reason = f"{reason.partition(chr(10))[0]}; its log ends like that of {first}"
        self.progress.finished("targets", f"target {target_id} ({label}) was not built: {reason}", failed=True)

    def run_ended(self, run: PlannedRun, sentence: str, *, failed: bool) -> None:
        """Say that a run has finished or failed."""
        self.progress.finished("runs", self._told(run, sentence), failed=failed)

    def run_goes_on(self, run: PlannedRun, sentence: str) -> None:
        """Say why a run is neither finished nor failed."""
        self.progress.event(self._told(run, sentence))

    def _told(self, run: PlannedRun, sentence: str) -> str:
        label = self.request.study.targets[run.target_id].label
        return f"{run.target_id}/{run.run_id} ({label}): {sentence}"


def _settled(future: Future) -> Future:
    plain: Future = Future()
    future.add_done_callback(lambda _: plain.set_result(None))
    return plain
