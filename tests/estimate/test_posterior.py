import math
import subprocess
import sys

import numpy as np
import pytest

from lambda_hat.config import HmcConfig
from lambda_hat.estimate.posterior import Posterior, posterior_for


def test_defaults_are_beta_of_watanabe_and_gamma_one():
    posterior = posterior_for(HmcConfig(), n=1000, dim=7)
    assert posterior.n_beta == pytest.approx(1000 / math.log(1000))
    assert posterior.gamma == 1.0


def test_gamma_zero_is_a_value():
    assert posterior_for(HmcConfig(gamma=0.0), n=1000, dim=7).gamma == 0.0


def test_beta_and_prior_radius_are_used():
    posterior = posterior_for(HmcConfig(beta=0.5, prior_radius=2.0), n=1000, dim=8)
    assert posterior == Posterior(n_beta=500.0, gamma=2.0)


def test_potential_is_the_negative_log_density():
    w, w_star = np.array([1.0, 3.0]), np.array([0.0, 1.0])
    assert Posterior(n_beta=10.0, gamma=4.0).potential(0.3, w, w_star) == pytest.approx(10 * 0.3 + 2 * 5)


def test_needs_no_jax():
    code = "import sys, lambda_hat.estimate.posterior; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_n_beta_is_taken_as_it_is_written():
    assert posterior_for(HmcConfig(n_beta=30.0), n=1000, dim=3).n_beta == 30.0
    assert posterior_for(HmcConfig(beta=0.03), n=1000, dim=3).n_beta == 30.0
