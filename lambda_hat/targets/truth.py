"""Exact answers: the learning coefficient lambda, and what a sampler must return at finite n. No jax."""

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
from lambda_hat.targets import expectations
from lambda_hat.targets.aoyagi import dln_llc


def true_llc(cfg: BuildConfig) -> tuple[float, int] | None:
    """Learning coefficient lambda and multiplicity at `w_star`, of the loss with infinite data; None if not known.

    Quadratic of rank r: r/2 and 1. Monomial `prod w_i^(2 k_i)`: the least `1/(2 k_i)` over the coordinates that
    vanish at `w_star`, and how many attain it; over independent blocks lambdas and `m - 1` add. `|w|^(2k)`:
    `dim/(2k)`. `(w1 - 1)^2 |w|^8`: 1/2 on the line, 1/4 at the origin. Tanh network with a truth of zero:
    `(H + i^2 + i)/(4 i + 2)`, `i = floor(sqrt(H))`, and 2 where `i^2 = H`. Deep linear network: Aoyagi 2024, which is
    the value at `w_star` itself for the teachers that `linear.make` draws.
    """
    match cfg:
        case QuadraticBuild():
            return (cfg.dim if cfg.target.rank is None else cfg.target.rank) / 2, 1
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
    """The exact `n_beta (E[L(w)] - L(w_star))` under the localised posterior; None where it is not known.

    n_beta, gamma: as in `Posterior`. Known for quadratics; for sums of monomials, `|w|^(2k)` and `(w1 - 1)^2 |w|^8`;
    for tanh networks of one or two hidden units; and for the population loss of a two-layer linear network with a width
    of one or two at `w_star = 0`. With `gamma = 0` it is None wherever the posterior is improper. Relative accuracy
    1e-6 or better.
    """
    match cfg:
        case QuadraticBuild():
            return expectations.quadratic(eigenvalues(cfg), n_beta, gamma)
        case MonomialBuild() | MonomialSumBuild():
            parts = [expectations.monomial(tuple(block), tuple(point), n_beta, gamma) for block, point in _blocks(cfg)]
            return None if None in parts else sum(parts)
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
    """The curvatures `a_i`, shape (dim,), zeros last."""
    rank = cfg.dim if cfg.target.rank is None else cfg.target.rank
    values = np.zeros(cfg.dim)
    values[:rank] = 1.0 if cfg.target.eigenvalues is None else cfg.target.eigenvalues
    return values


def dln_rank(cfg: DlnBuild) -> int:
    """Rank of the teacher: as given, or the least width."""
    return min(cfg.target.widths) if cfg.target.rank is None else cfg.target.rank


def population_scale(cfg: RegressionBuild) -> float:
    """Factor from `E|f(x) - f_star(x)|^2`, summed over outputs, to the loss."""
    assert isinstance(cfg, DlnBuild)
    return 1 / cfg.target.widths[-1] if cfg.loss == "mse" else 1 / (2 * cfg.sigma**2)


def _blocks(cfg: MonomialBuild | MonomialSumBuild) -> list[tuple[list[int], list[float]]]:
    """Each block's exponents with its part of `w_star`."""
    point = [0.0] * cfg.dim if cfg.target.point is None else cfg.target.point
    blocks, start = [], 0
    for block in cfg.target.blocks:
        blocks.append((block, point[start : start + len(block)]))
        start += len(block)
    return blocks
