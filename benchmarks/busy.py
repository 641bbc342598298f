"""How busy ranks are with the runs themselves, by how long a run is.

    python benchmarks/busy.py [--quick] [--out DIR]

Packs on two ranks, of runs that sample for about .1, 1 and 10 s. Two fractions of the time from the start of a rank's
process to its end: inside runs (their data loaded, programs compiled or loaded, results written), and sampling alone.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, options, publish, table  # noqa: E402
from lambda_hat.store.layout import Store, read_events, read_json  # noqa: E402

RANKS = 2
STUDY = """
targets: [{target: quadratic, overrides: {target: {dim: 10, rank: 4}}}]
samplers:
  - name: sgld
    overrides: {num_chains: 4, num_draws: 200, num_burnin: 0, thin: THIN, step_size: 1e-4}
    sweep: {seed: SEEDS}
"""
PACKS = (("1", 0.1, 400), ("1", 1.0, 60), ("1", 10.0, 20), ("4", 0.1, 400))
"""Lanes, seconds of a run, and how many are in a pack."""
QUICK = (("2", 0.02, 4),)


class Pack(NamedTuple):
    """What the ranks of a pack spent their time on, as fractions of it, and the mean seconds of sampling of a run."""

    in_runs: float
    sampling: float
    seconds: float


def run_pack(thin: int, seeds: range, lanes: str) -> Pack:
    with tempfile.TemporaryDirectory() as folder:
        study, store = Path(folder) / "study.yaml", Store(Path(folder) / "store")
        study.write_text(STUDY.replace("THIN", str(thin)).replace("SEEDS", str(list(seeds))))
        command = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(RANKS), sys.executable]
        command += [str(ROOT / "mpi" / "run_pack.py"), "--experiments", str(study), "--store", str(store.root)]
        done = subprocess.run([*command, "--lanes", lanes], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        (pack,) = store.packs_dir.iterdir()
        events = [event for log in pack.glob("rank-*.jsonl") for event in read_events(log)[0]]
        ends = [event for event in events if event["event"] == "end"]
        analyses = [read_json(path) for path in store.root.glob("targets/*/run_*/analysis.json")]
    whole = sum(event["seconds"] for event in ends)
    sampled = sum(analysis["seconds_sample"] for analysis in analyses)
    built = sum(event["seconds"] for event in events if event["event"] == "build_end")
    return Pack((sum(event["busy"] for event in ends) - built) / whole, sampled / whole, sampled / len(analyses))


def main() -> None:
    args = options(__doc__).parse_args()
    repeat, packs, thin = (1, QUICK, 100) if args.quick else (REPEAT, PACKS, 20_000)
    per_thin = run_pack(thin, range(2), "1").seconds / thin
    figures = alternate(
        {
            pack: lambda pack=pack: run_pack(max(1, round(pack[1] / per_thin)), range(pack[2]), pack[0])
            for pack in packs
        },
        repeat,
    )
    rows, curves = [], {}
    for (lanes, seconds, runs), found in figures.items():
        in_runs, sampling, took = (Spread.of(values) for values in zip(*found, strict=True))
        rows.append([seconds, lanes, runs, took, in_runs, sampling])
        curves.setdefault(lanes, []).append((seconds, in_runs.median, sampling.median))
    head = ["run, s", "lanes", "runs", "sampling a run, s", "inside runs", "sampling"]
    section = f"""## How busy ranks are

`python benchmarks/busy.py`: packs of runs of one length on {RANKS} ranks; fractions of the ranks' time from the start
of their processes, imports and the building of the target included, to their ends; median (least to most) of {repeat}
alternating packs, each in a store of its own, so that every program is compiled. The bars are .60, .90 and .97.

{table(head, rows)}"""
    publish("busy", section, args.out, figure_of(curves))


def figure_of(curves: dict[str, list[tuple[float, float, float]]]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 3.2), layout="constrained")
    ax = figure.subplots()
    for color, (lanes, points) in zip(("C0", "C1"), curves.items(), strict=False):
        seconds, in_runs, sampling = zip(*points, strict=True)
        ax.plot(seconds, in_runs, "o-", color=color, label=f"inside runs, lanes {lanes}")
        ax.plot(seconds, sampling, "s--", color=color, label=f"sampling, lanes {lanes}")
    ax.set(xscale="log", xlabel="seconds of a run", ylabel="fraction of the ranks' time", ylim=(0, 1.02))
    ax.legend()
    return figure


if __name__ == "__main__":
    main()
