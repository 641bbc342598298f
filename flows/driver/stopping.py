"""Why a driver stops before its study is done: it was told to, or its allocation ends.

The first Ctrl-C or SIGTERM stops it with everything checkpointed, the second one at once.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

from lambda_hat.errors import EXIT_INTERRUPTED
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE

STOP_SECONDS = 15.0
"""Seconds for ranks to finish their chunk, write their checkpoints and end. A chunk takes one to three seconds."""


class Stopped(Exception):
    """The driver was told to stop."""


class OutOfTime(Exception):
    """The allocation ends before the study does."""


def early_end(sample: Callable[[], None], say: Callable[[str], None]) -> Stopped | OutOfTime | None:
    """Call `sample()`. Returns why it ended before its time; None: it did not."""
    try:
        sample()
    except Stopped as end:
        return end
    except OutOfTime as end:
        say("the allocation ends soon: stopped; what is finished is kept")
        return end
    return None


class Stop:
    """The signals to a driver.

    Inside `with stop.on_signals():` the first SIGINT or SIGTERM is remembered, the second raises KeyboardInterrupt, and
    the third ends the process.
    """

    def __init__(self) -> None:
        self._signals = 0

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signals > 0

    def check(self) -> None:
        """Raise Stopped once a signal has come."""
        if self.requested:
            raise Stopped

    @contextlib.contextmanager
    def on_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside the block, and as before after it."""
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
    """Ids of the processes of this machine that a driver started under its lease, of those that may be looked at."""
    word = f"{HEARTBEAT_VARIABLE}={lease}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if word in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def kill_under(lease: Path) -> None:
    """Kill the processes of this machine that a driver started under its lease."""
    for pid in processes_under(lease):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
