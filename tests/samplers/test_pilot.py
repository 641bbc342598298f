"""The pilot's curvature, where it is known."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lambda_hat.config import SgldConfig
from lambda_hat.posterior import Posterior, posterior_for
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.samplers.pilot import run_pilots
from lambda_hat.samplers.run import Lane

CFG = SgldConfig()


def pilot(target, cfg=CFG, posterior=None, identity=0):
    posterior = posterior_for(cfg, target.n, target.dim) if posterior is None else posterior
    with jax.enable_x64(cfg.precision == "float64"):
        return run_pilots([Lane(target, cfg, identity, posterior)], Chunks())[0]


def test_a_quadratic_has_one_curvature(target):
    found = pilot(target("quadratic"), posterior=Posterior(n_beta=200.0, gamma=50.0))
    assert found.curvature == pytest.approx(250.0, rel=0.01)
    assert found.step_size == pytest.approx(0.1 / 250, rel=0.01)
    assert found.fge == 1000 * 2
    assert found.notes == ()


def test_it_creeps_out_of_a_singular_point(target):
    # The posterior of w1^2 w2^2 has arms of length about 1 / sqrt(gamma), where the curvature is 2 n_beta w1^2.
    curvatures = [pilot(target("w1^2 w2^2"), identity=i).curvature for i in range(8)]
    assert all(2 * 144.8 * 1.0 < h < 2 * 144.8 * 6**2 for h in curvatures)


def test_c_is_the_ratio(target):
    steps = [pilot(target("w1^2 w2^2"), replace(CFG, pilot_c=c)).step_size for c in (0.1, 0.4)]
    assert steps[1] == pytest.approx(4 * steps[0])


def test_the_preconditioner_is_part_of_the_curvature(target):
    cfg = replace(CFG, precond="rmsprop")
    found = pilot(target("quadratic"), cfg)
    # P = 1 / (damping + rms of the loss gradient); the flat direction has P = 1 / damping and the curvature gamma.
    n_beta = 144.8
    stiff = (n_beta + 1) / (cfg.damping + 1 / (n_beta + 1) ** 0.5)
    # The pilot averages the gradient over a few of its periods, and takes the stiffest coordinate.
    expected = max(stiff, 1 / cfg.damping)
    assert 0.7 * expected < found.curvature < 3 * expected
    assert found.fge == 1000 * (3 + 0.5)


def test_no_curvature_at_all_is_said(target):
    quadratic = target("quadratic")
    flat = replace(quadratic, data=quadratic.data | {"eigenvalues": np.zeros(4)})
    found = pilot(flat, posterior=Posterior(n_beta=100.0, gamma=0.0))
    assert found.step_size == CFG.pilot_c
    assert "no curvature" in found.notes[0]
