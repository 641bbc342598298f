"""What 4,096 ranks make of 1,000,000 runs, by the size of packs, the ranks of a pack and the order: a simulation.

    python benchmarks/scale.py [--quick] [--out DIR]

Packs come from `make_packs` of `planning/packing.py`, and inside a pack the real `Handout` says which run goes to which
rank; what is simulated is the time: every pack starts, its ranks claim, its coordinator answers one claim after the
other, ranks compile what they have not compiled, sample, and publish. As many packs run at a time as their ranks fit
into the machine, each one starting when another one has ended. The costs are measured ones (`Costs`).

Runs take times of a lognormal distribution, sigma 1.2: the longest of a million takes some hundred times as long as the
median. With sigma 1.5 it would take longer than all the others on all ranks, and alone decide how long the study takes.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402
from lambda_hat.config import SgldConfig  # noqa: E402
from lambda_hat.planning.packing import PlannedRun, make_packs  # noqa: E402
from mpi.handout import Handout, Item  # noqa: E402

SIGMA = {"target": 0.8, "program": 0.6, "run": 0.66}
"""Of the logarithms of the factors whose product is the time of a run; together 1.2."""
RUNS_PER_TARGET = 50
NUM_SHAPES, NUM_SAMPLERS = 40, 10
"""Targets of one shape share their programs, one for each sampler."""
COST_ERROR = 0.25
"""Of the cost model: sigma of the logarithm of predicted over real."""
ORDERS = {
    "longest first, costs exact": 0.0,
    "longest first, costs within 25 %": COST_ERROR,
    "longest first, costs within a factor of 2": 0.7,
    "at random": None,
    "as listed": None,
}
"""The error of the cost model; None: costs are not looked at, neither for packs."""
USUAL = "longest first, costs within 25 %"
MEANS = (1.0, 10.0)
"""Seconds of a run."""


@dataclass(frozen=True)
class Costs:
    """Seconds, measured on 2 shared cores; a launch over many nodes was not."""

    start: float = 3.7
    """Of a pack until its ranks claim: 0.7 through Parsl's MPIExecutor, 3.0 for mpiexec and the imports."""
    end: float = 1.5
    """Of a pack from the end of its last run until mpiexec has ended."""
    answer: float = 1 / 5600
    """Of the coordinator for one claim: the rate of benchmarks/handout.py with rank 0 inside an XLA call."""
    latency: float = 0.0043
    """From a claim to its answer besides: the median there, 4 ranks that compute."""
    compile: float = 4.0
    """Of a program, by the first rank that needs it."""
    load: float = 0.35
    """Of a program that is in the compilation cache: 0.24 for lowering, 0.11 for loading."""
    publish: float = 0.1
    """Of a run besides sampling."""


class Study(NamedTuple):
    """Runs by number, in the order of the study's file."""

    seconds: np.ndarray
    """Of sampling, shape (runs,)."""
    targets: list[str]
    programs: list[str]


class Setting(NamedTuple):
    """One simulation."""

    num_runs: int
    num_ranks: int
    mean: float
    """Seconds of a run."""
    ranks: int
    """Of a pack."""
    size: int
    """Runs of a pack."""
    order: str


class Outcome(NamedTuple):
    """What came of one simulation, in seconds; `bound` is the larger of a rank's fair share and the longest run."""

    makespan: float
    busy: float
    """Share of all ranks' time that is spent on sampling."""
    bound: float
    num_packs: int


@lru_cache(maxsize=1)
def draw_study(num_runs: int, seed: int = 0) -> Study:
    """Runs of a mean of 1 s."""
    rng = np.random.default_rng(seed)
    numbers = np.arange(num_runs)
    target = numbers // RUNS_PER_TARGET
    program = target % NUM_SHAPES * NUM_SAMPLERS + numbers % NUM_SAMPLERS
    logs = SIGMA["run"] * rng.normal(size=num_runs)
    logs += SIGMA["target"] * rng.normal(size=target[-1] + 1)[target]
    logs += SIGMA["program"] * rng.normal(size=NUM_SHAPES * NUM_SAMPLERS)[program]
    seconds = np.exp(logs)
    return Study(seconds / seconds.mean(), [f"tgt_{t:06d}" for t in target], [f"program_{p:03d}" for p in program])


def predicted(study: Study, order: str) -> np.ndarray:
    """What the cost model says; all runs alike where the order does not ask for it."""
    error = ORDERS[order]
    if error is None:
        return np.ones(len(study.seconds))
    return study.seconds * np.exp(error * np.random.default_rng(1).normal(size=len(study.seconds)))


@lru_cache(maxsize=1)
def packs_of(num_runs: int, size: int, order: str) -> list[list[Item]]:
    """The packs, each in its order of hand-out; the key of an item is the number of its run."""
    study = draw_study(num_runs)
    costs = predicted(study, order).tolist()
    cfg = SgldConfig()
    runs = (
        PlannedRun(target, f"{number:07d}", cfg, "", 0, program, cost)
        for number, (target, program, cost) in enumerate(zip(study.targets, study.programs, costs, strict=True))
    )
    packs = [[Item(run.run_id, None, run.cost, run.program) for run in pack] for pack in make_packs(runs, size)]
    if order == "at random":
        for pack in packs:
            random.Random(2).shuffle(pack)
    return packs


def simulate_pack(
    items: Sequence[Item], seconds: Sequence[float], ranks: int, begun: float, compiled: dict[str, float], costs: Costs
) -> float:
    """When a pack that is launched at `begun` has ended. `seconds` of a run are found under the number in its key;
    `compiled` has the moments from which on a program is in the cache, and gets those of this pack."""
    handout = Handout(items)
    programs = {item.key: item.program for item in items}
    loaded: list[set[str | None]] = [set() for _ in range(ranks)]
    claims: list[tuple[float, int, str | None]] = [(begun + costs.start, rank, None) for rank in range(ranks)]
    heapify(claims)
    free = last = begun + costs.start
    while claims:
        now, rank, ended = heappop(claims)
        if ended is not None:
            handout.end(ended, ["finished"])
            last = max(last, now)
        free = max(free, now) + costs.answer
        key = handout.take(rank)
        if key is None:
            continue
        now = free + costs.latency
        program = programs[key]
        if program is not None and program not in loaded[rank]:
            loaded[rank].add(program)
            now += costs.load if compiled.get(program, np.inf) <= now else costs.compile
            compiled[program] = min(compiled.get(program, np.inf), now)
        heappush(claims, (now + seconds[int(key)] + costs.publish, rank, key))
    return last + costs.end


def simulate(packs: Sequence[Sequence[Item]], seconds: np.ndarray, ranks: int, num_ranks: int, costs: Costs) -> Outcome:
    """All packs, in their order, on `num_ranks` ranks, `ranks` for each."""
    slots = [0.0] * (num_ranks // ranks)
    compiled: dict[str, float] = {}
    listed = seconds.tolist()
    for pack in packs:
        begun = heappop(slots)
        heappush(slots, simulate_pack(pack, listed, ranks, begun, compiled, costs))
    work, makespan = float(seconds.sum()), max(slots)
    return Outcome(makespan, work / (num_ranks * makespan), max(work / num_ranks, float(seconds.max())), len(packs))


def run_group(settings: Sequence[Setting]) -> dict[Setting, Outcome]:
    """Settings that share their packs, in one process."""
    found = {}
    for setting in settings:
        packs = packs_of(setting.num_runs, setting.size, setting.order)
        seconds = draw_study(setting.num_runs).seconds * setting.mean
        found[setting] = simulate(packs, seconds, setting.ranks, setting.num_ranks, Costs())
    return found


def simulate_all(settings: Sequence[Setting]) -> dict[Setting, Outcome]:
    """On all cores, in the order of `settings`."""
    groups: dict[tuple[int, str], list[Setting]] = {}
    for setting in settings:
        groups.setdefault((setting.size, setting.order), []).append(setting)
    with ProcessPoolExecutor() as pool:
        found = {key: outcome for group in pool.map(run_group, groups.values()) for key, outcome in group.items()}
    return {setting: found[setting] for setting in settings}


def by_size(num_runs: int, num_ranks: int, ratio: int, means: Sequence[float]) -> list[Setting]:
    """Ranks of a pack from all of them down by `ratio`; some runs per rank, and as many as leave nothing for a second
    pack on the same ranks."""
    found = []
    for mean in means:
        for parts in range(4):
            ranks, most = num_ranks // ratio**parts, math.ceil(num_runs / ratio**parts)
            found += [Setting(num_runs, num_ranks, mean, ranks, size, USUAL) for size in (4 * ranks, 32 * ranks, most)]
    return found


def by_order(num_runs: int, num_ranks: int, ratio: int, mean: float) -> list[Setting]:
    """All ranks in one pack, and a few."""
    return [
        Setting(num_runs, num_ranks, mean, ranks, 32 * ranks, order)
        for ranks in (num_ranks, num_ranks // ratio**2)
        for order in ORDERS
    ]


def row(setting: Setting, outcome: Outcome) -> list[Any]:
    return [
        f"{setting.ranks:,}",
        f"{setting.size:,}",
        f"{setting.size / setting.ranks:.0f}",
        f"{outcome.num_packs:,}",
        f"{outcome.busy:.3f}",
        f"{outcome.makespan:,.0f}",
        f"{outcome.makespan / outcome.bound:.2f}",
    ]


def picture(outcomes: Mapping[Setting, Outcome]) -> Any:
    """Busy fraction against the runs of a pack per rank."""
    from matplotlib.figure import Figure

    means = sorted({setting.mean for setting in outcomes})
    figure = Figure(figsize=(5 * len(means), 4), layout="constrained")
    for axes, mean in zip(np.atleast_1d(figure.subplots(1, len(means), sharey=True)), means, strict=True):
        for ranks in sorted({setting.ranks for setting in outcomes}):
            points = [(s.size / ranks, o.busy) for s, o in outcomes.items() if (s.mean, s.ranks) == (mean, ranks)]
            axes.plot(*zip(*sorted(points), strict=True), marker="o", label=f"{ranks:,} ranks per pack")
        axes.set(xscale="log", ylim=(0, 1), xlabel="runs per rank of a pack", title=f"runs of {mean:g} s")
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("share of all ranks' time spent on sampling")
    figure.axes[-1].legend()
    return figure


def main() -> None:
    args = options(__doc__).parse_args()
    num_runs, num_ranks, ratio = (2000, 27, 3) if args.quick else (1_000_000, 4096, 8)
    sizes = by_size(num_runs, num_ranks, ratio, MEANS)
    orders = by_order(num_runs, num_ranks, ratio, MEANS[-1])
    outcomes = simulate_all(list(dict.fromkeys([*sizes, *orders])))
    longest = draw_study(num_runs).seconds.max()
    head = ["ranks per pack", "`--pack`", "runs per rank", "packs", "busy", "makespan, s", "of the bound"]
    section = "\n\n".join(
        [
            "## Scale",
            f"Written by `python benchmarks/scale.py`: {num_runs:,} simulated runs on {num_ranks:,} ranks, with "
            f"lognormal times (sigma 1.2). The longest run takes {longest:,.0f} times the mean, a rank's fair share is "
            f"{num_runs / num_ranks:,.0f} times the mean, and the larger of these is the bound. `busy` is the share of "
            "all ranks' time that is spent on sampling.",
            table(["mean run, s", *head], [[f"{s.mean:g}", *row(s, outcomes[s])] for s in sizes]),
            f"By order, runs of {MEANS[-1]:g} s:",
            table(["order", *head], [[s.order, *row(s, outcomes[s])] for s in orders]),
        ]
    )
    publish("scale", section, args.out, picture({setting: outcomes[setting] for setting in sizes}))


if __name__ == "__main__":
    main()
