"""What holds for every sampler: keys, programs, precision, dead chains, counted work."""

from dataclasses import dataclass, replace

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
    QuadraticBuild,
    QuadraticTarget,
    SghmcConfig,
    SgldConfig,
    SgnhtConfig,
)
from lambda_hat.config.defaults import Facts, resolved
from lambda_hat.engine.chains import Chains
from lambda_hat.engine.run import Lane, numbers_of, signature, target_spec
from lambda_hat.engine.windows import NO_WINDOW
from lambda_hat.estimate.posterior import Posterior
from lambda_hat.samplers import sample
from lambda_hat.samplers.adjusted_mclmc import ADJUSTED_MCLMC
from lambda_hat.samplers.hmc import HMC
from lambda_hat.samplers.mala import MALA
from lambda_hat.samplers.mclmc import MCLMC
from lambda_hat.samplers.nuts import NUTS
from lambda_hat.samplers.sghmc import SGHMC
from lambda_hat.samplers.sgld import SGLD
from lambda_hat.samplers.sgnht import SGNHT
from lambda_hat.targets import build_target
from lambda_hat.targets.base import Loss, Target

SMALL = SgldConfig(num_chains=3, num_draws=50, num_burnin=20, thin=1, step_size=1e-3, precision="float64")


@dataclass(frozen=True)
class Walled(Loss):
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


def made(draws) -> int:
    """Programs that were not in this process before."""
    return draws.programs_compiled + draws.programs_loaded


def test_one_program_per_signature(target):
    small = replace(SMALL, num_draws=51)  # a signature of this test's own
    first = sample(target("quadratic"), small)
    assert made(first) > 0
    assert first.seconds_compile > 0
    other = build_target(QuadraticBuild(target=QuadraticTarget(dim=4, eigenvalues=[1.0, 2.0, 3.0, 4.0])))[0]
    for same_program in (
        sample(other, small),
        sample(target("quadratic"), replace(small, seed=1, step_size=2e-3, gamma=3.0, beta=0.5)),
        sample(target("quadratic"), replace(small, decay=0.5, damping=1.0, target_id="tgt_0", heat=0.2)),
        sample(target("quadratic"), replace(small, thin=3, num_burnin=77)),
        sample(target("quadratic"), replace(small, num_draws=33)),
        sample(target("quadratic"), replace(small, num_draws=64)),
    ):
        assert made(same_program) == 0
        assert same_program.seconds_compile == 0
    for key, value in (
        ("num_draws", 65),
        ("num_chains", 4),
        ("precond", "adam"),
        ("precision", "float32"),
        ("singular_fluctuation", True),
    ):
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
        (SGLD, SgldConfig()),
        (SGHMC, SghmcConfig(step_size=1e-3)),
        (SGNHT, SgnhtConfig(step_size=1e-3)),
        (MALA, MalaConfig(num_burnin=20)),
        (HMC, HmcConfig(num_burnin=20, target_acceptance=0.9)),
        (NUTS, NutsConfig(num_burnin=40, target_acceptance=0.9)),
        (MCLMC, MclmcConfig()),
        (ADJUSTED_MCLMC, AdjustedMclmcConfig()),
    ],
    ids=["sgld, adam", "sgld", "sghmc", "sgnht", "mala", "hmc", "nuts", "mclmc", "adjusted_mclmc"],
)
def test_everything_is_in_the_runs_precision(target, sampler, cfg, precision):
    built = target("quadratic")
    cfg = replace(cfg, precision=precision, num_chains=2, num_draws=4)
    cfg = resolved(cfg, Facts(built.dim, 0))
    with jax.enable_x64(precision == "float64"):
        lanes = [Lane(built, cfg, 0, Posterior(10.0, 1.0))]
        numbers = numbers_of(sampler, lanes)
        chains = Chains(sampler, signature(cfg, sampler.arguments), target_spec(lanes))

        def whole(numbers, upto):
            return chains.advance(numbers, chains.begin(numbers), NO_WINDOW, upto)

        with jax.numpy_dtype_promotion("strict" if sampler.strict else "standard"):
            jaxpr, shapes = jax.make_jaxpr(whole, return_shape=True)(numbers, np.uint32(4))
    assert {x.dtype.name for x in (shapes.draws, shapes.totals.acceptance, shapes.step_size)} == {precision}
    assert ("f64[" in str(jaxpr)) == (precision == "float64")
    assert shapes.draws.shape == (1, 2, 3, 4)


def test_float32_runs_beside_float64_ones(target):
    cfg = SgldConfig(num_chains=16, num_draws=500, num_burnin=100, thin=1, step_size=1e-3)
    single = sample(target("quadratic"), cfg)
    double = sample(target("quadratic"), replace(cfg, num_chains=3, num_draws=50, thin=10, precision="float64"))
    again = sample(target("quadratic"), cfg)
    assert made(again) == 0
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
        NutsConfig(num_chains=4, num_draws=200, num_burnin=100, target_acceptance=0.8),
        MclmcConfig(num_chains=4, num_draws=200, num_burnin=100),
    ],
    ids=["hmc", "nuts", "mclmc"],
)
def test_steps_into_nowhere_are_counted_and_undone(cfg):
    draws = sample(walled(), cfg)
    assert 0 < draws.num_divergent < draws.num_transitions
    assert np.all(draws.chain_alive)
    assert np.all(np.isfinite(draws.loss))


class Counting(Loss):
    """A quadratic that counts its gradients as they are computed, in each of the vmapped chains."""

    strict = False

    def __init__(self):
        self.gradients = 0

        @jax.custom_vjp
        def loss(w):
            return 0.5 * jnp.sum(w**2)

        def forward(w):
            jax.debug.callback(self._count, w[0])
            return loss(w), w

        loss.defvjp(forward, lambda w, g: (g * w,))
        self._loss = loss

    def _count(self, w):
        self.gradients += np.size(w)

    def __call__(self, params, data):
        return self._loss(params["w"])


EXACT_COUNTS = [
    (HmcConfig(num_burnin=30, target_acceptance=0.9), lambda c: 1 + 10 * (30 + 20)),
    (MalaConfig(num_burnin=30), lambda c: 1 + 30 + 20),
    (MclmcConfig(num_burnin=30), lambda c: 1 + 2 * (30 + 20)),
    (SgldConfig(num_burnin=30, step_size=1e-3), lambda c: 30 + 20),
    (SgldConfig(num_burnin=30, step_size=1e-3, precond="rmsprop"), lambda c: 30 + 20),
    # Learning looks at the curvature, two gradients, at every fourth transition.
    (SgldConfig(num_burnin=30), lambda c: 30 + 2 * 8 + 20),
    (SghmcConfig(num_burnin=30, step_size=1e-3), lambda c: 10 * (30 + 20)),
    (SgnhtConfig(num_burnin=30, step_size=1e-3), lambda c: 30 + 20),
]


@pytest.mark.parametrize(("cfg", "expected"), EXACT_COUNTS, ids=lambda x: getattr(x, "name", ""))
def test_gradients_are_counted_as_they_are_defined(target, cfg, expected):
    draws = sample(target("quadratic"), replace(cfg, num_chains=3, num_draws=10, thin=2))
    assert draws.num_gradients == 3 * expected(cfg)
    # A recorded loss is a third of a gradient, and so is the one at w_star.
    assert draws.mala_acceptance is None
    assert draws.fge == pytest.approx(draws.num_gradients + 1 / 3 + 3 * 10 / 3)
    assert draws.num_transitions == 3 * 10 * 2


@pytest.mark.parametrize(
    "cfg",
    [
        HmcConfig(num_burnin=30),
        MalaConfig(num_burnin=30),
        NutsConfig(num_burnin=60),
        AdjustedMclmcConfig(num_burnin=30),
        MclmcConfig(num_burnin=30),
    ],
    ids=lambda cfg: cfg.name,
)
def test_the_count_of_gradients_is_the_number_evaluated(cfg):
    """One chain, so that no other chain's longer trajectory is computed along."""
    loss = Counting()
    counted = Target(loss, {"w": np.zeros(3)}, {}, True, 1000, 0.0, 1.5, 1)
    draws = sample(counted, replace(cfg, num_chains=1, num_draws=20))
    jax.effects_barrier()
    # NUTS makes one more state per transition that it does not step from.
    assert draws.num_gradients == pytest.approx(loss.gradients, rel=0.1)


def test_checks_of_the_step_are_spread_over_the_draws(target):
    for num_draws, expected in ((10, 10), (50, 50), (75, 38), (1000, 50)):
        cfg = replace(SMALL, num_draws=num_draws, num_burnin=0, thin=1, mala_checks=True)
        draws = sample(target("quadratic"), cfg)
        assert draws.fge == pytest.approx(1 / 3 + 3 * (num_draws * (1 + 1 / 3) + 2 * expected))
        assert np.all((draws.mala_acceptance > 0.9) & (draws.mala_acceptance <= 1))


def test_chains_start_from_w_star_and_a_jitter_of_their_own(target):
    """Without a step to speak of, the loss at the first draws is that of the starts, `jitter^2 / 2` per direction."""
    cfg = SgldConfig(
        num_chains=2000, num_draws=4, num_burnin=0, thin=1, step_size=1e-14, jitter=0.3, precision="float64"
    )
    loss = sample(target("quadratic"), cfg).loss[:, 0]
    expected = 3 * 0.3**2 / 2
    assert abs(loss.mean() - expected) < 4 * loss.std() / np.sqrt(2000)
    assert len(np.unique(loss)) == 2000
    np.testing.assert_allclose(sample(target("quadratic"), replace(cfg, jitter=0.0)).loss, 0, atol=1e-12)
