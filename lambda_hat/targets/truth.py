"""Exact answers: the learning coefficient lambda, and what a sampler must return at finite n. No jax."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from lambda_hat.config import BuildConfig, DlnBuild, MonomialBuild, MonomialSumBuild, QuadraticBuild, RegressionBuild
from lambda_hat.targets.aoyagi import dln_llc

TAIL = 80.0
"""Integrands are cut off where their exponent has fallen this far (nats): e^-80 is 2e-35."""


def true_llc(cfg: BuildConfig) -> tuple[float, int] | None:
    """Learning coefficient lambda and multiplicity at `w_star`, of the loss with infinite data; None if not known.

    Quadratic of rank r: r/2 and 1. Monomial `prod w_i^(2 k_i)`: the least `1/(2 k_i)` over the coordinates that
    vanish at `w_star`, and how many attain it; over independent blocks lambdas and `m - 1` add. Deep linear network:
    Aoyagi 2024, which is the value at `w_star` itself for the teachers that `linear.make` draws.
    """
    if isinstance(cfg, QuadraticBuild):
        return (cfg.dim if cfg.target.rank is None else cfg.target.rank) / 2, 1
    if isinstance(cfg, (MonomialBuild, MonomialSumBuild)):
        llc, multiplicity = 0.0, 1
        for block, point in _blocks(cfg):
            largest = max(k for k, x in zip(block, point, strict=True) if x == 0)
            llc += 1 / (2 * largest)
            multiplicity += sum(k == largest and x == 0 for k, x in zip(block, point, strict=True)) - 1
        return llc, multiplicity
    if isinstance(cfg, DlnBuild):
        return dln_llc(cfg.target.widths, dln_rank(cfg))
    return None


def true_llc_t(cfg: BuildConfig, n_beta: float, gamma: float) -> float | None:
    """The exact `n_beta (E[L(w)] - L(w_star))` under the localised posterior; None where it is not known.

    n_beta, gamma: as in `Posterior`. Known for quadratics; for sums of monomials over blocks of one or two
    coordinates (larger blocks: None); and for the population loss of a two-layer linear network of hidden width 1 at
    `w_star = 0`. With `gamma = 0` it is None wherever the posterior is improper. Relative accuracy 1e-6 or better.
    """
    if isinstance(cfg, QuadraticBuild):
        return _quadratic(cfg, n_beta, gamma)
    if isinstance(cfg, (MonomialBuild, MonomialSumBuild)):
        parts = [_monomial(block, point, n_beta, gamma) for block, point in _blocks(cfg)]
        return None if None in parts else float(sum(parts))
    if isinstance(cfg, DlnBuild):
        inputs, *hidden, outputs = cfg.target.widths
        if cfg.target.data == "population" and hidden == [1] and dln_rank(cfg) == 0 and gamma > 0:
            return _rank_one_product(inputs, outputs, n_beta * population_scale(cfg), gamma)
    return None


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


def _quadratic(cfg: QuadraticBuild, n_beta: float, gamma: float) -> float | None:
    """`sum t a_i / (2 (t a_i + gamma))`."""
    rank = cfg.dim if cfg.target.rank is None else cfg.target.rank
    if gamma == 0 and rank < cfg.dim:
        return None
    scaled = n_beta * np.array(cfg.target.eigenvalues or [1.0] * rank)
    return float(np.sum(scaled / (2 * (scaled + gamma))))


def _monomial(exponents: list[int], point: list[float], n_beta: float, gamma: float) -> float | None:
    """`t E[prod w_i^(2 k_i)]` for one or two coordinates."""
    if len(exponents) == 1:
        mass, moment = _power_integrals(np.array([n_beta]), exponents[0], gamma)
        return float(moment[0] / mass[0])
    if len(exponents) > 2 or gamma == 0:
        return None
    # y is a coordinate that vanishes at w_star: given x, its integral is one of the constants t x^(2 j) alone.
    (j, x_star), (k, _) = sorted(zip(exponents, point, strict=True), key=lambda pair: pair[1] == 0)
    x, weights = _panels(_breakpoints(j, k, x_star, n_beta, gamma))
    mass, moment = _power_integrals(n_beta * x ** (2 * j), k, gamma)
    weights = weights * np.exp(-gamma / 2 * (x - x_star) ** 2)
    return float(np.sum(weights * moment) / np.sum(weights * mass))


def _power_integrals(c: np.ndarray, k: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Integrals over y > 0 of `exp(-c y^(2k) - gamma y^2 / 2)`, without and with the factor `c y^(2k)`.

    c: shape (m,), at least 0. Gauss-Legendre up to where one of the two terms reaches TAIL.
    """
    with np.errstate(divide="ignore"):
        end = np.minimum(np.sqrt(2 * TAIL / np.float64(gamma)), (TAIL / c) ** (1 / (2 * k)))
    nodes, weights = _legendre(128)
    y = end[:, None] * nodes
    power = c[:, None] * y ** (2 * k)
    density = weights * np.exp(-power - gamma / 2 * y**2)
    return end * np.sum(density, axis=1), end * np.sum(density * power, axis=1)


def _breakpoints(j: int, k: int, x_star: float, n_beta: float, gamma: float) -> np.ndarray:
    """Ends of panels in x: even ones where the localisation has mass, and geometric ones towards 0 on both sides.

    The integral over y changes its shape at `|x| = scale` and is a power of |x| beyond.
    """
    radius = np.sqrt(2 * TAIL / gamma)
    low, high = x_star - radius, x_star + radius
    scale = (gamma**k / n_beta) ** (1 / (2 * j))
    geometric = scale * 2.0 ** np.arange(-12, max(np.log2((abs(x_star) + radius) / scale), -12) + 2)
    ends = np.concatenate([np.linspace(low, high, 33), geometric, -geometric, [0.0]])
    return np.unique(np.clip(ends, low, high))


def _panels(ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss-Legendre quadrature on every panel between neighbouring `ends`."""
    nodes, weights = _legendre(16)
    width = np.diff(ends)[:, None]
    return (ends[:-1, None] + width * nodes).ravel(), (width * weights).ravel()


@lru_cache
def _legendre(order: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [0, 1]."""
    nodes, weights = np.polynomial.legendre.leggauss(order)
    return (nodes + 1) / 2, weights / 2


def _rank_one_product(p: int, q: int, t: float, gamma: float) -> float:
    """`t E[|a|^2 |b|^2]` under `exp(-t |a|^2 |b|^2 - gamma/2 (|a|^2 + |b|^2))`, a in R^p, b in R^q.

    Given r = |a|, b is Gaussian of precision `2 A`, `A = t r^2 + gamma/2`: its integral goes as `A^(-q/2)` and
    `E|b|^2 = q / (2 A)`. What is left over `log r` is analytic and falls off on both sides: the trapezoidal rule.
    """
    low = 0.5 * np.log(min(gamma / (2 * t), 1 / gamma)) - TAIL / p
    high = 0.5 * np.log((2 * p + 4 * TAIL) / gamma)
    r2 = np.exp(2 * np.linspace(low, high, 20_001))
    precision = t * r2 + gamma / 2
    log_density = p / 2 * np.log(r2) - gamma / 2 * r2 - q / 2 * np.log(precision)
    density = np.exp(log_density - log_density.max())
    return float(np.sum(density * (q / 2) * t * r2 / precision) / np.sum(density))
