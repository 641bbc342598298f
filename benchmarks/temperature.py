"""The configurational temperature against the actual error, on targets whose exact answer is known.

    python benchmarks/temperature.py [--quick] [--out DIR]

SGLD from far too cold to far too hot: minibatches of noisy data with plain gradients and with control variates, at step
sizes that are given, and too few steps. `excess` is `dim (T - 1) / growth`, what the verdicts rest on.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import number, options, publish, table, with_error  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

ROWS, DIM = 5000, 5
STEPS = (1e-7, 1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4)
QUICK_STEPS = (1e-4,)


def make(condition: float) -> tuple[Any, float]:
    """Linear regression on the squared error at its least squares, and its exact answer at the default posterior."""
    import numpy as np

    from lambda_hat.targets.custom import target_of

    rng = np.random.default_rng(0)
    x = rng.normal(size=(ROWS, DIM)) * np.sqrt(np.geomspace(1, 1 / condition, DIM))
    y = x @ np.ones(DIM) + rng.normal(size=ROWS)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    h = ROWS / np.log(ROWS) * 2 * np.linalg.eigvalsh(x.T @ x / ROWS)
    return target_of(squared_error, w, (x, y), None, identity="squared error"), float(np.sum(h / (2 * (h + 1))))


def squared_error(w: Any, batch: Any) -> Any:
    x, y = batch
    return ((x @ w - y) ** 2).mean()


def rows(quick: bool) -> list[dict[str, Any]]:
    """A row per target, kind of gradient and step size."""
    from lambda_hat.config import SgldConfig
    from lambda_hat.execute.sampling import estimate

    found = []
    for condition in (1.0, 1e4):
        target, exact = make(condition)
        for gradient in ("plain", "control_variate"):
            for step in QUICK_STEPS if quick else STEPS:
                cfg = SgldConfig(step_size=step, gradient=gradient, batch_size=64, thin=10, num_burnin=2000)
                summary = estimate(target, cfg).summary
                error = summary.llc_mean / exact - 1
                row = {"condition": condition, "gradient": gradient, "step": step, "error": error, "summary": summary}
                row["excess"] = target.dim * (summary.temperature - 1) / summary.growth
                found.append(row)
    return found


def section(found: list[dict[str, Any]]) -> str:
    head = ["condition", "gradient", "step size", "T", "excess", "error of λ̂", "R-hat", "verdict"]
    lines = [
        [
            f"{row['condition']:g}",
            row["gradient"],
            f"{row['step']:g}",
            with_error(row["summary"].temperature, row["summary"].temperature_std_error),
            f"{row['excess']:+.1%}",
            f"{row['error']:+.1%}",
            number(row["summary"].rhat_max, ".3f"),
            row["summary"].verdict,
        ]
        for row in found
    ]
    return f"""## The temperature against the error

`python benchmarks/temperature.py`: SGLD on linear regression of noisy data ({DIM} parameters, {ROWS:,} rows, batches of
64), whose answer is exact, at step sizes that are given. excess: `dim (T - 1) / growth`.

{table(head, lines)}"""


def figure(found: list[dict[str, Any]]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for verdict in dict.fromkeys(row["summary"].verdict for row in found):
        own = [row for row in found if row["summary"].verdict == verdict]
        axis.plot([row["excess"] for row in own], [row["error"] for row in own], "o", label=verdict)
    axis.axline((0, 0), slope=1, color="black", linewidth=1)
    axis.axvspan(-0.05, 0.05, color="0.9")
    for scale in (axis.set_xscale, axis.set_yscale):
        scale("symlog", linthresh=0.1)
    axis.set_xlabel("dim (T - 1) / growth")
    axis.set_ylabel("error of the estimate")
    axis.legend()
    return drawn


def main() -> None:
    args = options(__doc__).parse_args()
    bind_process(1)
    found = rows(args.quick)
    publish("temperature", section(found), args.out, figure(found))


if __name__ == "__main__":
    main()
