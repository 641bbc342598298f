"""`lambda-hat show`: everything about one run, on one screen."""

from __future__ import annotations

import argparse
from pathlib import Path

from lambda_hat.errors import EXIT_OK
from lambda_hat.status.find_run import find_run


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that name a run: RUN and `--store`."""
    parser.add_argument(
        "run_words",
        nargs="+",
        metavar="RUN",
        help="the run: its id, the beginning of its id or hash (run_sgld_3f05ab03, sgld 3f05, 3f05), or its folder",
    )
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")


add_arguments = add_run_arguments


def run(args: argparse.Namespace) -> int:
    """Show one run, whatever its state. Returns 0."""
    from rich.console import Console

    from lambda_hat.status.run_view import view
    from lambda_hat.status.terminal import print_all

    place = find_run(args.store, args.run_words)
    console = Console(highlight=False)
    print_all(console, view(place, console))
    return EXIT_OK
