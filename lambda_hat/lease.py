"""A driver's sign of life, so that what it started ends by itself when it is killed.

The driver rewrites a small file every few seconds, and marks it ended when it stops. Workers read it (opening a file
asks an NFS server for its present content, a cached modification time may be a minute old) and compare it only with
what they read before. Others judge its age by the file system's own clock. So the clocks of hosts need not agree.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lambda_hat.drain import Drain
from lambda_hat.errors import StoreError
from lambda_hat.files import FileSystemClock, json_object, remove_litter, write_bytes_atomic

PERIOD = 2.0
STALE_AFTER = 20.0
GRACE = 25.0
"""Seconds from when a lease is ended or stale until nothing that was started under it computes any more."""
SLOWEST_LOOK = 5.0
"""Seconds between two looks of a rank at its lease, at most: slower, and it could outlive `GRACE`."""
KEPT = 3600.0
"""Seconds for which leases that are over are kept."""
LEASE_VARIABLE = "LAMBDA_HAT_LEASE"
"""Environment variable in which a driver hands the lease's path to the processes that it starts."""

HAS_ENDED = "its driver has ended"
LeaseState = Literal["live", "ending", "dead"]


class Lease:
    """Held by a driver: `with Lease(folder) as lease:` renews `lease.path` until the block ends, then marks it
    ended."""

    def __init__(self, directory: Path):
        self.path = directory / f"driver_{uuid.uuid4().hex[:12]}.lease"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._lock = threading.Lock()
        self._record = {**whoami(), "count": 0, "state": "running", "jobs": []}

    def _write(self) -> None:
        with self._lock:
            write_bytes_atomic(self.path, json.dumps(self._record).encode())
            self._record["count"] += 1

    def _renew(self) -> None:
        while not self._stop.wait(PERIOD):
            # A full disk for a moment is no reason to give the study up; a lease that stays stale is.
            with contextlib.suppress(OSError, StoreError):
                self._write()

    def __enter__(self) -> Lease:
        self._write()
        self._thread.start()
        return self

    def note_jobs(self, jobs: list[dict[str, Any]]) -> None:
        """Keep the scheduler's jobs of this driver (`scheduler`, `job_id`, `name`) in the lease, for a driver that may
        have to cancel them. Where it cannot be written now, the next renewal does."""
        self._record["jobs"] = list(jobs)
        with contextlib.suppress(OSError, StoreError):
            self._write()

    def withdraw(self) -> None:
        """Stop renewing and mark the lease ended: whoever watches it drains within a second or two."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self._record["state"] = "ended"
        try:
            self._write()
        except (OSError, StoreError):
            # A lease that is gone says the same, and removing it needs no room on the disk.
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)

    def __exit__(self, *exc: object) -> None:
        self.withdraw()


# --------------------------------------------------------------------------------------------------------------
# Watching one's own driver


def watch_lease(
    path: Path, on_lost: Callable[[str], None], stale_after: float = STALE_AFTER, period: float = 1.0
) -> threading.Thread:
    """Start a thread that calls `on_lost(reason)` once, when the lease has ended, has gone, or was not renewed in
    time."""

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
                if (json_object(content) or {}).get("state") == "ended":
                    return on_lost(HAS_ENDED)
            elif time.monotonic() - seen > stale_after:
                return on_lost(f"its driver has given no sign of life for {stale_after:.0f} s")
            time.sleep(period)

    thread = threading.Thread(target=watch, name="lease-watch", daemon=True)
    thread.start()
    return thread


def exit_when_lost(path: str | os.PathLike[str] | None, where: str, period: float = 1.0) -> None:
    """End this process soon after the driver's end; nothing happens without a lease. It is read every `period`
    seconds."""
    if path:
        watch_lease(Path(path), lambda reason: _leave(where, reason), period=period)


def drain_when_lost(
    path: str | os.PathLike[str] | None, drain: Drain, where: str, period: float = 1.0, grace: float | None = None
) -> None:
    """Request the drain soon after the driver's end, and end this process where it is still there `grace` seconds
    later, as one inside a long compilation is; nothing happens without a lease.

    period: seconds between two looks, SLOWEST_LOOK at most. grace: by default what is sure to end within GRACE.
    """
    if not path:
        return
    period = min(period, SLOWEST_LOOK)
    # A renewal is seen up to a period late, and its absence another one.
    patience = GRACE - 3.0 - 2 * period if grace is None else grace

    def lost(reason: str) -> None:
        drain.request(reason)
        time.sleep(patience)
        _leave(where, f"{reason}, and what was under way did not come to an end in {patience:.0f} s")

    watch_lease(Path(path), lost, period=period)


def _leave(where: str, reason: str) -> None:
    print(f"{where}: {reason}; stopping. Finished runs are kept; run the same command again", flush=True)
    os._exit(1)


# --------------------------------------------------------------------------------------------------------------
# Judging the drivers of others


class DeadLease(NamedTuple):
    """What a driver left that died without withdrawing its lease."""

    path: Path
    host: str
    jobs: list[dict[str, Any]]


def lease_state(path: Path) -> LeaseState:
    """What is known of a driver by its lease.

    live: it runs. ending: it has stopped or has not been heard of for STALE_AFTER, and what it started may still be
    draining. dead: neither; or its process, on this host, is gone, though ranks of it on other hosts may still drain
    (`lease_over` says when they cannot).
    """
    return _look_at(path, FileSystemClock(path.parent)).state


def lease_over(path: Path) -> bool:
    """Whether nothing, on any host, that watches this lease can still be computing."""
    found = _look_at(path, FileSystemClock(path.parent))
    return found.age > STALE_AFTER + GRACE


class LifeSign(NamedTuple):
    """What a lease says of its driver."""

    state: LeaseState
    age: float
    """Seconds since the driver last wrote it; infinite where it is gone."""
    withdrawn: bool
    """The driver has marked it ended."""


def life_sign(path: Path, clock: FileSystemClock) -> LifeSign:
    """As `lease_state`, in full and for those who ask often. clock: of the lease's folder."""
    found = _look_at(path, clock)
    return LifeSign(found.state, found.age, (found.record or {}).get("state") == "ended")


def dead_leases(directory: Path) -> list[DeadLease]:
    """The leases of drivers that died without withdrawing: their jobs may wait or idle, and want to be cancelled.

    `mark_ended` then lets everything drain that they left.
    """
    found = []
    for path, look in _all_leases(directory):
        if look.state == "dead" and look.record and look.record.get("state") == "running":
            jobs = look.record.get("jobs")
            jobs = [job for job in jobs if isinstance(job, dict)] if isinstance(jobs, list) else []
            found.append(DeadLease(path, str(look.record.get("host")), jobs))
    return found


def mark_ended(path: Path) -> None:
    """Write into the lease of a dead driver that it has ended; whoever watches it drains within seconds.

    Raises StoreUnwritable.
    """
    try:
        record = json_object(path.read_bytes()) or {}
    except FileNotFoundError:
        return
    except OSError:
        record = {}
    write_bytes_atomic(path, json.dumps({**record, "state": "ended"}).encode())


def live_leases(directory: Path, clock: FileSystemClock | None = None) -> list[Path]:
    """The leases of drivers that run. clock: of the folder, from those who ask often."""
    return [path for path, look in _all_leases(directory, clock) if look.state == "live"]


def tidy_leases(directory: Path) -> int:
    """Remove leases that have been over for KEPT seconds, but for those with jobs that nobody has cancelled yet, and
    what was left of writing one.

    Returns how many leases there were.
    """
    remove_litter(directory)
    removed = 0
    for path, look in _all_leases(directory):
        record = look.record or {}
        if look.state == "dead" and look.age > KEPT and (record.get("state") == "ended" or not record.get("jobs")):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


class _Look(NamedTuple):
    record: dict[str, Any] | None
    """None: it is not there, or not to be read."""
    age: float
    """Seconds since it was written; infinite where it is gone."""
    state: LeaseState


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
        # Not known to be over.
        return _Look(None, 0.0, "ending")
    record, age = json_object(content), clock.now() - written
    if record is not None and is_here(record):
        alive = process_lives(record)
        state: LeaseState = "dead" if not alive else "live" if record.get("state") == "running" else "ending"
        return _Look(record, age, state)
    if age > STALE_AFTER + GRACE:
        return _Look(record, age, "dead")
    running = age <= STALE_AFTER and (record or {}).get("state") != "ended"
    return _Look(record, age, "live" if running else "ending")


# --------------------------------------------------------------------------------------------------------------
# Processes


def whoami() -> dict[str, Any]:
    """This process, as leases and claims name it: `process_lives` tells from it whether it still runs."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "started": _start_ticks(pid), "place": place()}


@functools.cache
def place() -> str:
    """Where process ids mean the same: host, boot, and the namespace of a container."""
    words = [socket.gethostname()]
    for read in (lambda: Path("/proc/sys/kernel/random/boot_id").read_text(), lambda: os.readlink("/proc/self/ns/pid")):
        try:
            words.append(read().strip())
        except OSError:
            words.append("?")
    return "/".join(words)


def is_here(record: dict[str, Any]) -> bool:
    """Whether the process of a record ran where its id can be looked up."""
    return record.get("place") == place() and record.get("started") is not None


def process_lives(record: dict[str, Any]) -> bool:
    """Whether the process of a record of this place still runs."""
    pid = record.get("pid")
    if type(pid) is not int or pid <= 0:
        return False
    ticks = _start_ticks(pid)
    if ticks is not None:
        return ticks == record.get("started")
    try:
        os.kill(pid, 0)
    except PermissionError:
        # Another user's, which a /proc that hides processes does not show.
        return True
    except (OSError, OverflowError):
        return False
    return False


def _start_ticks(pid: int) -> str | None:
    """When the process started (kernel ticks), which tells it from a later one of the same number; None for one that
    has ended, though its parent may not have noticed."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]
