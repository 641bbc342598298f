"""Pictures of tuning: error against cost, or acceptance against step size, one panel per target."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda_hat.report.foreign import matplotlib_without_trace
from lambda_hat.store.files import write_bytes_atomic
from lambda_hat.tuning.objective import diverged
from lambda_hat.tuning.rungs import RungSearch
from lambda_hat.tuning.search import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "tuning.png"
COLUMNS = 3
PANEL = (4.4, 3.3)
"""Width and height, in inches."""
ENTRY = 1.4
"""Width of a legend's entry, in inches."""
MOST_PANELS = 30
"""Further targets are left out: the picture would be too tall to look at."""


def draw_searches(searches: Sequence[Search], path: Path) -> Path | None:
    """Write a PNG with the error and cost of every trial.

    The Pareto front is drawn as steps, the start as a cross, the settings taken as a star. Hollow dots are settings
    whose verdict is not ok.

    Returns:
        `path`; None if no trial gave an estimate.

    Raises:
        StoreError: The file cannot be written.
    """
    marks = {"+": "start", "*": "taken", "o": "verdict ok", "hollow": "verdict not ok"}
    shown = [search for search in searches if search.outcomes]
    return _draw(shown, path, _searches_panel, "error, %", marks)


def draw_rungs(searches: Sequence[RungSearch], path: Path) -> Path | None:
    """Write a PNG with the acceptance of a Metropolis step against the step size.

    The acceptance required is drawn as a line, the step taken as a star. Crosses are runs that diverged or failed.

    Returns:
        `path`; None if nothing was sampled.

    Raises:
        StoreError: The file cannot be written.
    """
    shown = [search for search in searches if search.rows]
    marks = {"*": "taken", "x": "diverged"}
    return _draw(shown, path, _rungs_panel, "acceptance of a Metropolis step", marks)


def _draw_search(axes: Axes, search: Search, colour: str, name: str) -> None:
    for trusted in (True, False):
        own = [outcome for outcome in search.judged.values() if outcome.trusted is trusted]
        axes.plot(
            [outcome.cost for outcome in own], [100 * outcome.error for outcome in own], "o", markersize=4,
            color=colour, markerfacecolor=colour if trusted else "none", alpha=0.7,
        )  # fmt: skip
    # The Pareto front is the least error up to each cost.
    points = sorted((outcome.cost, 100 * outcome.error) for outcome in search.judged.values() if outcome.trusted)
    least = accumulate((error for _, error in points), min)
    axes.step([cost for cost, _ in points], list(least), where="post", color=colour, linewidth=1, label=name)
    if 0 in search.outcomes:
        start = search.outcomes[0]
        axes.plot([start.cost], [100 * start.error], "+", color="black", markersize=11, markeredgewidth=1.5, zorder=4)
    if search.winner is not None:
        taken = search.judged[search.winner]
        _star(axes, taken.cost, 100 * taken.error, colour)


def _searches_panel(axes: Axes, group: Sequence[Search]) -> None:
    from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

    for number, search in enumerate(group):
        _draw_search(axes, search, f"C{number}", _name(search, group))
    axes.axhline(100 * group[0].tolerance, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", yscale="log")
    # Over several decades the powers of ten are enough, and more would overlap.
    axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1.2, 0.5)))
    axes.yaxis.set_major_formatter(LogFormatter())
    axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
    axes.tick_params(which="both", labelsize=7)
    axes.set_xlabel("cost, full gradients of a run", fontsize=8)


def _draw_rungs(axes: Axes, search: RungSearch, colour: str, name: str) -> None:
    rungs = list(zip(search.steps, search.rows, strict=True))
    ended = [(step, row) for step, row in rungs if row["status"] == "finished" and not diverged(row)]
    lost = [step for step, row in rungs if row["status"] != "finished" or diverged(row)]
    axes.plot([step for step, _ in ended], [row["mala_acceptance"] for _, row in ended], "o-", color=colour,
              markersize=4, linewidth=1, label=name)  # fmt: skip
    axes.plot(lost, [0.0] * len(lost), "x", color=colour, markersize=5)
    if search.winner is not None:
        _star(axes, search.steps[search.winner], search.rows[search.winner]["mala_acceptance"], colour)


def _rungs_panel(axes: Axes, group: Sequence[RungSearch]) -> None:
    for number, search in enumerate(group):
        _draw_rungs(axes, search, f"C{number}", _name(search, group))
    axes.axhline(group[0].required, color="grey", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylim=(-0.05, 1.05))
    axes.set_xlabel(" or ".join(dict.fromkeys(search.key for search in group)), fontsize=8)


def _star(axes: Axes, x: float, y: float, colour: str) -> None:
    axes.plot([x], [y], "*", color=colour, markersize=13, markeredgecolor="black", zorder=5)


def _draw(
    searches: Sequence[Any], path: Path, panel: Callable[[Axes, Any], None], ylabel: str, marks: dict[str, str]
) -> Path | None:
    """A figure with a panel per target, which has all of its searches."""
    groups: dict[str, list[Any]] = {}
    for search in searches:
        groups.setdefault(search.start.target_id, []).append(search)
    shown = list(groups.values())[:MOST_PANELS]
    if not shown:
        return None
    with matplotlib_without_trace():
        figure, panels = _panels(len(shown))
        for axes, group in zip(panels, shown, strict=True):
            panel(axes, group)
            axes.set_title(group[0].start.build.label, fontsize=9)
        for axes in panels[::COLUMNS]:
            axes.set_ylabel(ylabel, fontsize=8)
        return _save(figure, panels, path, marks)


def _name(search: Search | RungSearch, group: Sequence[Search | RungSearch]) -> str:
    """The sampler, and where the group has several searches of it, which one of them this is."""
    own = [other for other in group if other.start.name == search.start.name]
    return search.start.name if len(own) == 1 else f"{search.start.name} {1 + own.index(search)}"


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    size = 1.5 if count == 1 else 1.0
    figure = Figure(figsize=(size * PANEL[0] * columns, size * PANEL[1] * lines + 0.6), layout="constrained")
    panels = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels:
        axes.tick_params(labelsize=8)
    return figure, panels[:count]


def _save(figure: Figure, panels: list[Axes], path: Path, marks: dict[str, str]) -> Path:
    """Write the figure with one legend for all panels."""
    from matplotlib.lines import Line2D

    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    for mark, meaning in marks.items():
        shape = "o" if mark == "hollow" else mark
        face = "none" if mark == "hollow" else "black"
        handles[meaning] = Line2D(
            [], [], color="black", marker=shape, linestyle="none", markersize=6, markerfacecolor=face
        )
    columns = max(1, int(figure.get_figwidth() / ENTRY))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    write_bytes_atomic(path, buffer.getvalue())
    return path
