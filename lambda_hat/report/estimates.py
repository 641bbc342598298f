"""λ̂ by target and sampler, beside the exact value where it is known."""

from __future__ import annotations

import pandas as pd

from lambda_hat.report.drawing import (
    COLUMNS,
    MARGIN,
    MOST_PANELS,
    NOT_OK,
    SAMPLER_COLOURS,
    Drawn,
    drawn,
    exact_lines,
    finished,
    legend,
    panels,
    plain,
    tame,
)

NAME = "llc"


def draw_estimates(frame: pd.DataFrame) -> Drawn | None:
    """Draw every finished estimate with two standard errors, one panel per target. None if there is none.

    Exact values are lines. Checkpoints of a training are left to `draw_training`.
    """
    frame = finished(frame)
    frame = frame.loc[frame["trajectory"].isna()]
    if frame.empty:
        return None
    targets = list(dict.fromkeys(frame["target_id"]))
    shown = targets[:MOST_PANELS]
    figure, axes = panels(len(shown))
    for axis, target_id in zip(axes, shown, strict=True):
        group = frame.loc[frame["target_id"] == target_id].sort_values(["sampler", "run_id"])
        place = {run: index for index, run in enumerate(group["run_id"])}
        for sampler, part in group.groupby("sampler"):
            axis.errorbar(
                part["run_id"].map(place),
                part["llc_mean"],
                yerr=2 * part["llc_std_error"],
                fmt="o",
                markersize=4,
                capsize=2,
                color=SAMPLER_COLOURS[sampler],
                label=sampler,
            )
        doubtful = group[group["verdict"] != "ok"]
        if len(doubtful):
            axis.plot(doubtful["run_id"].map(place), doubtful["llc_mean"], "x", color="black", label=NOT_OK, zorder=3)
        exact_lines(axis, group, group["run_id"].map(place))
        tame(axis, group["llc_mean"])
        axis.set_title(plain(group["target"].iloc[0]), fontsize=9)
        axis.set_xticks([])
        axis.set_xlim(-0.7, len(group) - 0.3)
        axis.margins(y=0.15)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("λ̂ ± 2 s.e.", fontsize=9)
    legend(figure, axes, MARGIN._replace(bottom=0.15))
    caption = "Each dot is one run with two standard errors. A cross marks a verdict other than ok."
    if len(targets) > len(shown):
        caption += f" Shown are the first {len(shown)} of {len(targets)} targets. The table has all."
    return drawn(figure, NAME, "Estimates by target", caption)
