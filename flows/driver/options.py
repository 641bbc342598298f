"""The options of the commands that run a study."""

from __future__ import annotations

import argparse
from pathlib import Path

from lambda_hat.workflow_config import CONF_DIR


def options_parser(description: str, *, packed: bool) -> argparse.ArgumentParser:
    """The options that both commands take. packed: those of packs as well."""
    prog = "lambda-hat run" if packed else None
    parser = argparse.ArgumentParser(prog=prog, description=description, allow_abbrev=False)
    parser.add_argument(
        "--experiments", type=Path, default=CONF_DIR / "experiments.yaml", metavar="FILE", help="the study"
    )
    if packed:
        parser.add_argument("--pack", type=int, metavar="N", help="at most N runs in one MPI launch (default 32)")
        parser.add_argument(
            "--lanes", metavar="K", help="K runs of one program side by side on a rank, or auto (default 1)"
        )
        parser.add_argument("--ranks", type=int, metavar="R", help="MPI ranks per node (default: one per core)")
        parser.add_argument("--check", action="store_true", help="try the site with one small pack, and judge it")
        parser.add_argument("--submit", choices=("slurm", "pbs"), help="submit a job that runs the study inside itself")
        parser.add_argument("--nodes", type=int, metavar="N", help="with --submit: nodes of the job")
        parser.add_argument("--walltime", metavar="HH:MM:SS", help="with --submit: how long the job may take")
        parser.add_argument(
            "--chain", type=int, metavar="K", help="with --submit: at most K more jobs where time runs out (default 0)"
        )
    parser.add_argument("--site", metavar="S", help="a name in conf/site, or a .yaml or .py file (default local)")
    parser.add_argument("--store", metavar="DIR", help="targets, runs and packs (default runs)")
    parser.add_argument("--results", metavar="DIR", help="the table, the report and its figures (default results)")
    parser.add_argument(
        "--deadline",
        metavar="WHEN",
        help="stop in time for WHEN, with every run checkpointed: 2026-11-25T18:00, +12:00:00 from now, or seconds "
        "since the epoch",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the plan, start nothing")
    parser.add_argument("--rerun", choices=("failed", "all"), help="sample failed runs, or every run, again")
    parser.add_argument(
        "--retries",
        type=int,
        metavar="K",
        help="pack again what was left unfinished, until K tries in a row get nothing done (default 1, 0: never)",
    )
    parser.add_argument("--no-report", action="store_true", help="write the table, but no pictures and no page")
    parser.add_argument("--quiet", action="store_true", help="only trouble and the summary")
    parser.add_argument(
        "words", nargs="*", metavar="key=value", help="overrides of the study; site.key=value of the site"
    )
    return parser


def parse_options(description: str, argv: list[str] | None, *, packed: bool) -> argparse.Namespace:
    """The options of a command line. argv: its words; None: those of this process."""
    return options_parser(description, packed=packed).parse_intermixed_args(argv)
