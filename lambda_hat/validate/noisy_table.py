"""The results of the noisy suite on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lambda_hat.validate.outcomes import (
    CHANCE_STD_ERRORS,
    FEWEST_PAIRS,
    MAX_ERROR,
    MAX_STD_ERRORS,
    NOT_OK_RIGHT,
    NOT_OK_WRONG,
    OK_RIGHT,
    OK_WRONG,
    OUTCOMES,
    bars,
    counts,
    deciding,
)

NARROWEST = 160
"""Width of the tables in columns, if the output is no terminal."""
MARKS = {OK_RIGHT: "+", OK_WRONG: "!", NOT_OK_WRONG: "-", NOT_OK_RIGHT: "o"}
STYLES = {OK_RIGHT: "green", OK_WRONG: "bold red", NOT_OK_WRONG: "yellow", NOT_OK_RIGHT: "blue"}


def told(row: dict[str, Any], prefix: str = "") -> str:
    """The line that tells the result of one row while the suite runs."""
    name = f"{prefix}{row['setting']}: {row['target']}, seed {row['seed']}"
    value = f"{number(row['llc'], '.4g')} for {number(row['exact'], '.4g')}"
    return f"{name}: {row['outcome']}, {value}, verdict {row['verdict']}, {row['seconds']:.1f} s"


def print_tables(rows: Sequence[dict[str, Any]], seconds: float, processes: int, is_whole: bool) -> None:
    """Print the outcome of every pair, the counts by target and by setting, all that is ok and wrong, and the bars.

    Args:
        rows: in the order in which they were sampled; the last row of a pair decides.
        seconds: the time of all runs.
        processes: the number of worker processes.
        is_whole: whether the rows are the whole suite.
    """
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, NARROWEST))
    last = deciding(rows)
    console.print(_matrix(last))
    console.print("; ".join(f"{MARKS[name]} {name}" for name in OUTCOMES), soft_wrap=True)
    console.print(
        f"wrong: further from the answer than {MAX_STD_ERRORS:g} standard errors + {MAX_ERROR:.0%}; one mark per seed",
        soft_wrap=True,
    )
    wrong = [row for row in last if row["outcome"] == OK_WRONG]
    if wrong:
        console.print(_wrong_table(wrong))
    if len(last) < len(rows):
        console.print(
            f"an honest error exceeds {MAX_STD_ERRORS:g} standard errors once in 370 pairs, so a pair that was ok and "
            f"missed by at most {CHANCE_STD_ERRORS:g} was sampled again with a fresh seed, which decides: "
            f"{len(rows) - len(last)} of {len(last)} pairs",
            soft_wrap=True,
        )
    found = counts(last)
    console.print(f"{len(last)} pairs: {', '.join(f'{count} {name}' for name, count in found.items())}", soft_wrap=True)
    for bar in bars(last):
        console.print(f"{'met   ' if bar.is_met else 'MISSED'} {bar.wanted}: {bar.figure}", soft_wrap=True)
    if not is_whole:
        console.print(f"this is a part of the suite; the bars are for the whole of at least {FEWEST_PAIRS} pairs")
    console.print(
        f"{len(rows)} runs in {seconds:.0f} s on {processes} {'process' if processes == 1 else 'processes'}",
        soft_wrap=True,
    )


def _matrix(rows: Sequence[dict[str, Any]]) -> Any:
    """The table of targets (down) and settings (across): a mark per seed, and the counts as last columns and rows."""
    from rich.table import Table
    from rich.text import Text

    settings = list(dict.fromkeys(row["setting"] for row in rows))
    targets = list(dict.fromkeys(row["target"] for row in rows))
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    view.add_column("target", no_wrap=True)
    for setting in settings:
        view.add_column(setting.replace("_", "_\n").replace(" ", "\n"))
    for outcome in OUTCOMES:
        view.add_column(Text(MARKS[outcome], STYLES[outcome]), justify="right")

    def marks(some: Sequence[dict[str, Any]]) -> Text:
        return Text.assemble(*((MARKS[row["outcome"]], STYLES[row["outcome"]]) for row in some))

    def totals(some: Sequence[dict[str, Any]]) -> list[str]:
        return [str(count) for count in counts(some).values()]

    for target in targets:
        own = [row for row in rows if row["target"] == target]
        view.add_row(target, *(marks([r for r in own if r["setting"] == s]) for s in settings), *totals(own))
    by_setting = [totals([row for row in rows if row["setting"] == setting]) for setting in settings]
    for i, (outcome, total) in enumerate(zip(OUTCOMES, totals(rows), strict=True)):
        corner = ["" if j != i else total for j in range(len(OUTCOMES))]
        view.add_row(Text(f"{MARKS[outcome]} {outcome}", STYLES[outcome]), *(t[i] for t in by_setting), *corner)
    return view


def _wrong_table(rows: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table

    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold", title="ok and wrong", title_justify="left")
    for name in ("setting", "target"):
        view.add_column(name, no_wrap=True)
    for name in ("seed", "λ̂", "± s.e.", "answer", "error", "z", "T", "R-hat", "ESS"):
        view.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        view.add_row(
            row["setting"],
            row["target"],
            str(row["seed"]),
            number(row["llc"], ".4g"),
            number(row["std_error"], ".2g"),
            number(row["exact"], ".4g"),
            number(row["rel_error"], "+.1%"),
            number(row["z"], "+.1f"),
            number(row["temperature"], ".3f"),
            number(row["rhat"], ".3f"),
            number(row["ess"], ".0f"),
        )
    return view


def print_judgement(label: str, r: dict[str, Any]) -> None:
    """Print the estimate of the judge, and the numbers that say whether to believe it."""
    print(
        f"{label}: {r['llc']:.4f} ± {r['std_error']:.4f}, T {number(r['temperature'], '.4f')} ± "
        f"{number(r['temperature_std_error'], '.4f')}, R-hat {r['rhat']:.4f}, ESS {r['ess']:.0f}, "
        f"{r['num_divergent']} divergent of {r['chains']} x {r['draws']} draws, verdict {r['verdict']}",
        flush=True,
    )


def number(value: float | None, form: str) -> str:
    """Format a number; None and NaN become a dash."""
    return "–" if value is None or value != value else format(value, form)
