"""`t E[L]` under `exp(-t L(w) - gamma/2 |w - w_star|^2)` by quadrature, one function per kind of loss. No jax.

The relative accuracy is 1e-6 or better for t up to 1e8. Arguments are plain numbers and tuples, so that results can be
cached: a study asks for the same few values many times. `gamma = 0` means no localisation.

Most integrals are taken over logarithms. The integrand is then analytic in a strip around the real line and falls off
exponentially on both sides. The error of the trapezoidal rule with step h is `exp(-2 pi a / h)` for a strip of half
width a.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import product

import numpy as np
from jaxtyping import Float

from lambda_hat.targets.truth.quadrature import half_normal_rule, normal_rule, panels

TAIL = 80.0
"""Integrands are cut off when their logarithm has fallen by this many nats: e^-80 is 2e-35."""
STEP = 0.2
"""Step of the trapezoidal rule in `log(t L)`. The strip is `|Im| < pi/2`, so the error is e^-49."""
NEAR = 20.0
"""A coordinate at least this many standard deviations of the localisation away from 0 does not reach 0: the density
there is e^-200."""


def quadratic(eigenvalues: np.ndarray, t: float, gamma: float) -> float | None:
    """The value `sum_i t a_i / (2 (t a_i + gamma))` for `L = sum_i a_i w_i^2 / 2`; None if improper."""
    if gamma == 0 and not np.all(eigenvalues > 0):
        return None
    scaled = t * eigenvalues
    return float(np.sum(scaled / (2 * (scaled + gamma))))


@lru_cache
def monomial(exponents: tuple[int, ...], point: tuple[float, ...], t: float, gamma: float) -> float | None:
    """The value for `L = prod_i w_i^(2 k_i)`. None if the posterior is improper.

    Under the localisation alone the coordinates are independent, so the density of `s = log L` is a convolution, and
    `t E[L]` is the mean of `tau = t e^s` under this density times `e^-tau`. A coordinate that does not come near 0 has
    a density too narrow for the common grid. It is integrated by Gauss-Hermite nodes, each of which scales t.

    Args:
        exponents: the k_i.
        point: `w_star`.
        t: n_beta.
        gamma: strength of the localisation.
    """
    if gamma == 0:
        return 1 / (2 * exponents[0]) if len(exponents) == 1 else None
    kappas = [math.sqrt(gamma) * abs(x) for x in point]
    near = [(k, x) for k, x, kappa in zip(exponents, point, kappas, strict=True) if kappa < NEAR]
    far = [(k, x) for k, x, kappa in zip(exponents, point, kappas, strict=True) if kappa >= NEAR]
    # The width of a Gaussian around x in log |w| is `1 / (sqrt(gamma) |x|)`.
    steps = [1.4 * k / (math.sqrt(gamma) * abs(x)) for k, x in near if x != 0]
    step = min([STEP, *steps])
    tops = [2 * k * math.log(abs(x) + math.sqrt(2 * TAIL / gamma)) for k, x in near]
    reach = max(0.0, math.log(t) + sum(tops))
    log_density, low = np.zeros(1), 0.0
    for (k, x), top in zip(near, tops, strict=True):
        bottom = -k * math.log(gamma) - k * TAIL - reach
        s = step * np.arange(math.floor(bottom / step), math.ceil(top / step) + 1)
        log_density = _log_convolve(log_density, _log_density_of_power(s, k, x, gamma))
        low += float(s[0])
    s = low + step * np.arange(len(log_density))
    nodes, weights = normal_rule(64)
    mass, moment = 0.0, 0.0
    for places in product(range(len(nodes)), repeat=len(far)):
        shift = sum(
            2 * k * math.log(abs(x + nodes[i] / math.sqrt(gamma))) for (k, x), i in zip(far, places, strict=True)
        )
        tau = np.exp(np.minimum(math.log(t) + s + shift, 700.0))
        density = math.prod(weights[i] for i in places) * np.exp(log_density - log_density.max() - tau)
        mass += float(np.sum(density))
        moment += float(np.sum(density * tau))
    return moment / mass


def _log_density_of_power(s: Float[np.ndarray, " m"], k: int, x: float, gamma: float) -> Float[np.ndarray, " m"]:
    """The log density of `s = log w^(2k)` up to a constant, for w Gaussian around x."""
    size = np.exp(s / (2 * k))
    return s / (2 * k) + np.logaddexp(-gamma / 2 * (size - x) ** 2, -gamma / 2 * (size + x) ** 2)


def _log_convolve(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The log of the convolution of two densities on one grid. All terms are positive, so no digits cancel."""
    with np.errstate(divide="ignore"):
        return np.log(np.convolve(np.exp(a - a.max()), np.exp(b - b.max())))


@lru_cache
def radial(dim: int, k: int, t: float, gamma: float) -> float:
    """The value for `L = |w|^(2k)`, by one integral over `s = log L`, with `r^(dim - 1) dr = r^dim ds / (2k)`."""
    if gamma == 0:
        return dim / (2 * k)
    top = min(math.log(TAIL / t), k * math.log((2 * TAIL + dim) / gamma)) + math.log(TAIL)
    bottom = min(-math.log(t), -k * math.log(gamma)) - 2 * k * TAIL / dim
    s = np.arange(bottom, top, STEP / 2)
    tau = t * np.exp(s)
    density = dim * s / (2 * k) - gamma / 2 * np.exp(s / k) - tau
    weights = np.exp(density - density.max())
    return float(np.sum(weights * tau) / np.sum(weights))


@lru_cache
def line_and_point(point: tuple[float, float], t: float, gamma: float) -> float | None:
    """The value for `L = (w1 - 1)^2 |w|^8`; None if gamma is 0.

    The panels of the quadrature shrink towards the line w1 = 1 and towards the origin.
    """
    if gamma == 0:
        return None
    radius = math.sqrt(2 * TAIL / gamma)
    x, x_weights = panels(_graded(point[0] - radius, point[0] + radius, (0.0, 1.0), t, gamma))
    y, y_weights = panels(_graded(point[1] - radius, point[1] + radius, (0.0,), t, gamma))
    x, x_weights = x[:, None], x_weights[:, None]
    tau = t * (x - 1) ** 2 * (x**2 + y**2) ** 4
    exponent = tau + gamma / 2 * ((x - point[0]) ** 2 + (y - point[1]) ** 2)
    density = x_weights * y_weights * np.exp(exponent.min() - exponent)
    return float(np.sum(density * tau) / np.sum(density))


def _graded(low: float, high: float, centres: tuple[float, ...], t: float, gamma: float) -> np.ndarray:
    """The ends of panels over [low, high]: even ones for the localisation, and geometric ones around `centres`.

    The narrowest has the width of a valley whose curvature is t times the largest power of the other coordinate.
    """
    farthest = 1 + max(abs(low), abs(high))
    narrowest = min(1.0, 1 / math.sqrt(gamma), 1 / (math.sqrt(t) * farthest**4))
    sizes = np.geomspace(narrowest / 4, 2 * farthest, 2 + math.ceil(math.log2(8 * farthest / narrowest)))
    around = [c + sign * sizes for c in centres for sign in (-1, 1)]
    return np.unique(np.clip(np.concatenate([np.linspace(low, high, 33), *around, centres]), low, high))


@lru_cache
def tanh_network(hidden: int, t: float, gamma: float) -> float | None:
    """The value for `L = a^T M(b) a / 2` with `M_ij = E tanh(b_i x) tanh(b_j x)`, at w_star = 0.

    Given b, a is Gaussian with precision `t M + gamma`. So `E[t L | b] = tr(t M (t M + gamma)^-1) / 2`, and b has the
    density `det(t M + gamma)^(-1/2) exp(-gamma/2 |b|^2)`.

    Returns:
        The value; None for more than two hidden units, or if gamma is 0.
    """
    if gamma == 0 or hidden > 2:
        return None
    nodes, weights = half_normal_rule()
    log_radius = np.arange(
        0.5 * math.log(min(gamma / t, 1 / gamma)) - TAIL / hidden, 0.5 * math.log(2 * TAIL / gamma), 0.1
    )
    b = np.exp(log_radius)
    features = np.tanh(b[:, None] * nodes)
    square = features**2 @ weights
    if hidden == 1:
        log_density = log_radius - gamma / 2 * b**2 - 0.5 * np.log(t * square + gamma)
        value = 0.5 * t * square / (t * square + gamma)
        density = np.exp(log_density - log_density.max())
        return float(np.sum(density * value) / np.sum(density))
    # The signs and the order of the two b do not matter: b = r (1, v) with 0 < v < 1.
    sizes = 0.5 ** np.arange(1, 8 + max(10, math.ceil(math.log2(t / gamma) / 2 + math.log2(b[-1]))))
    ratio, ratio_weights = panels(np.unique(np.concatenate([[0.0, 1.0], sizes, 1 - sizes])))
    mass, moment = np.zeros(len(b)), np.zeros(len(b))
    for i, r in enumerate(b):
        other = np.tanh(r * ratio[:, None] * nodes)
        # From the residual of one column on the other, because the determinant of nearly parallel columns cancels.
        residual = other - ((other * features[i]) @ weights / square[i])[:, None] * features[i]
        determinant = square[i] * (residual**2 @ weights)
        trace = square[i] + other**2 @ weights
        whole = t**2 * determinant + gamma * t * trace + gamma**2
        value = 0.5 * (2 * t**2 * determinant + gamma * t * trace) / whole
        density = ratio_weights * r**2 * np.exp(-gamma / 2 * r**2 * (1 + ratio**2)) / np.sqrt(whole)
        mass[i], moment[i] = np.sum(density), np.sum(density * value)
    return float(moment.sum() / mass.sum())


@lru_cache
def product_of_two(widths: tuple[int, int, int], t: float, gamma: float) -> float | None:
    """The value for `L = |B A|_F^2` with A of shape (H, M) and B of shape (N, H), at w_star = 0.

    Given B, the M columns of A are Gaussian with precision `2 t B^T B + gamma`. Let e_i be the p eigenvalues of `B^T B`
    that are not identically 0. Then `E[t L | B] = sum_i M/2 2 t e_i / (2 t e_i + gamma)`, and their density is
    `prod_i e_i^((q - p - 1)/2) exp(-gamma e_i / 2) (2 t e_i + gamma)^(-M/2) prod_(i<j) |e_i - e_j|`, where p is the
    lesser and q the larger of N and H. M and N may be exchanged, so N is taken to be the lesser of the two.

    Args:
        widths: M, H, N.
        t: n_beta times the scale of the loss.
        gamma: strength of the localisation.

    Returns:
        The value; None if every width exceeds 2, or if gamma is 0.
    """
    inputs, hidden, outputs = widths
    if outputs > inputs:
        inputs, outputs = outputs, inputs
    p, q = sorted((hidden, outputs))
    if gamma == 0 or p > 2:
        return None
    # The larger eigenvalue is e^x, and the lesser one e^(x - y).
    kink = math.log(gamma / (2 * t))
    low = min(-math.log(gamma), kink) - 2 * TAIL / (p * q)
    x = np.arange(low, math.log((2 * p * q + 4 * TAIL) / gamma), STEP / 2)
    power = (q - p + 1) / 2

    def of_eigenvalue(log_e: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        e = np.exp(log_e)
        precision = 2 * t * e + gamma
        log_density = power * log_e - gamma / 2 * e - inputs / 2 * np.log(precision)
        return log_density, inputs / 2 * 2 * t * e / precision

    log_density, value = of_eigenvalue(x)
    if p == 2:
        reach = 2 * max(0.0, float(x[-1]) - kink) + TAIL / power
        y, y_weights = panels(np.linspace(0.0, reach, math.ceil(reach) + 1))
        log_other, other = of_eigenvalue(x[:, None] - y)
        # The difference of the eigenvalues is e^x (1 - e^-y).
        log_density = (log_density + x)[:, None] + log_other + np.log(-np.expm1(-y) * y_weights)
        value = value[:, None] + other
    density = np.exp(log_density - log_density.max())
    return float(np.sum(density * value) / np.sum(density))
