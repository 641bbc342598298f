"""What every fuzzed input must end in: a result, or one of our errors, within a few seconds."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import settings

from lambda_hat.errors import LambdaHatError

SECONDS = 10.0
"""Of computing: a machine that has other work is no fault of the input."""
LONGEST_MESSAGE = 4000
FEW = settings(max_examples=max(5, settings.default.max_examples // 8))
"""For tests whose inputs take a tenth of a second and more."""
TRIED: Counter[str] = Counter()
"""Inputs tried, by what read them."""
ACCEPTED: Counter[str] = Counter()
"""Those of them that gave a result. Were there none, all inputs would fail at the same first check."""

Result = TypeVar("Result")


class TooSlow(BaseException):
    """No `Exception`: whoever catches those has not caught this."""


def attempt(what: str, read: Callable[[], Result], counted: bool = True) -> Result | None:
    """`read()`, counted as an input of `what`; None where it refuses with one of our errors. counted: False for one of
    many readers of one input.

    Any other exception passes, as does TooSlow; an error that says nothing, or pages, is an AssertionError.
    """
    TRIED[what] += counted

    def ring(*_: Any) -> None:
        raise TooSlow(f"{what}: not done after {SECONDS:.0f} s")

    timed = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGPROF, ring) if timed else None
    if timed:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        result = read()
        ACCEPTED[what] += counted
        return result
    except LambdaHatError as error:
        said = str(error)
        assert 0 < len(said) < LONGEST_MESSAGE, f"{len(said)} characters: {said[:200]}"
        assert "Traceback" not in said
        return None
    finally:
        if timed:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)
