"""`lambda-hat validate`: compare the samplers with every known answer."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lambda_hat.config import SAMPLE_SCHEMAS
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, ConfigError, nearest
from lambda_hat.store.files import finite_or_none
from lambda_hat.validate import judged, noiseless, noiseless_table, noisy, noisy_plot, noisy_table, outcomes
from lambda_hat.validate.noiseless import DEFAULT_SAMPLERS, run_rows
from lambda_hat.validate.runner import default_processes, run_jobs

SUITES = ("truth", "noisy")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat validate`."""
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="truth",
        help="truth: chosen settings on targets without noise (default); noisy: default settings on noisy data",
    )
    parser.add_argument(
        "--sampler",
        action="append",
        default=[],
        metavar="S",
        help=f"a sampler, several with commas, or all; repeatable; default: {','.join(DEFAULT_SAMPLERS)} (truth), all "
        "(noisy)",
    )
    parser.add_argument("--only", default="*", metavar="GLOB", help="only rows whose name matches")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of every run; noisy: the first seed (default: 0)"
    )
    parser.add_argument("--processes", type=int, metavar="N", help="processes of one core each; default: one per core")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON, and nothing else")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="noisy: draw temperature against error, and counts")
    parser.add_argument(
        "--judge", action="store_true", help="noisy: train and judge the networks anew, and store the values"
    )


def samplers_of(words: Sequence[str], default: Iterable[str] = DEFAULT_SAMPLERS) -> list[str]:
    """Names of samplers, in the order of `words`.

    Args:
        words: names, comma-separated lists of names, or `all`.
        default: the samplers if `words` has none.

    Raises:
        ConfigError: a name is unknown.
    """
    names: dict[str, None] = {}
    for name in (part.strip() for word in words for part in word.split(",")):
        if name == "all":
            names |= dict.fromkeys(SAMPLE_SCHEMAS)
        elif name in SAMPLE_SCHEMAS:
            names[name] = None
        else:
            raise ConfigError(f"--sampler: unknown {name!r}; {nearest(name, [*SAMPLE_SCHEMAS, 'all'])}")
    return list(names) or list(default)


def run(args: argparse.Namespace) -> int:
    """Run a suite. Returns 0 if its bars are met, 1 if not, 130 after Ctrl-C."""
    if args.processes is not None and args.processes < 1:
        raise ConfigError(f"--processes: got {args.processes}, expected an integer of at least 1")
    if not 0 <= args.seed < 2**32:
        raise ConfigError(f"--seed: got {args.seed}, expected an integer from 0 to 2^32 - 1")
    processes = default_processes() if args.processes is None else args.processes
    if args.suite == "noisy":
        return _run_judge(args) if args.judge else _run_noisy(args, processes)
    for name in ("plot", "judge"):
        if getattr(args, name):
            raise ConfigError(f"--{name}: belongs to the noisy suite; add --suite noisy")
    return _run_truth(args, processes)


def _run_truth(args: argparse.Namespace, processes: int) -> int:
    """Run the truth suite.

    A miss that may be chance (`noiseless.may_be_chance`) is sampled once more with the next seed, which decides.
    """
    chosen = noiseless.select(samplers_of(args.sampler), args.only)

    def sampled(some: Sequence[tuple[str, noiseless.Row]], seed: int, prefix: str = "") -> tuple[list[dict], bool]:
        order = [(name, row.label) for name, row in some]
        running = run_rows(some, processes, seed)
        return _collected(
            running, order, lambda r: (r["sampler"], r["row"]), lambda r: noiseless_table.told(r, prefix), prefix
        )

    started = time.monotonic()
    results, interrupted = sampled(chosen, args.seed)
    doubtful = {(r["sampler"], r["row"]) for r in results if noiseless.may_be_chance(r)}
    if doubtful and not interrupted:
        again = [(name, row) for name, row in chosen if (name, row.label) in doubtful]
        more, interrupted = sampled(again, (args.seed + 1) % 2**32, "again: ")
        results += more
    if args.json:
        _print_json(results)
    elif results:
        noiseless_table.print_table(results, time.monotonic() - started, processes)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_FAILED if any(r["meets_bar"] is False for r in noiseless_table.last_of_each(results)) else EXIT_OK


def _run_noisy(args: argparse.Namespace, processes: int) -> int:
    """Run the noisy suite.

    A pair that is ok but wrong, and may be so by chance (`outcomes.may_be_chance`), is sampled once more with a seed
    that no pair has had. The second run decides.
    """
    samplers = samplers_of(args.sampler, SAMPLE_SCHEMAS)
    pairs = noisy.select(samplers, args.only, args.seed)
    is_whole = args.only == "*" and set(samplers) == set(SAMPLE_SCHEMAS)

    def sampled(some: Sequence[noisy.Pair], prefix: str = "") -> tuple[list[dict[str, Any]], bool]:
        done = iter(range(1, len(some) + 1))
        order = [(pair.setting.label, pair.label, pair.pair_seed) for pair in some]

        def told(row: dict[str, Any]) -> str:
            return f"{next(done)} of {len(some)}: {noisy_table.told(row, prefix)}"

        return _collected(run_jobs(some, processes), order, outcomes.key_of, told, prefix)

    print(f"{len(pairs)} pairs of {len({p.label for p in pairs})} targets", file=sys.stderr)
    started = time.monotonic()
    rows, interrupted = sampled(pairs)
    doubtful = {outcomes.key_of(row) for row in rows if outcomes.may_be_chance(row)}
    if doubtful and not interrupted:
        more, interrupted = sampled(noisy.again(pairs, doubtful), "again: ")
        rows += more
    if args.json:
        _print_json(rows)
    elif rows:
        noisy_table.print_tables(rows, time.monotonic() - started, processes, is_whole)
    if args.plot is not None and rows:
        noisy_plot.draw(rows, args.plot)
    if interrupted:
        return EXIT_INTERRUPTED
    return EXIT_OK if all(bar.is_met for bar in outcomes.bars(outcomes.deciding(rows))) else EXIT_FAILED


def _run_judge(args: argparse.Namespace) -> int:
    """Judge the networks whose name matches. Returns 0 if every one is ok."""
    builds = noisy.networks(args.only)
    records = []
    for label, record in judged.run_judge(builds):
        noisy_table.print_judgement(label, record)
        records.append(record)
    return EXIT_OK if all(record["verdict"] == "ok" for record in records) else EXIT_FAILED


def _collected(
    running: Iterator[dict[str, Any]],
    order: Sequence[Any],
    key_of: Callable[[dict[str, Any]], Any],
    told: Callable[[dict[str, Any]], str],
    prefix: str,
) -> tuple[list[dict[str, Any]], bool]:
    """Collect the results in the order of their keys, and whether Ctrl-C came before the last of them."""
    found: dict[Any, dict[str, Any]] = {}
    interrupted = False
    try:
        for result in showing_progress(running, len(order), told, prefix):
            found[key_of(result)] = finite_or_none(result)
    except KeyboardInterrupt:
        interrupted = True
        print(f"interrupted: {len(found)} of {len(order)} rows are done", file=sys.stderr)
    return [found[key] for key in order if key in found], interrupted


def showing_progress(
    results: Iterator[dict[str, Any]], count: int, told: Callable[[dict[str, Any]], str], prefix: str = ""
) -> Iterator[dict[str, Any]]:
    """Pass results on and show progress on stderr: a bar on a terminal, a line per result elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=count)
        for r in results:
            name = r["row"] if "row" in r else r["target"]
            progress.update(task, advance=1, description=f"{prefix}{r['sampler']}: {name}")
            if not console.is_terminal:
                console.print(told(r), soft_wrap=True, markup=False)
            yield r


def _print_json(results: Sequence[dict[str, Any]]) -> None:
    json.dump(results, sys.stdout, indent=2, allow_nan=False)
    print()
