"""`lambda-hat report`: make the report of a study, at any time."""

from __future__ import annotations

import argparse
from pathlib import Path

from lambda_hat.errors import EXIT_OK, StoreError
from lambda_hat.store.layout import check_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat report`."""
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    parser.add_argument(
        "--experiments", type=Path, metavar="FILE", help="the runs of this study, instead of all in the store"
    )


def run(args: argparse.Namespace) -> int:
    """Write `report.html` and `figures/` from what the store holds now, finished or not."""
    from lambda_hat.report.results import collect, runs_of
    from lambda_hat.report.study_report import write_report

    store, runs, targets = runs_of(args.store, args.experiments)
    results = args.results.expanduser().absolute()
    check_folder(results, "results folder", "give another one with --results DIR")
    table = collect(store, runs, targets)
    try:
        report = write_report(store, table, results)
    except OSError as error:
        raise StoreError(f"{results}: cannot be written: {error.strerror or error}") from None
    finished = table.column("status").to_pylist().count("finished")
    print(
        f"{report.page}: {len(runs)} runs, {finished} finished; {len(report.figures)} figures in {results / 'figures'}"
    )
    for sentence in report.missing:
        print(f"missing: {sentence}")
    return EXIT_OK
