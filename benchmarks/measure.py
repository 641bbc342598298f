"""What the benchmarks share: runs that alternate, the spread of their ratios, and the section that each one writes.

A benchmark is a script of its own, because cores, precision and devices are fixed when jax is imported:

    python benchmarks/<name>.py [--quick] [--out DIR]

prints its section and, with `--out`, writes `<name>.md` and the figure that it refers to into that folder.
`benchmarks/bench.py` (`make bench`) runs them all and puts the sections together.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

K = TypeVar("K")
V = TypeVar("V")

REPEAT = 5
"""Alternating runs of every way, at least."""


class Spread(NamedTuple):
    """Smallest, median and largest of several figures of the same thing."""

    least: float
    median: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(min(values), statistics.median(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


def alternate(ways: Mapping[K, Callable[[], V]], repeat: int = REPEAT) -> dict[K, list[V]]:
    """What each way returned, called in turn `repeat` times: what slows the machine for a while slows all of them."""
    figures: dict[K, list[V]] = {name: [] for name in ways}
    for _ in range(repeat):
        for name, way in ways.items():
            figures[name].append(way())
    return figures


def ratio(figures: Sequence[float], base: Sequence[float]) -> Spread:
    """The spread of the ratios of figures that were taken one after the other."""
    return Spread.of([figure / other for figure, other in zip(figures, base, strict=True)])


def cpu_seconds(call: Callable[[], V]) -> tuple[V, float]:
    """What `call` returns, and the CPU-seconds of this process that it took, over all threads."""
    begun = time.process_time()
    found = call()
    return found, time.process_time() - begun


def known(sampler: str, **options: Any) -> dict[str, Any]:
    """Those of the options that the sampler has, so that an earlier version is measured by the same script."""
    from dataclasses import fields

    from lambda_hat.config import SAMPLE_SCHEMAS

    names = {field.name for field in fields(SAMPLE_SCHEMAS[sampler])}
    return {name: value for name, value in options.items() if name in names}


def number(value: float | None, form: str = ".3g") -> str:
    """A figure; a dash where there is none."""
    return "–" if value is None or value != value else format(value, form)


def with_error(value: float | None, error: float | None, form: str = ".3g") -> str:
    """A figure and its standard error."""
    return number(value, form) if error is None else f"{number(value, form)} ± {number(error, '.2g')}"


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short look, for the tests: its figures mean nothing")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write the section and its figure into this folder")
    return parser


def publish(name: str, section: str, out: Path | None, figure: Any = None) -> None:
    """Print a section, and write it, with its matplotlib figure as `<name>.png`, where `out` says so."""
    print(section)
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    if figure is not None:
        figure.savefig(out / f"{name}.png", dpi=120)
        section += f"\n\n![{name}]({name}.png)"
    (out / f"{name}.md").write_text(f"{section}\n")
