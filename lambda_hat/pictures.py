"""Pictures of a study: its estimates by target, and along training."""

from __future__ import annotations

import contextlib
import io
import math
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa

from lambda_hat.results import to_frame
from lambda_hat.store import write_bytes_atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ESTIMATES_NAME = "llc.png"
TRAINING_NAME = "llc_training.png"
MOST_PANELS = 30
COLUMNS = 3
LETTERS_PER_INCH = 9
"""Of a legend."""
PANEL = (4.2, 2.9)
"""Inches."""


def draw_all(table: pa.Table, results_root: Path) -> dict[str, Path]:
    """Draw what `table` has something for; each picture's path by what it is."""
    with _no_trace():
        pictures = {
            "picture": draw_estimates(table, results_root / ESTIMATES_NAME),
            "training": draw_training(table, results_root / TRAINING_NAME),
        }
    return {what: path for what, path in pictures.items() if path is not None}


@contextlib.contextmanager
def _no_trace() -> Iterator[None]:
    """Keep matplotlib, where this process has not imported it yet, from leaving folders in the user's home."""
    if "matplotlib" in sys.modules or os.environ.get("MPLCONFIGDIR"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lh.") as folder:
        os.environ["MPLCONFIGDIR"] = folder
        try:
            yield
        finally:
            del os.environ["MPLCONFIGDIR"]


def draw_estimates(table: pa.Table, path: Path) -> Path | None:
    """A PNG with every finished estimate and its standard error by target, exact values as lines; checkpoints of a
    training are left to `draw_training`.

    Returns the path, or None where nothing is finished.
    """
    frame = _finished(table)
    frame = frame[frame["trajectory"].isna()]
    if frame.empty:
        return None
    targets = list(dict.fromkeys(frame["target_id"]))[:MOST_PANELS]
    figure, axes = _panels(len(targets))
    colours = _colours(frame["sampler"])
    for axis, target_id in zip(axes, targets, strict=True):
        group = frame[frame["target_id"] == target_id].sort_values(["sampler", "run_id"])
        for sampler, part in group.groupby("sampler"):
            axis.errorbar(
                [list(group["run_id"]).index(run) for run in part["run_id"]],
                part["llc_mean"],
                yerr=2 * part["llc_std_error"],
                fmt="o",
                markersize=4,
                capsize=2,
                color=colours[sampler],
                label=sampler,
            )
        exact_t, exact = group["true_llc_t"].iloc[0], group["true_llc"].iloc[0]
        if not math.isnan(exact_t):
            axis.axhline(exact_t, color="black", linewidth=1, label="exact λ$_t$ at this n")
        if not math.isnan(exact):
            axis.axhline(exact, color="grey", linewidth=1, linestyle=":", label="λ (n → ∞)")
        axis.set_title(group["target"].iloc[0], fontsize=9)
        axis.set_xticks([])
        axis.set_xlim(-0.7, len(group) - 0.3)
        axis.margins(y=0.15)
        axis.tick_params(labelsize=8)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("λ̂ ± 2 s.e.", fontsize=9)
    return _save(figure, axes, path)


def draw_training(table: pa.Table, path: Path) -> Path | None:
    """A PNG with λ̂ against the training step and a band of two standard errors, one panel per training, beside the
    training loss; crosses mark estimates whose verdict is not ok.

    Returns the path, or None where no checkpoint is finished.
    """
    frame = _finished(table)
    frame = frame[frame["trajectory"].notna()]
    if frame.empty:
        return None
    trainings = list(dict.fromkeys(frame["trajectory"]))[:MOST_PANELS]
    figure, axes = _panels(len(trainings))
    # One line per sampler setting: the runs of a setting differ in their target alone.
    frame = frame.assign(setting=_setting_labels(frame))
    colours = _colours(frame["setting"])
    for axis, trajectory in zip(axes, trainings, strict=True):
        group = frame[frame["trajectory"] == trajectory]
        for setting, part in group.groupby("setting"):
            part = part.sort_values("step")
            steps = part["step"].astype(float)
            low, high = (part["llc_mean"] + sign * 2 * part["llc_std_error"] for sign in (-1, 1))
            axis.fill_between(steps, low, high, color=colours[setting], alpha=0.25, linewidth=0)
            axis.plot(steps, part["llc_mean"], "o-", color=colours[setting], markersize=3, label=setting)
            doubtful = part[part["verdict"] != "ok"]
            if len(doubtful):
                axis.plot(
                    doubtful["step"].astype(float), doubtful["llc_mean"], "x", color="black", label="verdict not ok"
                )
        if group["llc_mean"].min() < -group["llc_mean"].max():
            # Far from a minimum the estimates are hugely negative, and would hide the rest.
            axis.set_yscale("symlog", linthresh=max(1.0, group["llc_mean"].max()))
            axis.axhline(0, color="black", linewidth=0.5)
        loss = group.drop_duplicates("step").sort_values("step")
        beside = axis.twinx()
        beside.plot(loss["step"].astype(float), loss["loss_at_w_star"], color="grey", linewidth=1, linestyle=":")
        beside.set_yscale("log")
        beside.set_ylabel("training loss (dotted)", fontsize=8, color="grey")
        beside.tick_params(labelsize=7, colors="grey", which="both")
        axis.set_title(group["target"].iloc[0].partition(" step ")[0], fontsize=9)
        axis.set_xlabel("training step", fontsize=9)
        axis.tick_params(labelsize=8)
    for axis in axes[::COLUMNS]:
        axis.set_ylabel("λ̂ ± 2 s.e.", fontsize=9)
    return _save(figure, axes, path)


def _finished(table: pa.Table) -> pd.DataFrame:
    frame = to_frame(table)
    return frame[(frame["status"] == "finished") & frame["llc_mean"].notna()]


def _setting_labels(frame: pd.DataFrame) -> pd.Series:
    """For every run its sampler, and the keys in which that sampler's runs differ: equal for equal settings."""
    labels = frame["sampler"].astype(str)
    for _, part in frame.groupby("sampler"):
        for column in (name for name in frame.columns if name.startswith("cfg.")):
            words = part[column].map(_word)
            if words.nunique() > 1:
                labels[part.index] += ", " + column.removeprefix("cfg.") + " " + words
    return labels


def _word(value: Any) -> str:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list):
        return " ".join(map(str, value))
    return "none" if value is None or value is pd.NA else str(value)


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(COLUMNS, count)
    lines = math.ceil(count / columns)
    size = 1.5 if count == 1 else 1.0
    figure, axes = plt.subplots(
        lines, columns, figsize=(size * PANEL[0] * columns, size * PANEL[1] * lines), squeeze=False
    )
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    return figure, list(axes.flat[:count])


def _colours(names: pd.Series) -> dict[str, tuple]:
    import matplotlib.pyplot as plt

    distinct = sorted(names.unique())
    colours = plt.get_cmap("tab10" if len(distinct) <= 10 else "turbo", max(10, len(distinct)))
    return {name: colours(index) for index, name in enumerate(distinct)}


def _save(figure: Figure, axes: list[Axes], path: Path) -> Path:
    """Write the figure with one legend below all panels."""
    import matplotlib.pyplot as plt

    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    letters = int(LETTERS_PER_INCH * figure.get_figwidth())
    columns = max(1, min(len(handles), letters // max(map(len, handles), default=1)))
    lines = math.ceil(len(handles) / columns)
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=columns, fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, (0.15 + 0.2 * lines) / figure.get_figheight(), 1, 1))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    write_bytes_atomic(path, buffer.getvalue())
    return path
