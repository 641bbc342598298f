"""The published table of MALA against SGLD on a ReLU network, and whether those chains were in equilibrium.

    python benchmarks/equilibrium.py [--quick] [--out DIR] [--judge SIZES] [--sizes SIZES]

The table is that of Lau et al. 2024 (arXiv 2308.12108v2); the notebook and figures behind it are public
(github.com/edmundlth/validating_lambdahat). What they say: a network 10-20-20-10 with ReLU, 850 parameters; weights
from a normal law cut at two standard deviations of `1/sqrt(inputs)`, hidden biases from N(0, 1), output biases 0;
inputs uniform in [-10, 10]^10; outputs those of the network itself, without noise; loss the squared error averaged over
rows and outputs; w* the true parameters; n_beta = n / log n, gamma = 1, step 1e-5, 10,000 steps from w* of which **none
is burn-in**; batches of 32 in an order that repeats, and the loss of the batch that a step used. MALA is HMC with a
single step of size sqrt(1e-5), not adapted. The figures are mean and standard deviation of five runs on the same data.
Not known: the weights themselves, whose random numbers were another library's; ours are another draw of the same law.

Ours takes the full-data loss of every tenth step, which has the mean of what theirs has. The judge is HMC in a low-rank
metric, on the full data, with burn-in; `quadratic` is `sum h / (2 (h + gamma))` over the eigenvalues h of n_beta times
the Hessian at w*, what a posterior as narrow as that would give.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import known, number, options, publish, table, with_error  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

WIDTHS = (10, 20, 20, 10)
GAMMA, STEP_SIZE, STEPS, BATCH, RUNS, THIN = 1.0, 1e-5, 10_000, 32, 5, 10
PUBLISHED = {
    100: ("54.9 ± 2.7", "54.3 ± 3.6"),
    1000: ("136.9 ± 2.6", "140.0 ± 2.8"),
    10_000: ("294.9 ± 5.0", "296.2 ± 13"),
    100_000: ("355.8 ± 5.7", "349.1 ± 4.5"),
}
"""Of SGLD and of MALA, by n; those of MALA from the five runs in the repository's data."""
JUDGE = {"num_chains": 4, "num_burnin": 1000, "num_draws": 1000, "num_integration_steps": 30, "metric": "low_rank"}
JUDGED = (100, 1000)
"""A gradient at n = 1e4 takes ten times that at 1e3."""


def make(n: int, seed: int = 0) -> Any:
    """Loss, w* and data in float64."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from scipy.stats import truncnorm

    rng = np.random.default_rng(seed)
    params = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(WIDTHS)):
        params[f"w{i}"] = truncnorm.rvs(-2, 2, size=(fan_in, fan_out), random_state=rng) / np.sqrt(fan_in)
        hidden = i < len(WIDTHS) - 2
        params[f"b{i}"] = rng.normal(size=fan_out) if hidden else np.zeros(fan_out)
    x = rng.uniform(-10, 10, size=(n, WIDTHS[0]))

    def outputs(params, x):
        for i in range(len(WIDTHS) - 1):
            x = x @ params[f"w{i}"] + params[f"b{i}"]
            x = jax.nn.relu(x) if i < len(WIDTHS) - 2 else x
        return x

    def loss(params, batch):
        return jnp.mean((outputs(params, batch["x"]) - batch["y"]) ** 2)

    with jax.enable_x64(True):
        y = np.asarray(outputs(params, x))
    return loss, params, {"x": x, "y": y}, outputs


def quadratic(made: Any, slice_rows: int = 500) -> float:
    """`sum h / (2 (h + gamma))`: residuals are zero at w*, so that the Hessian is that of Gauss and Newton, exactly."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.flatten_util import ravel_pytree

    _, params, data, outputs = made
    n = len(data["x"])
    with jax.enable_x64(True):
        w, unravel = ravel_pytree(params)

        @jax.jit
        def of_slice(w, x):
            j = jax.vmap(jax.jacrev(lambda w, row: outputs(unravel(w), row)), (None, 0))(w, x).reshape(-1, w.size)
            return j.T @ j

        total = sum(of_slice(w, jnp.asarray(data["x"][i : i + slice_rows])) for i in range(0, n, slice_rows))
        h = np.linalg.eigvalsh(np.asarray(total)) * 2 / (n * WIDTHS[-1]) * n / np.log(n)
    h = np.maximum(h, 0)
    return float(np.sum(h / (2 * (h + GAMMA))))


def published_settings(made: Any, steps: int) -> Any:
    from lambda_hat import estimate_llc

    wanted = known(
        "sgld", gradient="plain", precond="none", step_size=STEP_SIZE, batch_size=BATCH, thin=THIN, jitter=0.0,
        loss_estimate="full",
    )  # fmt: skip
    return estimate_llc(
        *made[:3], sampler="sgld", gamma=GAMMA, num_chains=RUNS, num_burnin=0, num_draws=steps // THIN, **wanted
    )


def judge(made: Any, settings: dict[str, Any]) -> Any:
    from lambda_hat import estimate_llc

    return estimate_llc(*made[:3], sampler="hmc", gamma=GAMMA, **known("hmc", **settings))


def t_of(found: Any) -> str:
    return with_error(getattr(found, "temperature", None), getattr(found, "temperature_std_error", None))


def row(n: int, steps: int, settings: dict[str, Any] | None) -> list[Any]:
    import numpy as np

    made = make(n)
    ours = published_settings(made, steps)
    cells = [n, *PUBLISHED[n], f"{ours.llc:.1f} ± {np.std(ours.per_chain, ddof=1):.2g}", t_of(ours), ours.verdict]
    judged = ["–"] * 4
    if settings is not None:
        long = judge(made, settings)
        judged = [with_error(long.llc, long.std_error, ".4g"), t_of(long), number(long.rhat, ".3f"), long.verdict]
    return [*cells, *judged, f"{quadratic(made):.1f}"]


def main() -> None:
    parser = options(__doc__)
    sizes = ",".join(map(str, PUBLISHED))
    parser.add_argument("--sizes", default=sizes, metavar="N,N", help=f"of the data, of {sizes} (all)")
    judged = ",".join(map(str, JUDGED))
    parser.add_argument("--judge", default=judged, metavar="N,N", help=f"those with a judge ({judged})")
    args = parser.parse_args()
    bind_process(1)
    wanted = [100] if args.quick else [int(word) for word in args.sizes.split(",")]
    with_judge = [int(word) for word in args.judge.split(",") if word]
    settings = {**JUDGE, "num_burnin": 40, "num_draws": 20} if args.quick else JUDGE
    rows = []
    for n in wanted:
        rows.append(row(n, 200 if args.quick else STEPS, settings if n in with_judge else None))
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["n", "SGLD, published", "MALA, published", "ours, the same settings", "T", "verdict"]
    head += ["judge", "T of the judge", "R-hat", "its verdict", "quadratic"]
    section = f"""## Were the published chains in equilibrium?

`python benchmarks/equilibrium.py`: a ReLU network {"-".join(map(str, WIDTHS))} on its own outputs, γ = {GAMMA:g},
ε = {STEP_SIZE:g}, {STEPS:,} steps from w* without burn-in, batches of {BATCH}; mean and standard deviation of {RUNS}
runs. Published: Lau et al. 2024 (arXiv 2308.12108v2). The weights are another draw of the published law. The judge: HMC
in a low-rank metric on the full data, {settings["num_chains"]} chains of {settings["num_draws"]} draws of
{settings["num_integration_steps"]} gradients after burn-in. `quadratic`: from the eigenvalues of the Hessian at w*.

{table(head, rows)}"""
    publish("equilibrium", section, args.out)


if __name__ == "__main__":
    main()
