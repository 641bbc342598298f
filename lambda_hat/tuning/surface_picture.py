"""The picture of a shared search: λ̂, temperature and degree over the two keys in which its settings differ most."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lambda_hat.report.foreign import matplotlib_without_trace
from lambda_hat.store.files import write_bytes_atomic
from lambda_hat.tuning.surface import SharedSearch, value_word

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANELS = (
    ("llc_mean", "λ̂", "YlGn", None),
    ("temperature", "T", "coolwarm", 1.0),
    ("degree", "degree", "coolwarm", 2.0),
)
"""Column, title, colours, and the value in a quadratic basin at equilibrium, which has the middle colour."""
CELL = 0.62
"""Height of a cell in inches."""


def draw_shared(searches: Sequence[SharedSearch], path: Path) -> Path | None:
    """Write a PNG with a row of panels per sampler. A frame marks the settings with half of the most growth, or more.

    Returns:
        `path`; None if nothing was sampled.

    Raises:
        StoreError: The file cannot be written.
    """
    grids = [(search, *_layout(search)) for search in searches if search.rows]
    if not grids:
        return None
    with matplotlib_without_trace():
        from matplotlib.figure import Figure

        heights = [max(2.2, CELL * len(lines) + 1.0) for _, _, lines, _ in grids]
        figure = Figure(figsize=(13, sum(heights) + 0.5), layout="constrained")
        rows = figure.subplots(len(grids), len(PANELS), squeeze=False, gridspec_kw={"height_ratios": heights})
        for axes, (search, columns, lines, cells) in zip(rows, grids, strict=True):
            for panel, axis in zip(PANELS, axes, strict=True):
                _draw(axis, search, columns, lines, cells, panel)
        figure.supxlabel(
            "medians over the targets that are ok; a frame: at least half of the most growth; *: the setting taken",
            fontsize=8,
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
    write_bytes_atomic(path, buffer.getvalue())
    return path


def _layout(search: SharedSearch) -> tuple[list[str], list[str], dict[tuple[int, int], int]]:
    """Words of the columns and lines, and the index of the setting in each cell that has one."""
    across = "gamma" if "gamma" in search.keys else next(iter(search.keys), None)
    others = [key for key in search.keys if key != across]

    def word(values: dict[str, Any], keys: Sequence[str]) -> str:
        return ", ".join(f"{key} {value_word(key, values.get(key))}" for key in keys)

    names = [(word(values, [across] if across else []), word(values, others)) for values in search.settings]
    columns, lines = (list(dict.fromkeys(name[axis] for name in names)) for axis in (0, 1))
    cells = {(lines.index(line), columns.index(column)): index for index, (column, line) in enumerate(names)}
    return columns, lines, cells


def _draw(
    axis: Axes,
    search: SharedSearch,
    columns: Sequence[str],
    lines: Sequence[str],
    cells: dict[tuple[int, int], int],
    panel: tuple[str, str, str, float | None],
) -> None:
    from matplotlib.patches import Rectangle

    column, title, colours, middle = panel
    image = np.full((len(lines), len(columns)), math.nan)
    for cell, index in cells.items():
        image[cell] = search.middle(index, column)
    low, high = (None, None) if middle is None else (0.0, 2 * middle)
    axis.imshow(image, cmap=colours, aspect="auto", alpha=0.75, vmin=low, vmax=high)
    most = max(map(search.total_growth, range(len(search.rows))))
    for (line, place), index in cells.items():
        mark = " *" if index == search.winner else ""
        ok = search.num_ok(index)
        text = f"{image[line, place]:.3g}{mark}" + (f"\n{ok}/{len(search.targets)} ok" if column == "llc_mean" else "")
        axis.text(place, line, text, ha="center", va="center", fontsize=8)
        if search.total_growth(index) >= most / 2 > 0:
            axis.add_patch(Rectangle((place - 0.48, line - 0.46), 0.96, 0.92, fill=False, linewidth=1.8))
    axis.set_xticks(range(len(columns)), columns, fontsize=7)
    axis.set_yticks(range(len(lines)), lines if column == PANELS[0][0] else [""] * len(lines), fontsize=7)
    axis.set_title(f"{search.name}: {title}", fontsize=9)
