"""How long a study takes whose second block starts late by half of the study, against a perfect split of its runs.

    python benchmarks/late_block.py [--quick] [--out DIR]

A study of two packs on two blocks of one rank each, on the SLURM of the tests, which takes root. The second block waits
for nodes that another job has, until half of the time has passed that the study takes on two blocks in time. Every run
counts with the seconds that it took. A perfect split ends when both blocks end at the same time; a fixed one gives each
block its pack.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402
from lambda_hat.store.layout import Store, read_events  # noqa: E402
from tests.cluster.slurm_lab import SlurmLab  # noqa: E402
from tests.cluster.studies import ON_THIS_MACHINE, driver_env  # noqa: E402

STUDY = """
targets: [{target: quadratic, overrides: {target: {dim: 10, rank: 4}}}]
samplers:
  - name: sgld
    overrides: {num_chains: 4, num_draws: 200, num_burnin: 0, thin: THIN, step_size: 1e-4}
    sweep: {seed: SEEDS}
"""
PATIENCE = 3600.0


class Found(NamedTuple):
    """What a study took, in seconds from the first rank that was ready to the end of its last run."""

    late: float
    """From the first rank that was ready to the first one of the second block."""
    makespan: float
    work: float
    """Of all runs together."""
    packs: int

    @property
    def perfect(self) -> float:
        return (self.work + self.late) / 2

    @property
    def fixed(self) -> float:
        return self.late + self.work / 2


def run_study(lab: SlurmLab, runs: int, thin: int, late: float) -> Found:
    """Run a study whose second block may start `late` seconds after the first rank is ready."""
    with tempfile.TemporaryDirectory() as folder:
        study, store = Path(folder) / "study.yaml", Store(Path(folder) / "store")
        study.write_text(STUDY.replace("THIN", str(thin)).replace("SEEDS", str(list(range(runs)))))
        sleeper = Path(folder) / "sleeper.sh"
        sleeper.write_text("#!/bin/sh\nexec sleep 7200\n")
        busy = lab.submit("-N3", "--exclusive", "-o", "/dev/null", sleeper)
        words = [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", str(study), "--no-report"]
        words += ["--store", str(store.root), "--pack", str(runs // 2), "--site", "slurm", *ON_THIS_MACHINE]
        words += ["site.ranks_per_node=1", "site.max_blocks=2"]
        driver = subprocess.Popen(words, cwd=folder, env=driver_env(lab), stdout=subprocess.DEVNULL)
        try:
            lab.wait_for(lambda: _events(store, "ready") or driver.poll() is not None, PATIENCE)
            time.sleep(late)
            lab.run("scancel", str(busy))
            if driver.wait(PATIENCE):
                sys.exit(f"the study ended with {driver.returncode}")
        finally:
            driver.kill()
        lab.wait_for(lambda: not lab.jobs(), 60)
        ready: dict[str, float] = {}
        for event in sorted(_events(store, "ready"), key=lambda event: event["time"]):
            ready.setdefault(event["host"], event["time"])
        first, second = sorted(ready.values())
        ends = _events(store, "run_end")
        work, last = sum(end["seconds"] for end in ends), max(end["time"] for end in ends)
        return Found(second - first, last - first, work, len(list(store.packs_dir.glob("pack_*"))))


def _events(store: Store, kind: str) -> list[dict]:
    logs = store.packs_dir.glob("pack_*/rank-*.jsonl")
    return [event for log in logs for event in read_events(log)[0] if event["event"] == kind]


def main() -> None:
    args = options(__doc__).parse_args()
    runs, thin = (8, 1000) if args.quick else (64, 6_000)
    with SlurmLab() as lab:
        in_time = run_study(lab, runs, thin, 0.0)
        late = run_study(lab, runs, thin, in_time.makespan / 2)
    rows = [
        [name, *(f"{seconds:.0f}" for seconds in found[:3]), found.packs, f"{found.perfect:.0f}",
         f"{found.makespan / found.perfect:.2f}", f"{found.fixed:.0f}"]
        for name, found in (("in time", in_time), ("late", late))
    ]  # fmt: skip
    head = ["second block", "late by, s", "makespan, s", "all runs, s", "packs", "a perfect split, s", "ratio"]
    section = f"""## A block that starts late

{table([*head, "each block its pack, s"], rows)}

{runs} runs in two packs, one rank a block. A perfect split has no start of ranks and no compilation for the runs that
the second block takes over. The last column, each block its pack, is computed from the same runs: the late block has
half of them.
"""
    publish("late_block", section, args.out)


if __name__ == "__main__":
    main()
