"""What a new study costs beside an earlier version, and a first estimate beside its parts.

    python benchmarks/first.py [--old FOLDER] [--quick] [--out DIR]

- The default study (`conf/experiments.yaml`) by `flows/packed.py --pack 64` into an empty store, with an empty cache of
  programs. FOLDER is a checkout of the earlier version, whose default study is compared; both run in the environment of
  this script:

      git clone . FOLDER && git -C FOLDER checkout 46654f8

  Rank-seconds are those that ranks spent in runs, by their events.
- `estimate_llc` of a linear regression of ten parameters in a new process, whose cache of programs is filled, beside
  `import jax` in a new process and what a second estimate takes in the same one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, options, publish, ratio, table  # noqa: E402
from lambda_hat.store.layout import CACHE_VARIABLE  # noqa: E402

SAMPLERS = ("sgld", "hmc", "nuts", "mclmc")
SMALL = """
targets: [{target: quadratic}, {target: monomial}]
samplers: [{name: hmc, overrides: {num_draws: 50, num_burnin: 20}}]
"""
"""In place of the default study, for the tests."""
ESTIMATE = """
import sys, time
begun = time.perf_counter()
import numpy as np
from lambda_hat import estimate_llc
def loss(w, batch):
    x, y = batch
    return ((x @ w - y) ** 2).mean() / 2
rng = np.random.default_rng(0)
x = rng.normal(size=(1000, 10))
y = x @ np.ones(10) + rng.normal(size=1000)
w_star = np.linalg.lstsq(x, y, rcond=None)[0]
def seconds():
    begun = time.perf_counter()
    estimate_llc(loss, w_star, (x, y), sampler=sys.argv[1], num_draws=int(sys.argv[2]), progress=False)
    return time.perf_counter() - begun
seconds()
first = time.perf_counter() - begun
print(first, seconds())
"""


class Study(NamedTuple):
    """What a study took: seconds that ranks spent in runs, seconds to its end, compiled programs."""

    rank_seconds: float
    seconds: float
    programs: int


def run_study(version: Path, experiments: Path) -> Study:
    """Run the study by the scripts of a version, into an empty store and with an empty cache of programs."""
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder) / "runs"
        words = ["--experiments", str(experiments), "--pack", "64"]
        words += [f"store_root={store}", f"results_root={folder}/results"]
        begun = time.perf_counter()
        subprocess.run(
            [sys.executable, str(version / "flows" / "packed.py"), *words],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != CACHE_VARIABLE},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        seconds = time.perf_counter() - begun
        analyses = [json.loads(path.read_text()) for path in store.glob("targets/*/run_*/analysis.json")]
        return Study(_rank_seconds(store), seconds, sum(found.get("programs_compiled") or 0 for found in analyses))


def _rank_seconds(store: Path) -> float:
    lines = [line for path in store.glob("packs/*/rank-*.jsonl") for line in path.read_text().splitlines()]
    return sum(event["busy"] for event in map(json.loads, lines) if event["event"] == "end")


def studies(old: Path | None, quick: bool) -> str:
    """The table of the default study, by version."""
    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.yaml"
        small.write_text(SMALL)

        def way(version: Path):
            return lambda: run_study(version, small if quick else version / "conf" / "experiments.yaml")

        versions: Mapping[str, Path] = {"this version": ROOT} | ({"the earlier one": old} if old else {})
        figures = alternate({name: way(version) for name, version in versions.items()}, 1 if quick else REPEAT)
    rows: list[list[Any]] = []
    for name, found in figures.items():
        ours = [each.rank_seconds for each in figures["this version"]]
        rows.append([
            name,
            str(Spread.of([each.rank_seconds for each in found])),
            str(ratio(ours, [each.rank_seconds for each in found])),
            str(Spread.of([each.seconds for each in found])),
            max(each.programs for each in found) or "–",
        ])  # fmt: skip
    head = ["", "rank-seconds in runs", "this version's in units of it", "seconds of the study", "programs of samplers"]
    return f"### The default study, nothing compiled before\n\n{table(head, rows)}"


def estimates(quick: bool) -> str:
    """The table of a first estimate with a filled cache."""
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        env = os.environ | {CACHE_VARIABLE: cache, "PYTHONPATH": str(ROOT)}

        def seconds_of(words: list[str]) -> tuple[float, str]:
            begun = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", *words], env=env, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            return time.perf_counter() - begun, done.stdout.decode()

        for sampler in SAMPLERS[:1] if quick else SAMPLERS:
            words = [ESTIMATE, sampler, "20" if quick else "2000"]
            seconds_of(words)
            ways = {"estimate": lambda words=words: seconds_of(words), "jax": lambda: seconds_of(["import jax"])}
            figures = alternate(ways, 1 if quick else REPEAT)
            seconds = [[float(word) for word in out.split()] for _, out in figures["estimate"]]
            # The second estimate of the process is not part of the first one's time.
            first = [whole - second for (whole, _), (_, second) in zip(figures["estimate"], seconds, strict=True)]
            imports = [whole for whole, _ in figures["jax"]]
            parts = [jax + second for jax, (_, second) in zip(imports, seconds, strict=True)]
            again = Spread.of([second for _, second in seconds])
            rows.append([sampler, str(Spread.of(first)), str(Spread.of(imports)), str(again), str(ratio(first, parts))])
    head = ["sampler", "first estimate, seconds", "`import jax`", "a second estimate", "first over the other two"]
    return f"### A first `estimate_llc` in a new process, with a filled cache\n\n{table(head, rows)}"


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="a checkout of an earlier version")
    args = parser.parse_args()
    old = args.old.resolve() if args.old else None
    publish("first", f"## From the first second\n\n{studies(old, args.quick)}\n\n{estimates(args.quick)}", args.out)


if __name__ == "__main__":
    main()
