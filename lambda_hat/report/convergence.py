"""How well the chains of a study mixed, and what an effective sample cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from lambda_hat.report.drawing import (
    LIMIT,
    NOT_OK,
    SAMPLER_COLOURS,
    Drawn,
    drawn,
    finished,
    legend,
    panels,
    without_minor_ticks,
)
from lambda_hat.report.verdicts import MAX_RHAT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPREAD = 0.6
"""Width that a sampler's runs are spread over, in the order of the table, so that they do not hide each other."""


def draw_convergence(frame: pd.DataFrame) -> Drawn | None:
    """R-hat, and bulk and tail effective sample size, of every finished run by sampler."""
    frame = finished(frame)
    if frame.empty:
        return None
    figure, (rhat, bulk, tail) = panels(3)
    samplers = sorted(frame["sampler"].unique())
    # A distance on a logarithmic axis: chains in perfect agreement are shown at its lower end.
    _strip(rhat, frame.assign(y=(frame["rhat_max"] - 1).clip(lower=1e-4)), samplers)
    rhat.axhline(MAX_RHAT - 1, color="black", linewidth=1, linestyle="--", label=f"R-hat {MAX_RHAT}")
    rhat.set_title("R-hat - 1", fontsize=9)
    _strip(bulk, frame.assign(y=frame["ess_bulk_min"]), samplers)
    bulk.set_title("bulk ESS", fontsize=9)
    _strip(tail, frame.assign(y=frame["ess_tail_min"]), samplers)
    tail.set_title("tail ESS", fontsize=9)
    legend(figure, (rhat, bulk, tail))
    caption = (
        "Each dot is one run. R-hat: how far the chains disagree; above the dashed line the verdict is unmixed. ESS: "
        "how many independent draws the losses are worth, for their mean (bulk) and their outer quantiles (tail)."
    )
    return drawn(figure, "convergence", "R-hat and effective sample size", caption)


def draw_cost(frame: pd.DataFrame) -> Drawn | None:
    """What an effective sample costs in full-gradient equivalents and in seconds, by sampler; and, where exact values
    are known, the error against the work of the run."""
    frame = finished(frame)
    frame = frame[(frame["ess_bulk_min"] > 0) & frame["fge"].notna()]
    if frame.empty:
        return None
    known = frame[frame["rel_error"].notna() & (frame["rel_error"] != 0) & (frame["fge"] > 0)]
    figure, axes = panels(3 if len(known) else 2)
    samplers = sorted(frame["sampler"].unique())
    _strip(axes[0], frame.assign(y=frame["fge"] / frame["ess_bulk_min"]), samplers)
    axes[0].set_title("full gradients per effective sample", fontsize=9)
    _strip(axes[1], frame.assign(y=frame["seconds_sample"] / frame["ess_bulk_min"]), samplers)
    axes[1].set_title("seconds per effective sample", fontsize=9)
    if len(known):
        for sampler, part in known.groupby("sampler"):
            axes[2].plot(part["fge"], part["rel_error"].abs(), "o", markersize=3, color=SAMPLER_COLOURS[sampler])
        _crosses(axes[2], known.assign(x=known["fge"], y=known["rel_error"].abs()))
        axes[2].set_xscale("log")
        axes[2].set_yscale("log")
        without_minor_ticks(axes[2])
        axes[2].set_xlabel("full gradients of the run", fontsize=9)
        axes[2].set_title("|relative error|", fontsize=9)
    legend(figure, axes)
    caption = (
        "Each dot is one run. A gradient on a minibatch counts by its share of the data; seconds are without compiling."
    )
    if len(known):
        caption += " The error is that against the exact value at this n, or λ where only that is known."
    return drawn(figure, "cost", "Cost per effective sample", caption)


def _strip(axis: Axes, frame: pd.DataFrame, samplers: Sequence[str]) -> None:
    """One column of dots per sampler, at `y` on a logarithmic axis."""
    frame = frame[frame["y"].between(1 / LIMIT, LIMIT)]
    for place, sampler in enumerate(samplers):
        part = frame[frame["sampler"] == sampler]
        x = _spread(place, len(part))
        axis.plot(x, part["y"], "o", markersize=3, alpha=0.7, color=SAMPLER_COLOURS[sampler], label=sampler)
        _crosses(axis, part.assign(x=x))
    if len(frame):
        axis.set_yscale("log")
    without_minor_ticks(axis)
    axis.set_xticks(range(len(samplers)), samplers, rotation=30 if len(samplers) > 3 else 0)
    axis.set_xlim(-0.6, len(samplers) - 0.4)


def _spread(place: int, count: int) -> list[float]:
    if count == 1:
        return [float(place)]
    return [place + SPREAD * (index / (count - 1) - 0.5) for index in range(count)]


def _crosses(axis: Axes, frame: pd.DataFrame) -> None:
    doubtful = frame[frame["verdict"] != "ok"]
    if len(doubtful):
        axis.plot(doubtful["x"], doubtful["y"], "x", color="black", markersize=4, label=NOT_OK, zorder=3)
