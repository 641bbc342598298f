"""Estimates against exact answers at finite n. Tolerances are the chains' own standard errors."""

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

ADJUSTED = 0.0
UNADJUSTED = 0.05
"""Allowance for the bias of the step, relative."""

CASES = ["w1^2 w2^2", "quadratic", "w1^2+w2^4", "w1^2 w2^2 at (1, 0)", "RRR (2,1,2)"]


def check(summary, exact, allowance):
    assert summary.verdict == "ok", summary.verdict_sentence
    assert summary.llc_std_error < 0.05 * exact
    deviation = abs(summary.llc_mean - exact)
    assert deviation < 3 * summary.llc_std_error + allowance * exact, (summary.llc_mean, exact)


# `lambda-hat validate` has HMC and SGLD on every known answer, and CI runs it.
def test_hmc(estimate):
    cfg = HmcConfig(num_chains=8, num_draws=2000, num_burnin=1000, target_acceptance=0.99, thin=2)
    check(*estimate("w1^2 w2^2", cfg), ADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_nuts(estimate, name):
    check(*estimate(name, NutsConfig(num_chains=4, num_draws=4000, num_burnin=1000, target_acceptance=0.99)), ADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_mala(estimate, name):
    cfg = MalaConfig(num_chains=16, num_draws=1000, num_burnin=10_000, target_acceptance=0.95, thin=200)
    check(*estimate(name, cfg), ADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_adjusted_mclmc(estimate, name):
    cfg = AdjustedMclmcConfig(num_chains=8, num_draws=2000, num_burnin=3000, target_acceptance=0.99, thin=4)
    check(*estimate(name, cfg), ADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sghmc_with_the_step_that_it_learns(estimate, name):
    check(*estimate(name, SghmcConfig(num_chains=16, num_draws=1000, num_burnin=1000, thin=10)), UNADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_sgnht_with_the_step_that_it_learns(estimate, name):
    check(*estimate(name, SgnhtConfig(num_chains=16, num_draws=1000, num_burnin=5000, thin=50)), UNADJUSTED)


def test_sgld_with_the_step_that_it_learns(estimate):
    cfg = SgldConfig(num_chains=16, num_draws=500, num_burnin=10_000, thin=200)
    check(*estimate("w1^2 w2^2", cfg), UNADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quadratic", "w1^2 w2^2"])
def test_sgld_with_a_frozen_preconditioner(estimate, name):
    cfg = SgldConfig(num_chains=16, num_draws=500, num_burnin=10_000, thin=200, precond="rmsprop")
    check(*estimate(name, cfg), UNADJUSTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quadratic", "w1^2 w2^2", "w1^2 w2^2 at (1, 0)", "RRR (2,1,2)"])
def test_mclmc(estimate, name):
    cfg = MclmcConfig(num_chains=8, num_draws=2000, num_burnin=3000, thin=4)
    check(*estimate(name, cfg), UNADJUSTED)
