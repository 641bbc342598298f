"""A packed study of 256 small runs beside the same runs as a process each.

    python benchmarks/packing.py [--quick] [--out DIR]

The targets are built beforehand, and every way starts from a store that holds nothing else. `flows/packed.py` samples
all runs. A process per run is too slow for that: `flows/parsl_llc.py` samples two smaller numbers of them, and a line
through both is extrapolated; `xargs -P 2 lambda-hat-sample` samples a run of every target, and its rate is taken. Each
with the compile cache off, empty at first, and filled by an earlier study.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, options, publish, ratio, table  # noqa: E402
from lambda_hat.store.layout import CACHE_OFF, CACHE_VARIABLE, Store  # noqa: E402
from lambda_hat.store.publish import write_config  # noqa: E402
from lambda_hat.workflow_config import compose_study  # noqa: E402

STUDY = """
targets:
  - {target: quadratic, overrides: {target: {dim: 10, rank: 4}}}
  - {target: monomial}
  - {target: dln, overrides: {target: {widths: [4, 2, 4], data: empirical, n: 300}}}
  - {model: tiny, data: small, teacher: tiny, seed: 42, overrides: {sigma: 0.1, data: {n: 300}}}
samplers:
  - name: sgld
    overrides: {num_draws: 200, num_burnin: 200, thin: 5, batch_size: 64, step_size: 1e-4}
    sweep: {seed: SEEDS}
"""
NUM_TARGETS = 4
PROCESSES = 2
RUNS, RUNS_QUICK = 256, 16
SOME = (4, 12)
"""Runs of a process each that are sampled."""


class Bench:
    """A study and its built targets in a folder of its own, and the programs of its runs."""

    def __init__(self, folder: Path, runs: int):
        self.folder, self.runs = folder, runs
        self.built, self.programs = folder / "built", folder / "programs"
        self._run(self._flow("packed.py", self.built, self.file(runs), "--pack", "1000"))
        (self.built / "cache").rename(self.programs)
        for path in [*self.built.glob("targets/*/run_*"), self.built / "packs"]:
            shutil.rmtree(path)

    def file(self, runs: int) -> Path:
        """The experiments file of so many runs, a multiple of 4."""
        path = self.folder / f"{runs} runs.yaml"
        path.write_text(STUDY.replace("SEEDS", str(list(range(runs // NUM_TARGETS)))))
        return path

    def _flow(self, name: str, store: Path, file: Path, *words: str) -> list[str]:
        line = [sys.executable, str(ROOT / "flows" / name), "--experiments", str(file), "--quiet"]
        return [*line, "--store", str(store), "--results", str(self.folder / "results"), *words]

    def _run(self, command: list[str], cache: str | None = None) -> float:
        begun = time.perf_counter()
        # The cache is the store's own, unless it is off.
        environment = {key: value for key, value in os.environ.items() if key != CACHE_VARIABLE}
        environment |= {} if cache is None else {CACHE_VARIABLE: cache}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            sys.exit(f"{shlex.join(command)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return time.perf_counter() - begun

    def _fresh(self, warm: bool = False) -> Path:
        store = self.folder / "store"
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(self.built, store)
        if warm:
            shutil.copytree(self.programs, store / "cache")
        return store

    def packed(self, *words: str, warm: bool = False, cache: str | None = None) -> float:
        """Seconds of the whole study in one pack."""
        words = ("--pack", "1000", "--ranks", str(PROCESSES), *words)
        return self._run(self._flow("packed.py", self._fresh(warm), self.file(self.runs), *words), cache)

    def unpacked(self) -> float:
        """Seconds of the whole study as an app a run, extrapolated."""
        few, some = (self._run(self._flow("parsl_llc.py", self._fresh(), self.file(runs))) for runs in SOME)
        return few + (some - few) / (SOME[1] - SOME[0]) * (self.runs - SOME[0])

    def cold_processes(self) -> float:
        """Seconds of the whole study by xargs: of the first run of every target, and of the rest at the rate of the
        second ones, which find the programs of the first."""
        store = self._fresh()
        return self._xargs(store, 0) + self._xargs(store, 1) * (self.runs / NUM_TARGETS - 1)

    def processes(self, warm: bool = False, cache: str | None = None) -> float:
        """Seconds of the whole study by xargs, at the rate of the first run of every target."""
        return self._xargs(self._fresh(warm), 0, cache) * self.runs / NUM_TARGETS

    def _xargs(self, store: Path, seed: int, cache: str | None = None) -> float:
        """Seconds of one run of every target by xargs, a process each."""
        words = []
        for run in compose_study(self.file(2 * NUM_TARGETS)).runs:
            if run.cfg.seed == seed:
                asked = self.folder / f"run {run.run_id}"
                asked.mkdir(exist_ok=True)
                write_config(asked, run.cfg)
                words += ["--config-yaml", str(asked / "config.yaml")]
                words += ["--run-dir", str(Store(store).run_dir(run.target_id, run.run_id))]
        listed = self.folder / "runs.txt"
        listed.write_text("\n".join(words))
        program = Path(sys.executable).parent / "lambda-hat-sample"
        return self._run(["xargs", "-a", str(listed), "-d", "\n", "-P", str(PROCESSES), "-n", "4", str(program)], cache)


def main() -> None:
    args = options(__doc__).parse_args()
    repeat = 1 if args.quick else REPEAT
    packed, process = "`flows/packed.py`", f"`xargs -P {PROCESSES} lambda-hat-sample`"
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), RUNS_QUICK if args.quick else RUNS)
        ways = {
            (packed, "off"): lambda: bench.packed(cache=CACHE_OFF),
            (process, "off"): lambda: bench.processes(cache=CACHE_OFF),
            (packed, "empty"): bench.packed,
            ("`flows/packed.py --lanes 16`", "empty"): lambda: bench.packed("--lanes", "16"),
            ("`flows/parsl_llc.py`", "empty"): bench.unpacked,
            (process, "empty"): bench.cold_processes,
            (packed, "filled"): lambda: bench.packed(warm=True),
            (process, "filled"): lambda: bench.processes(warm=True),
        }
        if args.quick:
            ways = {key: way for key, way in ways.items() if key[1] == "filled"}
        figures = alternate(ways, repeat)
    rows = [
        [way, cache, Spread.of(seconds), ratio(seconds, figures[packed, cache])]
        for (way, cache), seconds in figures.items()
    ]
    section = f"""## A packed study beside a process per run

`python benchmarks/packing.py`: {bench.runs} SGLD runs of 4 targets (200 draws of 4 chains, thin 5; targets built
before), on {PROCESSES} ranks or processes; seconds of the whole, median (least to most) of {repeat} alternating
runs, and in units of the packed study with the same compile cache. Of a process per run some are sampled:
`parsl_llc.py` is extrapolated from {SOME[0]} and {SOME[1]} runs, xargs from a run of every target, with a cache that is
empty at first from two. The bar is 40.

{table(["way", "compile cache", "seconds", "in units of packed"], rows)}"""
    medians = {f"{way.strip('`')}, {cache}": Spread.of(seconds).median for (way, cache), seconds in figures.items()}
    publish("packing", section, args.out, figure_of(medians))


def figure_of(medians: dict[str, float]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    ax = figure.subplots()
    bars = ax.barh(list(medians), list(medians.values()))
    ax.bar_label(bars, [f"{seconds:.3g} s" for seconds in medians.values()], padding=3)
    ax.set(xscale="log", xlabel="seconds of the study, by compile cache")
    ax.margins(x=0.2)
    ax.invert_yaxis()
    return figure


if __name__ == "__main__":
    main()
