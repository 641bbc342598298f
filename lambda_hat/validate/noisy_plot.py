"""A figure of the noisy suite: the error against the configurational temperature, and the counts of outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lambda_hat.validate.noisy_table import MARKS
from lambda_hat.validate.outcomes import MAX_ERROR, NOT_OK_RIGHT, NOT_OK_WRONG, OK_RIGHT, OK_WRONG, counts, deciding

COLOURS = {OK_RIGHT: "#4c9f70", OK_WRONG: "#c1121f", NOT_OK_WRONG: "#e0a030", NOT_OK_RIGHT: "#5b84b1"}
LEAST_TEMPERATURE, MOST_TEMPERATURE = 1e-3, 1e3
"""Temperatures outside of this range are drawn at its ends."""
MOST_ERROR = 100.0
"""Larger relative errors are drawn at this value."""


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the figure of the rows into a file, whose suffix decides the format.

    Left: temperature and relative error of every pair that has both. Colours are verdicts, crosses are wrong estimates.
    Right: the counts of the four outcomes for every setting.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    last = deciding(rows)
    figure = Figure(figsize=(13, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    scatter, bars = figure.subplots(1, 2, width_ratios=(3, 2))
    _draw_temperatures(scatter, last)
    _draw_counts(bars, last)
    figure.savefig(path, dpi=150)


def _draw_temperatures(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    shown = [row for row in rows if _is_number(row["temperature"]) and _is_number(row["rel_error"])]
    verdicts = sorted({row["verdict"] for row in shown}, key=lambda name: (name != "ok", name))
    for i, verdict in enumerate(verdicts):
        for is_right, marker in ((True, "o"), (False, "x")):
            of_kind = (OK_RIGHT, NOT_OK_RIGHT) if is_right else (OK_WRONG, NOT_OK_WRONG)
            own = [row for row in shown if row["verdict"] == verdict and row["outcome"] in of_kind]
            axes.scatter(
                np.clip([row["temperature"] for row in own], LEAST_TEMPERATURE, MOST_TEMPERATURE),
                np.clip([row["rel_error"] for row in own], -1.5, MOST_ERROR),
                s=22,
                marker=marker,
                color=f"C{i}",
                alpha=0.7,
                label=f"{verdict}, {'right' if is_right else 'wrong'}: {len(own)}" if own else None,
            )
    axes.set_xscale("log")
    axes.set_yscale("symlog", linthresh=MAX_ERROR)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.axhspan(-MAX_ERROR, MAX_ERROR, color="grey", alpha=0.15)
    axes.set_xlabel("configurational temperature T")
    axes.set_ylabel("relative error of the estimate")
    axes.set_title("T against the actual error; grey: 5 %")
    if shown:
        axes.legend(fontsize="small")


def _draw_counts(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    left = np.zeros(len(settings))
    total = counts(rows)
    for outcome in MARKS:
        own = np.array([counts(row for row in rows if row["setting"] == name)[outcome] for name in settings])
        label = f"{outcome}: {total[outcome]}"
        axes.barh(range(len(settings)), own, left=left, color=COLOURS[outcome], label=label)
        left += own
    axes.set_yticks(range(len(settings)), settings)
    axes.invert_yaxis()
    axes.set_xlabel("pairs")
    axes.set_title(f"{len(rows)} pairs")
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=2)


def _is_number(value: float | None) -> bool:
    return value is not None and bool(np.isfinite(value))
