"""How well the cost model predicts a study that the store has not seen.

    python benchmarks/costs.py [--quick] [--out DIR]
    python benchmarks/costs.py --constants [NAME ...]

Two studies are sampled on one core into a temporary store, their runs alternating, so that what slows the machine slows
both. They share samplers and kinds of targets, and neither a target nor a setting. The costs are learned from the
finished runs of the first, as a driver does when it collects them, and predict those of the second. Seconds are those
inside compiled programs, in CPU time, which other work on the machine changes less than it does the clock.

`--constants` measures those of `lambda_hat/planning/cost.py` one by one, each in a run that takes most of its time for
it.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import Spread, options, publish, table  # noqa: E402
from lambda_hat.config import BuildConfig  # noqa: E402
from lambda_hat.config.defaults import Facts, resolved  # noqa: E402
from lambda_hat.id_utils import Run, target_id_for  # noqa: E402
from lambda_hat.planning import cost  # noqa: E402
from lambda_hat.planning.cost import CostModel, shape_of  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402
from lambda_hat.store.layout import Store  # noqa: E402
from lambda_hat.workflow_config import compose_build_cfg, compose_sample_cfg  # noqa: E402

WANTED = 0.25
"""Error of the sum over the unseen study."""


class OnTarget(NamedTuple):
    build: BuildConfig
    run: Run


def network(widths: list[int], n: int, inputs: int) -> dict[str, Any]:
    """A target entry: a network that is trained for a moment, since only its size matters here."""
    training = {"steps": 100, "polish_steps": 20}
    data = {"n": n, "input_dim": inputs}
    overrides = {"model": {"widths": widths}, "data": data, "training": training}
    return {"model": "small", "data": "small", "teacher": "_null", "overrides": overrides}


def linear(widths: list[int]) -> dict[str, Any]:
    return {"target": "dln", "overrides": {"target": {"widths": widths, "rank": min(widths)}}}


def quadratic(dim: int) -> dict[str, Any]:
    return {"target": "quadratic", "overrides": {"target": {"dim": dim, "rank": dim}}}


def settings(
    chains: int, batch: int, leapfrog: int, draws: int, thins: tuple[int, ...], scale: float
) -> Iterator[dict[str, Any]]:
    """Sampler entries; `scale` shortens what takes long on a large target."""
    for thin in thins:

        def steps(number: int, thin: int = thin) -> int:
            return max(int(number * thin * scale), 1)

        common = {"num_chains": chains, "num_draws": draws}
        noisy = {**common, "step_size": 1e-7, "batch_size": batch, "num_burnin": 100}
        yield {"name": "sgld", "overrides": {**noisy, "thin": steps(20)}}
        hmc = {**common, "num_integration_steps": leapfrog, "num_burnin": 50, "thin": steps(3)}
        yield {"name": "hmc", "overrides": hmc}
        # Its trajectories are long: as many draws would outweigh all the rest.
        yield {"name": "nuts", "overrides": {**common, "num_draws": draws // 4, "num_burnin": 50, "thin": steps(1)}}


def training_study(quick: bool) -> list[OnTarget]:
    targets = [(quadratic(8), 1.0), (linear([6, 4, 6]), 1.0), (network([8], 300, 4), 1.0)]
    targets += [(network([32, 32], 800, 6), 0.2), (linear([24, 16, 24]), 0.5)]
    if quick:
        targets = targets[:1]
    return list(_planned(targets, [(4, 64, 10), (2, 200, 6)], 160, (1, 3), quick))


def unseen_study(quick: bool) -> list[OnTarget]:
    targets = [(quadratic(40), 1.0), (linear([10, 12, 5]), 1.0), (network([20], 500, 5), 1.0)]
    targets += [(network([48, 24], 1200, 8), 0.2)]
    if quick:
        targets = targets[:1]
    return list(_planned(targets, [(3, 120, 8)], 220, (2,), quick))


def _planned(
    targets: list[tuple[dict[str, Any], float]],
    kinds: list[tuple[int, int, int]],
    draws: int,
    thins: tuple[int, ...],
    quick: bool,
) -> Iterator[OnTarget]:
    for number, (entry, scale) in enumerate(targets):
        build = compose_build_cfg(entry)
        # One or the other: every number of chains is a program of its own.
        chains, batch, leapfrog = kinds[number % len(kinds)]
        for sampler in settings(chains, batch, leapfrog, 16 if quick else draws, thins, scale):
            if quick and sampler["name"] not in ("sgld", "hmc"):
                continue
            cfg = compose_sample_cfg(target_id_for(build), sampler, build=build)
            yield OnTarget(build, Run.of(cfg))


def interleaved(studies: list[list[OnTarget]]) -> list[OnTarget]:
    """All runs, those of every study evenly over the whole."""
    places = [
        ((i + 0.5) / len(study), number, run) for number, study in enumerate(studies) for i, run in enumerate(study)
    ]
    return [run for _, _, run in sorted(places, key=lambda place: place[:2])]


def sample_all(store: Store, studies: list[list[OnTarget]]) -> None:
    """The runs of all studies in turn."""
    from lambda_hat.execute.build import build_into
    from lambda_hat.execute.sampling import sample_into

    with mock.patch("time.perf_counter", time.process_time):
        for build, run in interleaved(studies):
            directory = store.target_dir(run.target_id)
            if store.target_status(run.target_id) != "built":
                build_into(directory, build)
            sample_into(store.run_dir(*run.key), directory, run)


class Result(NamedTuple):
    sampler: str
    predicted: float
    by_default: float
    measured: float


def predict(store: Store, training: list[OnTarget], unseen: list[OnTarget]) -> list[Result]:
    """Learn from the one study, and hold the other against what is then expected."""
    from lambda_hat.planning.calibration import read_costs, update_costs
    from lambda_hat.report.results import collect

    targets = {run.target_id: build for build, run in [*training, *unseen]}

    def rows(study: list[OnTarget]):
        return collect(store, [run for _, run in study], targets)

    update_costs(store, rows(training), [run for _, run in training], targets)
    learned, default = read_costs(store.root, 1, 0), CostModel()
    results = []
    for (build, run), seconds in zip(unseen, rows(unseen).column("seconds_sample").to_pylist(), strict=True):
        shape = shape_of(build)
        predicted, by_default = (model.seconds(shape, run.cfg) - model.run for model in (learned, default))
        results.append(Result(run.cfg.name, predicted, by_default, seconds))
    return results


def section(results: list[Result], num_training: int) -> str:
    rows = []
    for name in [*dict.fromkeys(result.sampler for result in results), "all"]:
        own = [result for result in results if name in (result.sampler, "all")]
        measured = sum(result.measured for result in own)
        ratios = [result.predicted / result.measured for result in own]
        total, default = (
            sum(values) / measured for values in ([r.predicted for r in own], [r.by_default for r in own])
        )
        rows.append([name, len(own), f"{measured:.1f}", f"{total:.2f}", Spread.of(ratios), f"{default:.2f}"])
    error = abs(sum(r.predicted for r in results) / sum(r.measured for r in results) - 1)
    logs = [abs(r.predicted / r.measured - 1) for r in results]
    return "\n".join(
        [
            "## Costs",
            "",
            f"Learned from {num_training} runs, held against {len(results)} of a study of other targets and settings.",
            "",
            table(["sampler", "runs", "seconds", "predicted / measured", "of single runs", "by default"], rows),
            "",
            f"The sum is off by {error:.0%} (wanted: at most {WANTED:.0%}), a single run by "
            f"{statistics.median(logs):.0%} in the median.",
        ]
    )


def draw(results: list[Result]) -> Any:
    """Predicted against measured seconds."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    for name in dict.fromkeys(result.sampler for result in results):
        own = [result for result in results if result.sampler == name]
        axis.scatter([r.measured for r in own], [r.predicted for r in own], label=name, s=24)
    ends = [f(r.measured for r in results) for f in (min, max)]
    ends = [ends[0] / 1.5, ends[1] * 1.5]
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.fill_between(ends, [(1 - WANTED) * x for x in ends], [(1 + WANTED) * x for x in ends], color="0.9", zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="measured seconds", ylabel="predicted seconds")
    axis.legend(frameon=False)
    return figure


PROBES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "STEP": (quadratic(2), "sgld", {"precond": "none", "num_burnin": 100, "step_size": 1e-5}),
    "LONGER_STEP nuts": (quadratic(2), "nuts", {"metric": "diagonal", "num_burnin": 100, "max_num_doublings": 1}),
    "LONGER_STEP mclmc": (quadratic(2), "mclmc", {"num_burnin": 100}),
    "LONGER_STEP adjusted_mclmc": (quadratic(2), "adjusted_mclmc", {"num_burnin": 100}),
    "LOW_RANK_STEP": (quadratic(10), "sgld", {"num_burnin": 100}),
    "LAYER": (linear([6, 4, 6]), "sgld", {"precond": "none", "num_burnin": 100, "step_size": 1e-7}),
    "MOVE": (quadratic(1000), "sgld", {"precond": "none", "num_burnin": 100, "step_size": 1e-7}),
    "LOW_RANK": (quadratic(1000), "sgld", {"num_burnin": 100}),
    "UNIT": (network([8], 1000, 4), "hmc", {"num_burnin": 100, "precision": "float32"}),
    "PRODUCT": (network([128, 128], 1000, 4), "hmc", {"num_burnin": 20, "precision": "float32"}),
    "FLOAT64": (network([128, 128], 1000, 4), "hmc", {"num_burnin": 20, "precision": "float64"}),
    "RANDOM": (
        {"target": "dln", "overrides": {"target": {"widths": [32, 2, 2], "rank": 1, "data": "empirical", "n": 40000}}},
        "sgld",
        {"num_burnin": 100, "step_size": 1e-7, "gradient": "plain", "batch_size": 256},
    ),
}
"""A target and a setting whose runs take long for a constant, with those above it as they are."""


class Probe:
    """A run that takes most of its time for one constant of the cost model."""

    def __init__(self, name: str, seconds: float):
        """seconds: about what it shall take."""
        entry, self.sampler, overrides = PROBES[name]
        self._constant, _, self._key = name.partition(" ")
        self.build = compose_build_cfg(entry)
        setting = {"name": self.sampler, "overrides": {**overrides, "num_draws": 1000}}
        cfg = compose_sample_cfg(target_id_for(self.build), setting, build=self.build)
        self.cfg = cfg
        self.cfg = replace(cfg, num_draws=max(4, round(1000 * seconds / self._expected())))

    @property
    def value(self) -> float:
        """The constant."""
        value = getattr(cost, self._constant)
        return value[self._key] if self._key else value

    def _expected(self, factor: float = 1.0) -> float:
        """Seconds, were the constant `factor` times as large."""
        wanted = self.value * factor
        new = {**getattr(cost, self._constant), self._key: wanted} if self._key else wanted
        with mock.patch.object(cost, self._constant, new):
            return cost.expected_seconds(shape_of(self.build), self.cfg)

    def share(self) -> float:
        """The part of the expected seconds that is the constant's."""
        return self._expected(2.0) / self._expected() - 1

    def measure(self) -> tuple[float, float]:
        """What the constant comes to in a run, all others as they are, and seconds of compilation."""
        from lambda_hat.execute.sampling import estimate
        from lambda_hat.targets import build_target

        target, _ = build_target(self.build)
        with mock.patch("time.perf_counter", time.process_time):
            draws = estimate(target, self.cfg).draws
        steps = resolved(self.cfg, Facts(target.dim, target.num_data)).num_steps
        found = {self.sampler: draws.num_gradients / self.cfg.num_chains / steps}
        with mock.patch.dict(cost.GRADIENTS, found if self.sampler in cost.GRADIENTS else {}):
            ratio = draws.seconds_sample / self._expected()
            return self.value * (1 + (ratio - 1) / self.share()), draws.seconds_compile


def measure_constants(names: Sequence[str], seconds: float) -> None:
    """Print what the constants are, and what they come to. seconds: of each run, about."""
    os.environ["LAMBDA_HAT_CACHE"] = "off"
    for name in names:
        probe = Probe(name, seconds)
        found, compiling = probe.measure()
        print(f"{name}: {probe.value:.2g}, measured {found:.2g}; compiled in {compiling:.1f} s", flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--constants", nargs="*", metavar="NAME", help=f"of {', '.join(PROBES)}; default: all")
    args = parser.parse_args()
    bind_process(1)
    if args.constants is not None:
        measure_constants(args.constants or list(PROBES), 0.02 if args.quick else 2.0)
        return
    training, unseen = training_study(args.quick), unseen_study(args.quick)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        sample_all(store, [training, unseen])
        results = predict(store, training, unseen)
    publish("costs", section(results, len(training)), args.out, draw(results) if args.out else None)


if __name__ == "__main__":
    main()
