"""Ctrl-C and SIGTERM to a driver: once, to stop with everything checkpointed; twice, at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from lambda_hat.errors import EXIT_INTERRUPTED
from lambda_hat.lease import LEASE_VARIABLE

STOP_SECONDS = 15.0
"""For ranks to finish their chunk, write their checkpoints and end; a chunk takes about a second."""


class Stopped(Exception):
    """The study was asked to stop."""


class Stop:
    """Inside `with stop.on_signals():` the first SIGINT or SIGTERM is remembered, the second raises
    KeyboardInterrupt, and the third ends the process."""

    def __init__(self) -> None:
        self._signals = 0

    @property
    def requested(self) -> bool:
        return self._signals > 0

    def check(self) -> None:
        """Raise Stopped where a stop was asked for."""
        if self.requested:
            raise Stopped

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = [signal.signal(number, self._handle) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, previous, strict=True):
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        if self._signals == 2:
            raise KeyboardInterrupt
        if self._signals > 2:
            os._exit(EXIT_INTERRUPTED)


def processes_under(lease: Path) -> list[int]:
    """The processes of this machine that were started under a driver's lease, as far as they may be looked at."""
    word = f"{LEASE_VARIABLE}={lease}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if word in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_under(lease: Path) -> None:
    """End the processes of this machine that were started under a driver's lease, at once."""
    for pid in processes_under(lease):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
