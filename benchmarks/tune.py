"""Whether tuning finds settings within 5 % of exact values from a step size that is off by a factor of 200.

    python benchmarks/tune.py [--quick] [--out DIR]

Burn-in says what step size SGLD would take on each target. From two hundred times that, and from a
two-hundredth, `flows/tune.py` searches; what it finds is then held against the exact λ_t by `flows/packed.py`, with the
seeds that the settings were tried with at last.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402

TARGETS = [
    {"target": "quadratic", "overrides": {"target": {"dim": 10, "rank": 6}}},
    {"target": "quadratic", "overrides": {"target": {"dim": 5, "rank": 5, "eigenvalues": [0.1, 0.3, 1.0, 3.0, 10.0]}}},
    {"target": "monomial"},
    {"target": "monomial", "overrides": {"target": {"point": [1.0, 0.0]}}},
    {"target": "monomial", "overrides": {"target": {"exponents": [1, 2]}}},
    {"target": "radial"},
    {"target": "dln", "overrides": {"target": {"widths": [2, 1, 2], "rank": 0}}},
    {"target": "tanh"},
]
LENGTHS = {"num_draws": 1000, "thin": 50, "num_burnin": 5000}
DIRECTIONS = {"× 200": 200.0, "÷ 200": 1 / 200}
"""No power of ten: a ladder by factors of ten from there does not meet burn-in's choice again."""
TRIALS, TOLERANCE = 24, 0.05
LOST = 1000.0
"""Where the figure shows what has no estimate, in per cent."""


class Found(NamedTuple):
    """One search: a row of the table."""

    target: str
    exact: float
    start: float
    """The step size that the search began with."""
    at_start: float | None
    """Relative error of the mean estimate there; None where it diverged."""
    values: dict[str, Any] | None
    """What was found; None where nothing was."""
    llc: float | None
    std_error: float | None
    cost: float | None

    @property
    def error(self) -> float | None:
        """Relative, of the mean over the seeds."""
        return None if self.llc is None else abs(self.llc / self.exact - 1)


def write(path: Path, targets: list[dict], samplers: list[dict]) -> Path:
    path.write_text(yaml.safe_dump({"targets": targets, "samplers": samplers}, sort_keys=False))
    return path


def flow(name: str, folder: Path, experiments: Path, results: str, *words: str) -> Path:
    """The folder of results of a flow that was run on the store of this benchmark."""
    line = [sys.executable, str(ROOT / "flows" / name), "--experiments", str(experiments), "--quiet", *words]
    line += ["--store", str(folder / "runs"), "--results", str(folder / results)]
    done = subprocess.run(line, cwd=folder, capture_output=True, text=True)
    # 1: a run diverged, or a search found nothing: a row of the table says so.
    if done.returncode not in (0, 1):
        sys.exit(f"{' '.join(line)}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return folder / results


def rows_of(results: Path) -> list[dict[str, Any]]:
    import pandas as pd

    return pd.read_parquet(results / "llc_runs.parquet").to_dict("records")


def mean_of(rows: list[dict[str, Any]]) -> tuple[float, float, float] | None:
    """Estimate, standard error and cost over seeds; None where a run has no estimate."""
    if not rows or any(row["status"] != "finished" or row["verdict"] == "diverged" for row in rows):
        return None
    count = len(rows)
    mean = sum(row["llc_mean"] for row in rows) / count
    error = sum(row["llc_std_error"] ** 2 for row in rows) ** 0.5 / count
    return mean, error, sum(row["fge"] for row in rows) / count


def search(folder: Path, targets: list[dict], trials: int) -> dict[str, list[Found]]:
    """Every target from both starts."""
    short = {"num_draws": 10, "thin": 1, "num_burnin": 5000, "precond": "none"}
    learned = write(folder / "learned.yaml", targets, [{"name": "sgld", "overrides": short}])
    steps = {
        row["target_id"]: float(row["step_size"][0]) for row in rows_of(flow("packed.py", folder, learned, "learned"))
    }
    found = {}
    for number, (direction, factor) in enumerate(DIRECTIONS.items()):
        # As many digits as tuning keeps.
        starts = {target_id: float(f"{step * factor:.3g}") for target_id, step in steps.items()}
        sgld = {"name": "sgld", "sweep": {"seed": [0, 1]}}
        samplers = [{**sgld, "targets": [t], "overrides": {**LENGTHS, "step_size": s}} for t, s in starts.items()]
        study = write(folder / f"start-{number}.yaml", targets, samplers)
        tuned = flow("tune.py", folder, study, f"tuned-{number}", "--trials", str(trials)) / "tuned.yaml"
        before = rows_of(flow("packed.py", folder, study, f"start-{number}"))
        after = rows_of(flow("packed.py", folder, tuned, f"found-{number}")) if tuned.is_file() else []
        entries = yaml.safe_load(tuned.read_text())["samplers"] if tuned.is_file() else []
        values = {entry["targets"][0]: entry["overrides"] for entry in entries}
        found[direction] = [row_of(t, starts[t], before, after, values.get(t)) for t in steps]
    return found


def row_of(target_id: str, start: float, before: list[dict], after: list[dict], values: dict | None) -> Found:
    own = [row for row in before if row["target_id"] == target_id]
    exact, there = own[0]["true_llc_t"], mean_of(own)
    at_start = None if there is None else abs(there[0] / exact - 1)
    llc = mean_of([row for row in after if row["target_id"] == target_id]) or (None, None, None)
    return Found(own[0]["target"], exact, start, at_start, values, *llc)


def section(found: dict[str, list[Found]], trials: int, seconds: float) -> str:
    rows, all_of_them = [], [one for own in found.values() for one in own]
    for direction, own in found.items():
        for one in own:
            values = one.values or {}
            there = "diverged" if one.at_start is None else f"{one.at_start:.1%}"
            rows.append([
                one.target.replace("|", r"\|"), direction, f"{one.start:.3g}", there,
                *(f"{values[key]:,}" if key in values else "–" for key in ("step_size", "thin", "num_burnin")),
                "–" if one.llc is None else f"{one.llc:.4f} ± {one.std_error:.4f}", f"{one.exact:.4f}",
                "–" if one.error is None else f"{one.error:.1%}", "–" if one.cost is None else f"{one.cost:,.0f}",
            ])  # fmt: skip
    head = ["target", "start", "step size", "error there", "found", "thin", "num_burnin", "λ̂ ± s.e.", "λ_t", "error"]
    within = sum(one.error is not None and one.error <= TOLERANCE for one in all_of_them)
    return f"""## Tuning

`python benchmarks/tune.py`: SGLD from 200 times and from a 200th of the step size that its burn-in learns,
{trials} trials of 2 seeds each, and {LENGTHS["num_draws"]:,} draws of 4 chains with thin {LENGTHS["thin"]} and burn-in
{LENGTHS["num_burnin"]:,} at the start. λ̂ is the mean of two runs with fresh seeds at the settings found, cost the full
gradients of one. {within} of {len(all_of_them)} are within {TOLERANCE:.0%}; {seconds:.0f} s in all.

{table([*head, "cost"], rows)}"""


def figure_of(found: dict[str, list[Found]]) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.6), layout="constrained")
    ax = figure.subplots()
    names = [one.target for one in next(iter(found.values()))]
    for number, (direction, own) in enumerate(found.items()):
        places = [index + 0.2 * (number - 0.5) for index in range(len(own))]
        for when, face in (("start", "none"), ("found", f"C{number}")):
            errors = [one.at_start if when == "start" else one.error for one in own]
            points = [(x, 100 * max(error, 1e-4)) for x, error in zip(places, errors, strict=True) if error is not None]
            lost = [(x, LOST) for x, error in zip(places, errors, strict=True) if error is None]
            for marker, drawn, what in (("o", points, when), ("x", lost, f"no estimate at the {when}")):
                if drawn:
                    label = f"{what}, {direction}"
                    ax.plot(*zip(*drawn, strict=True), marker, color=f"C{number}", markerfacecolor=face, label=label)
    ax.axhline(100 * TOLERANCE, color="grey", linewidth=0.8, linestyle=":")
    ax.set_xticks(range(len(names)), names, rotation=25, ha="right", fontsize=8)
    ax.set(yscale="log", ylabel="error, %")
    figure.legend(loc="outside upper center", ncols=4, fontsize=8)
    return figure


def main() -> None:
    args = options(__doc__).parse_args()
    trials, targets = (4, TARGETS[:1]) if args.quick else (TRIALS, TARGETS)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = search(Path(folder), targets, trials)
    publish("tune", section(found, trials, time.monotonic() - begun), args.out, figure_of(found) if args.out else None)


if __name__ == "__main__":
    main()
