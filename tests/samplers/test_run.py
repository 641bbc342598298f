"""What holds for every sampler: keys, programs, precision, dead chains, counted work."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import HmcConfig, MclmcConfig, QuadraticBuild, QuadraticTarget, SgldConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers import sample
from lambda_hat.samplers.hmc import HMC
from lambda_hat.samplers.mclmc import MCLMC
from lambda_hat.samplers.run import _make, model_arguments, numbers, signature
from lambda_hat.samplers.sgld import SGLD
from lambda_hat.targets import build_target
from lambda_hat.targets.base import Target

SMALL = SgldConfig(num_chains=3, num_draws=50, num_burnin=10, step_size=1e-3, precision="float64")


@dataclass(frozen=True)
class Walled:
    """`|w|^2`, and no number at all beyond w_0 = 0.08."""

    def __call__(self, params, data):
        w = params["w"]
        return jnp.where(w[0] > 0.08, jnp.nan, jnp.sum(w**2))


def walled() -> Target:
    return Target(
        loss=Walled(),
        w_star={"w": np.zeros(2)},
        data={},
        population=True,
        n=1000,
        loss_at_w_star=0.0,
        true_llc=None,
        true_multiplicity=None,
    )


def test_one_program_per_signature(target):
    small = replace(SMALL, num_draws=51)  # a signature of this test's own
    first = sample(target("quadratic"), small)
    assert not first.cache_hit
    assert first.seconds_compile > 0
    other = build_target(QuadraticBuild(target=QuadraticTarget(dim=4, eigenvalues=[1.0, 2.0, 3.0, 4.0])))[0]
    for same_program in (
        sample(other, small),
        sample(target("quadratic"), replace(small, seed=1, step_size=2e-3, gamma=3.0, beta=0.5)),
        sample(target("quadratic"), replace(small, decay=0.5, damping=1.0, target_id="tgt_0", pilot_c=0.2)),
        sample(target("quadratic"), replace(small, thin=3, num_burnin=77)),
    ):
        assert same_program.cache_hit
        assert same_program.seconds_compile == 0
    for key, value in (("num_draws", 52), ("num_chains", 4), ("precond", "adam"), ("precision", "float32")):
        assert signature(replace(small, **{key: value}), SGLD.arguments) != signature(small, SGLD.arguments)


def test_a_run_is_its_configuration_and_identity(target):
    first = sample(target("quadratic"), SMALL, identity=7)
    np.testing.assert_array_equal(first.loss, sample(target("quadratic"), SMALL, identity=7).loss)
    for other in (
        sample(target("quadratic"), SMALL, identity=8),
        sample(target("quadratic"), replace(SMALL, seed=1), identity=7),
    ):
        assert not np.any(other.loss == first.loss)


def test_a_chain_does_not_depend_on_how_many_there_are(target):
    few = sample(target("quadratic"), SMALL).loss
    many = sample(target("quadratic"), replace(SMALL, num_chains=5)).loss
    np.testing.assert_allclose(many[:3], few, rtol=1e-9)
    correlations = np.corrcoef(many)[np.triu_indices(5, 1)]
    assert np.all(np.abs(correlations) < 0.8)
    assert len(np.unique(many[:, 0])) == 5


def test_the_largest_seed_and_identity_are_taken(target):
    assert np.all(np.isfinite(sample(target("quadratic"), replace(SMALL, seed=2**32 - 1), identity=2**32 - 1).loss))


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize(
    ("sampler", "cfg"),
    [
        (SGLD, SgldConfig(precond="adam", momentum_in_drift=True, step_size=1e-3)),
        (HMC, HmcConfig(num_burnin=20, target_acceptance=0.9)),
        (MCLMC, MclmcConfig()),
    ],
    ids=["sgld", "hmc", "mclmc"],
)
def test_everything_is_in_the_runs_precision(target, sampler, cfg, precision):
    built = target("quadratic")
    cfg = replace(cfg, precision=precision, num_chains=2, num_draws=4)
    with jax.enable_x64(precision == "float64"):
        values = numbers(cfg, sampler.arguments)
        args = model_arguments(built, Posterior(10.0, 1.0), precision)
        seed = np.uint32(0)
        with jax.numpy_dtype_promotion("strict" if sampler.strict else "standard"):
            spec = signature(cfg, sampler.arguments)
            program = _make(sampler, spec, built.loss, built.population)
            jaxpr, shapes = jax.make_jaxpr(program, return_shape=True)(seed, seed, values, *args)
    assert {x.dtype.name for x in (shapes.loss, shapes.acceptance, shapes.step_size)} == {precision}
    assert ("f64[" in str(jaxpr)) == (precision == "float64")
    assert shapes.loss.shape == (2, 4)


def test_float32_runs_beside_float64_ones(target):
    cfg = SgldConfig(num_chains=16, num_draws=500, num_burnin=100, step_size=1e-3)
    single = sample(target("quadratic"), cfg)
    double = sample(target("quadratic"), replace(cfg, num_chains=3, num_draws=50, thin=10, precision="float64"))
    again = sample(target("quadratic"), cfg)
    assert again.cache_hit
    np.testing.assert_array_equal(single.loss, again.loss)
    assert single.loss.mean() == pytest.approx(double.loss.mean(), rel=0.4)


def test_chains_that_blow_up_are_dead_and_the_others_go_on(target):
    # At this step the arms are unstable, and throw out a chain now and then.
    cfg = SgldConfig(num_chains=16, num_draws=500, num_burnin=0, step_size=0.012, thin=20)
    draws = sample(target("w1^2 w2^2"), cfg)
    alive = draws.chain_alive
    assert 0 < alive.sum() < 16
    assert np.all(np.isfinite(draws.loss[alive]))
    dead = np.isnan(draws.loss[~alive])
    assert np.all(dead.any(axis=1))
    assert np.all(np.diff(dead.astype(int), axis=1) >= 0), "a dead chain stays dead"
    assert np.all(sample(target("w1^2 w2^2"), replace(cfg, step_size=1e3)).chain_alive == 0)


@pytest.mark.parametrize(
    "cfg",
    [
        HmcConfig(num_chains=4, num_draws=200, num_burnin=100, target_acceptance=0.9),
        MclmcConfig(num_chains=4, num_draws=200, num_burnin=100, num_tuning=200),
    ],
    ids=["hmc", "mclmc"],
)
def test_steps_into_nowhere_are_counted_and_undone(cfg):
    draws = sample(walled(), cfg)
    assert 0 < draws.num_divergent < draws.num_transitions
    assert np.all(draws.chain_alive)
    assert np.all(np.isfinite(draws.loss))


def test_work_of_hmc_is_counted():
    cfg = HmcConfig(num_chains=4, num_draws=200, num_burnin=100, target_acceptance=0.9, thin=2)
    draws = sample(walled(), cfg)
    assert draws.fge == pytest.approx(4 * (1 + 10 * (100 + 2 * 200) + 200 / 3))
    assert draws.num_transitions == 4 * 2 * 200


def test_work_of_mclmc_is_counted():
    cfg = MclmcConfig(num_chains=4, num_draws=200, num_burnin=100, num_tuning=200)
    # 80 + (60 + 20) + 40 steps of the tuner.
    assert sample(walled(), cfg).fge == pytest.approx(4 * (1 + 2 * (200 + 100 + 200) + 200 / 3))
