"""What `--dry-run` promises for networks of the user's own, against what was measured.

    python benchmarks/promise.py [--quick] [--out DIR] [NAME ...]

Each network is a study of one run on one rank: its promise before the target is built, its promise when it is built,
and the core-seconds that the run then took, compiling included. Nothing of the store is measured on other runs.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from benchmarks.defaults import make  # noqa: E402
from benchmarks.measure import known, options, publish, table  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402
from lambda_hat.store.layout import Store  # noqa: E402
from lambda_hat.workflow_config import compose_study  # noqa: E402

BAR = 3.0
SETTINGS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "transformer": {},
    # A default run would take hours; what is expected of a step and of a draw shows in a short one as well.
    "large": {"step_size": 1e-7, "batch_size": 64, "num_burnin": 20, "num_draws": 20, "thin": 1},
}
QUICK = {"num_burnin": 20, "num_draws": 20}
PROMISE = re.compile(r"expected cost: about ([\d.e+-]+) core-hours")


def flow(folder: Path, *words: str) -> str:
    """What `flows/packed.py` says of the study in `folder`. Raises SystemExit where it fails."""
    line = [sys.executable, str(ROOT / "flows" / "packed.py"), "--experiments", str(folder / "study.yaml")]
    line += ["--store", str(folder / "store"), "--results", str(folder / "results"), "--ranks", "1", *words]
    done = subprocess.run(
        line, capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(line)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def promised(folder: Path) -> float:
    """Core-seconds of the study that `--dry-run` expects."""
    said = flow(folder, "--dry-run")
    found = PROMISE.search(said)
    if not found:
        raise SystemExit(f"no expected cost in:\n{said}")
    return 3600 * float(found.group(1))


def save_trained(path: Path, quick: bool) -> Path:
    """The parameters of the trained transformer, by path."""
    import jax
    import numpy as np

    leaves, _ = jax.tree_util.tree_flatten_with_path(make("transformer", quick)[1])
    np.savez(path, **{jax.tree_util.keystr(where, simple=True, separator="."): leaf for where, leaf in leaves})
    return path


def measure(name: str, quick: bool) -> list[Any]:
    from lambda_hat.execute.build import build_into

    kwargs = {"n": {"mlp": 100, "transformer": 50, "large": 100}[name]} if quick else {}
    overrides = {**SETTINGS[name], **(known("sgld", **QUICK) if quick else {})}
    target = {"kind": "custom", "factory": f"benchmarks.networks:{name}", "kwargs": kwargs}
    content = {
        "targets": [{"target": target}],
        "samplers": [{"name": "sgld", "overrides": overrides}],
    }
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        if name == "transformer":
            target["checkpoint"] = str(save_trained(folder / "trained.npz", quick))
        (folder / "study.yaml").write_text(yaml.safe_dump(content))
        before = promised(folder)
        plan = compose_study(folder / "study.yaml", (), {"store_root": str(folder / "store")})
        store = Store(folder / "store")
        for target_id, build in plan.targets.items():
            directory = store.target_dir(target_id)
            directory.mkdir(parents=True)
            build_into(directory, build)
        built = promised(folder)
        flow(folder)
        (run,) = plan.runs
        analysis = json.loads((store.run_dir(run.target_id, run.run_id) / "analysis.json").read_text())
    took = analysis["seconds_sample"] + analysis["seconds_compile"]
    figures = [before, built, took, took / before, took / built]
    return [name, f"{analysis['dim']:,}", *(f"{figure:.3g}" for figure in figures)]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SETTINGS)}; default: all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SETTINGS):
        parser.error(f"unknown network {', '.join(sorted(unknown))}; there are {', '.join(SETTINGS)}")
    bind_process(1)
    rows = []
    for name in args.names or list(SETTINGS)[: 1 if args.quick else None]:
        rows.append(measure(name, args.quick))
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["network", "parameters", "before it is built, s", "built, s", "measured, s"]
    section = f"""## What a dry run promises

`python benchmarks/promise.py`: core-seconds of a study of one SGLD run that `flows/packed.py --dry-run` expects, before
and after the target is built, and those that the run took, compiling included. `mlp` and `transformer` at default
settings, the transformer trained before; `large`, of four million parameters, 4 chains of 40 steps.
The bar is a factor of {BAR:g}.

{table([*head, "measured / before", "measured / built"], rows)}"""
    publish("promise", section, args.out)


if __name__ == "__main__":
    main()
