"""How long it takes until work begins, and until it is in the table.

    python benchmarks/startup.py [--quick] [--out DIR]

- A rank: from the start of `mpiexec -n 1 python mpi/run_pack.py PACK.json` to the event `run_start` of its first run,
  the target built before, against `python -c "import jax"`, alternating. By then all that SGLD needs is imported, and
  the backend started. The other samplers import blackjax within their first run: `import lambda_hat.samplers.hmc`
  after the library is measured beside it.
- The driver: from the start of `python flows/packed.py --dry-run` to the line that begins with `plan:`, and to its end.
- Planning where every run is finished in the store, and collecting finished runs into the table, with the pictures
  apart. Their files are made here: those of real runs in names, formats and checks, with made-up numbers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import REPEAT, Spread, alternate, options, publish, ratio, table  # noqa: E402
from lambda_hat.store.layout import Store  # noqa: E402
from lambda_hat.store.publish import publish_run, publish_target, write_config  # noqa: E402
from lambda_hat.workflow_config import Study, compose_study  # noqa: E402
from mpi.launchers import LauncherChoice, find_launcher  # noqa: E402

TARGET = {"model": "small", "data": "small", "teacher": "_null"}
SETTINGS_PER_TARGET = 100
IMPORT_HMC = "import lambda_hat.execute.sampling, time; b = time.perf_counter(); import lambda_hat.samplers.hmc; "
IMPORT_HMC += "print(time.perf_counter() - b)"
ANALYSIS = {
    "sampler": "sgld", "llc_mean": 1.98, "llc_std_error": 0.02, "llc_per_chain": [1.9, 2.0, 2.0, 2.02],
    "rhat_max": 1.01, "ess_bulk_min": 400.0, "ess_tail_min": 300.0, "ess_mean": 350.0, "acceptance": None,
    "mala_acceptance": None,
    "temperature": 1.02, "temperature_std_error": 0.03, "growth": 49.9, "localisation": 0.1, "distance": 0.22,
    "degree": 2.04, "llc_variance": 24.0, "num_divergent": 0, "loss_mean": 0.5, "singular_fluctuation": None,
    "singular_fluctuation_std_error": None, "waic": None, "verdict": "ok",
    "verdict_sentence": "the chains agree and the standard error is 1.0% of the estimate.", "loss_at_w_star": 0.01,
    "n": 1000, "dim": 49, "beta": 0.14, "gamma": 1.0, "n_beta": 144.7, "true_llc": None, "true_multiplicity": None,
    "true_llc_t": None, "rel_error": None, "rel_error_llc": None, "step_size": [1e-5] * 4,
    "num_gradients": 120_000, "fge": 30_000.0,
    "seconds_compile": 1.0, "seconds_sample": 2.0, "seconds_total": 3.3, "cache_hit": False,
    "notes": ["unadjusted: biased by its step size"], "host": "node0001", "pid": 100, "cores": 1, "backend": "cpu",
    "device": "cpu", "versions": {"python": "3.11.7", "jax": "0.10.1", "numpy": "2.2.6"}, "rank": 0,
    "pack_id": "pack_20261125-031502-abcd-0-0001", "started": 1.79e9,
}  # fmt: skip
"""What a run of this size leaves."""


def study(folder: Path, num_targets: int, settings: int = SETTINGS_PER_TARGET) -> Path:
    """An experiments file: trained networks times settings of SGLD and HMC."""
    content = {
        "store_root": str(folder / "store"),
        "results_root": str(folder / "results"),
        "targets": [{**TARGET, "sweep": {"seed": list(range(num_targets))}}],
        "samplers": [
            {"name": "sgld", "sweep": {"step_size": [1e-6, 1e-5], "seed": list(range(settings // 4))}},
            {"name": "hmc", "sweep": {"seed": list(range(settings // 2))}},
        ],
    }
    path = folder / f"study-{num_targets}-{settings}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def seconds_of(command: list[str]) -> float:
    """Wall seconds of a command that succeeds."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


# --------------------------------------------------------------------------------------------------------------
# A rank


class RankStart:
    """A pack of one short run whose target is built; what it is run for is its first events."""

    def __init__(self, folder: Path):
        self._store = Store(folder / "store")
        self._launch = [find_launcher(LauncherChoice()).program, "-n", "1"]
        content = {
            "store_root": str(self._store.root),
            "targets": [{"target": "quadratic"}],
            "samplers": [{"name": "sgld", "overrides": {"num_draws": 10, "num_burnin": 0, "step_size": 1e-4}}],
        }
        experiments = folder / "rank.yaml"
        experiments.write_text(yaml.safe_dump(content))
        self._study = compose_study(experiments)
        (run,) = self._study.runs
        self._run_dir = self._store.run_dir(run.target_id, run.run_id)
        words = ["--experiments", str(experiments)]
        subprocess.run([sys.executable, "mpi/run_pack.py", *words], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        (self._pack,) = self._store.packs_dir.glob("pack_*")
        self.events: list[dict[str, float]] = []

    def __call__(self) -> float:
        """Seconds from the start of the launcher to the first `run_start`."""
        (self._run_dir / "analysis.json").unlink()
        (self._pack / "rank-0000.jsonl").unlink()
        begun = time.time()
        seconds_of([*self._launch, sys.executable, "mpi/run_pack.py", str(self._pack / "pack.json")])
        lines = (self._pack / "rank-0000.jsonl").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        self.events.append({event["event"]: event["time"] - begun for event in reversed(events)})
        return self.events[-1]["run_start"]


def rank_section(folder: Path, repeat: int) -> str:
    start = RankStart(folder)
    figures = alternate({"bare": lambda: seconds_of([sys.executable, "-c", "import jax"]), "rank": start}, repeat)
    blackjax = [
        float(subprocess.run([sys.executable, "-c", IMPORT_HMC], cwd=ROOT, check=True, capture_output=True).stdout)
        for _ in range(repeat)
    ]
    rows = [["`import jax` in a fresh process", Spread.of(figures["bare"])]]
    for event, what in (("start", "rank: its device bound"), ("ready", "rank: all of SGLD imported, backend started")):
        rows.append([what, Spread.of([events[event] for events in start.events])])
    rows.append(["rank: first run claimed", Spread.of(figures["rank"])])
    rows.append(["the same over `import jax`", f"{ratio(figures['rank'], figures['bare'])}, wanted: at most 1.5"])
    rows.append(["blackjax, imported within the first run of a sampler that needs it", Spread.of(blackjax)])
    return table(["seconds", "median (least to most)"], rows)


# --------------------------------------------------------------------------------------------------------------
# The driver


def plan_seconds(experiments: Path) -> tuple[float, float]:
    """Seconds until the driver says its plan, and until its dry run has ended."""
    begun = time.perf_counter()
    planned = None
    command = [sys.executable, "-u", "flows/packed.py", "--experiments", str(experiments), "--dry-run"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        for line in driver.stdout:
            if planned is None and line.startswith("plan:"):
                planned = time.perf_counter() - begun
    if driver.returncode or planned is None:
        raise RuntimeError(f"{' '.join(command)}: exit status {driver.returncode}")
    return planned, time.perf_counter() - begun


@contextmanager
def without_syncs() -> Iterator[None]:
    """The files of a hundred thousand runs are made here in a minute, and not in an hour."""
    with mock.patch("os.fsync"):
        yield


def finish_all(study: Study) -> None:
    """The files of a study whose every run is finished."""
    store = Store(study.settings.store_root)
    meta = {"kind": "mlp", "loss_at_w_star": 0.01, "true_llc": None, "true_multiplicity": None}
    with without_syncs():
        for target_id, build in study.targets.items():
            arrays = {"params.npz": bytes(1000), "data.npz": bytes(1000)}
            publish_target(store.target_dir(target_id), build, meta | {"n": build.n, "dim": build.dim}, arrays)
        for run in study.runs:
            directory = store.run_dir(run.target_id, run.run_id)
            publish_run(directory, run, write_config(directory, run.cfg), bytes(4096), ANALYSIS)


def driver_rows(folder: Path, sizes: dict[int, float], repeat: int) -> Iterator[list[object]]:
    for num_runs, wanted in sizes.items():
        settings = min(num_runs // 5, SETTINGS_PER_TARGET)
        experiments = study(folder, num_runs // settings, settings)
        for what in ("nothing done yet", "all finished"):
            if what == "all finished":
                finish_all(compose_study(experiments))
            times = [plan_seconds(experiments) for _ in range(repeat if num_runs < 10_000 else min(repeat, 3))]
            planned, ended = (Spread.of(column) for column in zip(*times, strict=True))
            yield [f"{num_runs:,}", what, planned, ended, f"at most {wanted:g} s until the plan"]


# --------------------------------------------------------------------------------------------------------------
# The table


def collect_rows(folder: Path, num_runs: int, repeat: int) -> Iterator[list[object]]:
    from lambda_hat.report.results import collect, write_table
    from lambda_hat.report.study_report import draw_pictures, write_pictures

    composed = compose_study(study(folder, max(num_runs // SETTINGS_PER_TARGET, 1), SETTINGS_PER_TARGET))
    finish_all(composed)
    figures: dict[str, list[float]] = {"into the Parquet table": [], "the pictures": []}
    for _ in range(repeat):
        begun = time.perf_counter()
        rows = collect(Store(composed.settings.store_root), composed.runs, composed.targets)
        write_table(rows, folder)
        written = time.perf_counter()
        write_pictures(draw_pictures(rows), folder)
        figures["into the Parquet table"].append(written - begun)
        figures["the pictures"].append(time.perf_counter() - written)
    wanted = {"into the Parquet table": "at most 10 s for 10,000"}
    for what, seconds in figures.items():
        yield [f"{len(composed.runs):,}", what, Spread.of(seconds), wanted.get(what, "")]


def section(folder: Path, quick: bool) -> str:
    repeat = 1 if quick else REPEAT
    sizes = {20: 1.0} if quick else {100: 1.0, 100_000: 20.0}
    folders = [folder / name for name in ("rank", "driver", "table")]
    for each in folders:
        each.mkdir()
    return "\n\n".join(
        [
            "## Start-up",
            "### A rank",
            rank_section(folders[0], repeat),
            "### The driver",
            table(
                ["runs", "in the store", "seconds to the plan", "to the end of the dry run", "wanted"],
                list(driver_rows(folders[1], sizes, repeat)),
            ),
            "### Collecting finished runs",
            table(["runs", "", "seconds", "wanted"], list(collect_rows(folders[2], 100 if quick else 10_000, repeat))),
        ]
    )


def main() -> None:
    args = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = section(Path(folder), args.quick)
    publish("startup", text, args.out)


if __name__ == "__main__":
    main()
