"""Whether this process should take no more work and save the state of its run. It is asked after every chunk."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Mapping

from lambda_hat.errors import ConfigError

DEADLINE_VARIABLE = "LAMBDA_HAT_DEADLINE"
"""Environment variable in which processes get the deadline of their allocation, in seconds since the epoch."""
OUT_OF_TIME = "the allocation's time is up"
"""Reason of a drain that the clock requested."""
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)
"""Signals by which schedulers and users ask a process to stop."""


def earliest_deadline(deadline: float | None, environment: Mapping[str, str]) -> float | None:
    """The earlier of `deadline` and the one that the environment gives.

    Args:
        deadline: Seconds since the epoch; None: there is none.
        environment: Its LAMBDA_HAT_DEADLINE is read, here and nowhere else.

    Returns:
        Seconds since the epoch; None where neither is given.

    Raises:
        ConfigError: One of them is not a finite number.
    """
    told = environment.get(DEADLINE_VARIABLE)
    try:
        known = [float(moment) for moment in (deadline, told) if moment is not None]
        if not all(map(math.isfinite, known)):
            raise ValueError
    except (TypeError, ValueError):
        raise ConfigError(
            f"deadline: got {deadline!r} and {DEADLINE_VARIABLE}={told!r}, expected seconds since the epoch"
        ) from None
    return min(known, default=None)


class Drain:
    """A request to stop. Anyone may make it, nobody can take it back, and the clock makes it at the deadline.

    It is safe to use from signal handlers and several threads.

    Args:
        deadline: Seconds since the epoch; None: there is none.
    """

    def __init__(self, deadline: float | None = None):
        self.deadline = deadline
        self._heard: Callable[[], str | None] = lambda: None
        self._reason: str | None = None

    def listen(self, heard: Callable[[], str | None]) -> None:
        """Let `heard()` give the reason; it is called whenever the reason is asked for and there is none yet."""
        self._heard = heard

    def request(self, reason: str) -> None:
        """Ask to stop; of several reasons the first one counts."""
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
        """Let these signals ask to stop; a second Ctrl-C interrupts as usual.

        Python runs a handler only after the present call into XLA returns.
        """

        def handle(number: int, frame: object) -> None:
            if number == signal.SIGINT and self._reason is not None:
                raise KeyboardInterrupt
            self.request(f"{signal.Signals(number).name} came")

        for number in signals:
            signal.signal(number, handle)
