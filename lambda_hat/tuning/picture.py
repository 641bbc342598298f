"""Pictures of tuning: error against cost, or acceptance against step size, one panel per target."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lambda_hat.files import write_bytes_atomic
from lambda_hat.foreign import matplotlib_without_trace
from lambda_hat.tuning.objective import diverged
from lambda_hat.tuning.rungs import RungSearch
from lambda_hat.tuning.search import Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME = "tuning.png"
COLUMNS = 3
PANEL = (4.4, 3.3)
"""Inches."""
ENTRY = 1.4
"""Inches of an entry of a legend."""
MOST_PANELS = 30

Some = TypeVar("Some", Search, RungSearch)


def draw_searches(searches: Sequence[Search], path: Path) -> Path | None:
    """A PNG with the error and cost of every trial, the Pareto front as steps, the start as a cross and the settings
    taken as a star; hollow dots are settings whose verdict is not ok. None where no trial gave an estimate.

    Raises StoreUnwritable, StoreError.
    """
    with matplotlib_without_trace():
        groups = _by_target([search for search in searches if search.outcomes])
        if not groups:
            return None
        from matplotlib.ticker import LogFormatter, LogFormatterSciNotation

        figure, panels = _panels(len(groups))
        for axes, group in zip(panels, groups, strict=True):
            for number, search in enumerate(group):
                _draw_search(axes, search, f"C{number}", _name(search, group))
            axes.axhline(100 * group[0].tolerance, color="grey", linewidth=0.8, linestyle=":")
            axes.set(xscale="log", yscale="log")
            # Over several decades the powers of ten are enough, and more would overlap.
            axes.xaxis.set_minor_formatter(LogFormatterSciNotation(minor_thresholds=(1.2, 0.5)))
            axes.yaxis.set_major_formatter(LogFormatter())
            axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.2, 0.5)))
            axes.tick_params(which="both", labelsize=7)
            axes.set_title(group[0].start.build.label, fontsize=9)
            axes.set_xlabel("cost, full gradients of a run", fontsize=8)
        for axes in panels[::COLUMNS]:
            axes.set_ylabel("error, %", fontsize=8)
        marks = {"+": "start", "*": "taken", "o": "verdict ok", "hollow": "verdict not ok"}
        return _save(figure, panels, path, marks)


def _draw_search(axes: Axes, search: Search, colour: str, name: str) -> None:
    for trusted in (True, False):
        own = [outcome for outcome in search.judged.values() if outcome.trusted is trusted]
        axes.plot(
            [outcome.cost for outcome in own], [100 * outcome.error for outcome in own], "o", markersize=4,
            color=colour, markerfacecolor=colour if trusted else "none", alpha=0.7,
        )  # fmt: skip
    on_front = [search.judged[number] for number in search.front]
    cost, error = [o.cost for o in on_front], [100 * o.error for o in on_front]
    axes.step(cost, error, where="post", color=colour, linewidth=1, label=name)
    if 0 in search.outcomes:
        start = search.outcomes[0]
        axes.plot([start.cost], [100 * start.error], "+", color="black", markersize=11, markeredgewidth=1.5, zorder=4)
    if search.winner is not None:
        taken = search.judged[search.winner]
        axes.plot(
            [taken.cost], [100 * taken.error], "*", color=colour, markersize=13, markeredgecolor="black", zorder=5
        )


def draw_rungs(searches: Sequence[RungSearch], path: Path) -> Path | None:
    """A PNG with the acceptance of a Metropolis step against the step size, the least that is taken as a line, and the
    step taken as a star; crosses are runs that diverged or failed. None where nothing was sampled.

    Raises StoreUnwritable, StoreError.
    """
    with matplotlib_without_trace():
        groups = _by_target([search for search in searches if search.rungs])
        if not groups:
            return None
        figure, panels = _panels(len(groups))
        for axes, group in zip(panels, groups, strict=True):
            for number, search in enumerate(group):
                _draw_rungs(axes, search, f"C{number}", _name(search, group))
            axes.axhline(group[0].rungs[0].required, color="grey", linewidth=0.8, linestyle=":")
            axes.set(xscale="log", ylim=(-0.05, 1.05))
            axes.set_title(group[0].start.build.label, fontsize=9)
            axes.set_xlabel(" or ".join(dict.fromkeys(search.key for search in group)), fontsize=8)
        for axes in panels[::COLUMNS]:
            axes.set_ylabel("acceptance of a Metropolis step", fontsize=8)
        return _save(figure, panels, path, {"*": "taken", "x": "diverged"})


def _draw_rungs(axes: Axes, search: RungSearch, colour: str, name: str) -> None:
    ended = [rung for rung in search.rungs if rung.row["status"] == "finished" and not diverged(rung.row)]
    lost = [rung.step for rung in search.rungs if rung not in ended]
    axes.plot([r.step for r in ended], [r.row["mala_acceptance"] for r in ended], "o-", color=colour, markersize=4,
              linewidth=1, label=name)  # fmt: skip
    axes.plot(lost, [0.0] * len(lost), "x", color=colour, markersize=5)
    if search.winner is not None:
        taken = search.rungs[search.winner]
        axes.plot(
            [taken.step], [taken.row["mala_acceptance"]], "*", color=colour, markersize=13, markeredgecolor="black",
            zorder=5,
        )  # fmt: skip


def _by_target(searches: Sequence[Some]) -> list[list[Some]]:
    groups: dict[str, list[Some]] = {}
    for search in searches:
        groups.setdefault(search.start.target_id, []).append(search)
    return list(groups.values())[:MOST_PANELS]


def _name(search: Search | RungSearch, group: Sequence[Search | RungSearch]) -> str:
    """The sampler, with the number of the search among those of its sampler where there are several."""
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
