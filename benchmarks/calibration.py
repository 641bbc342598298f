"""Losses whose learning coefficient is exact at every temperature: those that devinterp is calibrated on.

    python benchmarks/calibration.py [--quick] [--out DIR] [--devinterp PYTHON]

`L(w) = 1/2 sum_i |w_i|^p_i` at 0 without localisation. `Z(t) = prod_i integral exp(-t/2 |w_i|^p_i) dw_i` is
`t^(-sum 1/p_i)` times a constant, so that `t E[L] = -t d log Z / dt = sum_i 1/p_i` at every t.

devinterp's own figures on these losses are within about 6.5 % of the exact ones. With the interpreter of an environment
that has it, its SGLD is run here at the settings of ours.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.devinterp_side import NOTE, ask  # noqa: E402
from benchmarks.measure import known, number, options, publish, table, with_error  # noqa: E402
from lambda_hat.programs.cores import bind_process  # noqa: E402

POWERS = ((2,), (2, 2), (2, 2, 2), (4,), (4, 2))
N, CHAINS, DRAWS = 1000, 8, 1000
STEP_SIZE = 2e-4
"""Of SGLD: it heats a quadratic by `1 / (1 - STEP_SIZE t/8)`, .4 % here, where `t = N / log N`."""
THIN = {"sgld": 25, "hmc": 1, "nuts": 1}
"""SGLD needs `2 / (STEP_SIZE t)`, some 70 steps, to forget where it was on a quadratic, and more on a quartic."""
PUBLISHED = 0.065


def exact(powers: tuple[int, ...]) -> float:
    return sum(1 / p for p in powers)


def loss_of(powers: tuple[int, ...]):
    import jax.numpy as jnp

    def loss(params, batch):
        return 0.5 * sum(jnp.abs(params["w"][i]) ** p for i, p in enumerate(powers))

    return loss


def ours(powers: tuple[int, ...], sampler: str, draws: int) -> Any:
    """The estimate of one of our samplers, all but the run's size at its default; SGLD has its step size."""
    import numpy as np

    from lambda_hat import estimate_llc

    own = {"step_size": STEP_SIZE, "batch_size": None} if sampler == "sgld" else {}
    return estimate_llc(
        loss_of(powers), {"w": np.zeros(len(powers))}, None, n=N, sampler=sampler, gamma=0.0, num_chains=CHAINS,
        num_draws=draws, thin=THIN[sampler], **known(sampler, **own),
    )  # fmt: skip


def rows_of(powers: tuple[int, ...], draws: int, devinterp: str | None) -> list[list[Any]]:
    truth = exact(powers)
    rows = []
    for sampler in THIN:
        found = ours(powers, sampler, draws)
        t = with_error(getattr(found, "temperature", None), getattr(found, "temperature_std_error", None))
        rows.append([sampler, found.llc, found.std_error, t, number(getattr(found, "degree", None)), found.verdict])
    if devinterp:
        asked = {"what": "powers", "powers": powers, "n": N, "chains": CHAINS, "draws": draws, "burnin": 500}
        answer = ask(devinterp, asked | {"thin": THIN["sgld"], "step_size": STEP_SIZE})
        rows.append([f"devinterp {answer['version']}, SGLD", answer["llc"], answer["std_error"], "–", "–", "–"])
    loss = f"({', '.join(map(str, powers))})"
    return [
        [loss, f"{truth:.4g}", name, with_error(llc, error, ".4g"), f"{llc / truth - 1:+.1%}", *rest]
        for name, llc, error, *rest in rows
    ]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--devinterp", metavar="PYTHON", help=NOTE)
    args = parser.parse_args()
    bind_process(1)
    powers, draws = (POWERS[:1], 50) if args.quick else (POWERS, DRAWS)
    rows = [row for p in powers for row in rows_of(p, draws, args.devinterp)]
    head = ["p", "exact", "sampler", "estimate", "error", "T", "degree", "verdict"]
    section = f"""## Calibration by exact losses

`python benchmarks/calibration.py --devinterp PYTHON`: `1/2 sum |w_i|^p_i` at 0, n = {N:,}, γ = 0, {CHAINS} chains of
{draws:,} draws; SGLD at ε = {STEP_SIZE:g}, {THIN["sgld"]} steps a draw. `t E[L]` is the sum of `1/p_i` at every t;
the published errors of devinterp on these losses are within {PUBLISHED:.1%}. The degree is that of the loss, weighted
by the coordinates' shares: 2 and 4, and 2.67 for (4, 2).

{table(head, rows)}"""
    publish("calibration", section, args.out)


if __name__ == "__main__":
    main()
