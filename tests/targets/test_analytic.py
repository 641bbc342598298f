"""Closed-form losses: values, and derivatives that stay finite where coordinates vanish."""

import jax
import numpy as np
import pytest

from lambda_hat.config import (
    MonomialBuild,
    MonomialSumBuild,
    MonomialSumTarget,
    MonomialTarget,
    QuadraticBuild,
    QuadraticTarget,
)
from lambda_hat.targets import build_target


def monomial_sum(blocks, point=None):
    return MonomialSumBuild(target=MonomialSumTarget(blocks=blocks, point=point))


def test_quadratic():
    cfg = QuadraticBuild(target=QuadraticTarget(dim=4, rank=2, eigenvalues=[3.0, 0.5]))
    target, _ = build_target(cfg)
    np.testing.assert_array_equal(target.data["eigenvalues"], [3.0, 0.5, 0.0, 0.0])
    np.testing.assert_array_equal(target.w_star["w"], np.zeros(4))
    assert target.population and target.num_data == 0 and target.dim == 4 and target.n == 1000
    assert target.loss_at_w_star == 0.0
    assert (target.true_llc, target.true_multiplicity) == (1.0, 1)
    value = target.loss({"w": np.array([1.0, 2.0, 5.0, 7.0], np.float32)}, {"eigenvalues": np.float32([3, 0.5, 0, 0])})
    assert value == pytest.approx(3 / 2 + 1.0)


def test_monomial_sum_values():
    target, _ = build_target(monomial_sum([[1, 2], [3]], [2.0, 0.0, 0.0]))
    np.testing.assert_array_equal(target.data["exponents"], [[1, 2, 0], [0, 0, 3]])
    np.testing.assert_array_equal(target.w_star["w"], [2.0, 0.0, 0.0])
    with jax.enable_x64(True):
        value = float(target.loss({"w": np.array([2.0, -3.0, -0.5])}, target.data))
    assert value == pytest.approx(4 * 81 + 0.5**6)


def test_both_kinds_of_monomial_share_their_loss():
    one, _ = build_target(MonomialBuild(target=MonomialTarget(exponents=[1, 3])))
    other, _ = build_target(monomial_sum([[2], [1]]))
    assert one.loss == other.loss


def test_powers_that_are_not_needed_do_not_overflow():
    target, _ = build_target(monomial_sum([[1], [7]]))
    data = {"exponents": target.data["exponents"].astype(np.float32)}
    gradient = jax.grad(lambda w: target.loss({"w": w}, data))(np.array([1e15, 0.5], np.float32))
    np.testing.assert_allclose(gradient, [2e15, 14 * 0.5**13], rtol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("blocks", [[[1]], [[1, 1]], [[1, 2]], [[3, 1, 2], [1, 1]], [[1, 9]]])
def test_derivatives_where_coordinates_vanish(blocks, precision):
    target, _ = build_target(monomial_sum(blocks))
    data = {name: array.astype(precision) for name, array in target.data.items()}
    ks = [k for block in blocks for k in block]
    rng = np.random.default_rng(0)
    points = rng.normal(size=(12, len(ks))).astype(precision)
    points[rng.random(points.shape) < 0.5] = 0.0
    points[0] = 0.0
    direction = np.ones(len(ks), precision)

    def loss(w):
        return target.loss({"w": w}, data)

    @jax.jit
    @jax.vmap
    def derivatives(w):
        return jax.jvp(jax.grad(loss), (w,), (direction,))

    with jax.enable_x64(precision == "float64"), jax.numpy_dtype_promotion("strict"):
        gradients, products = derivatives(points)
    assert gradients.dtype == precision
    expected = [exact_derivatives(blocks, w.astype(np.float64)) for w in points]
    rtol = 1e-12 if precision == "float64" else 1e-4
    np.testing.assert_allclose(gradients, [g for g, _ in expected], rtol=rtol, atol=rtol)
    np.testing.assert_allclose(products, [h for _, h in expected], rtol=rtol, atol=rtol)


def exact_derivatives(blocks, w):
    """Gradient and Hessian row sums, from the polynomial's coefficients."""
    gradient, hessian = np.zeros(len(w)), np.zeros((len(w), len(w)))
    start = 0
    for block in blocks:
        inside = range(start, start + len(block))
        powers = {i: np.polynomial.Polynomial([0] * (2 * k) + [1]) for i, k in zip(inside, block, strict=True)}
        for i in inside:
            gradient[i] = np.prod([powers[m].deriv()(w[m]) if m == i else powers[m](w[m]) for m in inside])
            for j in inside:
                orders = {m: (m == i) + (m == j) for m in inside}
                hessian[i, j] = np.prod(
                    [powers[m].deriv(orders[m])(w[m]) if orders[m] else powers[m](w[m]) for m in inside]
                )
        start += len(block)
    return gradient, hessian.sum(axis=1)
