"""The noisy suite's answers, against formulas and numbers that come from elsewhere."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest

from lambda_hat.targets.base import SLICE_ROWS
from lambda_hat.validate import exact, noisy
from lambda_hat.validate.exact import by_quadrature, quadratic
from lambda_hat.validate.models import Logistic, Mixture, Poisson, Squares

ROWS = 200
T = ROWS / math.log(ROWS)


def data(seed: int, dim: int) -> tuple[np.ndarray, np.random.Generator]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(ROWS, dim)), rng


def models() -> list:
    x, rng = data(1, 2)
    z = x @ np.array([1.0, -0.5])
    return [
        Squares(x, z + rng.normal(size=ROWS), rng.random(ROWS)),
        Logistic(x, (rng.random(ROWS) < 1 / (1 + np.exp(-z))).astype(float)),
        Poisson(x, rng.poisson(np.exp(z)).astype(float)),
        Mixture(rng.normal(size=ROWS) + rng.choice([-2, 2], ROWS), (-2.0, 2.0)),
        Mixture(rng.normal(size=ROWS), (-0.5, 0.5)),
    ]


MODELS = pytest.mark.parametrize("model", models(), ids=lambda model: type(model).__name__)


@pytest.mark.parametrize("dim", [1, 2, 3])
@pytest.mark.parametrize("gamma", [0.5, 30.0])
def test_quadrature_gives_the_closed_form_of_a_regression(dim, gamma):
    x, rng = data(dim, dim)
    model = Squares(x * np.geomspace(0.3, 1, dim), rng.normal(size=ROWS), np.ones(ROWS))
    w_star = model.minimum()
    closed = quadratic(model.hessian(w_star), T, gamma)
    assert by_quadrature(model, w_star, T, gamma) == pytest.approx(closed, rel=1e-6)


def test_the_closed_form_is_that_of_an_exact_posterior():
    """E[L_n] - L_n(w_star) = tr(H C) / 2 with C = (t H + gamma)^-1 the posterior's covariance."""
    x, rng = data(0, 5)
    model = Squares(x * np.geomspace(0.01, 10, 5), rng.normal(size=ROWS), np.ones(ROWS))
    hessian = 2 * model.x.T @ model.x / ROWS
    covariance = np.linalg.inv(T * hessian + 0.7 * np.eye(5))
    assert quadratic(model.hessian(np.zeros(5)), T, 0.7) == pytest.approx(T * np.trace(hessian @ covariance) / 2)


@MODELS
def test_twice_the_resolution_changes_nothing(model):
    w_star = model.minimum()
    coarse, fine = (by_quadrature(model, w_star, T, 1.0, spacing) for spacing in (1.0, 0.5))
    assert coarse == pytest.approx(fine, rel=1e-5)


@MODELS
def test_importance_sampling_agrees(model):
    """Draws from the localisation itself, weighted by `exp(-t L_n)`: no grid, and no curvature."""
    w_star = model.minimum()
    gamma = 30.0
    draws = w_star + np.random.default_rng(5).normal(size=(40_000, 2)) / math.sqrt(gamma)
    excess = T * (model.loss(draws) - model.loss(w_star[None]))
    weights = np.exp(-excess)
    value = np.sum(weights * excess) / np.sum(weights)
    error = math.sqrt(np.sum((weights * (excess - value)) ** 2)) / np.sum(weights)
    assert abs(by_quadrature(model, w_star, T, gamma) - value) < 4 * error
    assert error < 0.02 * value


@MODELS
def test_gradient_and_hessian_are_those_of_the_loss(model):
    w, h = model.minimum() + 0.1, 1e-5
    steps = h * np.eye(2)
    slopes = [(model.loss((w + step)[None]) - model.loss((w - step)[None]))[0] / (2 * h) for step in steps]
    curvatures = [(model.gradient(w + step) - model.gradient(w - step)) / (2 * h) for step in steps]
    np.testing.assert_allclose(model.gradient(w), slopes, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(model.hessian(w), curvatures, rtol=1e-6, atol=1e-9)


def test_a_grid_that_would_be_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(exact, "MOST_POINTS", 100)
    model = models()[1]
    with pytest.raises(ValueError, match="too wide"):
        by_quadrature(model, model.minimum(), T, 1.0)


@pytest.mark.parametrize("label", [target.label for target in noisy.TARGETS])
def test_every_target_of_the_suite_sits_at_a_minimum_of_its_own_loss(label):
    """Along a direction that the localisation alone holds, a slope g of `t L_n` gains g^2 / 2 nats."""
    target = noisy.known(label).target
    n_beta = target.n / math.log(target.n)
    with jax.enable_x64(True):
        value, gradient = jax.value_and_grad(lambda w: target.loss.full(w, target.data, SLICE_ROWS))(target.w_star)
    assert target.loss_at_w_star == pytest.approx(float(value), rel=1e-12)
    slope = n_beta * np.concatenate([np.ravel(g) for g in gradient.values()])
    assert np.sum(slope**2) / 2 < 1e-4
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2):
        near = {name: array + scale * rng.normal(size=array.shape) for name, array in target.w_star.items()}
        with jax.enable_x64(True):
            assert target.loss.full(near, target.data, SLICE_ROWS) > value


def test_the_answers_of_the_suite():
    """Regressions of any noise have one answer, and a second mode of the mixture has no mass."""
    n_beta = 20_000 / math.log(20_000)
    plain = [noisy.answer(f"linear, sigma {sigma:g}", n_beta, 1.0)[0] for sigma in noisy.SIGMAS]
    assert plain == pytest.approx([2.4994] * 4, abs=1e-4)
    assert noisy.answer("likelihood, sigma 3", n_beta, 1.0)[0] == pytest.approx(2.48, abs=0.01)
    hessians = [
        noisy.known(label).target.data["x"].T @ noisy.known(label).target.data["x"]
        for label in ("linear, sigma 1, condition 1e5", "linear, sigma 1, collinear")
    ]
    assert np.linalg.cond(hessians[0]) == pytest.approx(1e5, rel=0.05)
    assert np.linalg.cond(hessians[1]) == pytest.approx(1e10, rel=0.05)
    apart = noisy.known("mixture, means 4 apart").target.w_star["w"]
    assert (apart[0] - apart[1]) ** 2 > 15  # gamma / 2 |w - w_star|^2 with the means exchanged


def test_a_masked_mean_is_that_of_its_labelled_rows():
    target = noisy.known("masked mean, sigma 10").target
    data = target.data
    labelled = data["weight"] > 0
    assert 0.25 < labelled.mean() < 0.35
    residual = data["x"] @ target.w_star["w"] - data["y"]
    assert target.loss_at_w_star == pytest.approx(np.mean(residual[labelled] ** 2), rel=1e-12)
