"""Tell a person at a terminal what an estimate will cost, before it begins, and how far it is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from lambda_hat.config import SampleConfig
from lambda_hat.config.defaults import Facts, resolved
from lambda_hat.engine.chunks import Progress
from lambda_hat.planning.cost import CostModel, measured_shape
from lambda_hat.targets.base import Target
from lambda_hat.targets.measure import measure

WORTH_IT = 5.0
"""Estimates that take at least this many seconds show their progress on a terminal by default. Arbitrary."""
EVERY = 0.2
"""Seconds between two updates of the line."""
PHASES = {"adapt": "adapting", "sample": "sampling"}
"""The words for the phases of a run."""


def expected_seconds(target: Target, cfg: SampleConfig) -> float:
    """The seconds that a run is expected to take in this process, including compilation. It measures the loss."""
    shape = measured_shape(target.dim, target.num_data, measure(target, time.perf_counter))
    model = CostModel()
    return model.seconds(shape, cfg) + model.compile_seconds(cfg.name)


@contextmanager
def telling(
    target: Target, cfg: SampleConfig, wanted: bool | None, stream: TextIO | None = None
) -> Iterator[Progress | None]:
    """Print the expected cost of a run, and show its progress while the block runs.

    Args:
        target: the target.
        cfg: the configuration of the run.
        wanted: whether to show anything; None: if `stream` is a terminal and the run takes `WORTH_IT` seconds.
        stream: where to print; default: stderr.

    Yields:
        The function to call with the progress; None if nothing is shown.
    """
    out = sys.stderr if stream is None else stream
    if wanted is False or (wanted is None and not out.isatty()):
        yield None
        return
    seconds = expected_seconds(target, cfg)
    if wanted is None and seconds < WORTH_IT:
        yield None
        return
    num_steps = resolved(cfg, Facts(target.dim, target.num_data, target.loss.stochastic)).num_steps
    steps = f"{cfg.num_chains} chains of {num_steps:,} steps"
    print(f"{cfg.name}: {steps} on {target.dim:,} parameters, about {in_words(seconds)}", file=out, flush=True)
    line = ProgressLine(out)
    try:
        yield line
    finally:
        line.clear()


class ProgressLine:
    """Shows progress: on a terminal one line that is overwritten, elsewhere one line for every phase that has ended."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic):
        self._stream, self._clock, self._is_terminal = stream, clock, stream.isatty()
        self._phase, self._begun, self._first = "", clock(), 0
        self._shown, self._width = float("-inf"), 0

    def __call__(self, phase: str, done: int, total: int) -> None:
        """Show that `done` of `total` transitions of `phase` are done."""
        now = self._clock()
        if phase != self._phase:
            # The first chunk includes the wait for its program, so it does not count for the pace.
            self._phase, self._begun, self._first = phase, now, done
        over = done >= total
        if not over and (not self._is_terminal or now - self._shown < EVERY):
            return
        words = f"{PHASES.get(phase, phase)}: {done:,} of {total:,} steps"
        spent = now - self._begun
        if not over and done > self._first:
            words += f", about {in_words(spent * (total - done) / (done - self._first))} left"
        self._write(words)
        self._shown = now

    def clear(self) -> None:
        """Erase the line."""
        if self._is_terminal and self._width:
            self._stream.write(f"\r{' ' * self._width}\r")
            self._stream.flush()

    def _write(self, words: str) -> None:
        if self._is_terminal:
            self._stream.write(f"\r{words:<{self._width}}")
            self._width = len(words)
        else:
            self._stream.write(f"{words}\n")
        self._stream.flush()


def in_words(seconds: float) -> str:
    """A duration to about two digits."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5970 else f"{seconds / 3600:.1f} h"
