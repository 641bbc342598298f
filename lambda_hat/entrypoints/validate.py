"""`lambda-hat validate`: the samplers against every known answer."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from typing import Any

from lambda_hat.config import SAMPLE_SCHEMAS
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ConfigError, nearest
from lambda_hat.summary import BIASED_SAMPLERS
from lambda_hat.validate import (
    CHANCE_STD_ERRORS,
    DEFAULT_SAMPLERS,
    MAX_BIASED_ERROR,
    MAX_ERROR,
    MAX_STD_ERRORS,
    Row,
    default_processes,
    may_be_chance,
    run_rows,
    select,
)

NARROWEST = 120
"""Columns that the table takes where there is no terminal to ask."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--sampler",
        action="append",
        default=[],
        metavar="S",
        help=f"a sampler, several with commas, or all; repeatable; default: {','.join(DEFAULT_SAMPLERS)}",
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="only rows whose name matches")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every run (default: 0)")
    parser.add_argument("--processes", type=int, metavar="N", help="of one core each; default: one per core")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, and nothing else")


def samplers_of(words: Sequence[str]) -> list[str]:
    """Names in the order given, from words that may each be a comma list or `all`; the defaults where there is none.

    Raises ConfigError for an unknown one.
    """
    names: dict[str, None] = {}
    for name in (part.strip() for word in words for part in word.split(",")):
        if name == "all":
            names |= dict.fromkeys(SAMPLE_SCHEMAS)
        elif name in SAMPLE_SCHEMAS:
            names[name] = None
        else:
            raise ConfigError(f"--sampler: unknown {name!r}; {nearest(name, [*SAMPLE_SCHEMAS, 'all'])}")
    return list(names) or list(DEFAULT_SAMPLERS)


def run(args: argparse.Namespace) -> int:
    """Run the truth suite; 0 where every estimate with an exact answer meets its bar, else 1.

    A miss that may be chance (`may_be_chance`) is sampled once more, with the next seed, which decides.
    """
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes: got {args.processes}, expected an integer of at least 1")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed: got {args.seed}, expected an integer from 0 to 2^32 - 1")
    chosen = select(samplers_of(args.sampler), args.only)
    processes = default_processes() if args.processes is None else args.processes
    started = time.monotonic()
    results, interrupted = _sampled(chosen, processes, args.seed)
    doubtful = {(r["sampler"], r["row"]) for r in results if may_be_chance(r)}
    if doubtful and not interrupted:
        again = [(name, row) for name, row in chosen if (name, row.label) in doubtful]
        more, interrupted = _sampled(again, processes, (args.seed + 1) % 2**32, "again: ")
        results += more
    if args.json:
        json.dump(results, sys.stdout, indent=2, allow_nan=False)
        print()
    elif results:
        print_table(results, time.monotonic() - started, processes)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(r["meets_bar"] is False for r in _last_of_each(results)) else EXIT_OK


def _sampled(
    chosen: Sequence[tuple[str, Row]], processes: int, seed: int, prefix: str = ""
) -> tuple[list[dict[str, Any]], bool]:
    """The results in the order of `chosen`, and whether Ctrl-C came before they were all there."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    interrupted = False
    try:
        for r in showing_progress(run_rows(chosen, processes, seed), len(chosen), prefix):
            found[r["sampler"], r["row"]] = _finite(r)
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {len(found)} of {len(chosen)} rows are done", file=sys.stderr)
    keys = [(name, row.label) for name, row in chosen]
    return [found[key] for key in keys if key in found], interrupted


def _last_of_each(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of every row of a sampler the result that decides."""
    return list({(r["sampler"], r["row"]): r for r in results}.values())


def _finite(result: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in result.items()}


def showing_progress(results: Any, count: int, prefix: str = "") -> Any:
    """Pass results on; a bar on a terminal's standard error, a line per result elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=count)
        for r in results:
            progress.update(task, advance=1, description=f"{prefix}{r['sampler']}: {r['row']}")
            if not console.is_terminal:
                what = {True: "within its bar", False: "OFF", None: "no exact answer"}[r["meets_bar"]]
                line = f"{prefix}{r['sampler']}: {r['row']}: {what}, verdict {r['verdict']}, {r['seconds']:.1f} s"
                console.print(line, soft_wrap=True, markup=False)
            yield r


def print_table(results: Sequence[dict[str, Any]], seconds: float, processes: int) -> None:
    """A row per result, then a line per sampler."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, NARROWEST))
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    view.add_column("target", overflow="ellipsis", no_wrap=True, ratio=1)
    view.add_column("sampler", no_wrap=True)
    for name in ("λ̂", "± s.e.", "λ_t", "λ", "error", "z"):
        view.add_column(name, justify="right", no_wrap=True)
    view.add_column("bar", no_wrap=True)
    view.add_column("verdict", no_wrap=True)
    view.add_column("s", justify="right", no_wrap=True)
    for r in results:
        met, style = {True: ("met", "green"), False: ("MISSED", "red"), None: ("–", "")}[r["meets_bar"]]
        view.add_row(
            Text(r["row"]),
            r["sampler"],
            _number(r["llc"], ".4f"),
            _number(r["std_error"], ".4f"),
            _number(r["true_llc_t"], ".4f"),
            _number(r["true_llc"], ".4g"),
            _number(r["rel_error"], "+.2%"),
            _number(r["z"], "+.1f"),
            Text(met, style),
            Text(r["verdict"], "" if r["verdict"] == "ok" else "yellow"),
            f"{r['seconds']:.1f}",
        )
    console.print(view)
    for sampler in dict.fromkeys(r["sampler"] for r in results):
        console.print(summary_line(sampler, [r for r in results if r["sampler"] == sampler]), soft_wrap=True)
    if len(_last_of_each(results)) < len(results):
        console.print(
            f"an honest error exceeds {MAX_STD_ERRORS:g} standard errors once in 370 rows: what missed by no more than "
            f"{CHANCE_STD_ERRORS:g} was sampled again with the next seed, and its last line in the table decides",
            soft_wrap=True,
        )
    programs = sum(r["programs_compiled"] + r["programs_loaded"] > 0 for r in results)
    console.print(
        f"{len(results)} runs of {programs} programs in {seconds:.0f} s on {processes} "
        f"{'process' if processes == 1 else 'processes'}; s: seconds of a row, its program's compilation included "
        "where it came first",
        soft_wrap=True,
    )


def summary_line(sampler: str, results: Sequence[dict[str, Any]]) -> str:
    """How many rows of one sampler meet its bar."""
    bar = f"{MAX_STD_ERRORS:g} standard errors and {MAX_ERROR:.0%}"
    if sampler in BIASED_SAMPLERS:
        bar = f"{MAX_BIASED_ERROR:.0%}"
    held = [r for r in _last_of_each(results) if r["meets_bar"] is not None]
    met = sum(r["meets_bar"] is True for r in held)
    verdicts: dict[str, int] = {}
    for r in results:
        verdicts[r["verdict"]] = verdicts.get(r["verdict"], 0) + 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    return f"{sampler}: {met} of {len(held)} rows with an exact λ_t within {bar} of it; verdicts: {told}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
