"""The low-rank metric that NumPy fits, beside blackjax's fit and beside a Gaussian whose metric is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.engine.windows import NOWHERE
from lambda_hat.samplers.low_rank import RANK, Kept, fit, fitted, init, keep


def gaussian(dim, rows, seed=0, condition=1e4):
    """Draws of a Gaussian in turned axes, their scores, and its precision."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    precision = axes * np.geomspace(1, condition, dim) @ axes.T
    draws = rng.multivariate_normal(np.zeros(dim), np.linalg.inv(precision), size=rows)
    return draws, -draws @ precision, precision


def inverse_mass(metric):
    """sigma (I + U (lam - 1) U^T) sigma as a matrix."""
    directions = metric.directions
    inner = np.eye(directions.shape[1]) + directions.T * (metric.scales - 1) @ directions
    return metric.sigma[:, None] * inner * metric.sigma


@pytest.mark.parametrize(("dim", "rows"), [(1, 40), (3, 7), (10, 100), (30, 100), (200, 100)])
def test_the_fit_is_that_of_blackjax(dim, rows):
    from blackjax.adaptation.metric_estimators import fisher_score_low_rank

    draws, gradients, _ = gaussian(dim, rows, seed=dim)
    with jax.enable_x64(True):
        sigma, directions, scales = map(np.asarray, fisher_score_low_rank(draws, gradients, RANK))
    found = fit(draws, gradients)
    np.testing.assert_allclose(found.sigma, sigma, rtol=1e-10)
    theirs = found._replace(sigma=sigma, directions=directions.T, scales=scales)
    np.testing.assert_allclose(inverse_mass(found), inverse_mass(theirs), rtol=1e-4, atol=1e-6 * np.max(sigma**2))


def test_the_metric_of_a_gaussian_is_its_covariance():
    """Draws and scores of a Gaussian of fewer than RANK dimensions show it exactly."""
    draws, gradients, precision = gaussian(8, 100)
    scaled = np.linalg.eigvals(inverse_mass(fit(draws, gradients)) @ precision)
    # A scale within a factor of two of 1 is taken as 1.
    np.testing.assert_array_less(np.abs(np.log(scaled.real)), np.log(2) + 1e-3)


def test_chains_that_show_no_scale_leave_the_metric_as_it_is():
    metric, _ = init(jnp.zeros(4), 5)
    metric = jax.tree.map(lambda x: np.asarray(x) + 1, metric)
    rows = np.random.default_rng(0).normal(size=(2, 5, 4)).astype(np.float32)
    lost = rows.copy()
    lost[1, 1:4] = np.nan
    assert fitted(Kept(rows, lost), metric) is metric
    assert fitted(Kept(rows, rows), metric) is not metric
    nowhere = np.zeros_like(rows)
    still = fitted(Kept(nowhere, nowhere), metric)
    assert all(np.all(np.isfinite(part)) for part in still)


def test_a_draw_is_kept_where_it_is_usable_and_has_a_place():
    _, kept = init(jnp.zeros(2), 3)
    for value, place, usable in ((1.0, 0, True), (2.0, NOWHERE, True), (3.0, 1, False), (4.0, 2, True)):
        kept = keep(kept, jnp.uint32(place), jnp.asarray(usable), jnp.full(2, value), jnp.full(2, -value))
    np.testing.assert_array_equal(kept.draws[:-1, 0], [1.0, np.nan, 4.0])
    np.testing.assert_array_equal(kept.gradients[:-1, 1], [-1.0, np.nan, -4.0])
