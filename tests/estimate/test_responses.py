"""Influence functions and susceptibilities on Gaussian posteriors, where both are known in closed form."""

from __future__ import annotations

import numpy as np
import pytest

from lambda_hat import influence, refined_llc, susceptibility
from lambda_hat.errors import ConfigError
from lambda_hat.estimate.convergence import mixing
from tests.linear_regression import Regression

MODEL = Regression(rows=16, seed=0)
"""Its posterior at the least squares solution is a normal law, and the loss of a row is a quadratic form."""
SEEDS = 150


def draws_of_rows(seed: int, chains: int = 4, draws: int = 400, memory: float = 0.0) -> np.ndarray:
    """(chains, draws, rows): losses of rows along chains of the exact law, which forget by `memory` per draw."""
    rng = np.random.default_rng(seed)
    normal = rng.normal(size=(chains, draws, MODEL.dim))
    for t in range(1, draws):
        normal[:, t] = memory * normal[:, t - 1] + np.sqrt(1 - memory**2) * normal[:, t]
    return MODEL.row_losses(normal @ np.linalg.cholesky(MODEL.covariance).T)


@pytest.fixture(scope="module", params=[0.0, 0.6])
def many(request):
    """Values and errors of many repetitions: of independent draws, and of chains with a memory."""
    found = []
    for seed in range(SEEDS):
        # Blocks of twenty times the memory, where it has one: shorter ones are no longer independent.
        rows = draws_of_rows(seed, draws=800 if request.param else 400, memory=request.param)
        loss = rows.mean(axis=-1)
        found.append((influence(rows, rows), susceptibility(loss, rows, loss), influence(rows, loss)))
    return [tuple(np.stack(part) for part in zip(*kind, strict=True)) for kind in zip(*found, strict=True)]


def test_they_are_the_covariances_in_closed_form(many):
    """Over all repetitions together, within the errors of the repetitions."""
    exact = MODEL.covariance_of_row_losses
    for (values, _), truth in zip(
        many, (-exact, -(exact.mean(axis=0) - exact.mean()), -exact.mean(axis=1)), strict=True
    ):
        z = (values.mean(axis=0) - truth) / (values.std(axis=0, ddof=1) / np.sqrt(SEEDS))
        # Of so many numbers in three dimensions, the largest of some ten independent ones.
        assert np.max(np.abs(z)) < 4


def test_their_standard_errors_are_calibrated(many):
    """The scores of single repetitions have unit variance, to what is known of the errors.

    40 blocks make it 1.05, what is left of the memory and the skewness of products 1.1; of so many repetitions in three
    dimensions it is known to .07, of which three are allowed.
    """
    exact = MODEL.covariance_of_row_losses
    for (values, errors), truth in zip(
        many, (-exact, -(exact.mean(axis=0) - exact.mean()), -exact.mean(axis=1)), strict=True
    ):
        scores = (values - truth) / errors
        assert 0.9 < np.sqrt(np.mean(scores**2)) < 1.15
        assert np.mean(np.abs(scores) > 3) < 0.015
        # The error that is given is the error that there is: 40 blocks know it to 11 %.
        assert 0.85 < np.median(errors.mean(axis=0) / values.std(axis=0, ddof=1)) < 1.1


def test_the_error_of_a_mean_product_is_that_of_its_effective_sample_size():
    rows = draws_of_rows(3, draws=4000, memory=0.6)
    found = influence(rows[..., :3], rows[..., 3])
    centred = rows - rows.mean(axis=(0, 1))
    expected = [mixing(centred[..., row] * centred[..., 3]).std_error for row in range(3)]
    np.testing.assert_allclose(found.std_error, expected, rtol=0.4)


def test_chains_that_disagree_count_as_so_many_draws():
    """Within a chain all blocks say the same, and the error is that of four numbers."""
    offset = np.array([0.0, 1.0, 2.0, 6.0])[:, None]
    noise = np.random.default_rng(0).normal(size=(4, 1000)) * 1e-3
    found = influence((offset + noise)[..., None], offset + noise)
    products = (offset - offset.mean()) ** 2
    np.testing.assert_allclose(found.std_error[0], products.std(ddof=1) / 2, rtol=0.01)


def test_a_dead_chain_is_left_out():
    rows = draws_of_rows(1)
    dead = rows.copy()
    dead[2, 300:] = np.nan
    for one, other in zip(
        influence(dead, dead[..., 0]), influence(rows[[0, 1, 3]], rows[[0, 1, 3], :, 0]), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert np.isnan(influence(dead[2:3], dead[2:3]).value).all()


def test_shapes_follow_the_arrays():
    rows = draws_of_rows(1)
    tokens = rows.reshape(*rows.shape[:2], 4, 4)
    assert influence(tokens, rows[..., 0]).value.shape == (4, 4)
    assert influence(tokens, rows).std_error.shape == (4, 4, 16)
    found = susceptibility(rows[..., :2], tokens, rows.mean(axis=-1))
    assert found.value.shape == found.std_error.shape == (2, 4, 4)
    # Of blocks of uneven length as well, and in float32.
    narrow = influence(rows[:, :397].astype(np.float32), rows[:, :397, 0].astype(np.float32))
    np.testing.assert_allclose(narrow.value, influence(rows[:, :397], rows[:, :397, 0]).value, rtol=1e-4, atol=1e-6)


def test_the_refined_llc_of_the_chains_own_data_is_the_llc():
    loss = draws_of_rows(2).mean(axis=-1)
    at_w_star = MODEL.row_losses(np.zeros(MODEL.dim)).mean()
    found = refined_llc(loss, at_w_star, MODEL.n_beta)
    llc = MODEL.n_beta * (loss - at_w_star)
    assert (found.value, found.std_error) == (pytest.approx(llc.mean()), pytest.approx(mixing(llc).std_error))
    assert abs(found.value - MODEL.llc) < 4 * found.std_error


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda x: influence(x[0, 0], x), r"rows: got float64 of shape \(16,\), expected real numbers of shape"),
        (lambda x: influence(x, x[:, :9]), r"got \(4, 400\) and \(4, 9\) chains and draws, expected .* same draws"),
        (lambda x: influence(x[:1, :1], x[:1, :1]), "got 1 chain of 1 draws, expected at least 4 draws"),
        (lambda x: influence([["a"]], x), "rows: got <U1 of shape"),
        (lambda x: susceptibility(x, x, x), r"loss: got the shape \(4, 400, 16\), expected \(chains, draws\)"),
        (lambda x: susceptibility(x, x[:, :9], x[..., 0]), r"losses: got the shape \(4, 9, 16\)"),
        (lambda x: refined_llc(x, 0.0, 1.0), r"draws: got the shape \(4, 400, 16\), expected \(chains, draws\)"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(call, said):
    with pytest.raises(ConfigError, match=said):
        call(draws_of_rows(0))
