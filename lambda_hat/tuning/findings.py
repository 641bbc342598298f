"""What tuning found: tables at a terminal, and the experiments file with the settings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lambda_hat.config.plain_yaml import dump_line
from lambda_hat.store.files import write_bytes_atomic
from lambda_hat.tuning.rungs import RungSearch
from lambda_hat.tuning.search import Search
from lambda_hat.tuning.space import words
from lambda_hat.tuning.surface import SharedSearch
from lambda_hat.workflow_config import Study

EXPERIMENTS_NAME = "tuned.yaml"


def percent(share: float) -> str:
    """A relative error: `4.2%`, or `12×` from ten on."""
    return f"{share:.1%}" if share < 10 else f"{share:.0f}×"


def comment_of(search: Search | RungSearch | SharedSearch) -> str:
    """What the settings that are taken came to, in one line. The search has a winner."""
    assert search.winner is not None
    if isinstance(search, SharedSearch):
        failed = "".join(f"; on {label}: {verdict}" for label, verdict in search.failures(search.winner).items())
        held = f"ok on {search.num_ok(search.winner)} of {len(search.targets)} targets"
        return f"{search.name}, {search.words(search.winner)}: {held}{failed}"
    if isinstance(search, RungSearch):
        acceptance = search.rows[search.winner]["mala_acceptance"]
        found = f"{words({search.key: search.steps[search.winner]})}, acceptance {acceptance:.3f}"
        return f"{search.start.label}: {found}, at least {search.required:.3f}"
    taken, again, reference = search.judged[search.winner], search.confirmed, search.reference.value
    text = f"{search.start.label}: error {percent(taken.error)} at {taken.cost:.3g} full gradients"
    if again is not None and reference is not None:
        text += f"; with fresh seeds {again.llc:.4g} ± {again.std_error:.2g} beside {reference:.4g}"
    return text if search.is_within else f"{text}; MORE THAN {percent(search.tolerance)} OFF"


def write_experiments(path: Path, study: Study, taken: Iterable[tuple[dict[str, Any], str]], how: str) -> None:
    """Write an experiments file that `lambda-hat run` takes.

    Args:
        path: Of the file.
        study: What was tuned.
        taken: Sampler entries with the settings found, each with a comment of one line.
        how: What found them, in one line.

    Raises:
        StoreError: The file cannot be written.
    """
    lines = [f"# {how}", f"store_root: {dump_line(study.settings.store_root)}"]
    if not study.settings.jax_enable_x64:
        lines.append("jax_enable_x64: false")
    lines += ["targets:", *(f"  - {dump_line(entry)}" for entry in study.settings.targets), "samplers:"]
    for entry, comment in taken:
        lines += [f"  # {comment}", f"  - {dump_line(entry)}"]
    write_bytes_atomic(path, ("\n".join(lines) + "\n").encode())


def print_searches(searches: Sequence[Search], console: Console) -> None:
    """Print a row per search: what it began with, what it found, and what that came to with fresh seeds."""
    table = _table(
        "target", "sampler", "error at start", "found", "error", "cost", "fresh λ̂ ± s.e.", "λ_t or reference"
    )
    for search, name in zip(searches, _names(searches), strict=True):
        found = None if search.winner is None else search.judged[search.winner]
        start, again = search.outcomes.get(0), search.confirmed
        reference = search.reference
        table.add_row(
            name,
            search.start.name,
            percent(start.error) if start else "no estimate" if search.settings else "–",
            "" if search.winner is None else words(search.settings[search.winner]),
            "" if found is None else f"{percent(found.error)}{'' if search.is_within else ' [red]✗[/red]'}",
            "" if found is None else f"{found.cost:.3g}",
            "" if again is None else f"{again.llc:.4g} ± {again.std_error:.2g}",
            "" if reference.value is None else f"{reference.value:.4g}{'' if reference.source == 'exact' else ' *'}",
        )
    console.print(table)
    if any(search.reference.source.startswith("run_") for search in searches):
        console.print("* of a long unbiased run: the exact value is not known", highlight=False)
    console.print(
        "error: relative to λ_t, with the standard error in it, mean over seeds; cost: full gradients of a run",
        soft_wrap=True,
        highlight=False,
    )


def print_rungs(searches: Sequence[RungSearch], console: Console) -> None:
    """Print a row per quick search: the step size that it takes, and what that run came to."""
    table = _table("target", "sampler", "start", "found", "acceptance", "at least", "λ̂ ± s.e.", "λ_t", "verdict")
    for search, name in zip(searches, _names(searches), strict=True):
        cells = [name, search.start.name, words(search.start_values)]
        if search.winner is not None:
            row = search.rows[search.winner]
            known = row["true_llc_t"]
            cells += [
                words({search.key: search.steps[search.winner]}),
                f"{row['mala_acceptance']:.3f}",
                f"{search.required:.3f}",
                f"{row['llc_mean']:.4g} ± {row['llc_std_error'] or 0:.2g}",
                "" if known is None else f"{known:.4g}",
                row["verdict"],
            ]
        table.add_row(*cells)
    console.print(table)


def print_shared(searches: Sequence[SharedSearch], console: Console) -> None:
    """Print a row per setting of each shared search, and where the setting that is taken does not hold."""
    if not any(search.rows for search in searches):
        return
    table = _table("", "sampler", "setting", "ok", "λ̂", "T", "degree", "localisation")
    for search in searches:
        for index in range(len(search.rows)):
            table.add_row(
                "[bold]*[/bold]" if index == search.winner else "",
                search.name,
                search.words(index),
                f"{search.num_ok(index)} of {len(search.targets)}",
                *(f"{search.middle(index, column):.3g}" for column in ("llc_mean", "temperature", "degree")),
                f"{search.share_of_localisation(index):.0%}",
            )
    console.print(table)
    console.print(
        "medians over the targets with the verdict ok, or over all where there are none; * is taken: the most growth "
        "of the loss (degree times λ̂), summed over the targets with the verdict ok",
        soft_wrap=True,
        highlight=False,
    )
    for search in searches:
        if search.winner is not None:
            for label, verdict in search.failures(search.winner).items():
                console.print(f"it does not hold on {label}: {verdict}", soft_wrap=True, highlight=False)


def _names(searches: Sequence[Search] | Sequence[RungSearch]) -> list[str]:
    """The labels of the targets, with the id where several targets have the same label."""
    ids: dict[str, set[str]] = {}
    starts = [search.start for search in searches]
    for start in starts:
        ids.setdefault(start.build.label, set()).add(start.target_id)
    several = {label for label, own in ids.items() if len(own) > 1}
    return [f"{s.build.label} ({s.target_id})" if s.build.label in several else s.build.label for s in starts]


def _table(*names: str) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        table.add_column(name, overflow="fold")
    return table
