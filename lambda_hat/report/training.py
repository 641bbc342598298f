"""λ̂ along a training, checkpoint by checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from lambda_hat.report.drawing import (
    COLUMNS,
    MARGIN,
    MOST_PANELS,
    NOT_OK,
    Drawn,
    colours,
    drawn,
    finished,
    legend,
    panels,
    plain,
    setting_labels,
    tame,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "llc_training"


def draw_training(frame: pd.DataFrame) -> Drawn | None:
    """Draw λ̂ against the training step, one panel per training. None if no checkpoint is finished.

    The band is two standard errors. Crosses mark estimates whose verdict is not ok. The training loss has an axis of
    its own.
    """
    frame = finished(frame)
    frame = frame.loc[frame["trajectory"].notna()]
    if frame.empty:
        return None
    trainings = list(dict.fromkeys(frame["trajectory"]))
    shown = trainings[:MOST_PANELS]
    figure, axes = panels(len(shown))
    # One line per sampler setting: the runs of a setting differ only in their target.
    frame = frame.assign(setting=setting_labels(frame))
    shades = colours(frame["setting"])
    for axis, trajectory in zip(axes, shown, strict=True):
        group = frame.loc[frame["trajectory"] == trajectory]
        for setting, part in group.groupby("setting"):
            part = part.sort_values("step")
            steps = part["step"].astype(float)
            low, high = (part["llc_mean"] + sign * 2 * part["llc_std_error"] for sign in (-1, 1))
            axis.fill_between(steps, low, high, color=shades[setting], alpha=0.25, linewidth=0)
            axis.plot(steps, part["llc_mean"], "o-", color=shades[setting], markersize=3, label=plain(setting, 120))
            doubtful = part[part["verdict"] != "ok"]
            if len(doubtful):
                axis.plot(doubtful["step"].astype(float), doubtful["llc_mean"], "x", color="black", label=NOT_OK)
        _scale(axis, group)
        loss = group.drop_duplicates("step").sort_values("step")
        beside = axis.twinx()
        beside.plot(loss["step"].astype(float), loss["loss_at_w_star"], color="grey", linewidth=1, linestyle=":")
        if (loss["loss_at_w_star"] > 0).all():
            beside.set_yscale("log")
        beside.set_ylabel("training loss (dotted)", fontsize=8, color="grey")
        beside.tick_params(labelsize=7, colors="grey", which="both")
        axis.set_title(plain(group["target"].iloc[0].partition(" step ")[0]), fontsize=9)
        axis.set_xlabel("training step", fontsize=9)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("λ̂ ± 2 s.e.", fontsize=9)
    legend(figure, axes, MARGIN._replace(right=0.75))
    caption = (
        "The band is two standard errors. A cross marks a verdict other than ok, an arrow one that lies far outside of "
        "the picture. The dotted line is the training loss."
    )
    if len(trainings) > len(shown):
        caption += f" Shown are the first {len(shown)} of {len(trainings)} trainings. The table has all."
    return drawn(figure, NAME, "Along training", caption)


def _scale(axis: Axes, group: pd.DataFrame) -> None:
    """Fit the scale to the estimates that are ok, if others are so far away that they would hide the rest."""
    steps, llc, error = (group[name].to_numpy(float) for name in ("step", "llc_mean", "llc_std_error"))
    ok = (group["verdict"] == "ok").to_numpy()
    if np.count_nonzero(ok) < 2:
        tame(axis, group.loc[:, "llc_mean"])
        return
    bottom, top = float(np.min((llc - 2 * error)[ok])), float(np.max((llc + 2 * error)[ok]))
    reach = max(top - bottom, abs(bottom), abs(top))
    below, above = llc < bottom - reach, llc > top + reach
    if not np.any(below | above):
        return
    near = llc[~below & ~above]
    bottom, top = min(bottom, float(near.min())), max(top, float(near.max()))
    margin = (top - bottom) / 10
    axis.set_ylim(bottom - margin, top + margin)
    for there, edge, marker in ((below, bottom - margin, "v"), (above, top + margin, "^")):
        axis.plot(steps[there], np.full(np.count_nonzero(there), edge), marker, color="black", clip_on=False)
