"""Exact answers: the learning coefficient lambda, and the value that a perfect sampler returns at finite n. No jax."""

from __future__ import annotations

import math

import numpy as np

from lambda_hat.config import (
    BuildConfig,
    DlnBuild,
    LineAndPointBuild,
    MonomialBuild,
    MonomialSumBuild,
    QuadraticBuild,
    RadialBuild,
    RegressionBuild,
    TanhBuild,
)
from lambda_hat.targets.truth import expectations
from lambda_hat.targets.truth.aoyagi import dln_llc


def true_llc(cfg: BuildConfig) -> tuple[float, int] | None:
    """The learning coefficient lambda and its multiplicity m at `w_star`, for the loss with infinite data.

    - Quadratic of rank r: lambda = r/2, m = 1.
    - Monomial `prod w_i^(2 k_i)`: lambda is the least `1/(2 k_i)` over the coordinates that vanish at `w_star`, and m
      the number of coordinates that attain it. Over independent blocks, lambdas and `m - 1` add up.
    - `|w|^(2k)`: lambda = dim/(2k), m = 1.
    - `(w1 - 1)^2 |w|^8`: lambda = 1/2 on the line w1 = 1, 1/4 at the origin; m = 1.
    - Tanh network of H units whose true function is zero: with `i = floor(sqrt(H))`, lambda =
      `(H + i^2 + i)/(4 i + 2)`, and m = 2 if `i^2 = H`, else 1.
    - Deep linear network: `dln_llc`, which is also the value at the `w_star` of the teachers that `linear.make` draws.

    Returns:
        lambda and m; None if they are not known.
    """
    match cfg:
        case QuadraticBuild():
            return (cfg.target.dim if cfg.target.rank is None else cfg.target.rank) / 2, 1
        case MonomialBuild() | MonomialSumBuild():
            llc, multiplicity = 0.0, 1
            for block, point in _blocks(cfg):
                largest = max(k for k, x in zip(block, point, strict=True) if x == 0)
                llc += 1 / (2 * largest)
                multiplicity += sum(k == largest and x == 0 for k, x in zip(block, point, strict=True)) - 1
            return llc, multiplicity
        case RadialBuild():
            return cfg.target.dim / (2 * cfg.target.k), 1
        case LineAndPointBuild():
            return (1 / 2 if cfg.target.point[0] == 1 else 1 / 4), 1
        case TanhBuild():
            i = math.isqrt(cfg.target.hidden)
            return (cfg.target.hidden + i**2 + i) / (4 * i + 2), 2 if i**2 == cfg.target.hidden else 1
        case DlnBuild():
            return dln_llc(cfg.target.widths, dln_rank(cfg))
    return None


def true_llc_t(cfg: BuildConfig, n_beta: float, gamma: float) -> float | None:
    """The exact `n_beta (E[L(w)] - L(w_star))` under the localised posterior, to a relative accuracy of 1e-6.

    It is known for quadratics, sums of monomials, `|w|^(2k)`, `(w1 - 1)^2 |w|^8`, tanh networks of one or two hidden
    units, and the population loss of a two-layer linear network with a width of one or two at `w_star = 0`.

    Args:
        cfg: the configuration of the target.
        n_beta: as in `Posterior`.
        gamma: as in `Posterior`.

    Returns:
        The value; None if it is not known, or if the posterior is improper because `gamma` is 0.
    """
    match cfg:
        case QuadraticBuild():
            return expectations.quadratic(eigenvalues(cfg), n_beta, gamma)
        case MonomialBuild() | MonomialSumBuild():
            parts = [expectations.monomial(tuple(block), tuple(point), n_beta, gamma) for block, point in _blocks(cfg)]
            known = [part for part in parts if part is not None]
            return sum(known) if len(known) == len(parts) else None
        case RadialBuild():
            return expectations.radial(cfg.target.dim, cfg.target.k, n_beta, gamma)
        case LineAndPointBuild():
            return expectations.line_and_point(tuple(cfg.target.point), n_beta, gamma)
        case TanhBuild():
            return expectations.tanh_network(cfg.target.hidden, n_beta, gamma)
        case DlnBuild():
            zero = cfg.target.data == "population" and dln_rank(cfg) == 0
            if zero and len(cfg.target.widths) == 3:
                return expectations.product_of_two(tuple(cfg.target.widths), n_beta * population_scale(cfg), gamma)
    return None


def eigenvalues(cfg: QuadraticBuild) -> np.ndarray:
    """The curvatures a_i, shape (dim,), zeros last."""
    rank = cfg.target.dim if cfg.target.rank is None else cfg.target.rank
    values = np.zeros(cfg.target.dim)
    values[:rank] = 1.0 if cfg.target.eigenvalues is None else cfg.target.eigenvalues
    return values


def dln_rank(cfg: DlnBuild) -> int:
    """The rank of the teacher: as configured, by default the least width."""
    return min(cfg.target.widths) if cfg.target.rank is None else cfg.target.rank


def population_scale(cfg: RegressionBuild) -> float:
    """The factor between the loss and `E|f(x) - f_star(x)|^2`, which is summed over outputs."""
    assert isinstance(cfg, DlnBuild)
    return 1 / cfg.target.widths[-1] if cfg.loss == "mse" else 1 / (2 * cfg.sigma**2)


def _blocks(cfg: MonomialBuild | MonomialSumBuild) -> list[tuple[list[int], list[float]]]:
    """The exponents of every block, with the entries of `w_star` that belong to it."""
    point = [0.0] * sum(map(len, cfg.target.blocks)) if cfg.target.point is None else cfg.target.point
    blocks, start = [], 0
    for block in cfg.target.blocks:
        blocks.append((block, point[start : start + len(block)]))
        start += len(block)
    return blocks
