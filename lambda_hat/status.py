"""How a study stands, from what its store says: the driver's record and log, the ranks' events, and the folders.

Nothing here changes the store, asks a scheduler, or needs the driver to be alive. No run's result is opened to count
it: events, and the names in its folder, say whether it is there.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lambda_hat.claims import holder
from lambda_hat.errors import StoreError
from lambda_hat.files import FileSystemClock, read_events, read_json_or_none
from lambda_hat.follow import PackLog
from lambda_hat.lease import GRACE, STALE_AFTER, LeaseState, is_here, life_sign, live_leases, process_lives
from lambda_hat.store import Store, TargetStatus, error_line
from lambda_hat.studies import (
    BLOCKED,
    ELSEWHERE,
    FAILED,
    STUDIES,
    TO_SAMPLE,
    Key,
    Planned,
    StudyRecord,
    read_study,
    study_names,
)

DriverState = Literal["alive", "silent", "died", "ended", "submitted", "none"]
SettledStatus = Literal["finished", "failed"]

PACE_SECONDS = 900.0
"""The throughput is that of the last quarter of an hour, or of all, where fewer than PACE_RUNS runs ended in it."""
PACE_RUNS = 10
SILENT_START = 120.0
"""Seconds for which a driver on another host may have no lease yet, or none any more, before it counts as dead: it
plans, or collects the table."""
MOST_FAILURES = 10
MOST_TARGETS = 2
"""Targets that are named as what runs wait for."""
CHECKPOINT = "checkpoint.npz"
FOR_TARGET = "waits for its target"
MOST_RECORDS = 100
"""Records that are looked through for the drivers that run."""


class Driver(NamedTuple):
    """What is known of a study's driver."""

    state: DriverState
    """alive; silent: not heard of lately, what it started may still be at work; died; ended: by itself; submitted: a
    job is to be the driver, and has not begun; none: a pack was started by itself."""
    status: int | None = None
    """Its exit status, where it ended."""
    reason: str | None = None
    """Why it ended, where an error did it."""
    ended: float | None = None
    """When that was (seconds since the epoch)."""
    silent_for: float = 0.0
    """Seconds since its last sign of life, where it is on another host."""
    at_work: bool = True
    """Where there is none, whether something else is."""

    @property
    def over(self) -> bool:
        """Whether nothing more will come of it."""
        return self.state in ("died", "ended") or not self.at_work


class Running(NamedTuple):
    """A run that is being sampled."""

    key: Key
    rank: int | None
    host: str
    seconds: float
    """Since it was begun."""
    expected: float
    """Seconds, without compilation."""


class Failure(NamedTuple):
    """A run that failed, and why in one line."""

    key: Key
    reason: str


class JobState(NamedTuple):
    """A job of a scheduler, and its words about it."""

    job_id: str
    scheduler: str
    label: str
    """What it is for: packs, or tasks, which are builds and single runs."""
    nodes: int | None
    walltime: str
    state: str
    since: float
    """When the state was first heard (seconds since the epoch)."""

    @property
    def runs(self) -> bool:
        return self.state.startswith("RUNNING")

    @property
    def ended(self) -> bool:
        return self.state == "ended"


@dataclass(frozen=True)
class StudyStatus:
    """How one study stands."""

    record: StudyRecord
    driver: Driver
    note: str | None
    """What the driver said last, where that still holds."""
    jobs: list[JobState]
    """Those that have not ended."""
    targets: dict[str, int]
    """built, failed and missing ones."""
    packs: dict[str, int]
    """over, running and waiting ones."""
    ranks_at_work: int
    ranks: int
    """Of running packs."""
    finished: int
    """Cached ones included."""
    failed: int
    blocked: int
    """Their target could not be built."""
    running: list[Running]
    """Those that have run longest first."""
    waiting: dict[str, int]
    """Why runs wait, and how many of them."""
    failures: list[Failure]
    """Some of them, the latest first."""
    runs_per_minute: float | None
    seconds_left: float | None

    @property
    def total(self) -> int:
        """Runs of the study."""
        return self.record.cached_runs + len(self.record.runs)


class _Settled(NamedTuple):
    status: SettledStatus
    time: float
    reason: str | None
    sampled: bool
    """By this study, and not found finished."""


@dataclass
class _Pack:
    log: PackLog
    runs: list[Key]
    ended: bool = False
    """The driver says so."""
    settled: bool = False
    """It was read once more after that."""

    @property
    def over(self) -> bool:
        return self.ended or self.log.over


class _Seen(NamedTuple):
    """What one look has found."""

    running: list[Running]
    found: dict[Key, frozenset[str]]
    quiet: bool


class StudyFollower:
    """One start of a driver. `look()` reads what is new in its store, and tells how its study stands."""

    def __init__(self, store: Store, record: StudyRecord):
        self._store, self.record = store, record
        self.leases: list[str] = []
        """Names of the driver's leases, the present one last."""
        self._planned = {run.key: run for run in record.runs}
        self._log, self._offset = store.root / STUDIES / f"{record.name}.jsonl", 0
        self._clock = FileSystemClock(store.packs_dir)
        self._packs: dict[str, _Pack] = {}
        self._pack_of: dict[Key, _Pack] = {}
        self._jobs: dict[str, JobState] = {}
        self._note: str | None = None
        self._end: dict[str, Any] | None = None
        self._settled: dict[Key, _Settled] = {}
        self._targets: dict[str, TargetStatus] = {}
        self._target_reasons: dict[str, str] = {}
        """Why runs wait for a target, as of this look."""
        self._seen = _Seen([], {}, True)

    def read_log(self) -> None:
        """Read what the driver has written since the last call."""
        events, self._offset = read_events(self._log, self._offset)
        for event in events:
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, IndexError):
                # A line that the disk has damaged.
                continue

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "lease":
            self.leases.append(os.path.basename(event["lease"]))
        elif kind == "round":
            self._note = None
        elif kind == "note":
            self._note = str(event["sentence"])
        elif kind == "pack":
            keys = [self.record.runs[place].key for place in event["runs"]]
            name = os.path.basename(event["pack_id"])
            if not name.startswith("pack_"):
                raise ValueError("not a pack")
            self._packs[name] = pack = _Pack(PackLog(self._store.pack_dir(name)), keys)
            self._pack_of.update(dict.fromkeys(keys, pack))
        elif kind == "pack_end":
            self._packs[event["pack_id"]].ended = True
        elif kind == "job":
            self._jobs[str(event["job_id"])] = self._job(event)
        elif kind == "end":
            self._end = {"status": int(event["status"]), "reason": event.get("reason"), "time": float(event["time"])}

    def _job(self, event: dict[str, Any]) -> JobState:
        job_id, state, since = str(event["job_id"]), str(event["state"]), float(event["time"])
        known = self._jobs.get(job_id)
        if known is not None:
            return known._replace(state=state, since=since)
        nodes = event.get("nodes")
        words = (str(event.get(key, "")) for key in ("scheduler", "for", "walltime"))
        scheduler, label, walltime = words
        return JobState(job_id, scheduler, label, nodes if type(nodes) is int else None, walltime, state, since)

    def follow_pack(self, directory: Path) -> None:
        """Let all runs be in this pack, which no log tells of."""
        keys = [run.key for run in self.record.runs]
        self._packs[directory.name] = pack = _Pack(PackLog(directory), keys)
        self._pack_of = dict.fromkeys(keys, pack)

    def driver(self) -> Driver:
        """What is known of the driver, by what was read so far."""
        if self._end is not None:
            return Driver("ended", self._end["status"], self._end["reason"], self._end["time"])
        if self.record.submitted is not None:
            return Driver("submitted")
        if not self.record.driver:
            # Ranks without a driver have a lease of their own.
            return Driver("none", at_work=bool(live_leases(self._store.packs_dir, self._clock)))
        if is_here(self.record.driver):
            return Driver("alive" if process_lives(self.record.driver) else "died")
        if not self.leases:
            return Driver("alive" if self._clock.now() - self.record.written < SILENT_START else "died")
        sign = life_sign(self._store.packs_dir / self.leases[-1], self._clock)
        if sign.withdrawn:
            return Driver("alive" if sign.age < SILENT_START else "died")
        return Driver(_BY_LEASE[sign.state], silent_for=sign.age)

    def _nothing_computes(self, driver: Driver) -> bool:
        """Whether nothing that the driver has started can still be at work."""
        if driver.state in ("ended", "submitted"):
            return True
        if not driver.over or not self.leases:
            return driver.over
        return life_sign(self._store.packs_dir / self.leases[-1], self._clock).age > STALE_AFTER + GRACE

    def look(self) -> StudyStatus:
        """How the study stands now."""
        now = time.time()
        self.read_log()
        self._target_reasons.clear()
        driver = self.driver()
        quiet = self._nothing_computes(driver)
        for pack in self._packs.values():
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
        live = [pack for pack in self._packs.values() if pack.log.begun and not pack.over and not quiet]
        per_minute, left = self._pace(now, running, driver)
        return StudyStatus(
            record=self.record,
            driver=driver,
            note=None if driver.over else self._note,
            jobs=[] if driver.state == "ended" else [job for job in self._jobs.values() if not job.ended],
            targets=self._target_counts(),
            packs={
                "over": sum(pack.over or (quiet and pack.log.begun) for pack in self._packs.values()),
                "running": len(live),
                "waiting": sum(not pack.over and not pack.log.begun for pack in self._packs.values()),
            },
            ranks_at_work=sum(len({*pack.log.in_flight, *pack.log.building} - pack.log.ended) for pack in live),
            ranks=sum(pack.log.size - len(pack.log.ended) for pack in live),
            finished=self.record.cached_runs + statuses["finished"],
            failed=statuses["failed"],
            blocked=blocked,
            running=running,
            waiting=waiting,
            failures=self._failures(),
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
        pack = self._pack_of.get(key)
        return None if pack is None else pack.log.directory

    # What the ranks and the folders say

    def _read_pack(self, pack: _Pack) -> None:
        if pack.settled:
            return
        pack.settled = pack.ended
        for event in pack.log.read():
            key = (event["target_id"], event["run_id"])
            if key in self._planned and event["status"] in ("finished", "failed"):
                reason = event.get("reason")
                self._settled[key] = _Settled(
                    event["status"],
                    float(event["time"]),
                    None if reason is None else str(reason),
                    not event.get("cached"),
                )

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
        for pack in self._packs.values():
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
        pack = self._pack_of.get(run.key)
        if pack is not None and pack.log.begun and not pack.over and not quiet:
            return "in a pack that is running"
        if pack is not None and pack.over and pack.log.ends.get(run.key, {}).get("status") == "elsewhere":
            return "sampled by another process"
        kept = ", with a checkpoint" if CHECKPOINT in names else ""
        if pack is not None and (pack.over or pack.log.begun):
            return f"left by a pack that ended{kept}"
        if self.record.submitted is not None:
            return f"job {self.record.submitted['job_id']} has not begun{kept}"
        waits = self._no_allocation("packs" if self.record.packed else "tasks")
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
            elif not quiet and (waits := self._no_allocation("tasks")) is not None:
                why = f": {waits}"
            self._target_reasons[target_id] = why
        return self._target_reasons[target_id]

    def _no_allocation(self, label: str) -> str | None:
        """What the scheduler says, where it has not given a single one of the jobs for `label` its nodes."""
        jobs = [job for job in self._jobs.values() if job.label == label and not job.ended]
        if not jobs or any(job.runs for job in jobs):
            return None
        said = dict.fromkeys(job.state for job in jobs if job.state != "submitted")
        if not said:
            return f"no allocation yet: {jobs[0].scheduler} has the job"
        return f"no allocation yet: {jobs[0].scheduler} says {', '.join(said)}"

    def _target_counts(self) -> dict[str, int]:
        counts = Counter(self._targets.values())
        # Cached ones that have no run left are in the record by number alone.
        builds = set(self.record.builds)
        named = sum(status == "built" and target_id not in builds for target_id, status in self._targets.items())
        counts["built"] += max(0, self.record.cached_targets - named)
        return {status: counts[status] for status in ("built", "failed", "missing")}

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
        begun = [moment for pack in self._packs.values() for moment in pack.log.begun_at.values()]
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


def _moment(event: dict[str, Any]) -> float:
    """The time of an event that may be damaged."""
    moment = event.get("time")
    return float(moment) if isinstance(moment, (int, float)) else 0.0


_BY_LEASE: dict[LeaseState, DriverState] = {"live": "alive", "ending": "silent", "dead": "died"}
_ENDS: tuple[tuple[str, SettledStatus], ...] = (("analysis.json", "finished"), ("error.json", "failed"))
"""By which file in its folder a run is at an end."""


# --------------------------------------------------------------------------------------------------------------
# Which studies


@dataclass
class Studies:
    """The studies of a store that are worth showing: those whose drivers run, else the newest one."""

    store: Store
    _followers: dict[str, StudyFollower | None] = field(default_factory=dict)

    def __post_init__(self):
        self._clock = FileSystemClock(self.store.packs_dir)

    def look(self) -> list[StudyStatus]:
        """How they stand, the newest first. Raises StoreError where nothing was ever started in the store."""
        followers = self.current()
        if not followers:
            raise StoreError(
                f"{self.store.root}: no study was started here; start one with "
                "python flows/packed.py --experiments FILE --store DIR, or look with lambda-hat ls --store DIR"
            )
        return [follower.look() for follower in followers]

    def current(self) -> list[StudyFollower]:
        """The followers of the studies to show."""
        live = {path.name for path in live_leases(self.store.packs_dir, self._clock)}
        seen: list[StudyFollower] = []
        for name in study_names(self.store.root)[:MOST_RECORDS]:
            follower = self._follower(name)
            if follower is None:
                continue
            follower.read_log()
            if not seen or live & set(follower.leases):
                seen.append(follower)
            live -= set(follower.leases)
            if not live:
                break
        if not seen:
            alone = self._alone()
            return [] if alone is None else [alone]
        return [follower for follower in seen if not follower.driver().over] or seen[:1]

    def _alone(self) -> StudyFollower | None:
        """The newest pack, where `mpi/run_pack.py` was started without a driver."""
        found = []
        for path in self.store.packs_dir.glob("pack_*/pack.json"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime, path))
        if not found:
            return None
        written, path = max(found)
        name = path.parent.name
        if self._followers.get(name) is None:
            record = _record_of_pack(self.store, path, written)
            if record is None:
                return None
            self._followers[name] = follower = StudyFollower(self.store, record)
            follower.follow_pack(path.parent)
        return self._followers[name]

    def _follower(self, name: str) -> StudyFollower | None:
        if self._followers.get(name) is None:
            record = read_study(self.store.root, name)
            self._followers[name] = None if record is None else StudyFollower(self.store, record)
        return self._followers[name]


def _record_of_pack(store: Store, path: Path, written: float) -> StudyRecord | None:
    """A pack as if a driver had recorded it; None where its file is damaged."""
    content = read_json_or_none(path)
    try:
        runs = [
            Planned(str(run["target_id"]), str(run["run_id"]), float(run["cost"]), TO_SAMPLE) for run in content["runs"]
        ]
        builds = [str(build["target_id"]) for build in content["builds"]]
    except (KeyError, TypeError, ValueError):
        return None
    return StudyRecord(
        name=path.parent.name,
        command=[],
        directory=str(store.root),
        store=str(store.root),
        driver={},
        started=written,
        site="mpirun",
        packed=True,
        ranks=None,
        cached_targets=0,
        cached_runs=0,
        targets=dict.fromkeys((run.target_id for run in runs), ""),
        builds=builds,
        runs=runs,
        written=written,
    )


def newest_record(store: Store, runnable: bool = False) -> StudyRecord | None:
    """The record of the newest study of a store; None where there is none.

    runnable: of a start from a login node or a terminal, and not of a driver inside a job, whose command works only
    there.
    """
    records: Iterable[StudyRecord | None] = (read_study(store.root, name) for name in study_names(store.root))
    return next((r for r in records if r is not None and not (runnable and r.job_script is not None)), None)
