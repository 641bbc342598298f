"""The results of the truth suite on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lambda_hat.config.samplers import BIASED_SAMPLERS
from lambda_hat.validate.noiseless import CHANCE_STD_ERRORS, MAX_BIASED_ERROR, MAX_ERROR, MAX_STD_ERRORS

NARROWEST = 120
"""Width of the table in columns, if the output is no terminal."""


def last_of_each(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last result of every sampler and row, which decides."""
    return list({(r["sampler"], r["row"]): r for r in results}.values())


def told(result: dict[str, Any], prefix: str = "") -> str:
    """The line of progress of one result."""
    what = {True: "within its bar", False: "OFF", None: "no exact answer"}[result["meets_bar"]]
    name = f"{prefix}{result['sampler']}: {result['row']}"
    return f"{name}: {what}, verdict {result['verdict']}, {result['seconds']:.1f} s"


def print_table(results: Sequence[dict[str, Any]], seconds: float, processes: int) -> None:
    """Print a row per result, then a line per sampler, and the time it took.

    Args:
        results: in the order in which they were sampled.
        seconds: the time of all runs.
        processes: the number of worker processes.
    """
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
    if len(last_of_each(results)) < len(results):
        console.print(
            f"an honest error exceeds {MAX_STD_ERRORS:g} standard errors once in 370 rows, so a row that missed by at "
            f"most {CHANCE_STD_ERRORS:g} was sampled again with the next seed; its last line in the table decides",
            soft_wrap=True,
        )
    programs = sum(r["programs_compiled"] + r["programs_loaded"] > 0 for r in results)
    console.print(
        f"{len(results)} runs of {programs} programs in {seconds:.0f} s on {processes} "
        f"{'process' if processes == 1 else 'processes'}; s: seconds of a row; the first row of a program "
        "compiles or loads it",
        soft_wrap=True,
    )


def summary_line(sampler: str, results: Sequence[dict[str, Any]]) -> str:
    """The line that says how many rows of one sampler meet its bar."""
    bar = f"{MAX_STD_ERRORS:g} standard errors and {MAX_ERROR:.0%}"
    if sampler in BIASED_SAMPLERS:
        bar = f"{MAX_BIASED_ERROR:.0%}"
    held = [r for r in last_of_each(results) if r["meets_bar"] is not None]
    met = sum(r["meets_bar"] is True for r in held)
    verdicts: dict[str, int] = {}
    for r in results:
        verdicts[r["verdict"]] = verdicts.get(r["verdict"], 0) + 1
    told = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    return f"{sampler}: {met} of {len(held)} rows with an exact λ_t within {bar} of it; verdicts: {told}"


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
