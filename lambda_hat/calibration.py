"""Fits the seconds of `lambda_hat/cost.py` to the finished runs of a store, and keeps them in its `costs.json`.

The file holds a sample of the runs that were measured, so that every study of a store adds to it, and what was fitted
to them, so that planning only reads it. Losing it costs accuracy and nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lambda_hat.config import SampleConfig
from lambda_hat.cost import (
    COSTS_FORMAT,
    COSTS_NAME,
    SECONDS_AROUND,
    TERMS,
    Shape,
    default_seconds,
    gradients_per_transition,
    platform_of,
    read_platforms,
    transitions,
    work_of,
)
from lambda_hat.store import Store, write_record

MOST_KEPT = 300
"""Runs of one sampler on one platform that are kept, chosen by the hash of their names."""
PRIOR = 0.3
"""What a term's default weighs, in runs that do little else."""
PRIOR_SCALE = 3.0
"""The same for the speed of the platform beside the one that the defaults were measured on."""
LEAST = 0.1
"""Of its default that a term costs at least: what a study has too little of to show is not free in the next one."""
OUTLIER = 0.3
"""Relative error from which a run counts less: other work on the machine, or a shape that the terms do not describe."""
ITERATIONS, SWEEPS = 20, 100

COLUMNS = ("target_id", "run_id", "status", "verdict", "seconds_sample", "seconds_compile", "seconds_total")
COLUMNS += ("num_gradients", "backend", "device", "cores")


class Measured(NamedTuple):
    """One finished run, as `costs.json` keeps it."""

    sampler: str
    kind: str
    """Of its target."""
    seconds: float
    """Inside compiled programs."""
    around: float | None
    """Seconds besides these and compilation; None for a run that took several tries."""
    compile: float
    gradients: float | None
    """Of a transition, where the sampler finds out as it goes."""
    work: list[float]


def update_costs(store: Store, table: pa.Table, runs: Iterable[tuple[Shape, SampleConfig]]) -> None:
    """Add the finished runs of `table` to the store's `costs.json`, and fit anew. runs: those of its rows, in order.

    Raises StoreError where the file cannot be written.
    """
    platforms = read_platforms(store.root)
    found: dict[str, dict[str, Measured]] = {}
    for platform, key, measured in _measured(table, runs):
        found.setdefault(platform, {})[key] = measured
    if not found:
        return
    before = {platform: _kept(content) for platform, content in platforms.items()}
    after = {
        platform: _thinned(before.get(platform, {}) | found.get(platform, {})) for platform in sorted({*before, *found})
    }
    if after == before:
        return
    content = {
        platform: {"measured": measured, "fitted": fit(measured.values())}
        for platform, measured in after.items()
        if measured
    }
    write_record(store.root / COSTS_NAME, {"format": COSTS_FORMAT, "terms": list(TERMS), "platforms": content})


def _kept(content: Any) -> dict[str, Measured]:
    """What an earlier study has measured; nothing where it cannot be used."""
    try:
        return {key: Measured(*values) for key, values in content["measured"].items()}
    except (TypeError, KeyError, AttributeError):
        return {}


def _thinned(measured: dict[str, Measured]) -> dict[str, Measured]:
    counts: dict[str, int] = {}
    kept = {}
    for key in sorted(measured, key=lambda key: hashlib.sha1(key.encode()).digest()):
        sampler = measured[key].sampler
        counts[sampler] = counts.get(sampler, 0) + 1
        if counts[sampler] <= MOST_KEPT:
            kept[key] = measured[key]
    return kept


def _measured(table: pa.Table, runs: Iterable[tuple[Shape, SampleConfig]]) -> Iterator[tuple[str, str, Measured]]:
    """Platform, name and measurement of every run that went as its configuration says."""
    for row, (shape, cfg) in zip(table.select(COLUMNS).to_pylist(), runs, strict=True):
        # Chains that have all died end early.
        if row["status"] != "finished" or row["verdict"] == "diverged":
            continue
        numbers = [row[name] for name in ("seconds_sample", "seconds_compile", "num_gradients", "cores")]
        if row["backend"] is None or row["device"] is None or any(n is None for n in numbers) or numbers[0] <= 0:
            continue
        seconds, compiling, num_gradients, cores = numbers
        gradients = gradients_per_transition(cfg)
        learned = None
        if gradients is None:
            gradients = learned = num_gradients / (cfg.num_chains * transitions(cfg))
        around = None if row["seconds_total"] is None else row["seconds_total"] - seconds - compiling
        measured = Measured(
            sampler=cfg.name,
            kind=shape.kind,
            seconds=seconds,
            around=around if around is not None and around >= 0 else None,
            compile=compiling,
            gradients=learned,
            work=list(work_of(shape, cfg, gradients)),
        )
        yield platform_of(row["backend"], row["device"], cores), f"{row['target_id']}/{row['run_id']}", measured


# --------------------------------------------------------------------------------------------------------------
# The fit


def fit(measured: Iterable[Measured]) -> dict[str, Any]:
    """What `lambda_hat.cost.CostModel` is made of, from runs of one platform."""
    runs = list(measured)
    ratios = [run.seconds / np.dot(run.work, default_seconds(run.sampler)) for run in runs]
    scale = float(np.exp(_shrunk_median(np.log(ratios))))
    samplers = {}
    for name in sorted({run.sampler for run in runs}):
        own = [run for run in runs if run.sampler == name]
        seconds = fit_terms(
            np.array([run.work for run in own]),
            np.array([run.seconds for run in own]),
            scale * np.array(default_seconds(name)),
        )
        samplers[name] = {
            "runs": len(own),
            "seconds": seconds.tolist(),
            "gradients": _mean_gradients(own),
            "compile": _mean([run.compile for run in own if run.compile > 0]),
        }
    around = [run.around for run in runs if run.around is not None]
    return {
        "runs": len(runs),
        "around": float(np.median(around)) if around else SECONDS_AROUND,
        "samplers": samplers,
        "scale": scale,
    }


def fit_terms(work: np.ndarray, seconds: np.ndarray, defaults: np.ndarray) -> np.ndarray:
    """(terms,) seconds of each term: least squares of the relative errors, with Huber's weights against outliers, each
    term drawn towards its default and none below `LEAST` of it.

    work: (runs, terms); seconds: (runs,), above 0; defaults: (terms,), above 0.
    """
    relative = work * defaults / seconds[:, None]
    factors = np.ones(len(defaults))
    for _ in range(ITERATIONS):
        error = np.abs(relative @ factors - 1)
        weights = np.minimum(1.0, OUTLIER / np.maximum(error, OUTLIER))
        normal = (relative * weights[:, None]).T @ relative + PRIOR * np.eye(len(factors))
        wanted = relative.T @ weights + PRIOR
        for _ in range(SWEEPS):
            for term in range(len(factors)):
                rest = wanted[term] - normal[term] @ factors + normal[term, term] * factors[term]
                factors[term] = max(rest / normal[term, term], LEAST)
    return factors * defaults


def _shrunk_median(values: np.ndarray) -> float:
    return float(np.median(values) * len(values) / (len(values) + PRIOR_SCALE))


def _mean_gradients(runs: list[Measured]) -> dict[str, float]:
    """By kind of target, drawn towards the mean of all, which stands under ""; empty where nothing is to be learned."""
    counts = [(run.kind, run.gradients) for run in runs if run.gradients is not None]
    if not counts:
        return {}
    overall = float(np.mean([gradients for _, gradients in counts]))
    means = {"": overall}
    for kind in sorted({kind for kind, _ in counts}):
        own = [gradients for other, gradients in counts if other == kind]
        means[kind] = (sum(own) + overall) / (len(own) + 1)
    return means


def _mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
