"""How a study goes, shown to a person who waits for it: bars on a terminal and in a notebook, elsewhere lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lambda_hat.status import StudyStatus

Show = Callable[[StudyStatus], None]


@contextmanager
def showing(wanted: bool | None, console: Console | None = None) -> Iterator[Show]:
    """Show the progress of a study while the block runs.

    Args:
        wanted: Whether to show anything; None: on a terminal and in a notebook.
        console: Where; default: stderr.

    Yields:
        What is called with how the study stands.
    """
    console = Console(stderr=True) if console is None else console
    if wanted is False or (wanted is None and not (console.is_terminal or console.is_jupyter)):
        yield lambda status: None
    elif console.is_jupyter:
        yield _InNotebook()
    elif console.is_terminal:
        bars = Bars(console)
        with bars.progress:
            yield bars
    else:
        yield Lines(console)


class Bars:
    """A bar for the targets and one for the runs."""

    def __init__(self, console: Console | None = None):
        self.progress = Progress(
            TextColumn("{task.description:<8}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("{task.fields[detail]}"), console=console, transient=True,
        )  # fmt: skip
        self._targets, self._runs = (
            self.progress.add_task(what, total=None, detail="") for what in ("targets", "runs")
        )

    def __call__(self, status: StudyStatus) -> None:
        """Show how the study stands."""
        targets = status.targets
        built = targets["built"] + targets["failed"]
        self.progress.update(self._targets, completed=built, total=built + targets["missing"])
        self.progress.update(self._runs, completed=ended(status), total=status.total, detail=detail(status))


class _InNotebook:
    """Bars in the output of a cell, which change in place; no widgets are needed."""

    def __init__(self) -> None:
        self._bars = Bars()
        self._cell: Any = None

    def __call__(self, status: StudyStatus) -> None:
        from IPython.display import display

        self._bars(status)
        if self._cell is None:
            self._cell = display(self._bars.progress, display_id=True)
        else:
            self._cell.update(self._bars.progress)


class Lines:
    """A line whenever runs have ended."""

    def __init__(self, console: Console):
        self._console, self._said = console, -1

    def __call__(self, status: StudyStatus) -> None:
        """Print how the study stands, if that is new."""
        if ended(status) != self._said:
            self._said = ended(status)
            rest = detail(status)
            line = f"{self._said} of {status.total} runs" + (f", {rest}" if rest else "")
            self._console.print(line, soft_wrap=True, highlight=False)


def ended(status: StudyStatus) -> int:
    """Number of runs that have ended, those that wait for a failed target included."""
    return status.finished + status.failed + status.blocked


def detail(status: StudyStatus) -> str:
    """What the numbers of a bar do not say."""
    failed, running, left = status.failed + status.blocked, len(status.running), status.seconds_left
    parts = [f"{failed} failed"] * bool(failed) + [f"{running} running"] * bool(running)
    return ", ".join(parts if left is None else [*parts, f"about {left:.0f} s left"])
