"""Progress of a study: bars on a terminal, one line per event elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn


class StudyProgress:
    """Counts what happens. `with StudyProgress(...) as progress:` shows bars while the block runs.

    On a terminal lines go above the bars, and only those of trouble; without one there is a line per event.
    `quiet` leaves everything out but trouble.
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

    def finished(self, what: str, sentence: str, *, failed: bool = False, warn: bool = False) -> None:
        """One of `what` ("targets", "packs", "runs") has ended; `sentence` says how.

        failed: it counts as failed. warn: it did not, and every reader wants to know all the same.
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
        """What `what` is waiting for, beside its bar; empty for nothing."""
        self._notes[what] = f"{text}  " if text else ""
        if what in self._tasks:
            self._bars.update(self._tasks[what], detail=self._detail(what))

    def event(self, sentence: str) -> None:
        """Something worth a line where there are no bars."""
        if not self._live and not self._quiet:
            self.say(sentence)

    def say(self, sentence: str, style: str | None = None) -> None:
        """A line for every reader."""
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
