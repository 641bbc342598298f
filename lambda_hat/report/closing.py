"""The summary on the terminal with which a study closes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from lambda_hat.config.samplers import BIASED_SAMPLERS
from lambda_hat.store.events import RANK_LOGS, lives_of

if TYPE_CHECKING:
    import pyarrow as pa

CAUSES = {
    "block": ("lost block", "lost blocks"),
    "rank": ("dead rank", "dead ranks"),
    "launch": ("lost launch", "lost launches"),
    "time": ("pack out of time", "packs out of time"),
    "drain": ("pack told to stop", "packs told to stop"),
    "rebuilt": ("damaged target", "damaged targets"),
    "unresolved": ("pack whose end Parsl did not report", "packs whose end Parsl did not report"),
}
"""Reasons why runs are tried again, in the singular and the plural."""
MARKS = {"within_allowance": " [yellow]≈[/yellow]", "off": " [red]✗[/red]"}
"""Marks beside an estimate that does not agree with its exact value."""
MOST_ROWS = 100
"""Most rows of the printed table. If there are more, only runs that are not ok are printed."""
BIAS_ALLOWED = 0.05
"""Share of the exact value that BIASED_SAMPLERS may be off beyond STD_ERRORS_ALLOWED."""
STD_ERRORS_ALLOWED = 3.0
"""Standard errors within which an estimate agrees with its exact value."""
ROUNDING = 1e-12
"""Allowance for rounding: on a loss without curvature the standard error is 0."""
AGREEMENTS = ("agrees", "within_allowance", "off")
"""How an estimate compares with its exact value: it is within 3 standard errors; it is further off, but by no more than
its sampler's step may bias it; neither."""


def rank_usage(pack_dirs: Iterable[Path]) -> dict[str, float]:
    """How busy the ranks of some packs were: `ranks` (number), `busy` (seconds inside runs), `total` (seconds)."""
    lives = [life for directory in pack_dirs for log in sorted(directory.glob(RANK_LOGS)) for life in lives_of(log)]
    spent = [(life.busy, life.seconds) for life in lives if life.busy is not None and life.seconds is not None]
    return {"ranks": len(spent), "busy": sum(busy for busy, _ in spent), "total": sum(total for _, total in spent)}


def agreement(row: dict[str, Any]) -> str | None:
    """Compare a finished run with its exact value at finite n. None if that value is not known.

    Args:
        row: a row of the table.

    Returns:
        `agrees` within 3 standard errors. `within_allowance` if a sampler that is biased by its step needs the 5 % of
        the exact value that it is allowed on top. `off` otherwise, and for a run without an estimate.
    """
    exact, estimate, error = row["true_llc_t"], row["llc_mean"], row["llc_std_error"]
    if exact is None:
        return None
    if estimate is None or error is None:
        return "off"
    miss = abs(estimate - exact) - STD_ERRORS_ALLOWED * error - ROUNDING
    if miss <= 0:
        return "agrees"
    allowed = row["sampler"] in BIASED_SAMPLERS and miss <= BIAS_ALLOWED * abs(exact)
    return "within_allowance" if allowed else "off"


def truth_line(judged: Iterable[str | None]) -> str | None:
    """Sum up in one line what `agreement` says of each run. None if no run has an exact value."""
    known = [judgement for judgement in judged if judgement is not None]
    if not known:
        return None
    agrees, allowed, off = (known.count(word) for word in AGREEMENTS)
    line = f"{agrees} of {len(known)} runs with an exact λ_t agree with it within 3 standard errors"
    if allowed:
        line += f", {allowed} only within 5 % more (≈), which {', '.join(BIASED_SAMPLERS)} are allowed for their step"
    return line + (f", {off} {'is' if off == 1 else 'are'} off (✗)" if off else "")


def tries_line(
    runs: int, causes: Mapping[str, int], damaged: int, quarantined: int, nodes: Sequence[str] = ()
) -> str | None:
    """Say in one line what a study had to do more than once, and what it gave up. None if there was nothing.

    Args:
        runs: number of runs that were tried again.
        causes: how often each cause occurred, by key of CAUSES.
        damaged: number of damaged files that were set aside.
        quarantined: number of runs that were given up because their ranks died twice.
        nodes: those that were left out because packs failed there.
    """
    parts = []
    if runs:
        why = [f"{causes[key]} {words[causes[key] != 1]}" for key, words in CAUSES.items() if causes.get(key)]
        parts.append(f"tried again: {_counted(runs, 'run')}" + (f" ({', '.join(why)})" if why else ""))
    parts += [f"set aside: {_counted(damaged, 'damaged file')}"] if damaged else []
    parts += [f"quarantined: {_counted(quarantined, 'run')}"] if quarantined else []
    parts += [f"left out: {'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes)}"] if nodes else []
    return "; ".join(parts) or None


def programs_line(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """Say in one line how many programs finished runs compiled or loaded, and in what time. None if there were none."""
    keys = ("programs_compiled", "programs_loaded", "seconds_compile")
    compiled, loaded, seconds = (sum(row[key] or 0 for row in rows) for key in keys)
    if not compiled + loaded:
        return None
    return f"{compiled} compiled, {loaded} loaded, in {seconds:.1f} s of all processes together"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def print_summary(
    table: pa.Table,
    console: Console,
    *,
    seconds: float,
    usage: dict[str, float],
    where: dict[str, Path],
    tries: str | None = None,
) -> None:
    """Print the table, its counts, how busy the ranks were, what was tried again, and where everything lies.

    Args:
        table: the runs of the study, from `results.collect`.
        console: where to print.
        seconds: the time that the study took.
        usage: what `rank_usage` returns.
        where: paths to name, by what lies there.
        tries: what `tries_line` returns.
    """
    rows = table.to_pylist()
    shown = rows if len(rows) <= MOST_ROWS else [r for r in rows if r["status"] != "finished" or r["verdict"] != "ok"]
    console.print(_run_table(shown[:MOST_ROWS]))
    if len(shown) < len(rows) or len(shown) > MOST_ROWS:
        console.print(f"(the table shows {min(len(shown), MOST_ROWS)} of {len(rows)} runs: those that are not ok)")

    counts = {s: sum(r["status"] == s for r in rows) for s in ("finished", "failed", "blocked", "pending")}
    verdicts: dict[str, int] = {}
    for row in rows:
        if row["verdict"] is not None:
            verdicts[row["verdict"]] = verdicts.get(row["verdict"], 0) + 1
    parts = [f"{count} {status}" for status, count in counts.items() if count or status == "finished"]
    console.print(f"targets   {len({r['target_id'] for r in rows})}")
    console.print(f"runs      {', '.join(parts)}")
    console.print(f"verdicts  {', '.join(f'{n} {v}' for v, n in sorted(verdicts.items())) or 'none'}")
    if truth := truth_line(map(agreement, rows)):
        console.print(f"truth     {truth}")
    if usage["ranks"]:
        busy = usage["busy"] / usage["total"] if usage["total"] else 0.0
        console.print(
            f"ranks     {usage['ranks']:.0f} rank processes spent {busy:.0%} of their time in runs, compiling included "
            f"({usage['busy']:.0f} of {usage['total']:.0f} s, start-up included)"
        )
    if programs := programs_line(rows):
        console.print(f"programs  {programs}")
    if tries is not None:
        console.print(f"tries     {tries}", soft_wrap=True)
    console.print(f"time      {seconds:.1f} s")
    for name, path in where.items():
        console.print(f"{name:<10}{path}", soft_wrap=True, highlight=False)


def _run_table(rows: list[dict[str, Any]]) -> Table:
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    # On a narrow terminal only the target's name is cut.
    view.add_column("target", overflow="ellipsis", no_wrap=True, ratio=1)
    view.add_column("run", no_wrap=True, min_width=14)
    for name in ("λ̂", "± s.e.", "λ_t", "λ"):
        view.add_column(name, justify="right", no_wrap=True, min_width=6)
    view.add_column("verdict", no_wrap=True, min_width=9)
    view.add_column("s", justify="right", no_wrap=True, min_width=4)
    for row in rows:
        mark = MARKS.get(agreement(row) or "", "")
        verdict = row["verdict"] if row["status"] == "finished" else row["status"]
        style = "" if verdict == "ok" else "red" if row["status"] == "failed" or verdict == "diverged" else "yellow"
        seconds = (row["seconds_compile"] or 0) + (row["seconds_sample"] or 0)
        view.add_row(
            row["target"],
            row["run_id"].removeprefix("run_").replace("_", " "),
            _number(row["llc_mean"]) + mark,
            _number(row["llc_std_error"]),
            _number(row["true_llc_t"]),
            _number(row["true_llc"]),
            f"[{style}]{verdict}[/{style}]" if style else verdict,
            f"{seconds:.1f}" if row["status"] == "finished" else "",
        )
    return view


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
