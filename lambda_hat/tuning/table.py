"""What tuning found, for a person at a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from lambda_hat.tuning.rungs import RungSearch
from lambda_hat.tuning.search import Search
from lambda_hat.tuning.space import Range, Space, Value


def words(values: Mapping[str, Value]) -> str:
    """`step_size 0.0001, thin 20`."""
    return ", ".join(f"{key} {value:g}" for key, value in values.items())


def span(space: Space) -> str:
    """`step_size 1e-06 to 1, thin 1 to 40`."""
    parts = []
    for key, values in space.items():
        if isinstance(values, Range):
            parts.append(f"{key} {values.low:g} to {values.high:g}")
        else:
            parts.append(f"{key} {', '.join(map(str, values.values))}")
    return "; ".join(parts)


def percent(share: float | None) -> str:
    """A relative error; a dash where there is none."""
    if share is None:
        return "–"
    return f"{share:.1%}" if share < 10 else f"{share:.0f}×"


def comment_of(search: Search) -> str:
    """What the settings taken came to, in one line. The search has a winner."""
    assert search.winner is not None
    found = search.judged[search.winner]
    text = f"{search.label}: error {percent(found.error)} at {found.cost:.3g} full gradients"
    if search.confirmed is not None and search.reference.value is not None:
        again = search.confirmed
        text += f"; with fresh seeds {again.llc:.4g} ± {again.std_error:.2g} beside {search.reference.value:.4g}"
    return text if search.is_within else f"{text}; MORE THAN {percent(search.tolerance)} OFF"


def print_searches(searches: Sequence[Search], console: Console) -> None:
    """A row per search: what it began with, what it found, and what that came to with fresh seeds."""
    view = _view("target", "sampler", "error at start", "found", "error", "cost", "fresh λ̂ ± s.e.", "λ_t or reference")
    names = _names(searches)
    for search, name in zip(searches, names, strict=True):
        found = None if search.winner is None else search.judged[search.winner]
        start, again = search.outcomes.get(0), search.confirmed
        reference = search.reference
        view.add_row(
            name,
            search.start.name,
            percent(start.error) if start else "no estimate" if search.num_told else "–",
            "" if search.winner is None else words(search.settings[search.winner]),
            "" if found is None else f"{percent(found.error)}{'' if search.is_within else ' [red]✗[/red]'}",
            "" if found is None else f"{found.cost:.3g}",
            "" if again is None else f"{again.llc:.4g} ± {again.std_error:.2g}",
            "" if reference.value is None else f"{reference.value:.4g}{'' if reference.source == 'exact' else ' *'}",
        )
    console.print(view)
    if any(search.reference.source.startswith("run_") for search in searches):
        console.print("* of a long unbiased run, its exact value not being known", highlight=False)
    console.print(
        "error: relative to λ_t, the standard error counted in, mean over seeds; cost: full gradients of a run",
        soft_wrap=True,
        highlight=False,
    )


def print_rungs(searches: Sequence[RungSearch], console: Console) -> None:
    """A row per quick search: the step size that it takes, and what that run came to."""
    view = _view("target", "sampler", "start", "found", "acceptance", "at least", "λ̂ ± s.e.", "λ_t", "verdict")
    names = _names(searches)
    for search, name in zip(searches, names, strict=True):
        rung = None if search.winner is None else search.rungs[search.winner]
        row = {} if rung is None else rung.row
        known = row.get("true_llc_t")
        view.add_row(
            name,
            search.start.name,
            words(search.start_values),
            "" if rung is None else words({search.key: rung.step}),
            "" if rung is None else f"{row['mala_acceptance']:.3f}",
            "" if rung is None else f"{rung.required:.3f}",
            "" if rung is None else f"{row['llc_mean']:.4g} ± {row['llc_std_error'] or 0:.2g}",
            "" if known is None else f"{known:.4g}",
            "" if rung is None else row["verdict"],
        )
    console.print(view)


def _names(searches: Sequence[Search] | Sequence[RungSearch]) -> list[str]:
    """The labels of the targets, with the id where several targets have the same."""
    ids: dict[str, set[str]] = {}
    for search in searches:
        ids.setdefault(search.start.build.label, set()).add(search.start.target_id)
    labels = [search.start.build.label for search in searches]
    several = [len(ids[label]) > 1 for label in labels]
    return [
        f"{label} ({search.start.target_id})" if more else label
        for search, label, more in zip(searches, labels, several, strict=True)
    ]


def _view(*names: str) -> Table:
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in names:
        view.add_column(name, overflow="fold")
    return view
