"""What the ranks did and when, from their event logs."""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lambda_hat.report.drawing import SAMPLER_COLOURS, Drawn, Margin, drawn, legend, panels, plain
from lambda_hat.store.events import RANK_LOGS, Key, RankLife, lives_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BUILD = "build of a target"
START_UP = "start-up"
OTHER = "other sampler"
COLOURS = {**SAMPLER_COLOURS, BUILD: "#555555", START_UP: "#dddddd", OTHER: "#000000"}
BADLY = ("failed", "blocked")
SESSION_GAP = 120.0
"""Seconds without any rank that separate two sessions. Each session has a time axis of its own."""
MOST_SESSIONS = 3
MOST_LINES = 40
LINE_INCHES = 0.22
LETTER_INCHES = 0.065
WIDTH = 11.0


class Span(NamedTuple):
    """Something that a rank did, in seconds since the epoch."""

    begun: float
    ended: float
    what: str
    """A key of COLOURS."""
    status: str
    """As the rank recorded it; `unfinished` if it recorded no end."""


def read_lives(pack_dirs: Iterable[Path], runs: Collection[Key]) -> list[RankLife]:
    """Read the ranks of every pack that worked on any of `runs`, in the order in which they began."""
    lives = []
    for directory in pack_dirs:
        pack = [life for log in sorted(directory.glob(RANK_LOGS)) for life in lives_of(log)]
        if any(attempt.key in runs for life in pack for attempt in life.attempts):
            lives += pack
    return sorted(lives, key=lambda life: (life.begun, life.host, life.rank))


def spans_of(life: RankLife) -> list[Span]:
    """What a rank did, its start-up first."""
    spans = [] if life.ready is None else [Span(life.begun, life.ready, START_UP, "finished")]
    for attempt in life.attempts:
        spans.append(Span(attempt.begun, attempt.until, _what(attempt.key[1]), attempt.status or "unfinished"))
    return spans


def busy_seconds(life: RankLife) -> float:
    """Seconds inside builds and runs: as the rank recorded them at its end, or else by its spans."""
    return _covered(spans_of(life)) if life.busy is None else life.busy


def _what(run_id: str) -> str:
    sampler = run_id.removeprefix("run_").rpartition("_")[0]
    return (sampler if sampler in SAMPLER_COLOURS else OTHER) if run_id else BUILD


def _covered(spans: Iterable[Span]) -> float:
    """Seconds inside any build or run. Spans overlap where lanes run side by side."""
    seconds, until = 0.0, 0.0
    for span in sorted((s for s in spans if s.what != START_UP), key=lambda s: s.begun):
        seconds += max(0.0, span.ended - max(span.begun, until))
        until = max(until, span.ended)
    return seconds


def sessions_of(lives: list[RankLife]) -> list[list[RankLife]]:
    """Group the lives into sessions. Between two of them no rank is alive for SESSION_GAP."""
    sessions: list[list[RankLife]] = []
    until = 0.0
    for life in sorted(lives, key=lambda each: each.begun):
        if not sessions or life.begun > until + SESSION_GAP:
            sessions.append([])
        sessions[-1].append(life)
        until = max(until, life.ended)
    return sessions


def draw_timeline(lives: list[RankLife]) -> Drawn | None:
    """Draw a Gantt chart with one line per host and rank, a panel per session. None if there is no rank.

    The latest MOST_SESSIONS are shown. Ranks of successive packs on one host share their lines.
    """
    sessions = sessions_of(lives)
    if not sessions:
        return None
    shown = [_lines(session) for session in sessions[-MOST_SESSIONS:]]
    heights = [min(len(lines), MOST_LINES) for lines in shown]
    figure, axes = panels(len(shown), 1)
    letters = max(len(_name(line)) for lines in shown for line in lines[:MOST_LINES])
    margin = Margin(left=0.3 + letters * LETTER_INCHES, right=0.5)
    ends = margin.bottom + margin.top
    figure.set_size_inches(WIDTH, sum(heights) * LINE_INCHES + ends * len(shown))
    # A panel's height is in proportion to its lines.
    grid = axes[0].get_gridspec()
    assert grid is not None
    grid.set_height_ratios(heights)
    for axis, lines in zip(axes, shown, strict=True):
        _draw_session(axis, lines)
    legend(figure, axes, margin)
    busy, alive = sum(map(busy_seconds, lives)), sum(life.ended - life.begun for life in lives)
    caption = (
        f"{len(lives)} rank processes spent {busy / alive if alive else 0:.0%} of {_duration(alive)} in runs and "
        "builds, with start-up counted in the total. Each line is a rank of a host, and the number at its right says "
        "how busy it was. A cross marks a run or build that failed. Bars without a recorded end are hatched."
    )
    if len(sessions) > len(shown):
        caption += f" Shown are the latest {len(shown)} of {len(sessions)} sessions."
    if any(len(lines) > MOST_LINES for lines in shown):
        caption += f" Of each session the first {MOST_LINES} lines are shown."
    return drawn(figure, "ranks", "What ran where, and when", caption)


def _lines(session: list[RankLife]) -> list[list[RankLife]]:
    """Group the lives by line. Lives of one host and rank share a line unless they overlap."""
    lines: dict[tuple[str, int, int], list[RankLife]] = {}
    for life in session:
        slot = 0
        while (line := lines.get((life.host, life.rank, slot))) and line[-1].ended > life.begun:
            slot += 1
        lines.setdefault((life.host, life.rank, slot), []).append(life)
    return [lines[key] for key in sorted(lines)]


def _draw_session(axis: Axes, lines: list[list[RankLife]]) -> None:
    origin = min(line[0].begun for line in lines)
    end = max(life.ended for line in lines for life in line)
    scale, unit = _unit(end - origin)
    for place, line in enumerate(lines[:MOST_LINES]):
        spans = [span for life in line for span in spans_of(life)]
        for what in dict.fromkeys(span.what for span in spans):
            for unfinished in (False, True):
                bars = [
                    ((s.begun - origin) / scale, (s.ended - s.begun) / scale)
                    for s in spans
                    if s.what == what and (s.status == "unfinished") == unfinished
                ]
                style: dict[str, Any] = {"hatch": "////"} if unfinished else {"label": what}
                if bars:
                    axis.broken_barh(
                        bars, (place - 0.4, 0.8), facecolor=COLOURS[what], edgecolor="white", linewidth=0.3, **style
                    )
        bad = [(s.ended - origin) / scale for s in spans if s.status in BADLY]
        if bad:
            axis.plot(bad, [place] * len(bad), "x", color="black", markersize=5, label="failed", zorder=3)
        busy, alive = sum(map(busy_seconds, line)), sum(life.ended - life.begun for life in line)
        share = f"{min(busy / alive, 1.0):.0%}" if alive else ""
        axis.text(1.005, place, share, transform=axis.get_yaxis_transform(), fontsize=7, va="center")
    shown = lines[:MOST_LINES]
    axis.set_yticks(range(len(shown)), [_name(line) for line in shown])
    axis.tick_params(labelsize=7)
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlim(0, max((end - origin) / scale, 1e-3))
    when = datetime.datetime.fromtimestamp(origin, datetime.UTC)
    axis.set_xlabel(f"{unit} since {when:%Y-%m-%d %H:%M:%S} UTC", fontsize=8)


def _name(line: list[RankLife]) -> str:
    return plain(f"{line[0].host} rank {line[0].rank}", 30)


def _unit(seconds: float) -> tuple[float, str]:
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds > 3 * size:
            return size, name
    return 1.0, "seconds"


def _duration(seconds: float) -> str:
    size, name = _unit(seconds)
    return f"{seconds / size:.1f} {name}"
