"""The most memory that a rank has taken, by the size of its data and by lanes.

    python benchmarks/memory.py [--quick] [--out DIR]

Each row is a process of its own, which samples one run, or lanes of it, as a rank does.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402
from benchmarks.step import NETWORKS, STEP_SIZE, make_target  # noqa: E402
from lambda_hat.config import HmcConfig, SgldConfig  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

ROWS = (1000, 10_000, 100_000, 1_000_000)
LANES = (1, 16, 64)


def as_rank(sampler: str, rows: int, lanes: int) -> float:
    """Sample, and print the MB that this process has taken at most."""
    import resource

    bind_process(1)
    from lambda_hat.engine.chunks import Chunks
    from lambda_hat.samplers import make_lane, sample_lanes

    target = make_target(NETWORKS[1]._replace(n=rows))
    if sampler == "sgld":
        cfg = SgldConfig(num_draws=10, num_burnin=10, step_size=STEP_SIZE)
    else:
        cfg = HmcConfig(num_draws=4, num_burnin=20, num_integration_steps=1, initial_step_size=1e-4)
    sample_lanes([make_lane(target, cfg, identity) for identity in range(lanes)], Chunks(lanes=lanes))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(sampler: str, rows: int, lanes: int) -> float:
    line = [sys.executable, __file__, "--as-rank", json.dumps([sampler, rows, lanes])]
    return float(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--as-rank", type=json.loads, metavar="JSON", help="[sampler, rows, lanes]: one process")
    args = parser.parse_args()
    if args.as_rank:
        print(as_rank(*args.as_rank))
        return
    rows, lanes = (ROWS, LANES) if not args.quick else (ROWS[:2], LANES[:1])
    by_rows = {sampler: [measure(sampler, n, 1) for n in rows] for sampler in ("sgld", "hmc")[: 1 if args.quick else 2]}
    by_lanes = [measure("sgld", rows[1], num) for num in lanes]
    data = [n * 33 * 4 / 2**20 for n in rows]
    by_n = zip(rows, data, *by_rows.values(), strict=True)
    growth = [[n, f"{mb:.3g}", *map(round, figures)] for n, mb, *figures in by_n]
    width = [[num, round(mb)] for num, mb in zip(lanes, by_lanes, strict=True)]
    section = f"""## Memory of a rank

`python benchmarks/memory.py`: MB that the process of a rank has taken at most, importing and compiling included, of one
run of {NETWORKS[1]}, four chains; SGLD in float32, HMC in float64. Full-data losses are taken in slices of 16,384 rows.

{table(["rows", "data in float32, MB", *by_rows], growth)}

SGLD of {rows[1]} rows, by lanes:

{table(["lanes", "MB"], width)}"""
    publish("memory", section, args.out, figure_of(rows, by_rows))


def figure_of(rows: tuple[int, ...], by_rows: dict[str, list[float]]):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    ax = figure.subplots()
    for sampler, megabytes in by_rows.items():
        ax.plot(rows, megabytes, "o-", label=sampler)
    ax.set(xscale="log", xlabel="rows of data", ylabel="MB at most", ylim=(0, None))
    ax.legend()
    return figure


if __name__ == "__main__":
    main()
