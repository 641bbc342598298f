"""The report of a study: `report.html`, and its figures as PNG."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa

from lambda_hat.report.collect import gather
from lambda_hat.report.drawing import Drawn
from lambda_hat.report.efficiency import draw_convergence, draw_cost, draw_temperature
from lambda_hat.report.estimates import draw_estimates
from lambda_hat.report.foreign import matplotlib_without_trace
from lambda_hat.report.page import Section, render
from lambda_hat.report.results import to_frame
from lambda_hat.report.single_runs import FiguresOfRuns, choose_runs, draw_chains, how_chosen
from lambda_hat.report.sweeps import draw_sweeps
from lambda_hat.report.timeline import draw_timeline
from lambda_hat.report.training import draw_training
from lambda_hat.store.layout import Store, write_bytes_atomic

__all__ = [
    "PAGE_NAME", "FiguresOfRuns", "Report", "draw_ahead", "draw_pictures", "import_packages", "write_pictures",
    "write_report",
]  # fmt: skip

PAGE_NAME = "report.html"
FIGURES_NAME = "figures"
OURS = (
    "llc.png", "llc_training.png", "sweep_*.png", "convergence.png", "temperature.png", "cost.png", "ranks.png",
    "chains_*.png",
)  # fmt: skip
"""Files that a report writes into the folder of figures. Those left by an earlier report are removed."""


@dataclass(frozen=True)
class Report:
    """The files of a report."""

    page: Path
    figures: list[Path]
    missing: list[str]
    """Sentences on what the report could not show."""


def draw_pictures(table: pa.Table) -> dict[str, Drawn]:
    """Draw the pictures that every study gets: `picture`, by target, and `training`, along trainings.

    A picture is left out if the table has nothing for it.
    """
    frame = to_frame(table)
    with matplotlib_without_trace():
        pictures = {"picture": draw_estimates(frame), "training": draw_training(frame)}
    return {what: drawn for what, drawn in pictures.items() if drawn is not None}


def write_pictures(pictures: dict[str, Drawn], results_root: Path) -> dict[str, Path]:
    """Write `llc.png` and `llc_training.png`. Returns their paths by the same keys."""
    return {what: _write(picture, results_root) for what, picture in pictures.items()}


def import_packages() -> None:
    """Import what drawing a report takes; this is half of the time that a small one takes."""
    from lambda_hat.report.foreign import import_itables

    with matplotlib_without_trace():
        import jinja2  # noqa: F401
        import matplotlib.pyplot  # noqa: F401

        import_itables()


def draw_ahead(table: pa.Table, figures: FiguresOfRuns, going: Callable[[], bool]) -> None:
    """Draw what a report of an unfinished study would show, and keep the figures of its runs.

    Args:
        table: as of `write_report`.
        figures: for `write_report` later, filled here.
        going: asked between figures; once it is false, no more are drawn.
    """
    draw_chains(choose_runs(to_frame(table)), figures, going)
    if going():
        # The first figure with a formula takes four times as long as the next one.
        draw_pictures(table)


def write_report(
    store: Store,
    table: pa.Table,
    results_root: Path,
    pictures: dict[str, Drawn] | None = None,
    of_runs: FiguresOfRuns | None = None,
) -> Report:
    """Write `report.html` and `figures/*.png`.

    Sections without content are left out. The page names what could not be read.

    Args:
        store: the store of the study.
        table: its runs, from `results.collect`.
        results_root: the folder to write into.
        pictures: those of `draw_pictures(table)`. Default: they are drawn here.
        of_runs: figures of single runs that `draw_ahead` has drawn.

    Raises:
        OSError: `results_root` cannot be written.
        StoreUnwritable: the same, for example because the disk is full.
    """
    pictures = draw_pictures(table) if pictures is None else pictures
    material = gather(store, table)
    with matplotlib_without_trace():
        sections, missing = _sections(material.frame, material.lives, pictures, {} if of_runs is None else of_runs)
    missing = [*material.missing, *missing]
    page = results_root / PAGE_NAME
    figures = [figure for section in sections for figure in section.figures]
    folder = results_root / FIGURES_NAME
    folder.mkdir(parents=True, exist_ok=True)
    paths = [_write(figure, folder) for figure in figures]
    for old in {path for pattern in OURS for path in folder.glob(pattern)} - set(paths):
        old.unlink(missing_ok=True)
    write_bytes_atomic(page, render(material, sections, missing).encode())
    return Report(page, paths, missing)


def _sections(
    frame: pd.DataFrame, lives: list, pictures: dict[str, Drawn], of_runs: FiguresOfRuns
) -> tuple[list[Section], list[str]]:
    """The sections that have a figure, and sentences on draws that could not be read."""
    rows = choose_runs(frame)
    chains, missing = draw_chains(rows, of_runs)
    finished = list(frame["status"]).count("finished")
    sections = [
        Section("estimates", "Estimates", _there(pictures.get("picture"))),
        Section("training", "Along training", _there(pictures.get("training"))),
        Section("sweeps", "Sweeps", list(draw_sweeps(frame))),
        Section("convergence", "Convergence", _there(draw_convergence(frame)) + _there(draw_temperature(frame))),
        Section("chains", "Chains", chains, how_chosen(len(rows), finished)),
        Section("cost", "Cost", _there(draw_cost(frame))),
        Section("ranks", "Ranks", _there(draw_timeline(lives))),
    ]
    return [section for section in sections if section.figures], missing


def _there(drawn: Drawn | None) -> list[Drawn]:
    return [] if drawn is None else [drawn]


def _write(picture: Drawn, folder: Path) -> Path:
    path = folder / f"{picture.name}.png"
    write_bytes_atomic(path, picture.png)
    return path
