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

from lambda_hat.config import (
    DlnBuild,
    DlnTarget,
    MlpBuild,
    MonomialBuild,
    MonomialSumBuild,
    MonomialSumTarget,
    MonomialTarget,
    QuadraticBuild,
    QuadraticTarget,
)
from lambda_hat.targets.aoyagi import dln_llc
from lambda_hat.targets.truth import true_llc, true_llc_t


def monomial(exponents, point=None):
    return MonomialBuild(target=MonomialTarget(exponents=exponents, point=point))


def monomial_sum(blocks, point=None):
    return MonomialSumBuild(target=MonomialSumTarget(blocks=blocks, point=point))


def quadratic(dim, rank=None, eigenvalues=None):
    return QuadraticBuild(target=QuadraticTarget(dim=dim, rank=rank, eigenvalues=eigenvalues))


def dln(widths, rank=None, loss="nll", sigma=1.0, **target):
    return DlnBuild(target=DlnTarget(widths=widths, rank=rank, **target), loss=loss, sigma=sigma)


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
        (monomial([1, 1, 1]), 1.0),
        (monomial_sum([[1], [1, 1, 1]]), 1.0),
        (dln([2, 1, 2]), 1.0),
        (dln([3, 2, 3], 0), 1.0),
        (dln([3, 1, 1, 3], 0), 1.0),
        (dln([2, 1, 2], 0, data="empirical"), 1.0),
        # Without a localisation these posteriors are improper.
        (quadratic(3, 2), 0.0),
        (monomial([1, 1]), 0.0),
        (dln([2, 1, 2], 0), 0.0),
    ],
)
def test_lambda_t_is_none_where_it_is_not_known(cfg, gamma):
    assert true_llc_t(cfg, 144.0, gamma) is None


def test_without_localisation_where_that_is_proper():
    assert true_llc_t(quadratic(4), 144.0, 0.0) == 2.0
    assert true_llc_t(monomial_sum([[1], [3]]), 144.0, 0.0) == pytest.approx(1 / 2 + 1 / 6, rel=1e-10)


def test_formulas_import_without_jax():
    """The package's `__init__` takes jax; the closed forms themselves must not."""
    code = (
        "import sys, types; package = types.ModuleType('lambda_hat.targets');"
        "import lambda_hat; package.__path__ = [lambda_hat.__path__[0] + '/targets'];"
        "sys.modules['lambda_hat.targets'] = package; import lambda_hat.targets.truth;"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
