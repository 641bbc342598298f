"""What burn-in learns: a step whose heat is the one asked for, and a metric that fits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import (
    AdjustedMclmcConfig,
    HmcConfig,
    MalaConfig,
    MclmcConfig,
    NutsConfig,
    SghmcConfig,
    SgldConfig,
    SgnhtConfig,
)
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.estimate.verdict import summarize
from lambda_hat.samplers import mclmc, sample
from lambda_hat.targets.base import Target


def regression(noise=1.0, condition=1.0, dim=5, num_data=4000, seed=0):
    """Unscaled squared error of a linear regression at its least squares, and the exact answer at n_beta, gamma = 1."""
    from lambda_hat.targets.custom import target_of

    rng = np.random.default_rng(seed)
    x = rng.normal(size=(num_data, dim)) * np.sqrt(np.geomspace(1, 1 / condition, dim))
    x = x @ np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    y = x @ np.ones(dim) + noise * rng.normal(size=num_data)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    target = target_of(squared_error, w, (x, y), None, identity="squared error")
    t = num_data / np.log(num_data) * 2 * np.linalg.eigvalsh(x.T @ x / num_data)
    return target, float(np.sum(t / (2 * (t + 1))))


def squared_error(w, batch):
    x, y = batch
    return ((x @ w - y) ** 2).mean()


def summary_of(target: Target, cfg):
    posterior = posterior_for(cfg, target.n, target.dim)
    draws = sample(target, cfg)
    return summarize(draws, target.loss_at_w_star, *posterior, target.dim), draws


@pytest.mark.slow
@pytest.mark.parametrize("cfg", [SgldConfig(), SghmcConfig(), SgnhtConfig()], ids=lambda cfg: cfg.name)
@pytest.mark.parametrize(("noise", "condition"), [(1.0, 1.0), (100.0, 1e5)])
def test_defaults_are_right_and_say_so_on_noisy_minibatches(cfg, noise, condition):
    target, exact = regression(noise, condition)
    summary, draws = summary_of(target, cfg)
    assert abs(summary.llc_mean - exact) < 3 * summary.llc_std_error + 0.05 * exact
    assert summary.llc_std_error < 0.05 * exact
    assert summary.verdict == "ok"
    assert summary.temperature == pytest.approx(1, abs=0.05)
    assert summary.degree == pytest.approx(2, abs=0.05)
    assert summary.growth + summary.localisation == pytest.approx(target.dim * summary.temperature)
    # Two a step, a quarter more for burn-in, and what burn-in looks at.
    assert draws.num_gradients / (4 * 2000 * 30) < 2.7


@pytest.mark.slow
def test_the_heat_is_the_one_asked_for():
    target, exact = regression()
    for heat in (0.01, 0.05):
        summary, _ = summary_of(target, SgldConfig(num_chains=16, heat=heat))
        assert summary.temperature - 1 == pytest.approx(heat, abs=0.2 * heat + 3 * summary.temperature_std_error)
        assert summary.llc_mean / exact - 1 == pytest.approx(heat, abs=0.2 * heat + 3 * summary.llc_std_error / exact)


@pytest.mark.slow
def test_plain_gradients_at_a_step_that_is_given_are_heated():
    target, exact = regression()
    # Along every direction h is about 2 n_beta = 965: eps h n_beta / (2 B) of heat, and more.
    cfg = SgldConfig(step_size=1e-4, thin=5, num_burnin=1000, gradient="plain", batch_size=64)
    summary, _ = summary_of(target, cfg)
    assert summary.llc_mean > 1.2 * exact
    error = 3 * (summary.llc_std_error / exact + summary.temperature_std_error)
    assert summary.temperature - 1 == pytest.approx(summary.llc_mean / exact - 1, abs=error)
    assert summary.verdict == "heated"
    controlled, _ = summary_of(target, replace(cfg, gradient="control_variate"))
    assert abs(controlled.llc_mean - exact) < 3 * controlled.llc_std_error + 0.05 * exact
    assert controlled.verdict == "ok"


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["diagonal", "low_rank", "dense"])
@pytest.mark.parametrize("schema", [HmcConfig, NutsConfig, MalaConfig], ids=lambda schema: schema.name)
def test_every_metric_gives_the_same_answer(schema, metric):
    target, exact = regression(condition=100.0, num_data=400)
    summary, draws = summary_of(target, schema(metric=metric, num_draws=1000))
    assert abs(summary.llc_mean - exact) < 3.5 * summary.llc_std_error
    assert abs(summary.temperature - 1) < 3.5 * summary.temperature_std_error
    assert np.all(draws.acceptance > 0.6)


@pytest.mark.slow
@pytest.mark.parametrize("schema", [MclmcConfig, AdjustedMclmcConfig], ids=lambda schema: schema.name)
def test_microcanonical_chains_learn_a_metric_that_fits(schema):
    target, exact = regression(condition=1e5)
    summary, draws = summary_of(target, schema())
    # The unadjusted one is 1 to 2 % low at its default.
    assert abs(summary.llc_mean - exact) < 3 * summary.llc_std_error + 0.02 * exact * (draws.acceptance is None)
    assert summary.llc_std_error < 0.02 * exact
    assert summary.verdict == "ok"


@pytest.mark.parametrize("first", [0.1, 1.0, 1e4])
def test_the_step_of_mclmc_is_the_one_at_which_the_energy_error_is_as_desired(first):
    rng, desired = np.random.default_rng(5), 1e-3
    with jax.enable_x64(True):
        step = mclmc.begun(jnp.asarray(1.0))._replace(step_size=jnp.asarray(first))
        follow = jax.jit(mclmc.followed)
        for _ in range(400):
            # An energy error of sd eps^3, not finite above 30.
            error = step.step_size**3 * rng.normal()
            step = follow(step, error, desired, step.step_size < 30)
    assert float(step.step_size) == pytest.approx(desired ** (1 / 6), rel=0.15)
    assert float(step.most) < np.inf if first > 30 else float(step.most) == np.inf


@pytest.mark.slow
def test_a_low_rank_metric_needs_fewer_gradients_where_the_curvature_is_not_diagonal():
    target, _ = regression(condition=1e4, dim=20, num_data=400)
    cfg = NutsConfig(num_draws=500)
    work = {metric: sample(target, replace(cfg, metric=metric)).num_gradients for metric in ("diagonal", "low_rank")}
    assert work["low_rank"] < 0.5 * work["diagonal"]


@pytest.mark.slow
def test_chains_that_have_not_spread_say_so():
    target, exact = regression(condition=1e5)
    cfg = SgldConfig(step_size=1e-5, precond="none", num_burnin=100, thin=1, num_draws=500, gradient="control_variate")
    summary, _ = summary_of(target, cfg)
    assert summary.llc_mean < 0.8 * exact
    assert summary.temperature < 0.8
    assert summary.verdict == "not_equilibrated"
