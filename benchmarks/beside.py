"""CPU-seconds of a warm estimate beside those of devinterp, at equal settings.

    python benchmarks/beside.py --devinterp PYTHON [--quick] [--out DIR]

Both estimate at the same point of the same network on the same data, with the same n_beta, gamma, step size, batch,
chains, burn-in and draws; everything else is at its default. Ours is on one core; devinterp is on one thread, and on as
many as torch takes by itself, which wait for each other by spinning. Both are warm: what they compile or load they have
before. devinterp records the loss of the batch that a step used; ours is at its default `loss_estimate`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.devinterp_side import NOTE, ask  # noqa: E402
from benchmarks.measure import (  # noqa: E402
    REPEAT,
    Spread,
    alternate,
    cpu_seconds,
    number,
    options,
    publish,
    ratio,
    table,
    with_error,
)
from lambda_hat.programs.cores import bind_process  # noqa: E402

BATCH, CHAINS, BURNIN, DRAWS = 256, 4, 200, 500
STEP_SIZE = 1e-5
BAR = 0.3


def ours(made: Any, draws: int, burnin: int, **settings: Any) -> tuple[Any, float]:
    """Our estimate and its CPU-seconds."""
    from lambda_hat import estimate_llc

    return cpu_seconds(
        lambda: estimate_llc(
            *made, num_chains=CHAINS, num_draws=draws, num_burnin=burnin, gamma=1.0, batch_size=BATCH, **settings
        )
    )


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--devinterp", metavar="PYTHON", required=True, help=NOTE)
    args = parser.parse_args()
    bind_process(1)
    import numpy as np

    from benchmarks import networks

    repeat, draws, burnin = (1, 20, 10) if args.quick else (REPEAT, DRAWS, BURNIN)
    made = networks.mlp(n=500) if args.quick else networks.mlp()
    n = len(made[2]["x"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.npz"
        arrays: dict[str, Any] = made[1] | made[2]
        np.savez(path, **arrays)
        question = {
            "what": "network", "path": str(path), "n": n, "n_beta": n / np.log(n), "gamma": 1.0, "batch_size": BATCH,
            "chains": CHAINS, "draws": draws, "burnin": burnin, "step_size": STEP_SIZE,
        }  # fmt: skip
        ways = {
            "given": lambda: ours(made, draws, burnin, step_size=STEP_SIZE, thin=1),
            "default": lambda: ours(made, draws, burnin),
            "one thread": lambda: ask(args.devinterp, question),
            "its threads": lambda: ask(args.devinterp, question | {"threads": None}),
        }
        for name in ("given", "default"):
            ways[name]()
        found = alternate(ways, repeat)
    theirs = {name: [answer["cpu_seconds"] for answer in found[name]] for name in ("one thread", "its threads")}
    rows = []
    for name, seconds in theirs.items():
        last = found[name][-1]
        llc, ratios = with_error(last["llc"], last["std_error"]), [ratio(seconds, other) for other in theirs.values()]
        rows.append([f"devinterp {last['version']}, {name}", Spread.of(seconds), *ratios, llc, "–", "–"])
    labels = {"given": "ours, its step size", "default": "ours, step size and thinning left open"}
    for name, label in labels.items():
        estimates, seconds = zip(*found[name], strict=True)
        e = estimates[-1]
        llc, t = with_error(e.llc, e.std_error), number(getattr(e, "temperature", None))
        rows.append(
            [label, Spread.of(seconds), *(ratio(seconds, other) for other in theirs.values()), llc, t, e.verdict]
        )
    section = f"""## A warm estimate beside devinterp

`python benchmarks/beside.py --devinterp PYTHON`: CPU-seconds of a network of {"-".join(map(str, networks.MLP))} with
n = {n:,}, batches of {BATCH}, {CHAINS} chains of {burnin} + {draws} steps, γ = 1, ε = {STEP_SIZE:g}, nβ = n / log n;
median (least to most) of {repeat} alternating runs. The bar is {BAR}.

{table(["", "CPU-seconds", "in devinterp's, one thread", "its threads", "estimate", "T", "verdict"], rows)}"""
    publish("beside", section, args.out)


if __name__ == "__main__":
    main()
