from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import SgldConfig
from lambda_hat.estimate.posterior import Posterior, posterior_for
from lambda_hat.estimate.verdict import summarize
from lambda_hat.samplers import sample
from lambda_hat.targets.base import Loss, Target
from lambda_hat.targets.custom import target_of

CFG = SgldConfig(num_chains=16, num_draws=500, num_burnin=500, thin=5, gamma=50.0, step_size=4e-3)
"""On the quadratic of the fixtures: t a = 144.8, h = 194.8, eps h = .78."""


def biased(t: float, gamma: float, step_size: float, rank: int = 3) -> float:
    """What SGLD converges to on a quadratic with `rank` curvatures of 1: the sum of `t a / (2 h (1 - eps h / 4))`."""
    h = t + gamma
    return rank * t / (2 * h * (1 - step_size * h / 4))


def test_bias_on_a_quadratic_is_the_exact_one(estimate):
    summary, exact = estimate("quadratic", CFG)
    expected = biased(144.765, 50.0, CFG.step_size)
    assert expected > 1.2 * exact
    assert abs(summary.llc_mean - expected) < 3 * summary.llc_std_error
    assert summary.llc_std_error < 0.02 * expected


def test_standard_errors_are_calibrated(target):
    quadratic = target("quadratic")
    posterior = posterior_for(CFG, quadratic.n, quadratic.dim)
    cfg = replace(CFG, thin=2, num_burnin=100)
    expected = biased(*posterior, CFG.step_size)
    z = []
    for seed in range(30):
        summary = summarize(sample(quadratic, replace(cfg, seed=seed)), 0.0, *posterior, quadratic.dim)
        z.append((summary.llc_mean - expected) / summary.llc_std_error)
    assert 0.65 < np.std(z) < 1.4
    assert abs(np.mean(z)) < 3 / 30**0.5


def test_thin_is_the_number_of_steps_between_draws(target):
    # Per step a coordinate is multiplied by 1 - eps h / 2, so the loss is correlated by its square.
    factor = (1 - CFG.step_size * (144.765 + 50) / 2) ** 2
    for thin in (1, 2):
        loss = sample(target("quadratic"), replace(CFG, thin=thin)).loss
        lagged = np.mean([np.corrcoef(row[:-1], row[1:])[0, 1] for row in loss])
        assert lagged == pytest.approx(factor**thin, abs=0.04)


@pytest.mark.slow
def test_a_preconditioner_that_keeps_adapting_is_biased_and_says_so(estimate, target):
    frozen = SgldConfig(num_chains=16, num_draws=500, num_burnin=2000, thin=20, precond="rmsprop")
    always = replace(frozen, adapt="always")
    summary, exact = estimate("quadratic", frozen)
    assert abs(summary.llc_mean - exact) < 3 * summary.llc_std_error + 0.05 * exact
    summary, exact = estimate("quadratic", always)
    assert summary.llc_mean > 1.05 * exact + 3 * summary.llc_std_error
    notes = sample(target("quadratic"), always).notes
    assert any("biased" in note and "adapt: always" in note for note in notes)
    assert not any("adapt: always" in note for note in sample(target("quadratic"), frozen).notes)


@pytest.mark.slow
def test_momentum_in_the_drift_changes_the_law(estimate, target):
    cfg = SgldConfig(num_chains=16, num_draws=500, num_burnin=2000, thin=20, precond="adam", momentum_in_drift=True)
    summary, exact = estimate("quadratic", cfg)
    assert summary.llc_mean > 1.1 * exact + 3 * summary.llc_std_error
    assert any("momentum_in_drift" in note for note in sample(target("quadratic"), cfg).notes)


@dataclass(frozen=True)
class LeastSquares(Loss):
    """`mean (y - x w)^2 / 2`."""

    def __call__(self, params, data):
        return 0.5 * jnp.mean((data["y"] - data["x"] @ params["w"]) ** 2)


def regression(num_data: int = 400, dim: int = 3) -> Target:
    """Linear regression with noise, at its minimum: `n_beta H / (n_beta H + gamma)` is its LLC, halved and summed."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(num_data, dim))
    y = x @ np.ones(dim) + rng.normal(size=num_data)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    loss = 0.5 * np.mean((y - x @ w) ** 2)
    return Target(LeastSquares(), {"w": w}, {"x": x, "y": y}, False, num_data, float(loss), dim / 2, 1)


BATCHED = SgldConfig(num_chains=16, num_draws=500, num_burnin=1000, thin=10, batch_size=100)


def exact_regression(target: Target, posterior: Posterior) -> float:
    x = target.data["x"]
    t = posterior.n_beta * np.linalg.eigvalsh(x.T @ x / len(x))
    return float(np.sum(t / (2 * (t + posterior.gamma))))


@pytest.mark.slow
@pytest.mark.parametrize("loss_estimate", ["full", "paired"])
def test_batches_find_the_llc_of_a_regression(loss_estimate):
    target = regression()
    posterior = posterior_for(BATCHED, target.n, target.dim)
    draws = sample(target, replace(BATCHED, loss_estimate=loss_estimate))
    summary = summarize(draws, target.loss_at_w_star, *posterior, target.dim)
    exact = exact_regression(target, posterior)
    assert abs(summary.llc_mean - exact) < 3 * summary.llc_std_error + 0.05 * exact
    assert summary.loss_mean == pytest.approx(target.loss_at_w_star + exact / posterior.n_beta, rel=0.02)
    # A control variate is two gradients, and brings the paired loss with it; the one at w_star is of all data.
    per_record = 1 / 3 if loss_estimate == "full" else 0
    curvatures = 2 * 1000 / 4
    assert draws.fge == pytest.approx(1 + 16 * (0.25 * (2 * (1000 + 5000) + curvatures) + 500 * per_record))
    assert draws.exact_losses == (loss_estimate == "full")


@pytest.mark.slow
def test_a_batch_larger_than_the_data_is_taken_and_said():
    cfg = replace(BATCHED, batch_size=1000, step_size=1e-3)
    draws = sample(regression(), cfg)
    assert np.all(draws.chain_alive)
    assert any("1000 exceeds the 400 rows" in note for note in draws.notes)


@pytest.mark.parametrize(("estimate", "said"), [("full", False), ("paired", True)])
def test_a_paired_loss_without_batches_is_the_full_one_and_says_so(target, estimate, said):
    draws = sample(target("quadratic"), replace(CFG, loss_estimate=estimate))
    assert any("the loss is the full one" in note for note in draws.notes) == said
    assert np.all(np.isfinite(draws.loss))


def test_a_given_step_size_is_the_step_size(target):
    draws = sample(target("quadratic"), CFG)
    assert np.all(draws.step_size == np.float32(CFG.step_size))
    assert draws.fge == pytest.approx(1 / 3 + 16 * (500 + 500 * 5 + 500 / 3))
    assert draws.acceptance is None
    assert draws.num_divergent == 0
    assert any("unadjusted" in note for note in draws.notes)


def test_a_flat_loss_gives_zero(target):
    quadratic = target("quadratic")
    flat = replace(quadratic, data=quadratic.data | {"eigenvalues": np.zeros(4)})
    summary = summarize(sample(flat, CFG), 0.0, 144.8, 50.0, 4)
    assert (summary.llc_mean, summary.llc_std_error, summary.verdict) == (0.0, 0.0, "ok")


def test_mala_acceptance_is_that_of_a_metropolis_step(target):
    """Against Monte Carlo in numpy: one Langevin step on the quadratic from its stationary law."""
    quadratic = target("quadratic")
    posterior = posterior_for(CFG, quadratic.n, quadratic.dim)
    h = posterior.n_beta * quadratic.data["eigenvalues"] + posterior.gamma
    rng = np.random.default_rng(0)
    for eps, low, high in ((1e-5, 0.99, 1.0), (4e-3, 0.3, 0.95), (2e-2, 0.0, 0.7)):
        cfg = replace(CFG, step_size=eps, num_burnin=20_000 if eps < 1e-4 else 500, mala_checks=True)
        draws = sample(quadratic, cfg)
        w = rng.normal(size=(200_000, 4)) / np.sqrt(h * (1 - eps * h / 4))
        there = w - eps / 2 * h * w + np.sqrt(eps) * rng.normal(size=w.shape)
        energy = 0.5 * np.sum(h * (there**2 - w**2), axis=1)
        moves = ((w - there + eps / 2 * h * there) ** 2 - (there - w + eps / 2 * h * w) ** 2).sum(axis=1) / (2 * eps)
        expected = np.minimum(1, np.exp(-energy - moves)).mean()
        assert low < expected <= high
        error = draws.mala_acceptance.std(ddof=1) / 4
        assert abs(draws.mala_acceptance.mean() - expected) < 4 * error + 0.005


@pytest.mark.parametrize(("precond", "step_size"), [(None, 2e-3), ("rmsprop", 1e-5)])
def test_the_heat_of_flat_directions_is_the_one_that_the_step_gives(precond, step_size):
    """2,000 directions that the loss does not see, held by gamma alone, beside two that it does."""
    target = target_of(
        lambda params, batch: jnp.mean((batch @ params["seen"]) ** 2),
        {"seen": np.zeros(2), "idle": np.zeros(2000)},
        np.ones((50, 2)),
        None,
        identity="two of many",
    )
    cfg = SgldConfig(
        gamma=100.0, step_size=step_size, precond=precond, batch_size=None, num_burnin=2000, num_draws=400, thin=10,
        precision="float64",
    )  # fmt: skip
    posterior = posterior_for(cfg, target.n, target.dim)
    summary = summarize(sample(target, cfg), target.loss_at_w_star, *posterior, target.dim)
    assert summary.flat_temperature > 1 + 5 * summary.temperature_std_error
    assert summary.temperature == pytest.approx(summary.flat_temperature, abs=4 * summary.temperature_std_error)
    assert summary.verdict == "ok", summary.verdict_sentence
