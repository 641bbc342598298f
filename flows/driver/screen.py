"""What a person sees of a driver: sentences, and on a terminal bars."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LOG_WIDTH = 120
"""Columns of tables where there is no terminal."""


class Screen:
    """Sentences to a person; `StudyProgress` shows bars on the same console."""

    def __init__(self) -> None:
        self.console = Console(width=None if sys.stdout.isatty() else LOG_WIDTH)

    def say(self, sentence: str) -> None:
        """Print one sentence as it is, without breaking its line."""
        self.console.print(sentence, soft_wrap=True, markup=False, highlight=False)

    def say_all(self, sentences: Iterable[str]) -> None:
        """Print each sentence as it comes."""
        for sentence in sentences:
            self.say(sentence)


class StudyProgress:
    """Counts what happens. `with StudyProgress(...) as progress:` shows bars while the block runs.

    On a terminal lines go above the bars, and only those of trouble. Without one there is a line per event.
    quiet: say nothing but trouble.
    """

    def __init__(self, console: Console, *, targets: int, packs: int, runs: int, quiet: bool = False):
        self.console = console
        self._quiet = quiet
        self._live = console.is_terminal and not quiet
        self._started = time.monotonic()
        self.totals = {"targets": targets, "packs": packs, "runs": runs}
        self.done = dict.fromkeys(self.totals, 0)
        self.failed = dict.fromkeys(self.totals, 0)
        self._notes = dict.fromkeys(self.totals, "")
        self._bars = Progress(
            TextColumn("{task.description:<8}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {
            what: self._bars.add_task(what, total=total, detail="") for what, total in self.totals.items() if total
        }

    def __enter__(self) -> StudyProgress:
        if self._live:
            self._bars.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._bars.stop()

    def more(self, what: str) -> None:
        """There is one more of `what` than there was."""
        self.totals[what] += 1
        if what in self._tasks:
            self._bars.update(self._tasks[what], total=self.totals[what])

    def finished(self, what: str, sentence: str, *, failed: bool = False, warn: bool = False) -> None:
        """One of `what` ("targets", "packs", "runs") has ended; `sentence` says how.

        failed: it counts as failed. warn: it does not, and every reader wants to know.
        """
        self.done[what] += 1
        self.failed[what] += failed
        if what in self._tasks:
            self._bars.update(self._tasks[what], completed=self.done[what], detail=self._detail(what))
        count = f"[{self.done[what]}/{self.totals[what]} {what}]"
        if failed:
            self.say(f"{count} {sentence}", style="red")
        elif warn:
            self.say(f"{count} {sentence}", style="yellow")
        elif not self._live and not self._quiet:
            self.say(f"{count} {sentence}")

    def note(self, what: str, text: str) -> None:
        """Show beside the bar of `what` what it waits for; an empty text for nothing."""
        self._notes[what] = f"{text}  " if text else ""
        if what in self._tasks:
            self._bars.update(self._tasks[what], detail=self._detail(what))

    def event(self, sentence: str) -> None:
        """Print a line where there are no bars."""
        if not self._live and not self._quiet:
            self.say(sentence)

    def say(self, sentence: str, style: str | None = None) -> None:
        """Print a line for every reader."""
        self.console.print(sentence, style=style, soft_wrap=True, markup=False, highlight=False)

    def _detail(self, what: str) -> str:
        failed = f"{self.failed[what]} failed  " if self.failed[what] else ""
        failed += self._notes[what]
        if what != "runs":
            return failed
        elapsed = time.monotonic() - self._started
        rate = self.done[what] / elapsed
        left = (self.totals[what] - self.done[what]) / rate if rate else 0.0
        return f"{failed}{rate * 60:.0f}/min, {left:.0f} s left"
