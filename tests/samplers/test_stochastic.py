"""What follows a window of burn-in."""

import numpy as np
import pytest

from lambda_hat.config import SgldConfig
from lambda_hat.engine.algorithm import Learned
from lambda_hat.samplers.adaptation import Rule, Sums
from lambda_hat.samplers.low_rank import RANK, Kept
from lambda_hat.samplers.metric import on_host
from lambda_hat.samplers.stochastic import new_window

RULES = Rule(
    step_size=np.float32([0.3, 0.3]),
    limit=np.float32([0.5, 0.5]),
    sums=np.ones((2, len(Sums._fields)), np.float32),
    overflowed=np.zeros(2, bool),
    direction=np.ones((2, 3), np.float32),
    curvature=np.float32([7.0, 8.0]),
)
"""Of two chains on three parameters."""


@pytest.mark.parametrize("given", [None, 0.3])
def test_without_a_metric_to_learn_the_step_goes_on(given):
    identity = on_host(np.ones((2, 1), np.float32), np.zeros((2, 0, 3), np.float32), np.zeros((2, 0), np.float32))
    found = new_window(SgldConfig(num_chains=2, precond="none", step_size=given), Learned(RULES, identity, ()))
    np.testing.assert_array_equal(found.rule.step_size, RULES.step_size)
    assert found.metric is identity
    assert not np.any(found.rule.sums) and not np.any(found.rule.curvature) and np.all(found.rule.limit == np.inf)
    np.testing.assert_array_equal(found.rule.direction, RULES.direction)


def test_in_a_new_metric_the_step_starts_from_the_ideal_one_and_chains_share_the_metric():
    rng = np.random.default_rng(0)
    draws = (rng.normal(size=(2, 51, 3)) * [1.0, 0.1, 10.0]).astype(np.float32)
    metrics = on_host(np.ones((2, 3), np.float32), np.zeros((2, RANK, 3), np.float32), np.ones((2, RANK), np.float32))
    kept = Kept(draws, (-draws / np.float32([1.0, 0.01, 100.0])).astype(np.float32))
    cfg = SgldConfig(num_chains=2, precond="low_rank", heat=0.02)
    found = new_window(cfg, Learned(RULES, metrics, kept))
    np.testing.assert_allclose(found.rule.step_size, 0.1 * 4 * 0.02, rtol=1e-6)
    np.testing.assert_allclose(found.metric.sigma, [[1.0, 0.1, 10.0]] * 2, rtol=1e-5)
    assert np.all(np.isnan(found.kept.draws)) and found.metric.sigma.dtype == found.rule.step_size.dtype == np.float32
