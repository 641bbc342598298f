"""Functional variance and WAIC: against a direct computation, and against nu = d/2 on regular models."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import (
    DataConfig,
    DlnBuild,
    DlnTarget,
    MlpBuild,
    NutsConfig,
    QuadraticBuild,
    SgldConfig,
    TrainingConfig,
)
from lambda_hat.errors import ConfigError
from lambda_hat.estimate.draws import RowMoments
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.estimate.verdict import summarize
from lambda_hat.estimate.waic import singular_fluctuation
from lambda_hat.execute.sampling import estimate
from lambda_hat.samplers import make_lane, sample
from lambda_hat.targets import build_target
from lambda_hat.targets.base import Loss, Target
from lambda_hat.targets.custom import target_of
from lambda_hat.workflow_config import compose_study


def moments(losses: np.ndarray) -> RowMoments:
    """Of losses (chains, draws, rows)."""
    likelihood = np.log(np.mean(np.exp(-losses), axis=1))
    return RowMoments(losses.mean(axis=1), losses.var(axis=1), likelihood)


def test_moments_are_pooled_exactly():
    losses = np.random.default_rng(0).gamma(2.0, size=(4, 50, 7)) + np.arange(4)[:, None, None] / 3
    alive = np.array([True, True, False, True])
    found = singular_fluctuation(moments(losses), alive, beta=0.3)
    pooled = losses[alive].reshape(-1, 7)
    variance = pooled.var(axis=0).sum()
    assert found.functional_variance == pytest.approx(variance)
    assert found.nu == pytest.approx(0.15 * variance)
    assert found.waic == pytest.approx(-np.mean(np.log(np.mean(np.exp(-pooled), axis=0))) + 0.3 * variance / 7)


def test_the_error_is_that_of_the_chains():
    rng = np.random.default_rng(1)
    draws = [moments(rng.normal(size=(8, 200, 3)) * 2 + rng.normal(size=(8, 1, 3)) / 3) for _ in range(200)]
    found = [singular_fluctuation(rows, np.ones(8, bool), 1.0) for rows in draws]
    assert np.mean([f.nu_std_error for f in found]) == pytest.approx(np.std([f.nu for f in found]), rel=0.25)
    assert np.isnan(singular_fluctuation(moments(np.ones((1, 5, 2))), np.ones(1, bool), 1.0).nu_std_error)


@dataclass(frozen=True)
class Gaussian(Loss):
    """Negative log likelihood of a linear regression of unit noise, without its constant."""

    def __call__(self, params, data):
        return 0.5 * jnp.mean((data["y"] - data["x"] @ params["w"]) ** 2)


def regression(dim: int, n: int = 2000) -> Target:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(n, dim))
    y = x @ np.ones(dim) + rng.normal(size=n)
    w = np.linalg.lstsq(x, y, rcond=None)[0]
    return Target(Gaussian(), {"w": w}, {"x": x, "y": y}, False, n, float(0.5 * np.mean((y - x @ w) ** 2)), dim / 2, 1)


def exact(target: Target, n_beta: float, gamma: float) -> tuple[float, float]:
    """nu and the predictive loss of the Gaussian posterior `N(w_hat, (n_beta S + gamma)^-1)`, in closed form."""
    x, residual = target.data["x"], target.data["y"] - target.data["x"] @ target.w_star["w"]
    covariance = np.linalg.inv(n_beta * x.T @ x / target.n + gamma * np.eye(x.shape[1]))
    v = np.einsum("ni,ij,nj->n", x, covariance, x)
    # l = (r - u)^2 / 2 with u of variance v has the variance r^2 v + v^2 / 2.
    functional_variance = np.sum(residual**2 * v + v**2 / 2)
    beta = n_beta / target.n
    predictive = np.mean(0.5 * np.log(1 + v) + residual**2 / (2 * (1 + v)))
    return 0.5 * beta * functional_variance, predictive + beta * functional_variance / target.n


@pytest.mark.slow
@pytest.mark.parametrize("dim", [1, 4])
def test_a_regular_model_has_half_its_dimension(dim):
    target = regression(dim)
    found = estimate(target, NutsConfig(num_draws=1000, num_burnin=500, singular_fluctuation=True))
    nu, waic = exact(target, *found.posterior)
    summary = found.summary
    assert nu == pytest.approx(dim / 2, rel=0.1)
    assert summary.singular_fluctuation_std_error < 0.1 * nu
    assert abs(summary.singular_fluctuation - nu) < 4 * summary.singular_fluctuation_std_error + 0.02 * nu
    assert summary.waic == pytest.approx(waic, abs=1e-4)


def test_float32_and_batches():
    target = regression(3)
    cfg = SgldConfig(num_draws=1000, num_burnin=1000, thin=20, singular_fluctuation=True)
    posterior = posterior_for(cfg, target.n, target.dim)
    summary = summarize(sample(target, cfg), target.loss_at_w_star, *posterior, target.dim)
    nu, waic = exact(target, *posterior)
    assert abs(summary.singular_fluctuation - nu) < 4 * summary.singular_fluctuation_std_error + 0.1 * nu
    assert summary.waic == pytest.approx(waic, abs=1e-3)


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (QuadraticBuild(), "the loss is a closed form, without rows of data"),
        (DlnBuild(), "the loss is a closed form, without rows of data"),
        (DlnBuild(target=DlnTarget(data="empirical"), loss="mse"), "loss: mse is not a negative log likelihood"),
        (MlpBuild(data=DataConfig(n=50), training=TrainingConfig(steps=1, polish_steps=1), loss="mse"), "loss: mse"),
    ],
)
def test_it_is_refused_where_rows_mean_nothing(build, why):
    assert build.no_likelihood.startswith(why)
    target, _ = build_target(build)
    with pytest.raises(ConfigError, match=f"singular_fluctuation: this target has none: {why}.*; leave it out"):
        make_lane(target, NutsConfig(singular_fluctuation=True), 0)
    make_lane(target, NutsConfig(), 0)


def test_it_is_refused_of_losses_with_randomness_or_without_data():
    def loss(w, batch, key):
        return jnp.mean((batch @ w) ** 2) * (1 + 0.1 * jax.random.normal(key))

    noisy = target_of(loss, np.ones(2), np.ones((9, 2)), None)
    closed = target_of(lambda w, _: jnp.sum(w**2), np.ones(2), None, 100)
    for target, why in ((noisy, "the loss is random"), (closed, "the loss is a closed form")):
        with pytest.raises(ConfigError, match=f"singular_fluctuation: this target has none: {why}"):
            make_lane(target, SgldConfig(singular_fluctuation=True), 0)


@pytest.mark.parametrize("data", ["population", "empirical"])
def test_a_study_refuses_it_before_anything_is_submitted(tmp_path, data):
    path = tmp_path / "study.yaml"
    path.write_text(
        f"targets: [{{target: dln, overrides: {{target: {{data: {data}}}}}}}]\n"
        "samplers: [{name: nuts}, {name: hmc, overrides: {singular_fluctuation: true}}]\n"
    )
    if data == "empirical":
        assert [run.cfg.singular_fluctuation for run in compose_study(path).runs] == [False, True]
        return
    with pytest.raises(
        ConfigError,
        match=r"samplers\[1\]: singular_fluctuation: target tgt_\w+ \(dln\) has none: the loss is a closed form, .*"
        "; leave it out, or say under targets which ones the entry is for",
    ):
        compose_study(path)


def test_nothing_is_kept_where_nothing_is_asked_for():
    draws = sample(regression(2), NutsConfig(num_draws=20, num_burnin=50))
    assert draws.row_moments is None
    assert np.isnan(summarize(draws, 0.0, 1.0, 1.0, 100).singular_fluctuation)
