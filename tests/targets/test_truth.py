"""Exact answers, against independent computations and the reference tables of finite-n values."""

import math
import random
import subprocess
import sys
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from scipy.integrate import dblquad, quad
from scipy.special import roots_hermitenorm

from lambda_hat.config import (
    DlnBuild,
    DlnTarget,
    LineAndPointBuild,
    LineAndPointTarget,
    MlpBuild,
    MonomialBuild,
    MonomialSumBuild,
    MonomialSumTarget,
    MonomialTarget,
    QuadraticBuild,
    QuadraticTarget,
    RadialBuild,
    RadialTarget,
    TanhBuild,
    TanhTarget,
)
from lambda_hat.targets.truth import true_llc, true_llc_t
from lambda_hat.targets.truth.aoyagi import dln_llc
from lambda_hat.targets.truth.quadrature import half_normal_rule


def monomial(exponents, point=None):
    return MonomialBuild(target=MonomialTarget(exponents=exponents, point=point))


def monomial_sum(blocks, point=None):
    return MonomialSumBuild(target=MonomialSumTarget(blocks=blocks, point=point))


def quadratic(dim, rank=None, eigenvalues=None):
    return QuadraticBuild(target=QuadraticTarget(dim=dim, rank=rank, eigenvalues=eigenvalues))


def dln(widths, rank=None, loss="nll", sigma=1.0, **target):
    return DlnBuild(target=DlnTarget(widths=widths, rank=rank, **target), loss=loss, sigma=sigma)


def radial(dim, k):
    return RadialBuild(target=RadialTarget(dim=dim, k=k))


def line_and_point(x, y):
    return LineAndPointBuild(target=LineAndPointTarget(point=[x, y]))


def tanh(hidden):
    return TanhBuild(target=TanhTarget(hidden=hidden))


# ------------------------------------------------------------------------------------------------ Aoyagi's formula


def twice_llc_by_programme(widths, rank):
    """Pepin Lehalleur and Rimanyi (arXiv 2411.19920): a minimum over falling ranks of the partial products."""
    last = len(widths) - 1

    @cache
    def rest(k, before):
        if k == last:
            return (before - rank) * (widths[k] - rank)
        return min(
            (before - rho) * (widths[k] - rho) + rest(k + 1, rho) for rho in range(rank, min(before, widths[k]) + 1)
        )

    return rest(1, widths[0]) + rank * (widths[0] + widths[-1] - rank)


def rrr_llc(inputs, hidden, outputs, rank):
    """Reduced rank regression, Aoyagi and Watanabe 2005: four cases."""
    M, H, N, r = inputs, hidden, outputs, rank
    if N + r > M + H:
        return (H * M - H * r + N * r) / 2, 1
    if M + r > N + H:
        return (H * N - H * r + M * r) / 2, 1
    if H + r > M + N:
        return M * N / 2, 1
    eighths = -((H + r) ** 2) - M**2 - N**2 + 2 * (H + r) * (M + N) + 2 * M * N
    odd = (M + H + N + r) % 2
    return (eighths + odd) / 8, 1 + odd


def test_aoyagi_agrees_with_the_dynamic_programme():
    rng = random.Random(0)
    for _ in range(3000):
        widths = [rng.randint(1, 14) for _ in range(rng.randint(3, 8))]
        rank = rng.randint(0, min(widths))
        assert 2 * dln_llc(widths, rank)[0] == twice_llc_by_programme(widths, rank), (widths, rank)


def test_aoyagi_agrees_with_reduced_rank_regression():
    rng = random.Random(1)
    for _ in range(3000):
        widths = [rng.randint(1, 20) for _ in range(3)]
        rank = rng.randint(0, min(widths))
        assert dln_llc(widths, rank) == rrr_llc(*widths, rank), (widths, rank)


@pytest.mark.parametrize(
    ("widths", "rank", "llc", "multiplicity"),
    [
        ((5, 3, 5), 0, 6.5, 2),
        ((5, 3, 5), 1, 8, 1),
        ((5, 4, 5), 2, 10.5, 1),
        ((4, 3, 8), 0, 6, 1),
        ((2, 2, 2), 1, 2, 2),
        ((4,) * 5, 2, 7.5, 5),
        ((10,) * 8, 0, 29, 13),
        ((3, 3, 3), 0, 3.5, 2),
    ],
)
def test_aoyagi_samples(widths, rank, llc, multiplicity):
    assert dln_llc(widths, rank) == (llc, multiplicity)


def test_aoyagi_does_not_depend_on_the_order_of_hidden_widths():
    assert dln_llc((6, 2, 5, 3, 4), 1) == dln_llc((6, 5, 3, 2, 4), 1)


def test_aoyagi_refuses_a_rank_above_a_width():
    with pytest.raises(ValueError, match="rank: got 3"):
        dln_llc((5, 2, 5), 3)


# ------------------------------------------------------------------------------------------------ lambda


@pytest.mark.parametrize(
    ("cfg", "expected"),
    [
        (quadratic(6), (3.0, 1)),
        (quadratic(6, 4, [1, 2, 3, 4]), (2.0, 1)),
        (quadratic(3, 0), (0.0, 1)),
        (monomial([2]), (1 / 4, 1)),
        (monomial([1, 1]), (1 / 2, 2)),
        (monomial([1, 1], [1.0, 0.0]), (1 / 2, 1)),
        (monomial([1, 2]), (1 / 4, 1)),
        (monomial([1, 2], [0.0, -3.0]), (1 / 2, 1)),
        (monomial([3, 3, 1, 3]), (1 / 6, 3)),
        (monomial_sum([[1], [2]]), (3 / 4, 1)),
        (monomial_sum([[1, 1], [2, 2], [1]]), (1 / 2 + 1 / 4 + 1 / 2, 3)),
        (monomial_sum([[1, 1], [2, 2]], [0.0, 1.0, 0.0, 0.0]), (3 / 4, 2)),
        (dln([5, 3, 5]), ((3 * 10 - 9) / 2, 1)),
        (dln([2, 1, 2], 0), (1.0, 2)),
        (radial(2, 2), (1 / 2, 1)),
        (radial(3, 4), (3 / 8, 1)),
        (line_and_point(1.0, -2.0), (1 / 2, 1)),
        (line_and_point(0.0, 0.0), (1 / 4, 1)),
        (tanh(1), (1 / 2, 2)),
        (tanh(2), (2 / 3, 1)),
        (tanh(3), (5 / 6, 1)),
        (tanh(4), (1.0, 2)),
        (tanh(9), (3 / 2, 2)),
        (MlpBuild(), None),
    ],
)
def test_true_llc(cfg, expected):
    assert true_llc(cfg) == expected


# ------------------------------------------------------------------------------------------------ lambda_t

SETTINGS = [(1e3, 1), (1e3, 100), (1e4, 1), (1e6, 1), (1e6, 100)]
TABLE = [
    (monomial([2]), (0.2431, 0.0311, 0.2475, 0.2497, 0.2208)),
    (monomial_sum([[1], [2]]), (0.7414, 0.4027, 0.7472, 0.7497, 0.7205)),
    (monomial([1, 1]), (0.3614, 0.0130, 0.3912, 0.4253, 0.2779)),
    (monomial([1, 1], [1.0, 0.0]), (0.3805, 0.3683, 0.4036, 0.4314, 0.4996)),
    (monomial([1, 1], [0.0, -1.0]), (0.3805, 0.3683, 0.4036, 0.4314, 0.4996)),
    (monomial([1, 2]), (0.2095, 0.0004, 0.2254, 0.2413, 0.0554)),
    (monomial([2, 1]), (0.2095, 0.0004, 0.2254, 0.2413, 0.0554)),
    (dln([1, 1, 1], 0), (0.3473, 0.0069, 0.3825, 0.4212, 0.2481)),
    (dln([2, 1, 2], 0), (0.8078, 0.0267, 0.8598, 0.9116, 0.6377)),
]


@pytest.mark.parametrize(("cfg", "row"), TABLE, ids=[cfg.label for cfg, _ in TABLE])
def test_table_of_exact_values(cfg, row):
    got = [true_llc_t(cfg, n / math.log(n), gamma) for n, gamma in SETTINGS]
    np.testing.assert_allclose(got, row, rtol=0, atol=0.5001e-4)


def test_quadratic_is_a_closed_form():
    t, gamma = 144.0, 3.0
    expected = sum(t * a / (2 * (t * a + gamma)) for a in (0.5, 20.0))
    assert true_llc_t(quadratic(3, 2, [0.5, 20.0]), t, gamma) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("k", [1, 2, 5, 12])
@pytest.mark.parametrize(("t", "gamma"), [(5.0, 0.0), (144.0, 1.0), (1e5, 30.0), (3.0, 1e4)])
def test_one_coordinate_against_adaptive_quadrature(k, t, gamma):
    end = min(np.sqrt(150 / gamma) if gamma else np.inf, (75 / t) ** (1 / (2 * k)))

    def density(w):
        return np.exp(-t * w ** (2 * k) - gamma / 2 * w**2)

    options = {"epsabs": 0, "epsrel": 1e-12, "limit": 500}
    mass = quad(density, 0, end, **options)[0]
    moment = quad(lambda w: t * w ** (2 * k) * density(w), 0, end, **options)[0]
    assert true_llc_t(monomial([k]), t, gamma) == pytest.approx(moment / mass, rel=1e-9)


@pytest.mark.parametrize(
    ("exponents", "point", "t", "gamma"),
    [
        ([2, 3], [0.0, 0.0], 50.0, 1.0),
        ([2, 3], [0.0, 0.4], 50.0, 2.0),
        ([1, 2], [-1.5, 0.0], 10.0, 4.0),
        ([2, 1], [0.0, 0.0], 5.0, 2.0),
    ],
)
def test_two_coordinates_against_adaptive_quadrature(exponents, point, t, gamma):
    half = 9 / np.sqrt(gamma)
    (j, k), (p, q) = exponents, point

    def density(y, x):
        return np.exp(-t * x ** (2 * j) * y ** (2 * k) - gamma / 2 * ((x - p) ** 2 + (y - q) ** 2))

    def moment(y, x):
        return t * x ** (2 * j) * y ** (2 * k) * density(y, x)

    xs, ys = sorted({p - half, 0.0, p, p + half}), sorted({q - half, 0.0, q, q + half})

    def integral(f):
        options = {"epsabs": 1e-9, "epsrel": 1e-9}
        return sum(dblquad(f, x0, x1, y0, y1, **options)[0] for x0, x1 in pairwise(xs) for y0, y1 in pairwise(ys))

    expected = integral(moment) / integral(density)
    assert true_llc_t(monomial(exponents, point), t, gamma) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("t", "gamma"), [(5.0, 1.0), (144.0, 100.0), (1e8, 1e-2)])
@pytest.mark.parametrize(("j", "k"), [(1, 6), (4, 1), (2, 3)])
def test_the_order_of_integration_does_not_matter(j, k, t, gamma):
    value = true_llc_t(monomial([j, k]), t, gamma)
    assert value == pytest.approx(true_llc_t(monomial([k, j]), t, gamma), rel=1e-10)


def under_the_localisation(tau, dim, gamma, draws=4_000_000):
    """The same and its standard error, by importance sampling from the localisation at 0."""
    w = np.random.default_rng(0).normal(size=(dim, draws)) / math.sqrt(gamma)
    tau = tau(w)
    weights = np.exp(-tau)
    mean = np.sum(weights * tau) / np.sum(weights)
    return mean, math.sqrt(np.sum((weights * (tau - mean)) ** 2)) / np.sum(weights)


@pytest.mark.parametrize("point", [[0.0, 0.0, 0.0], [0.0, 0.6, 0.0], [1.3, 0.5, 0.0]])
@pytest.mark.parametrize(("t", "gamma"), [(20.0, 1.0), (300.0, 4.0)])
def test_three_coordinates_against_adaptive_quadrature(point, t, gamma):
    # Given x and y the third coordinate is Gaussian.
    (p, q, _), half = point, 9 / math.sqrt(gamma)

    def curvature(x, y):
        return 2 * t * x**2 * y**4

    def density(y, x):
        return math.exp(-gamma / 2 * ((x - p) ** 2 + (y - q) ** 2)) / math.sqrt(curvature(x, y) + gamma)

    def moment(y, x):
        return density(y, x) * curvature(x, y) / (2 * (curvature(x, y) + gamma))

    def ends(centre):
        graded = [0.01, 0.05, 0.2, 0.5]
        return sorted({centre - half, centre, centre + half, 0.0, *graded, *(-x for x in graded)})

    def integral(f):
        options = {"epsabs": 1e-9, "epsrel": 1e-9}
        return sum(dblquad(f, a, b, c, d, **options)[0] for a, b in pairwise(ends(p)) for c, d in pairwise(ends(q)))

    expected = integral(moment) / integral(density)
    assert true_llc_t(monomial([1, 2, 1], point), t, gamma) == pytest.approx(expected, rel=1e-6)


def test_four_coordinates_against_the_localisation():
    mean, error = under_the_localisation(lambda w: 30 * np.prod(w**2, axis=0) * w[3] ** 2, 4, 1.0)
    assert error < 0.003 * mean
    assert abs(true_llc_t(monomial([1, 1, 1, 2]), 30.0, 1.0) - mean) < 4 * error


@pytest.mark.parametrize("distance", [19.99, 20.01])
def test_a_coordinate_away_from_zero_by_either_way(distance):
    # Given x, y is Gaussian: an integral over x alone.
    t, gamma = 50.0, 4.0
    p = distance / math.sqrt(gamma)

    def density(x):
        return math.exp(-gamma / 2 * (x - p) ** 2) / math.sqrt(2 * t * x**4 + gamma)

    low, high = p - 6, p + 6
    mass = quad(density, low, high, epsabs=0, epsrel=1e-12)[0]
    moment = quad(lambda x: density(x) * t * x**4 / (2 * t * x**4 + gamma), low, high, epsabs=0, epsrel=1e-12)[0]
    assert true_llc_t(monomial([2, 1], [p, 0.0]), t, gamma) == pytest.approx(moment / mass, rel=1e-10)


@pytest.mark.parametrize(("dim", "k"), [(1, 2), (2, 1), (2, 3), (5, 2)])
@pytest.mark.parametrize(("t", "gamma"), [(5.0, 1.0), (144.0, 100.0), (1e6, 0.01)])
def test_radial_against_adaptive_quadrature(dim, k, t, gamma):
    end = min(math.sqrt(150 / gamma), (75 / t) ** (1 / (2 * k)))

    def density(r):
        return r ** (dim - 1) * math.exp(-t * r ** (2 * k) - gamma / 2 * r**2)

    options = {"epsabs": 0, "epsrel": 1e-12, "limit": 500}
    mass = quad(density, 0, end, **options)[0]
    moment = quad(lambda r: t * r ** (2 * k) * density(r), 0, end, **options)[0]
    assert true_llc_t(radial(dim, k), t, gamma) == pytest.approx(moment / mass, rel=1e-9)


def test_radial_by_other_formulas():
    t, gamma = 144.0, 3.0
    assert true_llc_t(radial(1, 3), t, gamma) == pytest.approx(true_llc_t(monomial([3]), t, gamma), rel=1e-10)
    whole = true_llc_t(quadratic(4, 4, [2.0] * 4), t, gamma)
    assert true_llc_t(radial(4, 1), t, gamma) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("point", [(1.0, 1.0), (1.0, 0.0), (1.0, -2.5), (0.0, 0.0)])
@pytest.mark.parametrize(("n", "gamma"), [(1e3, 1.0), (1e3, 100.0), (1e4, 3.0)])
def test_line_and_point_on_a_stretched_grid(point, n, gamma):
    """Trapezoidal rule in y and in u, `w1 = 1 + c sinh u`, which resolves the line as well as the plane around it."""
    t, c = n / math.log(n), 1e-4
    spread = 12.5 / math.sqrt(gamma)
    u = np.arange(math.asinh((point[0] - spread - 1) / c), math.asinh((point[0] + spread - 1) / c), 0.01)
    y = np.arange(point[1] - spread, point[1] + spread, 0.02 / max(1.0, math.sqrt(gamma) / 2))[:, None]
    x, slope = 1 + c * np.sinh(u), np.cosh(u)
    tau = t * (x - 1) ** 2 * (x**2 + y**2) ** 4
    density = slope * np.exp(-tau - gamma / 2 * ((x - point[0]) ** 2 + (y - point[1]) ** 2))
    expected = np.sum(density * tau) / np.sum(density)
    assert true_llc_t(line_and_point(*point), t, gamma) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("b", [0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0])
def test_the_nodes_of_the_tanh_loss_stand_for_normal_inputs(b):
    x, weights = half_normal_rule()
    expected = quad(lambda x: np.tanh(b * x) ** 2 * np.exp(-(x**2) / 2), 0, 12, epsabs=0, epsrel=1e-10, limit=200)[0]
    assert np.tanh(b * x) ** 2 @ weights == pytest.approx(expected * math.sqrt(2 / math.pi), rel=1e-5)


@pytest.mark.parametrize(("t", "gamma"), [(2.0, 1.0), (144.0, 1.0), (144.0, 100.0), (1e4, 5.0)])
def test_one_tanh_unit_against_adaptive_quadrature(t, gamma):
    x, weights = half_normal_rule()

    def curvature(b):
        return t * float(np.tanh(b * x) ** 2 @ weights)

    def density(b):
        return math.exp(-gamma / 2 * b**2) / math.sqrt(curvature(b) + gamma)

    options = {"epsabs": 0, "epsrel": 1e-11, "limit": 500}
    end = 12 / math.sqrt(gamma)
    mass = quad(density, 0, end, **options)[0]
    moment = quad(lambda b: density(b) * curvature(b) / (2 * (curvature(b) + gamma)), 0, end, **options)[0]
    assert true_llc_t(tanh(1), t, gamma) == pytest.approx(moment / mass, rel=1e-9)


@pytest.mark.parametrize(("t", "gamma"), [(2.0, 1.0), (20.0, 1.0), (144.0, 4.0)])
def test_two_tanh_units_on_a_plain_grid(t, gamma):
    x, weights = half_normal_rule()
    b = np.arange(-8.5, 8.5, 0.0125) / math.sqrt(gamma)
    features = np.tanh(b[:, None] * x)
    cross = (features * weights) @ features.T
    own = np.diag(cross)
    trace = t * (own[:, None] + own) + 2 * gamma
    determinant = (t * own[:, None] + gamma) * (t * own + gamma) - (t * cross) ** 2
    density = np.exp(-gamma / 2 * (b[:, None] ** 2 + b**2)) / np.sqrt(determinant)
    expected = np.sum(density * (1 - gamma / 2 * trace / determinant)) / np.sum(density)
    assert true_llc_t(tanh(2), t, gamma) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("hidden", [1, 2])
def test_tanh_networks_against_the_localisation(hidden):
    """All of the weights drawn, and normal inputs by 200 nodes: the loss's own describe them well enough."""
    x, weights = roots_hermitenorm(200)
    x, weights = x[100:], weights[100:] / weights[100:].sum()
    t, gamma = 20.0, 2.0

    def tau(w):
        total = np.zeros(w.shape[1])
        for node, weight in zip(x, weights, strict=True):
            if weight > 1e-12:
                total += weight * np.sum(w[:hidden] * np.tanh(w[hidden:] * node), axis=0) ** 2
        return t / 2 * total

    mean, error = under_the_localisation(tau, 2 * hidden, gamma, draws=500_000)
    assert error < 0.005 * mean
    assert abs(true_llc_t(tanh(hidden), t, gamma) - mean) < 4 * error


def by_triangular_factors(inputs, t, gamma):
    """`|B A|^2` with B of shape (q, 2), through `B = Q R`: R has entries chi_q, chi_(q-1) and normal. q = 2."""
    u = np.arange(-28.0, 4.5, 0.17)
    z = np.arange(-10.3, 10.3, 0.1)
    r11, r22 = np.exp(u)[:, None, None], np.exp(u)[:, None]
    r12, slope = 1e-3 * np.sinh(z), np.cosh(z)
    log_prior = 2 * u[:, None, None] + u[:, None] + np.log(slope) - (r11**2 + r22**2 + r12**2) / 2
    trace, determinant = (r11**2 + r22**2 + r12**2) / gamma, (r11 * r22 / gamma) ** 2
    whole = 4 * t**2 * determinant + 2 * t * gamma * trace + gamma**2
    value = inputs / 2 * (2 * 4 * t**2 * determinant + 2 * t * gamma * trace) / whole
    density = np.exp(log_prior - inputs / 2 * np.log(whole))
    return np.sum(density * value) / np.sum(density)


@pytest.mark.parametrize(("n", "gamma"), SETTINGS)
@pytest.mark.parametrize("inputs", [2, 3, 6])
def test_two_eigenvalues_by_triangular_factors(inputs, n, gamma):
    t = n / math.log(n)
    expected = by_triangular_factors(inputs, t / 2, gamma)
    assert true_llc_t(dln([inputs, 2, 2], 0), t, gamma) == pytest.approx(expected, rel=1e-7)
    assert true_llc_t(dln([2, 2, inputs], 0), t, gamma) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("widths", [(1, 3, 1), (3, 1, 1), (1, 1, 3), (2, 2, 2), (3, 2, 5), (2, 4, 3), (2, 3, 2)])
def test_two_layers_against_the_localisation(widths):
    inputs, hidden, outputs = widths
    t, gamma = 4.0, 1.5

    def tau(w):
        a = w[: hidden * inputs].reshape(hidden, inputs, -1)
        b = w[hidden * inputs :].reshape(outputs, hidden, -1)
        return t / 2 * np.sum(np.einsum("ohk,hik->oik", b, a) ** 2, axis=(0, 1))

    mean, error = under_the_localisation(tau, hidden * (inputs + outputs), gamma, draws=400_000)
    assert error < 0.02 * mean
    assert abs(true_llc_t(dln(widths, 0), t, gamma) - mean) < 4 * error


def test_products_approach_lambda_through_their_multiplicity():
    """`lambda_t = lambda - (m - 1)/log t + ...`, so that differences of its inverse slope tell m."""
    for widths in [(2, 2, 2), (1, 3, 1), (2, 4, 3), (2, 2, 5)]:
        llc, multiplicity = dln_llc(widths, 0)
        values = [llc - true_llc_t(dln(widths, 0), 10.0**d, 1.0) for d in (10, 12)]
        if multiplicity == 1:
            assert abs(values[1]) < 1e-3 * llc
        else:
            assert values[0] * 10 == pytest.approx(values[1] * 12, rel=0.1)


def test_a_narrow_localisation_far_from_the_singularity():
    # At (p, 0) with gamma p^2 large x stays at p: what is left is a quadratic of curvature 2 p^2.
    t, gamma, p = 10.0, 1e10, 3.0
    curvature = 2 * p**2 * t
    expected = curvature / (2 * (curvature + gamma))
    assert true_llc_t(monomial([1, 1], [p, 0.0]), t, gamma) == pytest.approx(expected, rel=1e-6)


def test_two_ways_to_one_value():
    # |W|^2 / 2 of widths (1, 1, 1) is the monomial w1^2 w2^2 at half the temperature.
    for t, gamma in [(0.1, 1.0), (144.0, 1.0), (1e9, 50.0)]:
        by_radius = true_llc_t(dln([1, 1, 1], 0), t, gamma)
        assert by_radius == pytest.approx(true_llc_t(monomial([1, 1]), t / 2, gamma), rel=1e-9)


def test_wide_products_approach_the_prior_mean():
    # Where t is small the loss is felt not at all: t E|a|^2 E|b|^2 / (2 sigma^2).
    cfg = dln([400, 1, 300], 0, sigma=2.0)
    assert true_llc_t(cfg, 1e-9, 5.0) == pytest.approx(1e-9 * 80 * 60 / 8, rel=1e-5)


def test_lambda_t_follows_the_scale_of_the_loss():
    t, gamma = 144.0, 1.0
    base = true_llc_t(dln([3, 1, 4], 0), t, gamma)
    assert true_llc_t(dln([3, 1, 4], 0, sigma=0.5), t / 4, gamma) == pytest.approx(base, rel=1e-12)
    assert true_llc_t(dln([3, 1, 4], 0, loss="mse"), 2 * t, gamma) == pytest.approx(base, rel=1e-12)


def test_lambda_t_approaches_lambda():
    assert true_llc_t(monomial([1, 2]), 1e15, 1.0) == pytest.approx(1 / 4, rel=1e-3)
    assert true_llc_t(dln([4, 1, 2], 0), 1e12, 1.0) == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize(
    ("cfg", "gamma"),
    [
        (MlpBuild(), 1.0),
        (tanh(3), 1.0),
        (dln([2, 1, 2]), 1.0),
        (dln([3, 3, 3], 0), 1.0),
        (dln([3, 1, 1, 3], 0), 1.0),
        (dln([2, 1, 2], 0, data="empirical"), 1.0),
        # Without a localisation these posteriors are improper.
        (quadratic(3, 2), 0.0),
        (monomial([1, 1]), 0.0),
        (dln([2, 1, 2], 0), 0.0),
        (line_and_point(1.0, 1.0), 0.0),
        (tanh(1), 0.0),
    ],
)
def test_lambda_t_is_none_where_it_is_not_known(cfg, gamma):
    assert true_llc_t(cfg, 144.0, gamma) is None


def test_without_localisation_where_that_is_proper():
    assert true_llc_t(quadratic(4), 144.0, 0.0) == 2.0
    assert true_llc_t(monomial_sum([[1], [3]]), 144.0, 0.0) == pytest.approx(1 / 2 + 1 / 6, rel=1e-10)
    assert true_llc_t(radial(3, 4), 144.0, 0.0) == 3 / 8


def test_formulas_import_without_jax():
    """The package's `__init__` takes jax; the closed forms themselves must not."""
    code = (
        "import sys, types; package = types.ModuleType('lambda_hat.targets');"
        "import lambda_hat; package.__path__ = [lambda_hat.__path__[0] + '/targets'];"
        "sys.modules['lambda_hat.targets'] = package; import lambda_hat.targets.truth;"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
