"""Whether this process should take no more work, and checkpoint what it does: asked at every border of a chunk."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping

from lambda_hat.errors import ConfigError

DEADLINE_VARIABLE = "LAMBDA_HAT_DEADLINE"
"""Environment variable in which processes get the deadline of their allocation, in seconds since the epoch."""
OUT_OF_TIME = "the allocation's time is up"
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


def earliest_deadline(deadline: float | None, environment: Mapping[str, str]) -> float | None:
    """The earlier of `deadline` and that of the allocation; None where there is neither.

    Raises ConfigError where one of them is no number.
    """
    told = environment.get(DEADLINE_VARIABLE)
    try:
        known = [float(moment) for moment in (deadline, told) if moment is not None]
    except (TypeError, ValueError):
        raise ConfigError(
            f"deadline: got {deadline!r} and {DEADLINE_VARIABLE}={told!r}, expected seconds since the epoch"
        ) from None
    return min(known, default=None)


class Drain:
    """A request to stop, which anyone may make and which is never taken back; the clock makes it at `deadline`.

    deadline: seconds since the epoch; None: there is none. Safe to use from signal handlers and several threads.
    """

    def __init__(self, deadline: float | None = None):
        self.deadline = deadline
        self._heard: Callable[[], str | None] = lambda: None
        self._reason: str | None = None

    def listen(self, heard: Callable[[], str | None]) -> None:
        """Call `heard()` whenever the reason is asked for and there is none yet; what it returns becomes the reason."""
        self._heard = heard

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
            self._reason = self._heard()
        return self._reason

    @property
    def time_left(self) -> float:
        """Seconds until the deadline; infinite where there is none."""
        return math.inf if self.deadline is None else self.deadline - time.time()

    def on_signals(self, signals: Iterable[signal.Signals] = SIGNALS) -> None:
        """Let these signals ask for the drain; a second Ctrl-C interrupts as it always does. A handler runs once the
        call into XLA that is under way returns."""

        def handle(number: int, frame: object) -> None:
            if number == signal.SIGINT and self._reason is not None:
                raise KeyboardInterrupt
            self.request(f"{signal.Signals(number).name} came")

        for number in signals:
            signal.signal(number, handle)
