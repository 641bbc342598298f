"""How well the chains of a study mixed, and what an effective sample cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from lambda_hat.estimate.convergence import MAX_RHAT
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

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

DEGREES = (-1.0, 8.0)
"""Limits of the degrees that are drawn: quadratic, quartic and sextic basins, and plateaus, lie between them."""
EXPECTED: dict[str, Any] = {"color": "black", "linewidth": 1, "linestyle": "--"}
SPREAD = 0.6
"""Width of a sampler's column of dots. Its runs are spread over it, so that none hides another."""


def draw_convergence(frame: pd.DataFrame) -> Drawn | None:
    """Draw R-hat, bulk ESS and tail ESS of every finished run, by sampler. None if no run is finished."""
    frame = finished(frame)
    if frame.empty:
        return None
    figure, (rhat, bulk, tail) = panels(3)
    samplers = sorted(frame["sampler"].unique())
    # The axis is logarithmic: chains in perfect agreement, whose R-hat is 1, are drawn at its lower end.
    _strip(rhat, frame.assign(y=(frame["rhat_max"] - 1).clip(lower=1e-4)), samplers)
    rhat.axhline(MAX_RHAT - 1, color="black", linewidth=1, linestyle="--", label=f"R-hat {MAX_RHAT}")
    rhat.set_title("R-hat - 1", fontsize=9)
    _strip(bulk, frame.assign(y=frame["ess_bulk_min"]), samplers)
    bulk.set_title("bulk ESS", fontsize=9)
    _strip(tail, frame.assign(y=frame["ess_tail_min"]), samplers)
    tail.set_title("tail ESS", fontsize=9)
    legend(figure, (rhat, bulk, tail))
    caption = (
        "Each dot is one run. R-hat says how far the chains disagree. Above the dashed line the verdict is unmixed. "
        "The effective sample size (ESS) says how many independent draws the losses are worth, for their mean (bulk) "
        "and for their outer quantiles (tail)."
    )
    return drawn(figure, "convergence", "R-hat and effective sample size", caption)


def draw_temperature(frame: pd.DataFrame) -> Drawn | None:
    """Draw the configurational temperature of every finished run by sampler, and the degree of the loss against it.

    A third panel has `nβ² Var[L] / λ̂`, the ratio of two estimates of λ, if any run has it. None if no run has a
    temperature.
    """
    frame = finished(frame)
    frame = frame.loc[frame["temperature"].notna()]
    if frame.empty:
        return None
    by_variance = frame.assign(y=frame["llc_variance"] / frame["llc_mean"])
    by_variance = by_variance.loc[by_variance["y"].notna()]
    figure, axes = panels(3 if len(by_variance) else 2)
    samplers = sorted(frame["sampler"].unique())
    _strip(axes[0], frame.assign(y=frame["temperature"]), samplers)
    axes[0].set_title("temperature T", fontsize=9)
    known = frame.loc[frame["degree"].notna() & frame["temperature"].between(1 / LIMIT, LIMIT)]
    known = known.assign(x=known["temperature"], y=known["degree"].clip(*DEGREES))
    for sampler, part in known.groupby("sampler"):
        axes[1].plot(part["x"], part["y"], "o", markersize=3, alpha=0.7, color=SAMPLER_COLOURS[sampler])
    _crosses(axes[1], known)
    if len(known):
        axes[1].set_xscale("log")
        axes[1].set_ylim(min(-0.2, known["y"].min() - 0.2), max(3.0, known["y"].max() + 0.2))
    axes[1].axvline(1, **EXPECTED)
    axes[1].axhline(2, **EXPECTED)
    axes[1].set_title("degree of the loss along the chain", fontsize=9)
    axes[1].set_xlabel("temperature T", fontsize=9)
    if len(by_variance):
        _strip(axes[2], by_variance, samplers)
        axes[2].set_title("nβ² Var[L] / λ̂", fontsize=9)
    for axis in (axes[0], *axes[2:]):
        axis.axhline(1, **EXPECTED)
    for scale, span in ((axes[1].xaxis, axes[1].get_xlim()), *((a.yaxis, a.get_ylim()) for a in (axes[0], *axes[2:]))):
        _plain_ticks(scale, span)
    legend(figure, axes)
    low, high = DEGREES
    caption = (
        "Each dot is one run. Runs whose temperature is not positive are left out. The temperature T is 1 in "
        "equilibrium (dashed). Above 1, a chain is hotter than its posterior. Below 1, some directions have not "
        "spread. The degree is 2 in a quadratic basin, and 2k if the loss is homogeneous of degree 2k. If it is below "
        f"1, the loss levels off and the chain has left the basin. Degrees beyond {low:g} and {high:g} are drawn there."
    )
    if len(by_variance):
        caption += " The variance of the losses gives λ̂ if the loss is homogeneous, else another number."
    return drawn(figure, "temperature", "Temperature, and degree of the loss", caption)


def draw_cost(frame: pd.DataFrame) -> Drawn | None:
    """Draw what an effective sample costs, in full-gradient equivalents and in seconds, by sampler.

    A third panel has the error against the work of the run, if exact values are known. None if no run has an effective
    sample size.
    """
    frame = finished(frame)
    frame = frame.loc[(frame["ess_bulk_min"] > 0) & frame["fge"].notna()]
    if frame.empty:
        return None
    known = frame.loc[frame["rel_error"].notna() & (frame["rel_error"] != 0) & (frame["fge"] > 0)]
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
        "Each dot is one run. A gradient on a minibatch counts as its share of the data. Seconds are without compiling."
    )
    if len(known):
        caption += " The error is relative to the exact value at this n."
    return drawn(figure, "cost", "Cost per effective sample", caption)


def _strip(axis: Axes, frame: pd.DataFrame, samplers: Sequence[str]) -> None:
    """Draw one column of dots per sampler, at `y` on a logarithmic axis."""
    frame = frame.loc[frame["y"].between(1 / LIMIT, LIMIT)]
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


def _plain_ticks(scale: Axis, span: tuple[float, float]) -> None:
    """Label a logarithmic axis that spans few powers of ten with numbers such as .5 and 2."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    low, high = span
    if scale.get_scale() == "log" and high < 1e4 * low:
        scale.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
        scale.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        scale.set_minor_locator(NullLocator())


def _spread(place: int, count: int) -> list[float]:
    if count == 1:
        return [float(place)]
    return [place + SPREAD * (index / (count - 1) - 0.5) for index in range(count)]


def _crosses(axis: Axes, frame: pd.DataFrame) -> None:
    doubtful = frame[frame["verdict"] != "ok"]
    if len(doubtful):
        axis.plot(doubtful["x"], doubtful["y"], "x", color="black", markersize=4, label=NOT_OK, zorder=3)
