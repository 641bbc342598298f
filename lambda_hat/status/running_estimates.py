"""Running estimates drawn with characters."""

from __future__ import annotations

import io
from typing import cast

import numpy as np

from lambda_hat.estimate.llc import llc_from_losses

CHAIN_COLOURS = ("blue", "yellow", "magenta", "cyan", "red", "white")
EXACT_COLOUR = "green"
HEIGHT = 12
LARGEST = 1e100
MARGIN = 24
"""Columns for the axis and its numbers."""
DAMAGED_TRACE = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError)
"""Exceptions that reading raises for a file that is not a valid trace."""
UNSETTLED = 0.05
"""Share of the draws, at the beginning, that the scale may cut off: their means still swing."""


def running_llc(trace: bytes) -> np.ndarray:
    """The mean of each chain's estimates up to each draw; shape (chains, draws).

    trace: the content of a run's `trace.nc`.
    Raises one of DAMAGED_TRACE where it is not a valid trace.
    """
    import h5netcdf

    with h5netcdf.File(io.BytesIO(trace), "r") as file:
        losses = np.asarray(file.groups["posterior"].variables["loss"][...], dtype=np.float64)
        at_w_star, n_beta = (float(cast(float, file.attrs[key])) for key in ("loss_at_w_star", "n_beta"))
    if losses.ndim != 2 or not losses.size:
        raise ValueError(f"loss has the shape {losses.shape}, expected chains and draws")
    with np.errstate(all="ignore"):
        llc = llc_from_losses(losses, at_w_star, n_beta)
        return np.cumsum(llc, axis=1) / np.arange(1, llc.shape[1] + 1)


def plot_running(running: np.ndarray, exact: float | None, width: int, coloured: bool) -> str:
    """Draw a line per chain, and one at the exact value. Empty where no value is finite, or one exceeds LARGEST.

    running: (chains, draws). width: in columns. coloured: with escape codes, where stdout is a terminal.
    """
    import plotille

    num_draws = running.shape[1]
    settled = running[:, int(num_draws * UNSETTLED) :]
    levels = settled[np.isfinite(settled)]
    if not levels.size:
        return ""
    levels = levels if exact is None else np.append(levels, exact)
    low, high = float(levels.min()), float(levels.max())
    if not abs(low) + abs(high) < LARGEST:
        return ""
    slack = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    figure = plotille.Figure()
    figure.width, figure.height = max(width - MARGIN, 20), HEIGHT
    figure.with_colors, figure.color_mode, figure.origin = coloured, "names", False
    figure.set_x_limits(0, num_draws)
    figure.set_y_limits(low - slack, high + slack)
    figure.x_label, figure.y_label = "draw", "λ̂"
    figure.register_label_formatter(float, _label)
    # A column has two dots.
    draws = np.unique(np.linspace(0, num_draws - 1, 2 * figure.width).astype(int))
    if exact is not None:
        figure.plot([0, num_draws], [exact, exact], lc=EXACT_COLOUR)
    for number, chain in enumerate(running):
        values = chain[draws]
        kept = np.isfinite(values)
        if kept.any():
            colour = CHAIN_COLOURS[number % len(CHAIN_COLOURS)]
            figure.plot((draws[kept] + 1).tolist(), values[kept].tolist(), lc=colour)
    return figure.show()


def _label(val: float, chars: int, delta: float, left: bool = False) -> str:
    """A number on an axis that spans `delta`."""
    text = f"{val:.0f}" if 50 <= delta < 1e6 else f"{val:.4g}"
    return text.ljust(chars) if left else text.rjust(chars)
