"""Words for a terminal: times and durations in people's units, and text of files made safe to print."""

from __future__ import annotations

import datetime
import shlex
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, RenderableType


def print_all(console: Console, parts: Iterable[RenderableType]) -> None:
    """Print to the console's file.

    Strings are not wrapped, because people copy them. Outside of a terminal, lines end without blanks.
    """
    if console.is_terminal:
        _print(console, parts)
        return
    with console.capture() as captured:
        _print(console, parts)
    text = "".join(f"{line.rstrip()}\n" for line in captured.get().splitlines())
    console.file.write(text)
    console.file.flush()


def _print(console: Console, parts: Iterable[RenderableType]) -> None:
    for part in parts:
        plain = isinstance(part, str)
        console.print(part, soft_wrap=plain, markup=not plain, highlight=False)


def printable(text: str) -> str:
    """`text` in one line, without control characters, which could move the cursor or colour what follows."""
    return "".join(" " if ch in "\t\n\r" else "�" if unicodedata.category(ch) in ("Cc", "Cs") else ch for ch in text)


def printable_lines(text: str) -> list[str]:
    """The lines of `text`, each printable."""
    return [printable(line) for line in text.rstrip().splitlines()]


def duration(seconds: float) -> str:
    """A number of seconds in its two largest units."""
    if not abs(seconds) < 1e15:
        return "?"
    if seconds < 99.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def moment(seconds: float, now: float) -> str:
    """A time of day, with its date where that is not the one of `now`. Both in seconds since the epoch."""
    try:
        then, today = datetime.datetime.fromtimestamp(seconds), datetime.datetime.fromtimestamp(now)
    except (OverflowError, OSError, ValueError):
        return "?"
    return f"{then:%H:%M:%S}" if then.date() == today.date() else f"{then:%Y-%m-%d %H:%M:%S}"


def run_name(run_id: str) -> str:
    """`sgld 3f05ab03`: how a run is shown, and may be typed."""
    return run_id.removeprefix("run_").replace("_", " ") if "_" in run_id else run_id


def store_word(root: Path) -> str:
    """` --store DIR` for a command on this store; empty where that is the default."""
    return "" if root == Path("runs").absolute() else f" --store {shlex.quote(str(root))}"
