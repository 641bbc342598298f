"""Effective draws per gradient by metric, on a few targets.

    python benchmarks/metrics.py [--quick] [--out DIR] [--targets A,B] [--samplers A,B]

Settings are a study's defaults but for the metric and the size of the run, so that every line has the same number of
transitions. ESS is that of the mean loss over all chains; gradients include adaptation, as a user pays for it. A larger
ESS of chains that disagree is worth nothing: T and R-hat stand beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import number, options, publish, table, with_error  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402
from lambda_hat.workflow_config import compose_build_cfg, compose_sample_cfg  # noqa: E402

METRICS = ("diagonal", "low_rank", "dense")
SAMPLERS: dict[str, tuple[str, ...]] = {
    **{name: METRICS for name in ("hmc", "nuts", "mala")},
    **{name: METRICS[:2] for name in ("mclmc", "adjusted_mclmc")},
}
CHAINS, DRAWS, BURNIN = 4, 1000, 1000
DIM, ROWS, CONDITION, SCALE = 20, 2000, 1e5, 20.0
"""Of the regression, whose inputs are correlated: no diagonal metric fits. SCALE is that of the inputs along the
steepest direction, so that the curvatures of the negative log posterior run from 1e5 to about 2; 1 is gamma's."""
TARGETS: dict[str, dict[str, Any] | None] = {
    "small mlp": {"model": "small", "data": "small", "teacher": "_null", "seed": 42},
    "regression": None,
    "w1^2 w2^4": {"target": "monomial", "overrides": {"target": {"exponents": [1, 2]}}},
    "dln 5-3-5": {"target": "dln", "overrides": {"target": {"widths": [5, 3, 5], "rank": 1}}},
}


@cache
def make(name: str) -> tuple[Any, Any]:
    """The target of that name, and its configuration, which a regression of our own has not."""
    from lambda_hat.targets import build_target

    entry = TARGETS[name]
    if entry is None:
        return regression(), None
    build = compose_build_cfg(entry)
    return build_target(build)[0], build


def regression() -> Any:
    """Linear regression at its least squares; the eigenvalues of the Hessian span a factor of CONDITION, rotated."""
    import jax.numpy as jnp
    import numpy as np

    from lambda_hat.targets.custom import target_of

    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(DIM, DIM)))[0]
    x = rng.normal(size=(ROWS, DIM)) * SCALE * np.geomspace(1, CONDITION**-0.5, DIM) @ rotation
    y = x @ rng.normal(size=DIM) + rng.normal(size=ROWS)
    w_star = np.linalg.lstsq(x, y, rcond=None)[0]

    def loss(params, batch):
        return 0.5 * jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    return target_of(loss, {"w": w_star}, {"x": x, "y": y}, None)


def exact(target: Any, build: Any, posterior: Any) -> float | None:
    """What a perfect sampler returns, where it is known; `sum h / (2 (h + gamma))` of the regression."""
    import numpy as np

    from lambda_hat.targets import true_llc_t

    if build is not None:
        return true_llc_t(build, posterior.n_beta, posterior.gamma)
    x = target.data["x"]
    h = posterior.n_beta * np.linalg.eigvalsh(x.T @ x / len(x))
    return float(np.sum(h / (2 * (h + posterior.gamma))))


def row(name: str, sampler: str, settings: dict[str, Any]) -> list[Any]:
    from lambda_hat.execute.sampling import estimate

    target, build = make(name)
    cfg = compose_sample_cfg("metrics", {"name": sampler, "overrides": settings}, build=build)
    found = estimate(target, cfg)
    summary, gradients = found.summary, found.draws.num_gradients
    t = with_error(getattr(summary, "temperature", None), getattr(summary, "temperature_std_error", None))
    truth = number(exact(target, build, found.posterior), ".4g")
    return [
        name, sampler, settings["metric"], f"{summary.ess_mean:.0f}", f"{gradients:,}",
        f"{1e3 * summary.ess_mean / gradients:.3g}", truth, with_error(summary.llc_mean, summary.llc_std_error, ".4g"),
        t, number(summary.rhat_max, ".3f"), summary.verdict,
    ]  # fmt: skip


def chosen(word: str, valid: Any, option: str, error: Callable[[str], Any]) -> list[str]:
    names = word.split(",")
    if unknown := [name for name in names if name not in valid]:
        error(f"--{option}: got {', '.join(unknown)}, expected some of {', '.join(valid)}")
    return names


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS), metavar="A,B", help=f"of {', '.join(TARGETS)} (all)")
    parser.add_argument("--samplers", default=",".join(SAMPLERS), metavar="A,B", help=f"of {', '.join(SAMPLERS)} (all)")
    args = parser.parse_args()
    targets = chosen(args.targets, TARGETS, "targets", parser.error)
    samplers = chosen(args.samplers, SAMPLERS, "samplers", parser.error)
    bind_process(1)
    burnin, draws = BURNIN, DRAWS
    if args.quick:
        targets, samplers, burnin, draws = targets[-1:], samplers[:1], 40, 20
    rows = []
    for name in targets:
        for sampler in samplers:
            size = {"num_chains": CHAINS, "num_draws": draws, "num_burnin": burnin, "thin": 1}
            for metric in SAMPLERS[sampler]:
                rows.append(row(name, sampler, {**size, "metric": metric}))
                print(rows[-1], file=sys.stderr, flush=True)
    head = ["target", "sampler", "metric", "ESS", "gradients", "ESS per 1,000 gradients", "exact", "estimate"]
    section = f"""## Effective draws per gradient, by metric

`python benchmarks/metrics.py`: {CHAINS} chains of {burnin} + {draws} transitions in float64, everything else at a
study's defaults. `small mlp`: 4-8-1, seed 42. `regression`: {DIM} correlated inputs, {ROWS:,} noisy rows, condition
number of the posterior's Hessian about {CONDITION:g}. Gradients include adaptation.

{table([*head, "T", "R-hat", "verdict"], rows)}"""
    publish("metrics", section, args.out)


if __name__ == "__main__":
    main()
