"""Runs an hour on one GPU, by ranks that share it, with and without MPS, and by lanes.

    python benchmarks/sharing.py [--quick] [--out DIR]

A small network in SGLD, which leaves a GPU idle. What counts is the time from the end of a rank's first group of lanes
to that of its last, so that no import and no compilation does. `--quick` takes two ranks on cores.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402
from lambda_hat.store.layout import Store, read_events  # noqa: E402

GROUPS = 3
"""Of lanes, for each rank."""
RANKS, LANES = (1, 2, 4, 8), (1, 16, 64, 256)
STUDY = """
targets: [{target: dln, overrides: {target: {data: empirical, n: 1000, noise_std: 0.1}}}]
samplers:
  - name: sgld
    overrides: {num_chains: 4, num_draws: 100, num_burnin: 100, thin: THIN, step_size: 1e-6}
    sweep: {seed: SEEDS}
"""


def runs_an_hour(ranks: int, lanes: int, sharing: str, quick: bool) -> float:
    """Of all ranks together, in a store of their own."""
    runs = GROUPS * ranks * lanes
    words = [f"site.ranks_per_node={ranks}"]
    if not quick:
        words += ["site.gpus_per_node=1", f"site.ranks_per_gpu={ranks}", f"site.gpu_sharing={sharing}"]
    with tempfile.TemporaryDirectory() as folder:
        study = STUDY.replace("THIN", "1" if quick else "100").replace("SEEDS", str(list(range(runs))))
        (Path(folder) / "study.yaml").write_text(study)
        line = [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", "study.yaml", "--no-report"]
        line += ["--pack", str(runs), "--lanes", str(lanes), *words]
        done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stdout + done.stderr)
        (pack,) = Store(Path(folder) / "runs").packs_dir.glob("pack_*")
        events = [event for log in pack.glob("rank-*.jsonl") for event in read_events(log)[0]]
    ends = defaultdict(list)
    for event in events:
        if event["event"] == "run_end":
            ends[event["rank"]].append(event["time"])
    # Runs of a group end together, and a group's last one is published last.
    later = [sorted(times)[lanes - 1 :] for times in ends.values() if len(times) > lanes]
    return sum(3600 * (len(times) - 1) / (times[-1] - times[0]) for times in later)


def main() -> None:
    args = options(__doc__).parse_args()
    ranks, lanes, sharings = ((2,), (2,), ("none",)) if args.quick else (RANKS, LANES, ("none", "mps"))
    rows = [
        [sharing, number, *(f"{runs_an_hour(number, width, sharing, args.quick):.0f}" for width in lanes)]
        for sharing in sharings
        for number in ranks
    ]
    head = ["gpu_sharing", "ranks on the GPU", *(f"{width} lanes" for width in lanes)]
    section = f"""## Ranks that share a GPU

`python benchmarks/sharing.py`: runs an hour of one GPU, without imports and compilation.

{table(head, rows)}"""
    publish("sharing", section, args.out)


if __name__ == "__main__":
    main()
