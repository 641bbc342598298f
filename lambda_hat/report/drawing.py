"""What the figures share: panels, colours, labels, and how a figure becomes a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from lambda_hat.config import SAMPLE_SCHEMAS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 30
"""Most panels of a figure with one panel per target. With more of them nothing could be read."""
COLUMNS = 3
LIMIT = 1e50
"""Largest magnitude that is drawn. Matplotlib's scales overflow at much larger values."""
DRAWN = [
    "llc_mean", "llc_std_error", "rhat_max", "ess_bulk_min", "ess_tail_min", "fge", "seconds_sample", "rel_error",
    "loss_at_w_star", "true_llc", "true_llc_t", "temperature", "degree", "llc_variance",
]  # fmt: skip
"""Columns that are clipped to LIMIT."""
LETTERS_PER_INCH = 9
"""Letters of a legend that fit into an inch."""
PANEL = (4.2, 2.7)
"""Width and height of a panel in inches, margins included."""
SEVERAL = 30.0
"""Ratio of its limits above which a logarithmic axis has labels enough without minor ticks."""
TITLE_LETTERS = 44
"""Most letters of a panel's title."""
NOT_OK = "verdict not ok"
SAMPLER_COLOURS = {name: f"C{index}" for index, name in enumerate(sorted(SAMPLE_SCHEMAS))}
"""A colour per sampler, the same in every figure of every study."""


class Margin(NamedTuple):
    """Inches around the axes of a panel, for its labels."""

    left: float = 0.65
    right: float = 0.12
    bottom: float = 0.48
    top: float = 0.3


MARGIN = Margin()


@dataclass(frozen=True)
class Drawn:
    """A figure as a PNG, with its title and caption."""

    name: str
    """The file's stem."""
    title: str
    caption: str
    png: bytes


def finished(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows that have an estimate. The columns that are drawn are clipped to what axes can show."""
    done = frame.loc[(frame["status"] == "finished") & frame["llc_mean"].notna()].copy()
    done[DRAWN] = done[DRAWN].clip(-LIMIT, LIMIT)
    return done


def plain(text: str, most: int = TITLE_LETTERS) -> str:
    """Cut `text` to `most` letters and escape its dollars, which would begin a formula in a figure."""
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return text.replace("$", r"\$")


def panels(count: int, columns: int = COLUMNS, panel: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """Make a figure with `count` panels in rows. A single panel is larger."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(columns, count)
    lines = math.ceil(count / columns)
    wider, taller = (2.0, 1.5) if count == 1 else (1.0, 1.0)
    figure, axes = plt.subplots(
        lines, columns, figsize=(wider * panel[0] * columns, taller * panel[1] * lines), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis in axes.flat[:count]:
        axis.tick_params(labelsize=8)
    return figure, list(axes.flat[:count])


def colours(names: Iterable[str]) -> dict[str, tuple]:
    """Give each distinct name a colour. The same set of names gets the same colours."""
    import matplotlib.pyplot as plt

    distinct = sorted(set(names))
    shades = plt.get_cmap("tab10" if len(distinct) <= 10 else "turbo", max(10, len(distinct)))
    return {name: shades(index) for index, name in enumerate(distinct)}


def exact_lines(axis: Axes, group: pd.DataFrame, x: pd.Series) -> None:
    """Draw the exact values of a target's runs, if they are known.

    A value that all runs share is a line. Values that differ, as λ_t does with β and γ, are a dash at each run's place
    `x`.
    """
    styles: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("true_llc_t", "exact λ$_t$ at this n", {"color": "black"}),
        ("true_llc", "λ (n → ∞)", {"color": "grey", "linestyle": ":"}),
    )
    for column, label, style in styles:
        known = group.loc[:, column].dropna()
        if known.nunique() == 1:
            axis.axhline(known.iloc[0], linewidth=1, label=label, **style)
        elif len(known):
            axis.plot(x[known.index], known, marker="_", markersize=12, label=label, **dict(style, linestyle="none"))


def tame(axis: Axes, values: pd.Series) -> None:
    """Make the scale linear about 0 and logarithmic beyond, if some estimates are hugely negative.

    Estimates far from a minimum are. On a linear scale they would hide the rest.
    """
    if values.min() < -max(values.max(), 0.0) and values.min() < 0:
        axis.set_yscale("symlog", linthresh=max(1.0, values.max()))
        axis.axhline(0, color="black", linewidth=0.5)


def setting_labels(frame: pd.DataFrame, without: Sequence[str] = ()) -> pd.Series:
    """Label each run by its sampler and the keys in which that sampler's runs differ. Equal settings have equal labels.

    Args:
        frame: the table.
        without: columns to leave out.
    """
    labels = frame.loc[:, "sampler"].astype(str)
    for _, part in frame.groupby("sampler"):
        for column in (name for name in frame.columns if name.startswith("cfg.") and name not in without):
            words = part.loc[:, column].map(word)
            if words.nunique() > 1:
                labels[part.index] += ", " + column.removeprefix("cfg.") + " " + words
    return labels


def word(value: Any) -> str:
    """Write a configuration's value for a label."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return " ".join(map(str, value))
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def without_minor_ticks(axis: Axes) -> None:
    """Remove the minor ticks of logarithmic axes that span several powers of ten.

    Small panels have no room for them, and placing them takes most of the drawing time.
    """
    from matplotlib.ticker import NullFormatter, NullLocator

    for scale, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim())):
        if scale.get_scale() == "log" and high > SEVERAL * low:
            scale.set_minor_locator(NullLocator())
            scale.set_minor_formatter(NullFormatter())


def legend(figure: Figure, axes: Sequence[Axes], margin: Margin = MARGIN) -> None:
    """Draw one legend below all panels, and arrange the panels. The figure becomes taller by the legend."""
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    if NOT_OK in handles:
        handles[NOT_OK] = handles.pop(NOT_OK)
    letters = int(LETTERS_PER_INCH * figure.get_figwidth())
    columns = max(1, min(len(handles), letters // max(map(len, handles), default=1)))
    room = 0.1 + 0.2 * math.ceil(len(handles) / columns)
    figure.set_figheight(figure.get_figheight() + room)
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns, fontsize=9, frameon=False)
    arrange(figure, axes, margin, room)


def arrange(figure: Figure, axes: Sequence[Axes], margin: Margin = MARGIN, room: float = 0.0) -> None:
    """Place the panels, `room` inches above the bottom.

    Matplotlib's own layouts look at every label, and take as long as the rest of a figure.
    """
    grid, (width, height) = axes[0].get_gridspec(), figure.get_size_inches()
    assert grid is not None
    sides, ends = margin.left + margin.right, margin.bottom + margin.top
    figure.subplots_adjust(
        left=margin.left / width,
        right=1 - margin.right / width,
        bottom=(margin.bottom + room) / height,
        top=1 - margin.top / height,
        wspace=sides * grid.ncols / (width - sides * grid.ncols),
        hspace=ends * grid.nrows / (height - room - ends * grid.nrows),
    )


def drawn(figure: Figure, name: str, title: str, caption: str) -> Drawn:
    """Save the figure as a PNG, and close it."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    return Drawn(name, title, caption, buffer.getvalue())
