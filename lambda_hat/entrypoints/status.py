"""`lambda-hat status`: how a study stands, on any machine that sees its store."""

from __future__ import annotations

import argparse
import contextlib
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lambda_hat.errors import EXIT_INTERRUPTED, EXIT_OK, ConfigError
from lambda_hat.status import Studies
from lambda_hat.store.layout import existing_store

if TYPE_CHECKING:
    from rich.console import Console

WATCH_SECONDS = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat status`."""
    parser.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    parser.add_argument(
        "--watch",
        type=float,
        nargs="?",
        const=WATCH_SECONDS,
        metavar="SECONDS",
        help=f"look again every so many seconds (default {WATCH_SECONDS:g}) until the study is over",
    )


def run(args: argparse.Namespace) -> int:
    """Show the studies whose drivers run, or else the newest study. Returns 0, whatever became of it."""
    from rich.console import Console

    from lambda_hat.status.study_view import views
    from lambda_hat.status.terminal import print_all

    if args.watch is not None and not (math.isfinite(args.watch) and args.watch > 0):
        raise ConfigError(f"--watch: got {args.watch:g}, expected a number of seconds above 0")
    store = existing_store(args.store)
    studies, console = Studies(store), Console(highlight=False)
    if args.watch is None:
        print_all(console, views(store, studies.look(), bars=console.is_terminal))
        return EXIT_OK
    try:
        watch(studies, console, args.watch)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_OK


def watch(studies: Studies, console: Console, period: float) -> None:
    """Show the studies every `period` seconds until they are over.

    A terminal is updated in place. Elsewhere each view follows the last one.
    """
    from rich.live import Live

    from lambda_hat.status.study_view import in_place, views
    from lambda_hat.status.terminal import print_all

    found = studies.look()
    terminal = Live(console=console, auto_refresh=False, vertical_overflow="crop") if console.is_terminal else None
    with terminal or contextlib.nullcontext():
        while True:
            if terminal is None:
                print_all(console, views(studies.store, found))
            else:
                terminal.update(in_place(views(studies.store, found, bars=True)), refresh=True)
            if all(status.driver.over for status in found):
                return
            time.sleep(period)
            if terminal is None:
                console.print()
            found = studies.look()
