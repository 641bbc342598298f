"""Whether this process should take no more work, and checkpoint what it does: asked at every border of a chunk."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable

OUT_OF_TIME = "the allocation's time is up"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Drain:
    """A request to stop, which anyone may make and which is never taken back; the clock makes it at `deadline`.

    deadline: seconds since the epoch; None: there is none. Safe to use from signal handlers and several threads.
    """

    def __init__(self, deadline: float | None = None, poll: Callable[[], str | None] = lambda: None):
        self.deadline = deadline
        self._poll = poll
        self._reason: str | None = None

    def request(self, reason: str) -> None:
        """Ask for the drain; the first reason stays."""
        if self._reason is None:
            self._reason = reason

    @property
    def reason(self) -> str | None:
        """Why to stop; None: go on."""
        if self._reason is None and self.time_left <= 0:
            self._reason = OUT_OF_TIME
        if self._reason is None:
            self._reason = self._poll()
        return self._reason

    @property
    def time_left(self) -> float:
        """Seconds until the deadline; infinite where there is none."""
        return math.inf if self.deadline is None else self.deadline - time.time()

    def on_signals(self, signals: Iterable[signal.Signals] = SIGNALS) -> None:
        """Let these signals ask for the drain. A handler runs once the call into XLA that is under way returns."""

        def handle(number: int, frame: object) -> None:
            self.request(f"{signal.Signals(number).name} came")

        for number in signals:
            signal.signal(number, handle)
