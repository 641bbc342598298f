"""R-hat and effective sample sizes, held against ArviZ's."""

from __future__ import annotations

import numpy as np
import pytest
from arviz_stats.base import array_stats

from lambda_hat.estimate import convergence

OURS = {
    "rhat": convergence.rhat,
    "bulk": convergence.ess_bulk,
    "tail": convergence.ess_tail,
    "mean": convergence.ess_mean,
}


def arviz(name, draws):
    if name == "rhat":
        return float(array_stats.rhat(draws, chain_axis=0, draw_axis=1))
    return float(
        array_stats.ess(draws, chain_axis=0, draw_axis=1, method=name, prob=(0.05, 0.95) if name == "tail" else None)
    )


def chains(kind, num_chains, num_draws):
    rng = np.random.default_rng([num_chains, num_draws])
    noise = rng.normal(size=(num_chains, num_draws))
    if kind == "independent":
        return noise**2
    if kind == "ties":
        return np.round(noise)
    if kind == "disagreeing":
        return noise + np.arange(num_chains)[:, None]
    if kind == "heavy":
        return rng.standard_cauchy(size=noise.shape)
    rho = {"slow": 0.95, "alternating": -0.8}[kind]
    for draw in range(1, num_draws):
        noise[:, draw] += rho * noise[:, draw - 1]
    return noise


@pytest.mark.parametrize("num_draws", [4, 5, 7, 10, 99, 1000])
@pytest.mark.parametrize(
    ("name", "num_chains"), [(name, number) for name in OURS for number in (1, 2, 4) if (name, number) != ("rhat", 1)]
)
@pytest.mark.parametrize("kind", ["independent", "ties", "disagreeing", "heavy", "slow", "alternating"])
def test_as_arviz(kind, num_chains, num_draws, name):
    draws = chains(kind, num_chains, num_draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        assert OURS[name](draws) == pytest.approx(arviz(name, draws), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("name", ["bulk", "tail", "mean"])
def test_draws_that_are_all_equal_count_in_full(name):
    assert OURS[name](np.full((2, 50), 3.0)) == 100.0
