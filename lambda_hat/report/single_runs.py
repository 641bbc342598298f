"""Figures of single runs: running estimate, density, trace and ranks of every chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from lambda_hat.errors import LambdaHatError
from lambda_hat.estimate.verdict import WORST_FIRST, place_of
from lambda_hat.report.drawing import MARGIN, Drawn, arrange, drawn, panels
from lambda_hat.report.trace import load_losses

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_RUNS = 12
"""Most runs with a figure of their own. Each takes about half a second and a tenth of a megabyte."""
MOST_POINTS = 1000
"""Most draws of a chain that a panel shows, evenly spaced. It is about 300 pixels wide."""
MOST_BINS = 20
"""Most bars of a chain's ranks, and most chains whose numbers are named."""
FiguresOfRuns = dict[tuple[str, str], Drawn]
"""The figure of each run, by target and run."""
PANEL = (3.4, 2.5)
ROW = 4
"""Panels of a run."""


def choose_runs(frame: pd.DataFrame, most: int = MOST_RUNS) -> pd.DataFrame:
    """Choose the runs that get a figure of their own, at most `most`.

    For each target and sampler it is the run with the worst verdict. The worst verdicts come first. Among runs of one
    verdict the samplers take turns.
    """
    done = frame.loc[frame["status"] == "finished"]
    done = done.assign(_worst=done["verdict"].map(place_of).astype(int))
    worst = done.sort_values("_worst", kind="stable").drop_duplicates(["target_id", "sampler"])
    turn = worst.groupby(["_worst", "sampler"]).cumcount()
    ordered = worst.assign(_turn=turn).sort_values(["_worst", "_turn", "sampler"], kind="stable")
    return ordered.drop(columns=["_worst", "_turn"]).head(most)


def how_chosen(shown: int, finished: int) -> str:
    """Say which runs are shown. Empty if all are."""
    if shown == finished:
        return ""
    order = ", ".join(WORST_FIRST[:-1])
    return (
        f"Shown are {shown} of {finished} finished runs: for each target and sampler the one with the worst verdict, "
        f"in the order {order}, ok. The samplers take turns. lambda_hat.load_trace gives the draws of every run."
    )


def draw_chains(
    rows: pd.DataFrame, known: FiguresOfRuns, going: Callable[[], bool] = lambda: True
) -> tuple[list[Drawn], list[str]]:
    """Draw a figure for each run in `rows` (of the table), and return a sentence for each without readable draws.

    Args:
        rows: the runs.
        known: figures that were drawn before; those that are drawn now are added.
        going: asked before each figure; once it is false, no more are drawn.
    """
    figures, missing = [], []
    for row in rows.to_dict("records"):
        if not going():
            break
        key = row["target_id"], row["run_id"]
        if key in known:
            figures.append(known[key])
            continue
        try:
            losses, at_w_star, n_beta = load_losses(row)
        except LambdaHatError as error:
            missing.append(f"no draws of {row['run_id']} of {row['target_id']}: {error}")
            continue
        llc = n_beta * (losses - at_w_star)
        if llc.ndim != 2 or not llc.size:
            missing.append(f"no draws of {row['run_id']} of {row['target_id']}: trace.nc has none")
            continue
        known[key] = _draw(row, llc)
        figures.append(known[key])
    return figures, missing


def running_means(llc: np.ndarray) -> np.ndarray:
    """Means of the draws so far, for `llc` of shape (chain, draw). NaN once a chain is non-finite."""
    return np.cumsum(llc, axis=1) / np.arange(1, llc.shape[1] + 1)


def _draw(row: dict[str, Any], llc: np.ndarray) -> Drawn:
    whole = llc[np.isfinite(llc).all(axis=1)]
    figure, (running, densities, trace, ranks) = panels(ROW, ROW, PANEL)
    num_draws = llc.shape[1]
    every = math.ceil(num_draws / MOST_POINTS)
    seen = np.arange(1, num_draws + 1)[::every]
    for chain, means in enumerate(running_means(llc)[:, ::every]):
        running.plot(seen, means, linewidth=1, color=f"C{chain % 10}")
    exact = row["true_llc_t"] if not _missing(row["true_llc_t"]) else row["true_llc"]
    if not _missing(exact):
        running.axhline(exact, color="black", linewidth=1, linestyle="--")
    _within_reach(running, llc, exact)
    if len(whole):
        thinned = whole[:, ::every]
        _draw_densities(densities, thinned)
        for chain, draws in enumerate(thinned):
            trace.plot(seen, draws, linewidth=0.6, alpha=0.7, color=f"C{chain % 10}")
        _draw_ranks(ranks, thinned)
    else:
        for axis in (densities, trace, ranks):
            axis.text(0.5, 0.5, "no chain stayed finite", ha="center", va="center", transform=axis.transAxes)
    for axis, words, below in (
        (running, "running λ̂ of each chain", "draw"),
        (densities, "density of the draws", "nβ (L - L(w*))"),
        (trace, "trace", "draw"),
        (ranks, "ranks among all chains", "rank"),
    ):
        axis.set_title(words, fontsize=9)
        axis.set_xlabel(below, fontsize=8)
        axis.set_ylabel("")
        axis.tick_params(labelsize=7)
    arrange(figure, (running, densities, trace, ranks), MARGIN._replace(left=0.45))
    name = f"chains_{row['target_id']}_{row['run_id']}"
    title = f"{row['target']}: {row['run_id'].removeprefix('run_').replace('_', ' ')}"
    return drawn(figure, name, title, _caption(row, exact))


def _caption(row: dict[str, Any], exact: float | None) -> str:
    parts = [] if _missing(row["llc_mean"]) else [f"λ̂ = {row['llc_mean']:.4g} ± {row['llc_std_error']:.2g}"]
    if not _missing(exact):
        parts.append(f"exact {'λ' if _missing(row['true_llc_t']) else 'λ_t'} = {exact:.4g} (dashed)")
    return f"{', '.join(parts) or 'no estimate'}. {row['verdict']}: {row['verdict_sentence']}"


def _within_reach(axis: Axes, llc: np.ndarray, exact: float | None) -> None:
    """Set limits that hold the running means after a quarter of the draws. Before that they vary too much."""
    means = running_means(llc)[:, llc.shape[1] // 4 :]
    means = means[np.isfinite(means)]
    if not means.size:
        return
    values = [means.min(), means.max(), *([] if _missing(exact) else [exact])]
    low, high = min(values), max(values)
    margin = 0.15 * (high - low) or 0.5 * abs(high) or 1.0
    axis.set_ylim(low - margin, high + margin)


def _draw_densities(axis: Axes, llc: np.ndarray) -> None:
    """Draw the density of each chain that has moved."""
    for chain, draws in enumerate(llc):
        if draws.min() < draws.max():
            axis.plot(*density(draws), linewidth=1, color=f"C{chain % 10}")
    axis.set_yticks([])
    axis.set_ylim(bottom=0)


def density(draws: np.ndarray, bins: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Estimate a density with a Gaussian kernel, whose width is Silverman's (1986, equation 3.31).

    What the kernel puts beyond the least and the largest draw is reflected, so that the density ends where they are.

    Args:
        draws: (draws,) finite, not all equal.
        bins: points of the result.

    Returns:
        The points, and the density there: (bins,) each.
    """
    counts, edges = np.histogram(draws, bins=bins)
    low, high = np.quantile(draws, (0.25, 0.75))
    deviation = float(np.std(draws))
    width = 0.9 * min(deviation, (high - low) / 1.34 or deviation) * len(draws) ** -0.2
    step = edges[1] - edges[0]
    steps = np.arange(-bins, bins + 1)
    kernel = np.exp(-0.5 * (steps * step / max(width, step)) ** 2)
    reflected = np.concatenate([counts[::-1], counts, counts[::-1]])
    smooth = np.convolve(reflected, kernel / kernel.sum(), mode="same")[bins : 2 * bins]
    return (edges[:-1] + edges[1:]) / 2, smooth / (len(draws) * step)


def _draw_ranks(axis: Axes, llc: np.ndarray) -> None:
    """Draw for each chain how often its draws have which rank among those of all chains; equally often if all agree."""
    chains, num_draws = llc.shape
    ranks = np.empty(llc.size)
    ranks[np.argsort(llc, axis=None, kind="stable")] = np.arange(llc.size)
    bins = max(2, min(MOST_BINS, num_draws // 10))
    edges = np.linspace(0, llc.size, bins + 1)
    counts = np.array([np.histogram(one, bins=edges)[0] for one in ranks.reshape(llc.shape)])
    height = 0.8 / counts.max()
    for chain, found in enumerate(counts):
        shade = f"C{chain % 10}"
        axis.bar(edges[:-1], height * found, np.diff(edges), bottom=chain, align="edge", color=shade, edgecolor="white")
        axis.axhline(chain + height * num_draws / bins, color="black", linewidth=1, linestyle="--")
    axis.set_yticks(range(chains) if chains <= MOST_BINS else [])


def _missing(value: Any) -> bool:
    return value is None or value is pd.NA or math.isnan(value)
