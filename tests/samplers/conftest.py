"""Targets with exact answers, built once, and a run's deviation from its answer."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest

from lambda_hat.config import (
    DlnBuild,
    DlnTarget,
    MonomialBuild,
    MonomialSumBuild,
    MonomialTarget,
    QuadraticBuild,
    QuadraticTarget,
    SampleConfig,
)
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.estimate.verdict import Summary, summarize
from lambda_hat.samplers import sample
from lambda_hat.targets import build_target, true_llc_t

BUILDS = {
    "quadratic": QuadraticBuild(target=QuadraticTarget(dim=4, rank=3)),
    "w1^2+w2^4": MonomialSumBuild(),
    "w1^2 w2^2": MonomialBuild(),
    "w1^2 w2^2 at (1, 0)": MonomialBuild(target=MonomialTarget(point=[1.0, 0.0])),
    "RRR (2,1,2)": DlnBuild(target=DlnTarget(widths=[2, 1, 2], rank=0)),
}
"""n = 1000 each: t = n / log n = 144.8."""


@functools.cache
def _built(name: str):
    return build_target(BUILDS[name])[0]


@pytest.fixture
def target() -> Callable:
    """name -> Target."""
    return _built


@pytest.fixture
def estimate() -> Callable[[str, SampleConfig], tuple[Summary, float]]:
    """(name, configuration) -> the run's summary and the exact answer at the run's n_beta and gamma."""

    def run(name: str, cfg: SampleConfig) -> tuple[Summary, float]:
        built = _built(name)
        posterior = posterior_for(cfg, built.n, built.dim)
        summary = summarize(sample(built, cfg), built.loss_at_w_star, *posterior, built.dim)
        return summary, true_llc_t(BUILDS[name], *posterior)

    return run
