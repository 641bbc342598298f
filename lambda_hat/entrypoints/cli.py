"""`lambda-hat`: build a target, sample a run, collect the table, list and verify the store, validate the samplers."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import lambda_hat
from lambda_hat.entrypoints import build_target, sample, validate, verify
from lambda_hat.errors import EXIT_OK, LambdaHatError, run_command
from lambda_hat.store import Store, existing_store


def options_parser() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="lambda-hat", description=lambda_hat.__doc__)
    parser.add_argument("--version", action="version", version=lambda_hat.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    build = commands.add_parser("build-target", help="build one target from its configuration")
    build_target.add_arguments(build)
    build.set_defaults(run=build_target.run)

    run = commands.add_parser("sample", help="sample one run of one target")
    sample.add_arguments(run)
    run.set_defaults(run=sample.run)

    results = commands.add_parser("results", help="collect the table of estimates from the store, at any time")
    results.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    results.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="default: results")
    results.add_argument(
        "--experiments", type=Path, metavar="FILE", help="a row per run of this study, instead of per run in the store"
    )
    results.set_defaults(run=_results)

    ls = commands.add_parser("ls", help="what the store holds")
    ls.add_argument("--store", type=Path, default=Path("runs"), metavar="DIR", help="default: runs")
    ls.set_defaults(run=_ls)

    files = commands.add_parser(
        "verify", help="hold every file of a store against its checksum, and set aside what is damaged"
    )
    verify.add_arguments(files)
    files.set_defaults(run=verify.run)

    truth = commands.add_parser(
        "validate", help="hold the samplers against targets whose exact answer is known; touches no store"
    )
    validate.add_arguments(truth)
    truth.set_defaults(run=validate.run)

    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = options_parser().parse_args(argv)
    run_command(lambda: args.run(args))


def _results(args: argparse.Namespace) -> int:
    from rich.console import Console

    from lambda_hat.pictures import draw_all
    from lambda_hat.results import RunRef, collect, runs_in_store, write_table
    from lambda_hat.workflow_config import compose_study

    if args.experiments:
        study = compose_study(args.experiments)
        store = Store(args.store)
        refs = [RunRef(r.target_id, r.run_id, study.targets[r.target_id], r.cfg) for r in study.runs]
    else:
        store = existing_store(args.store)
        refs = runs_in_store(store)
    table = collect(store, refs)
    path = write_table(table, args.results)
    pictures = draw_all(table, args.results)
    statuses = table.column("status").to_pylist()
    Console().print(
        f"{path}: {len(refs)} runs, {statuses.count('finished')} finished"
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
