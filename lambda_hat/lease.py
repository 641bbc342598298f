"""A driver's sign of life, so that what it started ends by itself when it is killed.

The driver rewrites a small file every few seconds. Workers read it (opening a file asks an NFS server for its
present content, a cached modification time may be a minute old) and compare it only with what they read before, so
clocks need not agree.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from lambda_hat.store import write_bytes_atomic

PERIOD = 2.0
STALE_AFTER = 20.0
LEASE_VARIABLE = "LAMBDA_HAT_LEASE"
"""Environment variable in which a driver hands the lease's path to the processes that it starts."""


class Lease:
    """Held by a driver: `with Lease(folder) as lease:` renews `lease.path` until the block ends, then removes it."""

    def __init__(self, directory: Path):
        self.path = directory / f"driver_{uuid.uuid4().hex[:12]}.lease"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._count = 0

    def _write(self) -> None:
        pid = os.getpid()
        record = {"host": socket.gethostname(), "pid": pid, "started": _start_ticks(pid), "count": self._count}
        write_bytes_atomic(self.path, json.dumps(record).encode())
        self._count += 1

    def _renew(self) -> None:
        while not self._stop.wait(PERIOD):
            # A full disk for a moment is no reason to give the study up; a lease that stays stale is.
            with contextlib.suppress(OSError):
                self._write()

    def __enter__(self) -> Lease:
        self._write()
        self._thread.start()
        return self

    def withdraw(self) -> None:
        """Stop renewing and remove the lease: whoever watches it ends within a second or two."""
        self._stop.set()
        self._thread.join()
        self.path.unlink(missing_ok=True)

    def __exit__(self, *exc: object) -> None:
        self.withdraw()


def watch_lease(
    path: Path, on_lost: Callable[[str], None], stale_after: float = STALE_AFTER, period: float = 1.0
) -> threading.Thread:
    """Start a thread that calls `on_lost(reason)` once, when the lease has gone or was not renewed in time."""

    def watch() -> None:
        last, seen = None, time.monotonic()
        while True:
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                return on_lost("its driver has ended")
            except OSError:
                content = last
            if content != last:
                last, seen = content, time.monotonic()
            elif time.monotonic() - seen > stale_after:
                return on_lost(f"its driver has given no sign of life for {stale_after:.0f} s")
            time.sleep(period)

    thread = threading.Thread(target=watch, name="lease-watch", daemon=True)
    thread.start()
    return thread


def exit_when_lost(path: str | None, where: str, period: float = 1.0) -> None:
    """End this process soon after the driver's death; nothing happens without a lease. It is read every `period`
    seconds."""
    if not path:
        return

    def leave(reason: str) -> None:
        print(f"{where}: {reason}; stopping. Finished runs are kept; run the same command again", flush=True)
        os._exit(1)

    watch_lease(Path(path), leave, period=period)


def clear_dead_leases(directory: Path) -> int:
    """Remove the leases of drivers that died on this host, which stops what they left within a second.

    Returns how many there were.
    """
    dead = 0
    for path in directory.glob("driver_*.lease"):
        try:
            record = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        if record["host"] == socket.gethostname() and _start_ticks(record["pid"]) != record["started"]:
            path.unlink(missing_ok=True)
            dead += 1
    return dead


def _start_ticks(pid: int) -> str | None:
    """When the process started (kernel ticks), which tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
