"""One study followed: its driver's log, its ranks' events, and the folders of its runs, read again at every look."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from lambda_hat.claims import holder
from lambda_hat.errors import StoreError
from lambda_hat.status.driver_log import DriverLog, FollowedPack
from lambda_hat.status.model import Driver, Failure, Running, StudyStatus
from lambda_hat.store import Store, TargetStatus, error_line
from lambda_hat.studies import BLOCKED, ELSEWHERE, FAILED, TO_SAMPLE, Key, Planned, StudyRecord

SettledStatus = Literal["finished", "failed"]

PACE_SECONDS = 900.0
"""The throughput is that of the last quarter of an hour, or of all, where fewer than PACE_RUNS runs ended in it."""
PACE_RUNS = 10
MOST_FAILURES = 10
MOST_TARGETS = 2
"""Targets that are named as what runs wait for."""
CHECKPOINT = "checkpoint.npz"
FOR_TARGET = "waits for its target"
_ENDS: tuple[tuple[str, SettledStatus], ...] = (("analysis.json", "finished"), ("error.json", "failed"))
"""By which file in its folder a run is at an end."""


class _Settled(NamedTuple):
    status: SettledStatus
    time: float
    reason: str | None
    sampled: bool
    """By this study, and not found finished."""


class _Seen(NamedTuple):
    """What one look has found."""

    running: list[Running]
    found: dict[Key, frozenset[str]]
    quiet: bool


class StudyFollower:
    """One start of a driver. `look()` reads what is new in its store, and tells how its study stands."""

    def __init__(self, store: Store, record: StudyRecord):
        self._store, self.record = store, record
        self.log = DriverLog(store, record)
        self._planned = {run.key: run for run in record.runs}
        self._settled: dict[Key, _Settled] = {}
        self._targets: dict[str, TargetStatus] = {}
        self._target_reasons: dict[str, str] = {}
        """Why runs wait for a target, as of this look."""
        self._seen = _Seen([], {}, True)

    def look(self) -> StudyStatus:
        """How the study stands now."""
        now = time.time()
        self.log.read()
        self._target_reasons.clear()
        driver = self.log.driver()
        quiet = self.log.nothing_computes(driver)
        for pack in self.log.packs.values():
            self._read_pack(pack)
        self._look_at_targets()
        running = [] if quiet else list(self._in_flight(now))
        found = self._look_into_folders({run.key for run in running})
        if not quiet and not self.record.packed:
            running += self._held(found, now)
        running = sorted((run for run in running if run.key not in self._settled), key=lambda run: -run.seconds)
        self._seen = _Seen(running, found, quiet)
        waiting, blocked = self._unsettled({run.key for run in running}, found, quiet)
        statuses = Counter(settled.status for settled in self._settled.values())
        live = [pack for pack in self.log.packs.values() if pack.log.begun and not pack.over and not quiet]
        per_minute, left = self._pace(now, running, driver)
        return StudyStatus(
            record=self.record,
            driver=driver,
            note=None if driver.over else self.log.note,
            next_job=self.log.next_job,
            jobs=[] if driver.state == "ended" else [job for job in self.log.jobs.values() if not job.ended],
            targets=self._target_counts(),
            packs={
                "over": sum(pack.over or (quiet and pack.log.begun) for pack in self.log.packs.values()),
                "running": len(live),
                "waiting": sum(not pack.over and not pack.log.begun for pack in self.log.packs.values()),
            },
            ranks_at_work=sum(len({*pack.log.in_flight, *pack.log.building} - pack.log.ended) for pack in live),
            ranks=sum(pack.log.size - len(pack.log.ended) for pack in live),
            finished=self.record.cached_runs + statuses["finished"],
            failed=statuses["failed"],
            blocked=blocked,
            running=running,
            waiting=waiting,
            failures=[*self._target_failures(), *self._failures()],
            runs_per_minute=per_minute,
            seconds_left=left,
        )

    def state_of(self, key: Key) -> str | None:
        """How a run that is not at an end stands, by the last look, in words; None where this study has no such."""
        run = self._planned.get(key)
        if run is None or key in self._settled:
            return None
        for busy in self._seen.running:
            if busy.key == key:
                rank = "" if busy.rank is None else f"rank {busy.rank} on "
                return f"running on {rank}{busy.host} for {busy.seconds:.0f} s, expected {busy.expected:.0f} s"
        why = self._why(run, self._seen.found.get(key, frozenset()), self._seen.quiet)
        if why is FOR_TARGET:
            why = f"waits for target {self._named(run.target_id)}{self._why_target(run.target_id, self._seen.quiet)}"
        if why is None:
            return "blocked: its target could not be built"
        return why if why.startswith("waits") else f"waiting: {why}"

    def pack_of(self, key: Key) -> Path | None:
        """The folder of the last pack that a run was put into."""
        pack = self.log.pack_of.get(key)
        return None if pack is None else pack.log.directory

    # What the ranks and the folders say

    def _read_pack(self, pack: FollowedPack) -> None:
        if pack.settled:
            return
        pack.settled = pack.ended
        for event in pack.log.read():
            key = (event["target_id"], event["run_id"])
            if key in self._planned and event["status"] in ("finished", "failed"):
                # A damaged line may lack what the driver does not need.
                moment, reason = event.get("time"), event.get("reason")
                when = float(moment) if isinstance(moment, (int, float)) else 0.0
                told = None if reason is None else str(reason)
                self._settled[key] = _Settled(event["status"], when, told, not event.get("cached"))

    def _look_at_targets(self) -> None:
        builds = set(self.record.builds)
        for target_id in self.record.targets:
            if self._targets.get(target_id) == "built":
                continue
            status = self._store.target_status(target_id)
            error = self._store.target_dir(target_id) / "error.json"
            # A failure that is older than the plan is what the plan tries again.
            old = status == "failed" and target_id in builds and not self._is_new(error)
            self._targets[target_id] = "missing" if old else status

    def _is_new(self, path: Path) -> bool:
        """Whether a file was written since the plan was made; both by the file system's clock."""
        try:
            return path.stat().st_mtime >= self.record.written
        except OSError:
            return False

    def _in_flight(self, now: float) -> Iterator[Running]:
        for pack in self.log.packs.values():
            if pack.over:
                continue
            for rank, keys in pack.log.in_flight.items():
                for key in keys:
                    if rank not in pack.log.ended and key in self._planned:
                        seconds = max(0.0, now - pack.log.begun_at.get(key, now))
                        host = pack.log.hosts.get(rank, "?")
                        yield Running(key, rank, host, seconds, self._planned[key].cost)

    def _look_into_folders(self, busy: set[Key]) -> dict[Key, frozenset[str]]:
        """Settle runs of which no event tells the end; the names in the folders of those that are not at an end."""
        by_target: dict[str, list[Planned]] = {}
        for run in self.record.runs:
            if run.key not in self._settled and run.key not in busy:
                by_target.setdefault(run.target_id, []).append(run)
        found = {}
        for target_id, runs in by_target.items():
            there = self._store.entries(target_id)
            for run in runs:
                if there is None or run.run_id in there:
                    names = self._look_into(run)
                    if names:
                        found[run.key] = names
        return found

    def _look_into(self, run: Planned) -> frozenset[str]:
        directory = self._store.run_dir(*run.key)
        try:
            names = frozenset(os.listdir(directory))
            for name, status in _ENDS:
                # What is older than the plan is what the plan wants anew.
                if name in names and (run.group != TO_SAMPLE or self._is_new(directory / name)):
                    written = (directory / name).stat().st_mtime
                    self._settled[run.key] = _Settled(status, written, None, run.group == TO_SAMPLE)
                    return frozenset()
        except OSError:
            return frozenset()
        return names

    def _held(self, found: dict[Key, frozenset[str]], now: float) -> Iterator[Running]:
        """The runs that single processes have in hand."""
        for key, names in found.items():
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

    def _unsettled(self, busy: set[Key], found: dict[Key, frozenset[str]], quiet: bool) -> tuple[dict[str, int], int]:
        """Why runs wait, the most frequent reason first, and how many will not be sampled for want of their target."""
        reasons: Counter[str] = Counter()
        targets: dict[str, Counter[str]] = {}
        blocked = 0
        for run in self.record.runs:
            if run.key in self._settled or run.key in busy:
                continue
            why = self._why(run, found.get(run.key, frozenset()), quiet)
            if why is None:
                blocked += 1
            elif why is FOR_TARGET:
                targets.setdefault(self._why_target(run.target_id, quiet), Counter())[run.target_id] += 1
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

    def _why(self, run: Planned, names: frozenset[str], quiet: bool) -> str | None:
        """Why a run waits, FOR_TARGET where it does so for its target, and None where that could not be built."""
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
        if pack is not None and pack.log.begun and not pack.over and not quiet:
            return "in a pack that is running"
        if pack is not None and pack.over and pack.log.ends.get(run.key, {}).get("status") == "elsewhere":
            return "sampled by another process"
        kept = ", with a checkpoint" if CHECKPOINT in names else ""
        if pack is not None and (pack.over or pack.log.begun):
            return f"left by a pack that ended{kept}"
        if self.record.submitted is not None:
            return f"job {self.record.submitted['job_id']} has not begun{kept}"
        waits = self.log.no_allocation("packs" if self.record.packed else "tasks")
        if waits is not None and not quiet:
            return waits
        if not self.record.packed:
            return f"taken by no process yet{kept}"
        return f"in no pack yet{kept}" if pack is None else f"in a pack that has not started{kept}"

    def _why_target(self, target_id: str, quiet: bool) -> str:
        """Why a target is not built yet, to be said after its name; empty where nothing is known."""
        if target_id not in self._target_reasons:
            why = ""
            if not quiet and "build.log" in (self._store.entries(target_id) or ()):
                why = ", being built"
            elif not quiet and (waits := self.log.no_allocation("tasks")) is not None:
                why = f": {waits}"
            self._target_reasons[target_id] = why
        return self._target_reasons[target_id]

    def _target_counts(self) -> dict[str, int]:
        counts = Counter(self._targets.values())
        # Cached ones that have no run left are in the record by number alone.
        builds = set(self.record.builds)
        named = sum(status == "built" and target_id not in builds for target_id, status in self._targets.items())
        counts["built"] += max(0, self.record.cached_targets - named)
        return {status: counts[status] for status in ("built", "failed", "missing")}

    def _target_failures(self) -> list[Failure]:
        failed = [target_id for target_id, status in self._targets.items() if status == "failed"]
        return [
            Failure((target_id, ""), error_line(self._store.target_dir(target_id) / "error.json"))
            for target_id in failed[:MOST_FAILURES]
        ]

    def _failures(self) -> list[Failure]:
        failed = [(settled.time, key) for key, settled in self._settled.items() if settled.status == "failed"]
        return [
            Failure(key, self._settled[key].reason or error_line(self._store.run_dir(*key) / "error.json"))
            for _, key in sorted(failed, reverse=True)[:MOST_FAILURES]
        ]

    def _pace(self, now: float, running: list[Running], driver: Driver) -> tuple[float | None, float | None]:
        """Runs per minute, and the seconds that what is left takes at the pace at which expected seconds were done."""
        ends = sorted(
            (settled.time, self._planned[key].cost) for key, settled in self._settled.items() if settled.sampled
        )
        begun = [moment for pack in self.log.packs.values() for moment in pack.log.begun_at.values()]
        if not ends or not (begun or not self.record.packed):
            return None, None
        first = min(begun, default=self.record.started)
        until = ends[-1][0] if driver.over else now
        since = max(first, until - PACE_SECONDS)
        recent = [cost for moment, cost in ends if moment >= since]
        if len(recent) < PACE_RUNS:
            since, recent = first, [cost for _, cost in ends]
        elapsed = max(until - since, 1e-3)
        if driver.over or not running:
            return 60 * len(recent) / elapsed, None
        done = {run.key: min(run.seconds, run.expected) for run in running}
        left = sum(
            run.cost - done.get(run.key, 0.0)
            for run in self.record.runs
            if run.group == TO_SAMPLE
            and run.key not in self._settled
            and self._targets.get(run.target_id, "built") != "failed"
        )
        pace = sum(recent) / elapsed
        return 60 * len(recent) / elapsed, left / pace if pace > 0 else None
