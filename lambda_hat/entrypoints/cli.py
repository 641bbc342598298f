"""`lambda-hat`: run a study, look at it and its runs, make its report, verify the store, tune, validate, and more."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import lambda_hat
from lambda_hat.entrypoints import (
    build_target,
    compact,
    init,
    logs,
    report,
    rerun,
    sample,
    scripts,
    show,
    status,
    validate,
    verify,
)
from lambda_hat.errors import EXIT_OK, LambdaHatError, run_command
from lambda_hat.store.layout import existing_store


def options_parser() -> argparse.ArgumentParser:
    """Make the parser of every command and its options."""
    parser = argparse.ArgumentParser(prog="lambda-hat", description=lambda_hat.__doc__)
    parser.add_argument("--version", action="version", version=lambda_hat.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    start = commands.add_parser("init", help="write a small study with a model of its own, to begin with")
    init.add_arguments(start)
    start.set_defaults(run=init.run)

    # These hand their words over, and show their options themselves.
    commands.add_parser("run", help="run a study in packs, as python flows/packed.py does", add_help=False)
    commands.add_parser(
        "tune", help="find sampler settings, target by target, as python flows/tune.py does", add_help=False
    )

    build = commands.add_parser("build-target", help="build one target from its configuration")
    build_target.add_arguments(build)
    build.set_defaults(run=build_target.run)

    run = commands.add_parser("sample", help="sample one run of one target")
    sample.add_arguments(run)
    run.set_defaults(run=sample.run)

    for name, module, about in (
        ("status", status, "how a study goes: what runs, what waits and why, what failed, how long it will take"),
        ("show", show, "one run: configuration, result, verdict, where it ran, running estimates"),
        ("logs", logs, "what was printed while one run was sampled, and why it failed"),
        ("rerun", rerun, "start the newest study of a store again for what failed"),
    ):
        command = commands.add_parser(name, help=about)
        module.add_arguments(command)
        command.set_defaults(run=module.run)

    results = commands.add_parser("results", help="collect the table of estimates from the store, at any time")
    results.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    results.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    results.add_argument(
        "--experiments", type=Path, metavar="FILE", help="the runs of this study, instead of all in the store"
    )
    results.set_defaults(run=_results)

    page = commands.add_parser("report", help="make a page of tables and figures from the store, at any time")
    report.add_arguments(page)
    page.set_defaults(run=report.run)

    ls = commands.add_parser("ls", help="what the store holds")
    ls.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    ls.set_defaults(run=_ls)

    files = commands.add_parser(
        "verify", help="compare every file of a store with its checksum, and set aside what is damaged"
    )
    verify.add_arguments(files)
    files.set_defaults(run=verify.run)

    archives = commands.add_parser("compact", help="put finished runs into one file per target, so that they take few")
    compact.add_arguments(archives)
    archives.set_defaults(run=compact.run)

    truth = commands.add_parser("validate", help="compare the samplers with known exact answers; touches no store")
    validate.add_arguments(truth)
    truth.set_defaults(run=validate.run)

    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the words `argv`. Default: those of this process."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in scripts.SCRIPTS:
        run_command(lambda: scripts.hand_over(words[0], words[1:]))
    args = options_parser().parse_args(words)
    run_command(lambda: args.run(args))


def _results(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lambda_hat.report.results import collect, runs_of, write_table
    from lambda_hat.report.study_report import draw_pictures, write_pictures

    store, runs, targets = runs_of(args.store, args.experiments)
    table = collect(store, runs, targets)
    path = write_table(table, args.results)
    pictures = write_pictures(draw_pictures(table), args.results)
    statuses = table.column("status").to_pylist()
    Console().print(
        f"{path}: {len(runs)} runs, {statuses.count('finished')} finished"
        + "".join(f"; {what}: {picture}" for what, picture in pictures.items()),
        soft_wrap=True,
        highlight=False,
    )
    return EXIT_OK


def _ls(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from lambda_hat.omegaconf_support import load_build_config

    store = existing_store(args.store)
    view = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("target", "what", "status", "runs", "finished", "failed"):
        view.add_column(name, justify="right" if name in ("runs", "finished", "failed") else "left", no_wrap=True)
    for target_id in store.target_ids():
        try:
            label = load_build_config(store.target_dir(target_id) / "config.yaml").label
        except LambdaHatError:
            label = "?"
        states = [store.run_status(target_id, run_id) for run_id in store.run_ids(target_id)]
        view.add_row(
            target_id,
            label,
            store.target_status(target_id),
            str(len(states)),
            str(states.count("finished")),
            str(states.count("failed")),
        )
    console = Console()
    console.print(view)
    console.print(f"store: {store.root}", soft_wrap=True, highlight=False)
    return EXIT_OK


if __name__ == "__main__":
    main()
