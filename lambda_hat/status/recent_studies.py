"""The studies of a store that are shown."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lambda_hat.errors import StoreError
from lambda_hat.status.follower import StudyFollower
from lambda_hat.status.study_state import StudyStatus
from lambda_hat.store.files import FileSystemClock, read_json_or_none
from lambda_hat.store.heartbeat import live_heartbeats
from lambda_hat.store.layout import Store
from lambda_hat.store.study_records import TO_SAMPLE, StudyRecord, planned, read_study, study_names

MOST_RECORDS = 100
"""Records that are searched for drivers that run."""


@dataclass
class Studies:
    """The studies of a store that are shown: those whose drivers run, else the newest one."""

    store: Store
    _followers: dict[str, StudyFollower | None] = field(default_factory=dict)

    def __post_init__(self):
        self._clock = FileSystemClock(self.store.packs_dir)

    def look(self) -> list[StudyStatus]:
        """How they stand, the newest first. Raises StoreError where no study was started in the store."""
        followers = self.current()
        if not followers:
            raise StoreError(
                f"{self.store.root}: no study was started here; start one with "
                "lambda-hat run --experiments FILE --store DIR, or look with lambda-hat ls --store DIR"
            )
        return [follower.look() for follower in followers]

    def current(self) -> list[StudyFollower]:
        """The followers of the studies to show."""
        live = {path.name for path in live_heartbeats(self.store.packs_dir, self._clock)}
        seen: list[StudyFollower] = []
        for name in study_names(self.store.root)[:MOST_RECORDS]:
            follower = self._follower(name)
            if follower is None:
                continue
            follower.log.read()
            if not seen or live & set(follower.log.leases):
                seen.append(follower)
            live -= set(follower.log.leases)
            if not live:
                break
        if not seen:
            alone = self._alone()
            return [] if alone is None else [alone]
        return [follower for follower in seen if not follower.log.driver().over] or seen[:1]

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
            follower.log.follow_pack(name, [run.key for run in record.runs])
        return self._followers[name]

    def _follower(self, name: str) -> StudyFollower | None:
        if self._followers.get(name) is None:
            record = read_study(self.store.root, name)
            self._followers[name] = None if record is None else StudyFollower(self.store, record)
        return self._followers[name]


def _record_of_pack(store: Store, path: Path, written: float) -> StudyRecord | None:
    """A pack in the form of a driver's record; None where its file is damaged."""
    content = read_json_or_none(path)
    try:
        runs = [planned(run["target_id"], run["run_id"], run["cost"], TO_SAMPLE) for run in content["runs"]]
        builds = [str(build["target_id"]) for build in content["builds"]]
    except (KeyError, TypeError, ValueError, OverflowError):
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


def outer_record(store: Store, record: StudyRecord) -> StudyRecord:
    """The record of the command that a person typed: the one that submitted the job of `record`, if a job it is."""
    if record.job_script is None:
        return record
    found = (read_study(store.root, name) for name in study_names(store.root)[:MOST_RECORDS])
    job_id = record.job["job_id"] if record.job else None
    submitted = (each for each in found if each is not None and each.submitted is not None)
    own = next((each for each in submitted if each.submitted and each.submitted["job_id"] == job_id), None)
    # Further jobs of a chain were submitted by the one before.
    return own or newest_record(store, runnable=True) or record


def newest_record(store: Store, runnable: bool = False) -> StudyRecord | None:
    """The record of the newest study of a store; None where there is none.

    runnable: leave out drivers inside a job, whose command works only there.
    """
    records: Iterable[StudyRecord | None] = (read_study(store.root, name) for name in study_names(store.root))
    return next((r for r in records if r is not None and not (runnable and r.job_script is not None)), None)
