"""What an estimate at default settings costs, and what it says: CPU-seconds, verdict, temperature, and total work.

    python benchmarks/defaults.py [--quick] [--out DIR] [NAME ...]

Work is in full-gradient equivalents (fge): a gradient of a batch counts as its share of the rows, a loss as a third of
a gradient. The total has what burn-in looks at, the recorded losses and the gradient at `w_star`. Own steps: the number
of gradients, each as one of a batch.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import cpu_seconds, known, number, options, publish, table, with_error  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

BAR_WORK, BAR_MINUTES = 2.0, 10.0
TRAINING_STEPS = 2000
NAMES = ("mlp", "transformer")
QUICK = {"num_draws": 20, "num_burnin": 20}


def make(name: str, quick: bool) -> Any:
    """Loss, parameters and data; the transformer trained."""
    from benchmarks import networks

    if name == "mlp":
        return networks.mlp(n=500) if quick else networks.mlp()
    made = networks.transformer(50 if quick else 2000)
    return networks.trained(made, 5 if quick else TRAINING_STEPS)[0]


def defaults(made: Any, **settings: Any) -> dict[str, Any]:
    """A default estimate in this process, compiling included, and what it took."""
    from lambda_hat import api, estimate_llc

    seen: list[Any] = []

    def watched(target: Any, cfg: Any, *args: Any, **named: Any) -> Any:
        seen.append((cfg, estimate(target, cfg, *args, **named)))
        return seen[-1][1]

    estimate = api.estimate
    with mock.patch.object(api, "estimate", watched):
        found, seconds = cpu_seconds(lambda: estimate_llc(*made, **settings))
    cfg, run = seen[-1]
    share = min(1.0, cfg.batch_size / run.target.num_data)
    own = run.draws.num_gradients * share
    return {"found": found, "seconds": seconds, "fge": run.draws.fge, "own": own, "dim": run.target.dim}


def row(name: str, made: Any, run: dict[str, Any]) -> list[Any]:
    import jax

    loss, params, data = made
    e = run["found"]
    t = with_error(getattr(e, "temperature", None), getattr(e, "temperature_std_error", None))
    at, minutes = float(jax.jit(loss)(params, data)), run["seconds"] / 60
    return [
        name, f"{run['dim']:,}", f"{at:.3g}", f"{minutes:.2f}", e.verdict, with_error(e.llc, e.std_error), t,
        number(getattr(e, "degree", None)), f"{e.num_gradients:,}", f"{run['fge']:.0f}",
        f"{run['fge'] / run['own']:.2f}",
    ]  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; default: all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"unknown network {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    bind_process(1)
    # The programs of an earlier process would make it cheaper.
    os.environ["LAMBDA_HAT_CACHE"] = "off"
    rows = []
    for name in args.names or NAMES[: 1 if args.quick else None]:
        made = make(name, args.quick)
        rows.append(row(name, made, defaults(made, **(known("sgld", **QUICK) if args.quick else {}))))
        print(rows[-1], file=sys.stderr, flush=True)
    head = ["network", "parameters", "loss at w*", "core-minutes", "verdict", "estimate", "T", "degree"]
    section = f"""## A default estimate

`python benchmarks/defaults.py`: `estimate_llc(loss, params, data)` with nothing else said, in a fresh process on one
core, compiling included. `mlp`: 32-72-72-1 at the parameters that made its 20,000 rows, up to noise. `transformer`: two
layers, trained on 2,000 sequences of 32 tokens (a uniform guess has a loss of 3.47). The bars: {BAR_MINUTES:g}
core-minutes for the transformer; total work of at most {BAR_WORK:g} x the gradients of its own steps.

{table([*head, "gradients", "fge in all", "all / own steps"], rows)}"""
    publish("defaults", section, args.out)


if __name__ == "__main__":
    main()
