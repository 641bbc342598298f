"""Observables from Python: exact where the posterior is a normal law, and without a trace in the estimate."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import estimate_llc, influence, refined_llc, susceptibility
from lambda_hat.errors import ConfigError
from tests.linear_regression import Regression

MODEL = Regression(rows=24, seed=2)
OTHERS = np.random.default_rng(5).normal(size=(12, MODEL.dim))
DATA = {"x": MODEL.x, "y": MODEL.y}


def loss(w, batch):
    return jnp.mean((batch["y"] - batch["x"] @ w) ** 2) / 2


def rows(w):
    return (MODEL.y - MODEL.x @ w) ** 2 / 2


def others(w):
    """Outputs of the model itself and noise that has no part in what is expected."""
    return jnp.mean((OTHERS @ MODEL.w_star + 1 - OTHERS @ w) ** 2) / 2


OBSERVABLES = {"rows": rows, "others": others, "offset": lambda w: w - MODEL.w_star}
SETTING = {"n_beta": MODEL.n_beta, "gamma": MODEL.gamma, "sampler": "hmc", "num_burnin": 300, "num_draws": 1500}


@pytest.fixture(scope="module")
def found():
    return estimate_llc(loss, MODEL.w_star, DATA, observables=OBSERVABLES, **SETTING)


@pytest.mark.slow
def test_they_change_nothing(found):
    plain = estimate_llc(loss, MODEL.w_star, DATA, **SETTING)
    np.testing.assert_array_equal(plain.losses, found.losses)
    assert (plain.llc, plain.std_error, plain.num_gradients) == (found.llc, found.std_error, found.num_gradients)
    assert plain.observed == {}
    assert set(found.notes) - set(plain.notes) == {
        "observable rows: 4 chains of 1,500 draws of 24 values are 1.1 MiB a run",
        "observable offset: 4 chains of 1,500 draws of 3 values are 141 KiB a run",
    }


@pytest.mark.slow
def test_they_are_those_of_the_draws_and_of_w_star(found):
    at, offset = found.observed, found.observed["offset"].draws
    assert {name: one.draws.shape for name, one in at.items()} == {
        "rows": (4, 1500, 24), "others": (4, 1500), "offset": (4, 1500, 3)
    }  # fmt: skip
    np.testing.assert_allclose(at["rows"].draws, MODEL.row_losses(offset), rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(at["rows"].draws.mean(axis=-1), found.losses, rtol=1e-9)
    np.testing.assert_allclose(at["rows"].at_w_star, MODEL.residuals**2 / 2, rtol=1e-9)
    np.testing.assert_array_equal(at["offset"].at_w_star, 0)
    table = found.to_xarray()
    assert table["rows"].dims == ("chain", "draw", "rows_0") and table["rows_at_w_star"].dims == ("rows_0",)
    assert table["others"].dims == ("chain", "draw") and table["others_at_w_star"].shape == ()
    np.testing.assert_array_equal(table["rows"], at["rows"].draws)


@pytest.mark.slow
def test_responses_are_the_covariances_in_closed_form(found):
    """A sampler's draws, the estimators and their errors, all together."""
    exact, seen = MODEL.covariance_of_row_losses, found.observed["rows"].draws
    every = influence(seen, seen)
    shift = susceptibility(found.losses, seen, found.losses)
    # Covariances of offsets alone are those of the normal law itself.
    spread = influence(found.observed["offset"].draws, found.observed["offset"].draws)
    for one, truth in (
        (every, -exact),
        (shift, -(exact.mean(axis=0) - exact.mean())),
        (spread, -MODEL.covariance),
    ):
        scores = (one.value - truth) / one.std_error
        # Three dimensions, so about six independent scores, whatever the number of entries.
        assert np.max(np.abs(scores)) < 4.5
        assert np.sqrt(np.mean(scores**2)) < 2.5
        assert np.median(one.std_error / np.abs(truth)) < 0.3
    # The sign: more weight on a row lowers its own loss.
    assert np.all(np.diag(every.value) < 0)


@pytest.mark.slow
def test_the_llc_that_other_data_see_is_exact(found):
    one = found.observed["others"]
    refined = refined_llc(one.draws, one.at_w_star, found.n_beta)
    assert abs(refined.value - MODEL.refined_llc(OTHERS)) < 4 * refined.std_error
    assert refined.std_error < 0.2 * refined.value
    own = refined_llc(found.losses, found.loss_at_w_star, found.n_beta)
    assert own == (pytest.approx(found.llc), pytest.approx(found.std_error))


def test_a_study_alone_has_observe():
    with pytest.raises(ConfigError, match="observe: no option of hmc"):
        estimate_llc(loss, MODEL.w_star, DATA, sampler="hmc", observe={"rows": {}})
    with pytest.raises(ConfigError, match="observables: rows: got 3, expected a function"):
        estimate_llc(loss, MODEL.w_star, DATA, observables={"rows": 3})
