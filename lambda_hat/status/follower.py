"""One study, followed: each look reads what is new in its driver's log, its ranks' logs and the folders of its runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lambda_hat.errors import StoreError
from lambda_hat.status.driver import DriverLog
from lambda_hat.status.study_state import Driver, Failure, Running, StudyStatus
from lambda_hat.store import run_files
from lambda_hat.store.claims import holder
from lambda_hat.store.events import PackLog
from lambda_hat.store.layout import CHECKPOINT, Store, TargetStatus, error_line
from lambda_hat.store.study_records import BLOCKED, ELSEWHERE, FAILED, TO_SAMPLE, Key, Planned, StudyRecord

PACE_SECONDS = 900.0
"""The pace is that of the last quarter of an hour, or of all the time where fewer than PACE_RUNS runs ended in it."""
PACE_RUNS = 10
MOST_FAILURES = 10
MOST_TARGETS = 2
"""Targets that are named where runs wait for several."""
FOR_TARGET = "waits for its target"
ENDS = {"analysis.json": "finished", "error.json": "failed"}
"""Files in the folder of a run that say how it ended."""


class _Settled(NamedTuple):
    status: str
    """finished or failed."""
    time: float
    reason: str | None
    sampled: bool
    """By this study, and not found finished."""


class StudyFollower:
    """One start of a driver. `look()` reads what is new in its store, and says how its study stands."""

    def __init__(self, store: Store, record: StudyRecord):
        self._store, self.record = store, record
        self.log = DriverLog(store, record)
        self._planned = {run.key: run for run in record.runs}
        self._settled: dict[Key, _Settled] = {}
        self._targets: dict[str, TargetStatus] = {}
        # As of the last look.
        self._running: dict[Key, Running] = {}
        self._names: dict[Key, frozenset[str]] = {}
        """What lies in the folders of runs that have not ended."""
        self._quiet = True
        """Nothing that the driver started can be at work."""
        self._target_reasons: dict[str, str] = {}
        """Why runs wait for a target."""

    def look(self) -> StudyStatus:
        """How the study stands now."""
        now = time.time()
        self.log.read()
        packs = list(self.log.packs.values())
        driver = self.log.driver()
        self._quiet = self.log.nothing_computes(driver)
        self._target_reasons.clear()
        for end in (end for pack in packs for end in pack.read()):
            if end.key in self._planned and end.status is not None and end.status in ENDS.values():
                self._settled[end.key] = _Settled(end.status, end.until, end.reason, not end.cached)
        self._look_at_targets()
        running = [] if self._quiet else [run for pack in packs for run in self._in_flight(pack, now)]
        self._look_into_folders({run.key for run in running})
        if not self._quiet and not self.record.packed:
            running += self._held(now)
        running = sorted((run for run in running if run.key not in self._settled), key=lambda run: -run.seconds)
        self._running = {run.key: run for run in running}
        waiting, blocked = self._unsettled()
        statuses = Counter(settled.status for settled in self._settled.values())
        live = [] if self._quiet else [pack for pack in packs if pack.running]
        per_minute, left = self._pace(now, driver)
        return StudyStatus(
            record=self.record,
            driver=driver,
            note=None if driver.over else self.log.note,
            next_job=self.log.next_job,
            jobs=[] if driver.state == "ended" else [job for job in self.log.jobs.values() if not job.ended],
            targets=self._target_counts(),
            packs=self._pack_counts(),
            ranks_at_work=sum(bool(life.in_flight) for pack in live for life in pack.ranks),
            ranks=sum(pack.size - sum(life.over for life in pack.ranks) for pack in live),
            finished=self.record.cached_runs + statuses["finished"],
            failed=statuses["failed"],
            blocked=blocked,
            running=running,
            waiting=waiting,
            failures=self._failures(),
            runs_per_minute=per_minute,
            seconds_left=left,
            left_out=self.log.left_out,
        )

    def _pack_counts(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for name, pack in self.log.packs.items():
            counts = found.setdefault(self.log.site_of.get(name, ""), {"over": 0, "running": 0, "waiting": 0})
            counts["over"] += pack.over or (self._quiet and pack.begun)
            counts["running"] += pack.running and not self._quiet
            counts["waiting"] += not pack.over and not pack.begun
        return found

    def state_of(self, key: Key) -> str | None:
        """How a run that has not ended stands, in words, as of the last look; None where this study has no such run."""
        run = self._planned.get(key)
        if run is None or key in self._settled:
            return None
        if key in self._running:
            busy = self._running[key]
            rank = "" if busy.rank is None else f"rank {busy.rank} on "
            return f"running on {rank}{busy.host} for {busy.seconds:.0f} s, expected {busy.expected:.0f} s"
        why = self._why(run)
        if why is None:
            return "blocked: its target could not be built"
        if why is FOR_TARGET:
            return f"waits for target {self._named(run.target_id)}{self._why_target(run.target_id)}"
        return f"waiting: {why}"

    # What the ranks and the folders say

    def _look_at_targets(self) -> None:
        builds = set(self.record.builds)
        for target_id in self.record.targets:
            if self._targets.get(target_id) == "built":
                continue
            status = self._store.target_status(target_id)
            error = self._store.target_dir(target_id) / "error.json"
            # The plan repeats a build that failed before it.
            old = status == "failed" and target_id in builds and not self._is_new(error)
            self._targets[target_id] = "missing" if old else status

    def _is_new(self, path: Path) -> bool:
        """Whether a file was written since the plan was made; both times are the file system's."""
        try:
            return run_files.file_status(path)[1] >= self.record.written
        except (OSError, StoreError):
            return False

    def _in_flight(self, pack: PackLog, now: float) -> Iterator[Running]:
        for life in [] if pack.over else pack.ranks:
            for attempt in life.in_flight:
                if attempt.key in self._planned:
                    seconds, expected = max(0.0, now - attempt.begun), self._planned[attempt.key].cost
                    yield Running(attempt.key, life.rank, life.host, seconds, expected)

    def _look_into_folders(self, busy: set[Key]) -> None:
        """Settle runs whose end no event tells, and note what lies in the folders of the others."""
        by_target: dict[str, list[Planned]] = {}
        for run in self.record.runs:
            if run.key not in self._settled and run.key not in busy:
                by_target.setdefault(run.target_id, []).append(run)
        self._names = {}
        for target_id, runs in by_target.items():
            there = self._store.entries(target_id)
            for run in runs:
                if there is None or run.run_id in there:
                    self._look_into(run)

    def _look_into(self, run: Planned) -> None:
        directory = self._store.run_dir(*run.key)
        try:
            names = run_files.names(directory)
            for name, status in ENDS.items():
                # Files older than the plan are of an earlier try, which the plan repeats.
                if name in names and (run.group != TO_SAMPLE or self._is_new(directory / name)):
                    _, written = run_files.file_status(directory / name)
                    self._settled[run.key] = _Settled(status, written, None, run.group == TO_SAMPLE)
                    return
        except (OSError, StoreError):
            return
        self._names[run.key] = names

    def _held(self, now: float) -> Iterator[Running]:
        """The runs that single processes have claimed."""
        for key, names in self._names.items():
            if any(name.startswith("claim-") for name in names) and self._planned[key].group == TO_SAMPLE:
                try:
                    record = holder(self._store.run_dir(*key))
                except StoreError:
                    record = None
                if record is not None:
                    begun = record.get("time")
                    seconds = max(0.0, now - begun) if isinstance(begun, (int, float)) else 0.0
                    yield Running(key, None, str(record.get("host", "?")), seconds, self._planned[key].cost)

    # What follows

    def _unsettled(self) -> tuple[dict[str, int], int]:
        """Why runs wait, the most frequent reason first, and how many are blocked because their target failed."""
        reasons: Counter[str] = Counter()
        targets: dict[str, Counter[str]] = {}
        blocked = 0
        for run in self.record.runs:
            if run.key in self._settled or run.key in self._running:
                continue
            why = self._why(run)
            if why is None:
                blocked += 1
            elif why is FOR_TARGET:
                targets.setdefault(self._why_target(run.target_id), Counter())[run.target_id] += 1
            else:
                reasons[why] += 1
        for why, counts in targets.items():
            named = ", ".join(self._named(target_id) for target_id in list(counts)[:MOST_TARGETS])
            more = f" and {len(counts) - MOST_TARGETS} more" if len(counts) > MOST_TARGETS else ""
            what = "target" if len(counts) == 1 else "targets"
            reasons[f"waits for {what} {named}{more}{why}"] += counts.total()
        return dict(reasons.most_common()), blocked

    def _named(self, target_id: str) -> str:
        label = self.record.targets.get(target_id)
        return f"{target_id} ({label})" if label else target_id

    def _why(self, run: Planned) -> str | None:
        """Why a run waits: FOR_TARGET where its target is not built yet, None where its target failed."""
        target = self._targets.get(run.target_id, "built")
        if run.group == ELSEWHERE:
            return "sampled by another driver"
        if run.group == BLOCKED or target == "failed":
            return None
        if run.group == FAILED:
            return "failed earlier, and its record is gone"
        if target != "built":
            return FOR_TARGET
        pack = self.log.pack_of.get(run.key)
        if pack is not None and pack.running and not self._quiet:
            return "in a pack that is running"
        if pack is not None and pack.over and run.key in pack.ends and pack.ends[run.key].status == "elsewhere":
            return "sampled by another process"
        kept = ", with a checkpoint" if CHECKPOINT in self._names.get(run.key, ()) else ""
        if pack is not None and (pack.over or pack.begun):
            return f"left by a pack that ended{kept}"
        if self.record.submitted is not None:
            return f"job {self.record.submitted['job_id']} has not begun{kept}"
        waits = self.log.no_allocation(self.log.label_of(pack) if self.record.packed else "tasks")
        if waits is not None and not self._quiet:
            return waits
        if not self.record.packed:
            return f"taken by no process yet{kept}"
        return f"in no pack yet{kept}" if pack is None else f"in a pack that has not started{kept}"

    def _why_target(self, target_id: str) -> str:
        """Why a target is not built yet, to be said after its name; empty where nothing is known."""
        if target_id not in self._target_reasons:
            why = ""
            if not self._quiet and "build.log" in (self._store.entries(target_id) or ()):
                why = ", being built"
            elif not self._quiet and (waits := self.log.no_allocation("tasks")) is not None:
                why = f": {waits}"
            self._target_reasons[target_id] = why
        return self._target_reasons[target_id]

    def _target_counts(self) -> dict[str, int]:
        counts = Counter(self._targets.values())
        # The record only counts cached targets that have no run left.
        builds = set(self.record.builds)
        named = sum(status == "built" and target_id not in builds for target_id, status in self._targets.items())
        counts["built"] += max(0, self.record.cached_targets - named)
        return {status: counts[status] for status in ("built", "failed", "missing")}

    def _failures(self) -> list[Failure]:
        targets = [target_id for target_id, status in self._targets.items() if status == "failed"][:MOST_FAILURES]
        failed = [(settled.time, key) for key, settled in self._settled.items() if settled.status == "failed"]
        runs = [key for _, key in sorted(failed, reverse=True)[:MOST_FAILURES]]
        found = [Failure((t, ""), error_line(self._store.target_dir(t) / "error.json")) for t in targets]
        for key in runs:
            reason = self._settled[key].reason or error_line(self._store.run_dir(*key) / "error.json")
            found.append(Failure(key, reason))
        return found

    def _pace(self, now: float, driver: Driver) -> tuple[float | None, float | None]:
        """Runs per minute, and the seconds left at the pace at which expected seconds were done."""
        ends = sorted(
            (settled.time, self._planned[key].cost) for key, settled in self._settled.items() if settled.sampled
        )
        lives = (life for pack in self.log.packs.values() for life in pack.ranks)
        begun = [attempt.begun for life in lives for attempt in life.attempts if attempt.key[1]]
        if not ends or not (begun or not self.record.packed):
            return None, None
        first = min(begun, default=self.record.started)
        until = ends[-1][0] if driver.over else now
        since = max(first, until - PACE_SECONDS)
        recent = [cost for moment, cost in ends if moment >= since]
        if len(recent) < PACE_RUNS:
            since, recent = first, [cost for _, cost in ends]
        elapsed = max(until - since, 1e-3)
        if driver.over or not self._running:
            return 60 * len(recent) / elapsed, None
        done = {run.key: min(run.seconds, run.expected) for run in self._running.values()}
        left = sum(
            run.cost - done.get(run.key, 0.0)
            for run in self.record.runs
            if run.group == TO_SAMPLE
            and run.key not in self._settled
            and self._targets.get(run.target_id, "built") != "failed"
        )
        pace = sum(recent) / elapsed
        return 60 * len(recent) / elapsed, left / pace if pace > 0 else None
