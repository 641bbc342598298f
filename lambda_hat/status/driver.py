"""The log of a driver, and whether the driver is still alive."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from lambda_hat.status.study_state import Driver, DriverState, JobState
from lambda_hat.store.events import PackLog
from lambda_hat.store.files import FileSystemClock, read_events
from lambda_hat.store.heartbeat import GRACE, STALE_AFTER, HeartbeatState, life_sign, live_heartbeats
from lambda_hat.store.layout import Store
from lambda_hat.store.process_identity import is_here, process_lives
from lambda_hat.store.study_records import STUDIES, Key, StudyRecord

SILENT_START = 120.0
"""Seconds for which a driver on another host may be without a lease before it counts as dead. It has none while it
plans, and while it collects the table."""
_BY_LEASE: dict[HeartbeatState, DriverState] = {"live": "alive", "ending": "silent", "dead": "died"}


class DriverLog:
    """The log of one start of a driver, read as it grows."""

    def __init__(self, store: Store, record: StudyRecord):
        self._store, self._record = store, record
        self._path, self._offset = store.root / STUDIES / f"{record.name}.jsonl", 0
        self._clock = FileSystemClock(store.packs_dir)
        self.leases: list[str] = []
        """Names of the driver's leases, the current one last."""
        self.packs: dict[str, PackLog] = {}
        self.pack_of: dict[Key, PackLog] = {}
        """The last pack that a run was put into."""
        self.site_of: dict[str, str] = {}
        """By the names of packs their sites, where there are several."""
        self._label_of: dict[PackLog, str] = {}
        """What the jobs are for that packs wait for, likewise."""
        self.jobs: dict[str, JobState] = {}
        self.note: str | None = None
        """The driver's last sentence; it holds until the next round."""
        self.left_out: dict[str, str] = {}
        """Nodes that the driver leaves out, and why."""
        self.next_job: str | None = None
        self._end: Driver | None = None

    def read(self) -> None:
        """Read what the driver has written since the last call."""
        events, self._offset = read_events(self._path, self._offset)
        for event in events:
            try:
                self._take(event)
            except (KeyError, TypeError, ValueError, IndexError, OverflowError, AttributeError):
                # A line that the disk has damaged.
                continue

    def _take(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "lease":
            self.leases.append(os.path.basename(event["lease"]))
        elif kind == "round":
            self.note = None
        elif kind == "note":
            self.note = str(event["sentence"])
        elif kind == "pack":
            keys = [self._record.runs[place].key for place in event["runs"]]
            name = os.path.basename(event["pack_id"])
            if not name.startswith("pack_"):
                raise ValueError("not a pack")
            pack = self.follow_pack(name, keys)
            if "site" in event:
                self.site_of[name], self._label_of[pack] = str(event["site"]), str(event["for"])
        elif kind == "pack_end":
            self.packs[event["pack_id"]].over = True
        elif kind == "job":
            self.jobs[str(event["job_id"])] = self._job(event)
        elif kind == "nodes":
            self.left_out = {str(node): str(why) for node, why in event["left_out"].items()}
        elif kind == "next_job":
            self.next_job = str(event["job_id"])
        elif kind == "end":
            reason = None if event.get("reason") is None else str(event["reason"])
            self._end = Driver("ended", int(event["status"]), reason, float(event["time"]))

    def _job(self, event: dict[str, Any]) -> JobState:
        job_id, state, since = str(event["job_id"]), str(event["state"]), float(event["time"])
        known = self.jobs.get(job_id)
        if known is not None:
            return known._replace(state=state, since=since)
        nodes = event.get("nodes")
        scheduler, label, walltime = (str(event.get(key, "")) for key in ("scheduler", "for", "walltime"))
        return JobState(job_id, scheduler, label, nodes if type(nodes) is int else None, walltime, state, since)

    def follow_pack(self, name: str, keys: Iterable[Key]) -> PackLog:
        """These runs were put into a pack. Returns its log."""
        self.packs[name] = pack = PackLog(self._store.pack_dir(name))
        self.pack_of.update(dict.fromkeys(keys, pack))
        return pack

    def label_of(self, pack: PackLog | None) -> str:
        """What the jobs are for that a pack waits for."""
        return "packs" if pack is None else self._label_of.get(pack, "packs")

    def driver(self) -> Driver:
        """What is known of the driver from what was read so far."""
        if self._end is not None:
            return self._end
        if self._record.submitted is not None:
            return Driver("submitted")
        if not self._record.driver:
            # A pack without a driver has a lease of its own.
            return Driver("none", at_work=bool(live_heartbeats(self._store.packs_dir, self._clock)))
        if is_here(self._record.driver):
            return Driver("alive" if process_lives(self._record.driver) else "died")
        if not self.leases:
            return Driver("alive" if self._clock.now() - self._record.written < SILENT_START else "died")
        sign = life_sign(self._store.packs_dir / self.leases[-1], self._clock)
        if sign.withdrawn:
            return Driver("alive" if sign.age < SILENT_START else "died")
        return Driver(_BY_LEASE[sign.state], silent_for=sign.age)

    def nothing_computes(self, driver: Driver) -> bool:
        """Whether everything that the driver started must have ended."""
        if driver.state in ("ended", "submitted"):
            return True
        if not driver.over or not self.leases:
            return driver.over
        return life_sign(self._store.packs_dir / self.leases[-1], self._clock).age > STALE_AFTER + GRACE

    def no_allocation(self, label: str) -> str | None:
        """What the scheduler says, where none of the jobs for `label` has its nodes yet; else None."""
        jobs = [job for job in self.jobs.values() if job.label == label and not job.ended]
        if not jobs or any(job.runs for job in jobs):
            return None
        said = dict.fromkeys(job.state for job in jobs if job.state != "submitted")
        if not said:
            return f"no allocation yet: {jobs[0].scheduler} has the job"
        return f"no allocation yet: {jobs[0].scheduler} says {', '.join(said)}"
