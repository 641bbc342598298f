"""A driver's heartbeat: the processes that a driver started end by themselves when the driver is killed.

The driver rewrites a small file, `driver_*.lease`, every few seconds, and marks it ended when it stops. Its workers
read the file and compare the content only with what they read before. They do not look at the modification time, which
an NFS client may cache for a minute, while opening a file asks the server. Other processes judge the age of the file by
the clock of the file system. So the clocks of hosts need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lambda_hat.errors import StoreError
from lambda_hat.store.drain import Drain
from lambda_hat.store.files import FileSystemClock, json_object, remove_litter, write_bytes_atomic
from lambda_hat.store.process_identity import is_here, process_lives, whoami

PERIOD = 2.0
"""Seconds between two beats."""
STALE_AFTER = 20.0
"""Seconds without a beat after which a driver counts as lost: ten beats."""
GRACE = 25.0
"""Seconds after a heartbeat has ended or become stale within which everything that its driver started has ended."""
SLOWEST_LOOK = 5.0
"""Longest time in seconds between two looks of a rank at its heartbeat: with a longer one it could outlive `GRACE`."""
KEPT = 3600.0
"""Seconds for which the file of a heartbeat that is over is kept. Arbitrary."""
KEPT_FOR_JOBS = 30 * 24 * 3600.0
"""Seconds for which it is kept while jobs are left that nobody could cancel. Arbitrary."""
STORE_FORMAT = 2
"""The form of a store that a driver knows, in its heartbeat. Drivers of form 2 find runs in archives (`run_files`)."""
HEARTBEAT_VARIABLE = "LAMBDA_HAT_LEASE"
"""Environment variable in which a driver hands the path of its heartbeat to the processes that it starts."""

HAS_ENDED = "its driver has ended"
"""Reason of a drain after the heartbeat was marked ended, or removed."""
HeartbeatState = Literal["live", "ending", "dead"]


class Heartbeat:
    """The heartbeat of this driver: `with Heartbeat(folder)` renews the file `path` in the block, then marks it ended.

    Args:
        directory: The folder of the file, `packs/` of the store.
    """

    def __init__(self, directory: Path):
        self.path = directory / f"driver_{uuid.uuid4().hex[:12]}.lease"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="heartbeat", daemon=True)
        self._lock = threading.Lock()
        self._record = {
            **whoami(),
            "store": STORE_FORMAT,
            "count": 0,
            "state": "running",
            "jobs": [],
            "left": [],
            "end": [],
            "left_out": [],
            "let_go": [],
        }

    def _write(self) -> None:
        with self._lock:
            write_bytes_atomic(self.path, json.dumps(self._record).encode())
            self._record["count"] += 1

    def _renew(self) -> None:
        while not self._stop.wait(PERIOD):
            # A study survives a disk that is full for a moment, but not a heartbeat that stays stale.
            with contextlib.suppress(OSError, StoreError):
                self._write()

    def __enter__(self) -> Heartbeat:
        self._write()
        self._thread.start()
        return self

    def _tell(self, **entries: Any) -> None:
        """Write more into the file. If it cannot be written now, the next beat writes it."""
        self._record |= entries
        with contextlib.suppress(OSError, StoreError):
            self._write()

    def note_jobs(self, jobs: list[dict[str, Any]]) -> None:
        """Write the driver's jobs into the file, for a later driver that may have to cancel them.

        Args:
            jobs: `scheduler`, `job_id` and `name` of each.
        """
        self._tell(jobs=list(jobs))

    def give_back(self, job_ids: Iterable[str]) -> None:
        """Tell jobs of the scheduler, which read the file, to end by themselves: there is no more work for them.

        Args:
            job_ids: Their ids; the part before the first point says which.
        """
        self._tell(end=[*self._record["end"], *(f"end {job_id.partition('.')[0]}" for job_id in job_ids)])

    def leave_out(self, nodes: Iterable[str]) -> None:
        """Tell what launches packs to leave these nodes out, and no others."""
        self._tell(left_out=list(nodes))

    def let_go(self, pack_id: str) -> None:
        """Ask a pack once more to let go of half of the runs that it has not begun."""
        self._tell(let_go=[*self._record["let_go"], pack_id])

    def note_left(self, jobs: list[dict[str, Any]]) -> None:
        """Write the jobs into the file that could not be cancelled at the driver's end. A later driver cancels them.

        Args:
            jobs: As for `note_jobs`.
        """
        self._tell(left=list(jobs))

    def withdraw(self) -> None:
        """Stop, and mark the heartbeat ended: every process that watches it drains within a second or two."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        # Until its driver has cancelled them, they are left.
        self._record |= {"state": "ended", "left": self._record["jobs"]}
        try:
            self._write()
        except (OSError, StoreError):
            # A missing file says the same, and removing it needs no room on the disk.
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __exit__(self, *exc: object) -> None:
        self.withdraw()


# --------------------------------------------------------------------------------------------------------------
# Watching one's own driver


def watch_heartbeat(
    path: Path,
    on_lost: Callable[[str], None],
    stale_after: float = STALE_AFTER,
    period: float = 1.0,
    on_beat: Callable[[dict[str, Any]], None] = lambda record: None,
) -> threading.Thread:
    """Start a thread that calls `on_lost` once, when the heartbeat has ended, has gone, or has become stale.

    Args:
        path: The heartbeat's file.
        on_lost: Called with the reason.
        stale_after: Seconds without a beat after which it is stale.
        period: Seconds between two looks.
        on_beat: Called with what the driver tells, at each beat.
    """

    def watch() -> None:
        last, seen = None, time.monotonic()
        while True:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return on_lost(HAS_ENDED)
            except OSError:
                content = last
            if content != last:
                last, seen = content, time.monotonic()
                record = json_object(content) or {}
                if record.get("state") == "ended":
                    return on_lost(HAS_ENDED)
                on_beat(record)
            elif time.monotonic() - seen > stale_after:
                return on_lost(f"its driver has given no sign of life for {stale_after:.0f} s")
            time.sleep(period)

    thread = threading.Thread(target=watch, name="heartbeat-watch", daemon=True)
    thread.start()
    return thread


def exit_when_lost(path: str | os.PathLike[str] | None, where: str, period: float = 1.0) -> None:
    """End this process soon after its driver has ended.

    Args:
        path: The driver's heartbeat; without one nothing happens.
        where: The name of this process in the message.
        period: Seconds between two looks.
    """
    if path:
        watch_heartbeat(Path(path), lambda reason: _leave(where, reason), period=period)


def drain_when_lost(
    path: str | os.PathLike[str] | None,
    drain: Drain,
    where: str,
    period: float = 1.0,
    grace: float | None = None,
    on_beat: Callable[[dict[str, Any]], None] = lambda record: None,
) -> None:
    """Request the drain soon after the driver has ended, and end this process if it still runs `grace` seconds later.

    A process inside a long compilation, for example, does not hear the drain.

    Args:
        path: The driver's heartbeat; without one nothing happens.
        drain: The drain to request.
        where: The name of this process in the message.
        period: Seconds between two looks, SLOWEST_LOOK at most.
        grace: Seconds; by default so many that the process has certainly ended within `GRACE`.
        on_beat: Called with what the driver tells, at each beat.
    """
    if not path:
        return
    period = min(period, SLOWEST_LOOK)
    # A beat is seen up to one period late, and its absence up to another one.
    patience = GRACE - 3.0 - 2 * period if grace is None else grace

    def lost(reason: str) -> None:
        drain.request(reason)
        time.sleep(patience)
        _leave(where, f"{reason}, and what was under way did not come to an end in {patience:.0f} s")

    watch_heartbeat(Path(path), lost, period=period, on_beat=on_beat)


def _leave(where: str, reason: str) -> None:
    print(f"{where}: {reason}; stopping. Finished runs are kept; run the same command again", flush=True)
    os._exit(1)


# --------------------------------------------------------------------------------------------------------------
# Judging the drivers of others


class DeadHeartbeat(NamedTuple):
    """The heartbeat of a driver that died without withdrawing it."""

    path: Path
    host: str
    jobs: list[dict[str, Any]]


def heartbeat_state(path: Path) -> HeartbeatState:
    """The state of a driver by its heartbeat.

    Returns:
        "live": it runs. "ending": it has stopped, or has been silent for STALE_AFTER, and the processes that it started
        may still be draining. "dead": those have ended too; or its process on this host is gone, while ranks on other
        hosts may still be draining (`heartbeat_over` says when they have ended).
    """
    return _look_at(path, FileSystemClock(path.parent)).state


def heartbeat_over(path: Path) -> bool:
    """Whether every process that watches this heartbeat, on any host, has certainly ended."""
    found = _look_at(path, FileSystemClock(path.parent))
    return found.age > STALE_AFTER + GRACE


class LifeSign(NamedTuple):
    """A driver's state by its heartbeat."""

    state: HeartbeatState
    age: float
    """Seconds since the last beat; infinite where the file is gone."""
    withdrawn: bool
    """The driver has marked it ended."""


def life_sign(path: Path, clock: FileSystemClock) -> LifeSign:
    """As `heartbeat_state`, with age, for callers that ask often. clock: that of the heartbeat's folder."""
    found = _look_at(path, clock)
    return LifeSign(found.state, found.age, (found.record or {}).get("state") == "ended")


def dead_heartbeats(directory: Path) -> list[DeadHeartbeat]:
    """The heartbeats of drivers that died without withdrawing them.

    Their jobs may still wait or idle, and have to be cancelled. After that, `mark_ended` lets their processes drain.
    """
    found = []
    for path, look in _all_leases(directory):
        if look.state == "dead" and look.record and look.record.get("state") == "running":
            found.append(DeadHeartbeat(path, str(look.record.get("host")), _jobs_of(look, "jobs")))
    return found


def heartbeats_with_jobs(directory: Path) -> list[DeadHeartbeat]:
    """The heartbeats of drivers that have ended, with the jobs that they could not cancel."""
    found = []
    for path, look in _all_leases(directory):
        left = _jobs_of(look, "left")
        if look.state == "dead" and look.record and look.record.get("state") == "ended" and left:
            found.append(DeadHeartbeat(path, str(look.record.get("host")), left))
    return found


def mark_ended(path: Path, left: list[dict[str, Any]] | None = None) -> None:
    """Mark the heartbeat of a dead driver ended: every process that watches it drains within seconds.

    Args:
        path: The heartbeat's file.
        left: The jobs that have still to be cancelled; by default all that the driver noted.

    Raises:
        StoreUnwritable: The file cannot be written.
    """
    try:
        record = json_object(path.read_bytes()) or {}
    except FileNotFoundError:
        return
    except OSError:
        record = {}
    ended = {**record, "state": "ended", "left": record.get("jobs", []) if left is None else left}
    write_bytes_atomic(path, json.dumps(ended).encode())


def live_heartbeats(directory: Path, clock: FileSystemClock | None = None) -> list[Path]:
    """The heartbeats of drivers that run. clock: that of the folder, for callers that ask often."""
    return [path for path, look in _all_leases(directory, clock) if look.state == "live"]


def older_drivers(directory: Path) -> list[dict[str, Any]]:
    """What the heartbeats of drivers say that may be at work and know only an older form of the store."""
    looks = [look for _, look in _all_leases(directory) if look.state != "dead"]
    return [look.record or {} for look in looks if (look.record or {}).get("store") != STORE_FORMAT]


def tidy_heartbeats(directory: Path) -> int:
    """Remove heartbeats that have been over for KEPT seconds, and temporary files.

    A heartbeat whose jobs nobody has cancelled yet stays.

    Returns:
        How many heartbeats were removed.
    """
    remove_litter(directory)
    removed = 0
    for path, look in _all_leases(directory):
        record = look.record or {}
        if record.get("state") == "ended":
            kept = KEPT_FOR_JOBS if _jobs_of(look, "left") else KEPT
        else:
            kept = float("inf") if record.get("jobs") else KEPT
        if look.state == "dead" and look.age > kept:
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def _jobs_of(look: _Look, key: str) -> list[dict[str, Any]]:
    jobs = (look.record or {}).get(key)
    return [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []


class _Look(NamedTuple):
    """One reading of a heartbeat."""

    record: dict[str, Any] | None
    """None: the file is missing or cannot be read."""
    age: float
    """Seconds since the file was written; infinite where it is gone."""
    state: HeartbeatState


def _all_leases(directory: Path, clock: FileSystemClock | None = None) -> list[tuple[Path, _Look]]:
    clock = FileSystemClock(directory) if clock is None else clock
    try:
        names = sorted(name for name in os.listdir(directory) if name.startswith("driver_") and name.endswith(".lease"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [(directory / name, _look_at(directory / name, clock)) for name in names]


def _look_at(path: Path, clock: FileSystemClock) -> _Look:
    try:
        with path.open("rb") as file:
            content, written = file.read(), os.fstat(file.fileno()).st_mtime
    except FileNotFoundError:
        return _Look(None, float("inf"), "dead")
    except OSError:
        # It is not known to be over.
        return _Look(None, 0.0, "ending")
    record, age = json_object(content), clock.now() - written
    if record is not None and is_here(record):
        alive = process_lives(record)
        state: HeartbeatState = "dead" if not alive else "live" if record.get("state") == "running" else "ending"
        return _Look(record, age, state)
    if age > STALE_AFTER + GRACE:
        return _Look(record, age, "dead")
    running = age <= STALE_AFTER and (record or {}).get("state") != "ended"
    return _Look(record, age, "live" if running else "ending")
