"""λ̂ against what a study sweeps: step size ε, localisation γ, inverse temperature β."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pandas as pd

from lambda_hat.report.drawing import (
    COLUMNS,
    NOT_OK,
    Drawn,
    colours,
    drawn,
    exact_lines,
    finished,
    legend,
    panels,
    plain,
    setting_labels,
    tame,
    without_minor_ticks,
)

SWEPT = {"step_size": "step size ε", "gamma": "localisation γ", "beta": "inverse temperature β"}
LINEAR_SPAN = 4.0
"""Ratio of the largest to the smallest value above which the axis is logarithmic."""
MOST_TARGETS = 12
MOST_SETTINGS = 12
"""Most lines of a panel. More of them cannot be told apart."""
SET_BY = {
    "step_size": ("cfg.step_size",),
    "gamma": ("cfg.gamma", "cfg.prior_radius"),
    "beta": ("cfg.beta", "cfg.n_beta"),
}
"""Columns of the configuration keys that set each of SWEPT."""


def draw_sweeps(frame: pd.DataFrame) -> Iterator[Drawn]:
    """Draw a figure for each of SWEPT that takes several values on one target with one sampler.

    Each panel is a target. Each line is one setting of the other keys, and goes through the means over seeds.
    """
    frame = finished(frame)
    frame = frame.loc[frame["trajectory"].isna()]
    for key, words in SWEPT.items():
        values = frame["cfg.step_size"] if key == "step_size" else frame[key]
        swept = _swept(frame.assign(x=values.astype(float)))
        if not swept.empty:
            yield _draw(swept, key, words)


def _swept(frame: pd.DataFrame) -> pd.DataFrame:
    """The runs whose sampler has several values of `x` on their target."""
    frame = frame.loc[frame["x"].notna()]
    if frame.empty:
        return frame
    counts = cast(pd.Series, frame.groupby(["target_id", "sampler"])["x"].transform("nunique"))
    return frame.loc[counts > 1]


def _draw(frame: pd.DataFrame, key: str, words: str) -> Drawn:
    frame = frame.assign(setting=setting_labels(frame, without=("cfg.seed", *SET_BY[key])))
    targets = list(dict.fromkeys(frame["target_id"]))
    shown = targets[:MOST_TARGETS]
    settings = list(dict.fromkeys(frame["setting"]))
    frame = frame.loc[frame["setting"].isin(settings[:MOST_SETTINGS])]
    shades = colours(frame["setting"])
    figure, axes = panels(len(shown))
    for axis, target_id in zip(axes, shown, strict=True):
        group = frame.loc[frame["target_id"] == target_id]
        for setting, part in group.groupby("setting"):
            line = part.groupby("x")["llc_mean"].mean()
            axis.plot(line.index, line, "-", linewidth=1, color=shades[setting])
            axis.errorbar(
                part["x"],
                part["llc_mean"],
                yerr=2 * part["llc_std_error"],
                fmt="o",
                markersize=3,
                capsize=2,
                color=shades[setting],
                label=plain(setting, 120),
            )
        doubtful = group[group["verdict"] != "ok"]
        if len(doubtful):
            axis.plot(doubtful["x"], doubtful["llc_mean"], "x", color="black", label=NOT_OK, zorder=3)
        exact_lines(axis, group, group["x"])
        positive = group["x"][group["x"] > 0]
        if len(positive) == len(group) and len(group) and positive.max() > LINEAR_SPAN * positive.min():
            axis.set_xscale("log")
        tame(axis, group["llc_mean"])
        without_minor_ticks(axis)
        axis.set_title(plain(group["target"].iloc[0] if len(group) else ""), fontsize=9)
        axis.set_xlabel(words, fontsize=9)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("λ̂ ± 2 s.e.", fontsize=9)
    legend(figure, axes)
    caption = (
        "Each dot is one run with two standard errors. A line is the mean over seeds. A cross marks a verdict other "
        "than ok."
    )
    for what, most, count in (("targets", MOST_TARGETS, len(targets)), ("settings", MOST_SETTINGS, len(settings))):
        if count > most:
            caption += f" Shown are the first {most} of {count} {what}. The table has all."
    return drawn(figure, f"sweep_{key}", f"λ̂ against the {words}", caption)
