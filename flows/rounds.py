"""One pass over what is left of a study: builds, then what the flow submits, until all of it has ended."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flows.plan import Plan
from flows.progress import StudyProgress
from lambda_hat.id_utils import trajectory_id
from lambda_hat.lease import LEASE_VARIABLE, Lease
from lambda_hat.results import error_line
from lambda_hat.store import read_json, write_config
from lambda_hat.workflow_config import PlannedRun

if TYPE_CHECKING:
    from flows.blocks import Blocks
    from flows.study import Flow

POLL = 0.1
TAIL_LINES = 12


class OutOfTime(Exception):
    """The allocation ends before the round does."""


class Round:
    """One pass over what is left: builds, then whatever the flow submits for the runs."""

    def __init__(self, flow: Flow, plan: Plan, lease: Lease, name: str):
        packs = math.ceil(len(plan.runs) / flow.study.settings.pack) if flow.packed else 0
        self.flow, self.plan, self.name = flow, plan, name
        self.environment = {LEASE_VARIABLE: str(lease.path)}
        """What every process of the study gets beside its inherited environment."""
        self.progress = StudyProgress(
            flow.console, targets=len(plan.builds), packs=packs, runs=len(plan.runs), quiet=flow.quiet
        )
        self.blocks: Blocks | None = None
        """What the scheduler gives for this round, where there is one."""
        self.pack_dirs: list[Path] = []
        self.refusals: list[str] = []
        """Why packs refused to start."""
        self._pending: dict[Future, Callable[[Future], None]] = {}
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

    def on_done(self, future: Future, then: Callable[[Future], None]) -> None:
        """Call `then(future)` from `wait` once `future` is done."""
        self._pending[future] = then

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

    def wait(self, stop_at: float | None = None) -> None:
        """Until everything submitted has ended. Raises OutOfTime at `stop_at` (seconds since the epoch)."""
        while self._pending:
            self._look()
            if stop_at is not None and time.time() >= stop_at:
                raise OutOfTime
            for future in [future for future in self._pending if future.done()]:
                self._pending.pop(future)(future)
            time.sleep(POLL)

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
        label = self.flow.study.targets[run.target_id].label
        self.progress.finished("runs", f"{run.target_id}/{run.run_id} ({label}): {sentence}", failed=failed)


def module_command(module: str, directory: Path) -> list[str]:
    """`python -m module --config-yaml directory/config.yaml`, by this interpreter."""
    return [sys.executable, "-m", module, "--config-yaml", str(directory / "config.yaml")]


def explain(future: Future, error_file: Path, log: Path) -> str:
    """Why something has no result: its `error.json`, else Parsl's exception, and the tail of its log with the path."""
    if error_file.is_file():
        reason = error_line(error_file)
    elif future.exception() is not None:
        reason = f"{type(future.exception()).__name__}: {future.exception()}"
    else:
        reason = f"exit status {future.result()}"
    return f"{reason}{log_tail(log)}"


def log_tail(log: Path) -> str:
    """The last lines of a log with its path, for a message; empty where there are none."""
    try:
        lines = log.read_text(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
    except OSError:
        return ""
    if not lines:
        return ""
    return "\n    " + "\n    ".join([f"{log} ends with:", *lines])


def _settled(future: Future) -> Future:
    plain: Future = Future()
    future.add_done_callback(lambda _: plain.set_result(None))
    return plain
