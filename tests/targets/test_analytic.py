"""Closed-form losses: values, and derivatives that stay finite where coordinates vanish."""

import jax
import numpy as np
import pytest

from lambda_hat.config import (
    LineAndPointBuild,
    LineAndPointTarget,
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
    data = {name: array.astype(np.float32) for name, array in target.data.items()}
    value = target.loss({"w": np.array([1.0, 2.0, 5.0, 7.0], np.float32)}, data)
    assert value == pytest.approx(3 / 2 + 1.0)


def test_monomial_sum_values():
    target, _ = build_target(monomial_sum([[1, 2], [3]], [2.0, 0.0, 0.0]))
    np.testing.assert_array_equal(target.data["exponents"], [[1, 2, 0, 0, 0], [0, 0, 3, 0, 0], [0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(target.w_star["w"], [2.0, 0.0, 0.0])
    with jax.enable_x64(True):
        value = float(target.loss({"w": np.array([2.0, -3.0, -0.5])}, target.data))
    assert value == pytest.approx(4 * 81 + 0.5**6)


@pytest.mark.parametrize("point", [[1.0, -2.0], [0.0, 0.0]])
def test_line_and_point_values(point):
    target, _ = build_target(LineAndPointBuild(target=LineAndPointTarget(point=point)))
    np.testing.assert_array_equal(target.w_star["w"], point)
    assert target.loss_at_w_star == 0.0
    with jax.enable_x64(True):
        value = float(target.loss({"w": np.array([-0.5, 2.0])}, target.data))
    assert value == pytest.approx(1.5**2 * 4.25**4)


def test_radial_values():
    target, _ = build_target(RadialBuild(target=RadialTarget(dim=3, k=5)))
    with jax.enable_x64(True):
        value = float(target.loss({"w": np.array([1.0, 0.5, -2.0])}, target.data))
    assert value == pytest.approx(5.25**5)


def test_losses_of_one_dimension_share_program_and_arrays():
    builds = [
        QuadraticBuild(target=QuadraticTarget(dim=2)),
        MonomialBuild(target=MonomialTarget(exponents=[1, 3])),
        monomial_sum([[2], [1]]),
        RadialBuild(target=RadialTarget(dim=2, k=4)),
        LineAndPointBuild(),
    ]
    targets = [build_target(cfg)[0] for cfg in builds]
    assert len({target.loss for target in targets}) == 1
    shapes = [{name: array.shape for name, array in target.data.items()} for target in targets]
    assert shapes == [{"eigenvalues": (2,), "exponents": (2, 4)}] * len(builds)


def test_a_large_quadratic_has_no_table_of_exponents():
    target, _ = build_target(QuadraticBuild(target=QuadraticTarget(dim=2000)))
    assert target.data["exponents"].shape == (0, 2002)
    assert target.loss({"w": np.ones(2000)}, target.data) == 1000.0


def test_tanh_network_values():
    target, _ = build_target(TanhBuild(target=TanhTarget(hidden=2)))
    assert (target.dim, target.population, target.loss_at_w_star) == (4, True, 0.0)
    x, weights = np.polynomial.hermite_e.hermegauss(100)
    a, b = np.array([1.5, -0.7]), np.array([0.8, 2.0])
    expected = (np.tanh(np.outer(x, b)) @ a) ** 2 @ weights / weights.sum() / 2
    with jax.enable_x64(True):
        assert target.loss({"a": a, "b": b}, target.data) == pytest.approx(expected, rel=1e-4)


def test_powers_that_are_not_needed_do_not_overflow():
    target, _ = build_target(monomial_sum([[1], [7]]))
    data = {name: array.astype(np.float32) for name, array in target.data.items()}
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


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    "cfg",
    [
        RadialBuild(target=RadialTarget(dim=1, k=1)),
        RadialBuild(target=RadialTarget(dim=3, k=3)),
        LineAndPointBuild(),
        LineAndPointBuild(target=LineAndPointTarget(point=[1.0, 0.0])),
        LineAndPointBuild(target=LineAndPointTarget(point=[0.0, 0.0])),
        TanhBuild(target=TanhTarget(hidden=1)),
        TanhBuild(target=TanhTarget(hidden=3)),
    ],
    ids=lambda cfg: cfg.label,
)
def test_derivatives_at_w_star_and_around(cfg, precision):
    """Zero gradient and the exact curvature at w_star; elsewhere against central differences in float64."""
    target, _ = build_target(cfg)
    flat = np.concatenate([array.ravel() for array in target.w_star.values()])
    rng = np.random.default_rng(0)
    points = np.stack([flat, *(flat + 0.3 * rng.normal(size=(4, len(flat))))]).astype(precision)
    direction = np.ones(len(flat), precision)
    data = {name: array.astype(precision) for name, array in target.data.items()}
    names, ends = list(target.w_star), np.cumsum([array.size for array in target.w_star.values()])[:-1]

    def loss(w, data):
        return target.loss(dict(zip(names, jax.numpy.split(w, ends), strict=True)), data)

    def derivatives(w, data):
        return jax.jvp(lambda w: jax.grad(loss)(w, data), (w,), (direction.astype(w.dtype),))

    with jax.enable_x64(precision == "float64"), jax.numpy_dtype_promotion("strict"):
        gradients, products = jax.jit(jax.vmap(derivatives, (0, None)))(points, data)
    assert gradients.dtype == precision
    np.testing.assert_array_equal(gradients[0], np.zeros(len(flat)))
    step = 1e-5
    with jax.enable_x64(True):
        value = jax.jit(jax.vmap(lambda w: loss(w, target.data)))
        slope = jax.jit(jax.vmap(jax.grad(lambda w: loss(w, target.data))))
        exact = points.astype(np.float64)
        shifts = step * np.eye(len(flat))
        expected = [(value(w + shifts) - value(w - shifts)) / (2 * step) for w in exact]
        curvature = (slope(exact + step * direction) - slope(exact - step * direction)) / (2 * step)
    tolerance = 1e-6 if precision == "float64" else 1e-4
    np.testing.assert_allclose(gradients, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(products, curvature, rtol=tolerance, atol=tolerance)


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
