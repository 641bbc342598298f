"""The degree of growth on wells that level off, by quadrature: what `not_local` is chosen by.

    python benchmarks/wells.py [--quick] [--out DIR]

The loss is a function of `r = |w|` in `dim` dimensions, so that the mean loss under the posterior, and the degree of
growth `n_beta E[r L'(r)] / (n_beta E[L])`, are integrals over r. The basin is what the estimate would be if the loss
were its own second order at 0: `dim/2 n_beta h / (n_beta h + gamma)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.measure import options, publish, table  # noqa: E402
from lambda_hat.estimate.verdict import LOW_DEGREE, MIN_DEGREE  # noqa: E402


class Well(NamedTuple):
    name: str
    loss: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    curvature: float
    """Of the loss at 0."""


WELLS = (
    Well("1 - exp(-r²/2)", lambda r: -np.expm1(-(r**2) / 2), lambda r: r * np.exp(-(r**2) / 2), 1.0),
    Well("tanh² r", lambda r: np.tanh(r) ** 2, lambda r: 2 * np.tanh(r) * (1 - np.tanh(r) ** 2), 2.0),
    Well("r² / (1 + r²)", lambda r: r**2 / (1 + r**2), lambda r: 2 * r / (1 + r**2) ** 2, 2.0),
)
DIMS, N_BETAS, GAMMAS = (1, 4, 20, 100), (30.0, 300.0), (0.01, 0.1, 1.0, 10.0, 100.0)
POINTS = 200_000


class Found(NamedTuple):
    well: str
    dim: int
    n_beta: float
    gamma: float
    llc: float
    of_basin: float
    degree: float


def exact(well: Well, dim: int, n_beta: float, gamma: float) -> Found:
    """The integrals by the midpoint rule, up to where the localisation alone leaves nothing."""
    r = (np.arange(POINTS) + 0.5) / POINTS * (12 * np.sqrt(dim / gamma) + 5)
    log_density = (dim - 1) * np.log(r) - n_beta * well.loss(r) - gamma / 2 * r**2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    llc, growth = (n_beta * float(density @ values) for values in (well.loss(r), r * well.slope(r)))
    stiffness = n_beta * well.curvature
    return Found(well.name, dim, n_beta, gamma, llc, dim / 2 * stiffness / (stiffness + gamma), growth / llc)


def found(quick: bool) -> Iterator[Found]:
    for well, dim, n_beta, gamma in product(WELLS, DIMS[:3] if quick else DIMS, N_BETAS, GAMMAS):
        yield exact(well, dim, n_beta, gamma)


def section(rows: list[Found]) -> str:
    low = [row for row in rows if row.degree < LOW_DEGREE]
    high = [row for row in rows if row.degree >= LOW_DEGREE]
    groups = [(f"below {LOW_DEGREE:g}", low), (f"{LOW_DEGREE:g} and above", high)]

    def span(values: list[float]) -> str:
        return f"{min(values):.2f} to {max(values):.2f}"

    lines = [
        [name, len(group), span([row.degree for row in group]), span([row.llc / row.of_basin for row in group])]
        for name, group in groups
    ]
    return f"""## The degree on wells that level off

`python benchmarks/wells.py`: exact values on {len(WELLS)} wells, {", ".join(well.name for well in WELLS)}, in
{min(row.dim for row in rows)} to {max(row.dim for row in rows)} dimensions, nβ {N_BETAS[0]:g} and {N_BETAS[1]:g}, γ
{GAMMAS[0]:g} to {GAMMAS[-1]:g}. `not_local` is below {MIN_DEGREE:g}.

{table(["degree", "posteriors", "their degrees", "exact value over that of the basin"], lines)}"""


def figure(rows: list[Found]) -> Any:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn, axis = plt.subplots(figsize=(5, 4), layout="constrained")
    for dim in dict.fromkeys(row.dim for row in rows):
        own = [row for row in rows if row.dim == dim]
        axis.semilogy([row.degree for row in own], [row.llc / row.of_basin for row in own], "o", label=f"dim {dim}")
    axis.axvspan(-0.1, MIN_DEGREE, color="0.9")
    axis.axhline(1, color="black", linewidth=1)
    axis.set_xlim(-0.1, 2.1)
    axis.set_xlabel("degree of growth")
    axis.set_ylabel("exact value over that of the basin")
    axis.legend()
    return drawn


def main() -> None:
    args = options(__doc__).parse_args()
    rows = list(found(args.quick))
    publish("wells", section(rows), args.out, figure(rows))


if __name__ == "__main__":
    main()
