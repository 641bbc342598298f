import math

import numpy as np
import pytest

from lambda_hat.estimate.convergence import MAX_RHAT
from lambda_hat.estimate.draws import Draws
from lambda_hat.estimate.verdict import Verdict, summarize

DIM = 100


def draws_of(loss, alive=None, num_divergent=0, acceptance=None, flat_heat=0.0, **more) -> Draws:
    """At n_beta = 1, gamma = 1: `growth` is twice the loss, and the localisation takes up the rest of the
    temperature."""
    loss = np.asarray(loss, dtype=np.float64)
    growth = more.pop("growth", 2 * loss)
    distance = more.pop("distance", DIM - growth)
    return Draws(
        loss=loss,
        acceptance=acceptance,
        num_divergent=num_divergent,
        chain_alive=np.ones(len(loss), bool) if alive is None else np.asarray(alive),
        step_size=np.full(len(loss), 0.1),
        flat_heat=np.full(len(loss), flat_heat),
        num_transitions=loss.size,
        num_gradients=loss.size,
        mala_acceptance=None,
        growth=growth,
        distance=distance,
        fge=1.0,
        seconds_compile=0.0,
        seconds_sample=0.0,
        programs_compiled=0,
        programs_loaded=0,
        notes=(),
        **more,
    )


def autoregressive(rng, chains, draws, rho, mean=1.0):
    """`mean * x^2` of a standard normal autoregressive x: losses as around a minimum, of autocorrelation rho^2."""
    x = np.empty((chains, draws))
    x[:, 0] = rng.normal(size=chains)
    for i in range(1, draws):
        x[:, i] = rho * x[:, i - 1] + math.sqrt(1 - rho**2) * rng.normal(size=chains)
    return mean * x**2


@pytest.mark.parametrize("rho", [0.0, 0.9, -0.7])
def test_standard_error_is_calibrated_on_autocorrelated_chains(rho):
    rng = np.random.default_rng(0)
    z = []
    for _ in range(60):
        summary = summarize(draws_of(autoregressive(rng, 4, 1000, rho)), 0.0, 1.0, 1.0, DIM)
        z.append((summary.llc_mean - 1.0) / summary.llc_std_error)
    assert 0.75 < np.std(z) < 1.3
    assert abs(np.mean(z)) < 3 / math.sqrt(60)


def test_chains_that_agree_are_ok():
    summary = summarize(draws_of(autoregressive(np.random.default_rng(1), 4, 1000, 0.5)), 0.0, 2.0, 1.0, DIM)
    assert summary.verdict == "ok"
    assert summary.rhat_max < 1.02
    assert summary.llc_mean == pytest.approx(2.0, abs=0.3)
    assert summary.loss_mean == pytest.approx(summary.llc_mean / 2)
    assert summary.llc_mean == pytest.approx(np.mean(summary.llc_per_chain))
    assert math.isnan(summary.acceptance)


def test_chains_that_disagree_get_at_least_the_error_of_their_means():
    rng = np.random.default_rng(2)
    chains = autoregressive(rng, 4, 1000, 0.0) + np.array([[0.0], [1.0], [2.0], [3.0]])
    summary = summarize(draws_of(chains), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "unmixed"
    assert summary.rhat_max > MAX_RHAT
    assert f"{summary.rhat_max:.3f}" in summary.verdict_sentence
    assert summary.llc_std_error >= np.std(chains.mean(axis=1), ddof=1) / 2


def test_constant_losses_are_a_result():
    summary = summarize(draws_of(np.zeros((4, 100))), 0.0, 144.8, 1.0, DIM)
    assert (summary.llc_mean, summary.llc_std_error, summary.rhat_max) == (0.0, 0.0, 1.0)
    assert summary.verdict == "ok"


def test_chains_stuck_at_different_values_are_unmixed():
    summary = summarize(draws_of(np.array([[1.0] * 50, [2.0] * 50])), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "unmixed"
    assert summary.llc_std_error == pytest.approx(0.5)


def test_one_stuck_chain_is_unmixed():
    chains = autoregressive(np.random.default_rng(3), 4, 500, 0.0)
    chains[0] = 7.0
    assert summarize(draws_of(chains), 0.0, 1.0, 1.0, DIM).verdict == "unmixed"


def test_one_chain_is_compared_with_itself():
    rng = np.random.default_rng(4)
    steady = summarize(draws_of(autoregressive(rng, 1, 2000, 0.3)), 0.0, 1.0, 1.0, DIM)
    assert steady.verdict == "ok"
    assert steady.rhat_max < 1.02
    climbing = autoregressive(rng, 1, 2000, 0.3) + np.linspace(0, 5, 2000)
    assert summarize(draws_of(climbing), 0.0, 1.0, 1.0, DIM).verdict == "unmixed"


def test_four_draws_of_one_chain_do_not_crash():
    assert math.isnan(summarize(draws_of([[1.0, 2.0, 1.5, 1.2]]), 0.0, 1.0, 1.0, DIM).rhat_max)


def test_a_dead_chain_leaves_the_others():
    chains = autoregressive(np.random.default_rng(5), 4, 500, 0.0)
    chains[2, 100:] = np.nan
    summary = summarize(draws_of(chains, alive=[True, True, False, True]), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "diverged"
    assert "1 of 4 chains" in summary.verdict_sentence
    assert "the other 3" in summary.verdict_sentence
    assert math.isnan(summary.llc_per_chain[2])
    assert summary.llc_mean == pytest.approx(np.mean(chains[[0, 1, 3]]))


def test_all_chains_dead_is_no_number():
    summary = summarize(draws_of(np.full((3, 10), np.nan), alive=[False] * 3), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "diverged"
    assert math.isnan(summary.llc_mean)
    assert "there is no estimate" in summary.verdict_sentence


def test_a_negative_estimate_is_reported_and_w_star_is_no_minimum():
    summary = summarize(draws_of(autoregressive(np.random.default_rng(6), 4, 500, 0.0)), 3.0, 1.0, 1.0, DIM)
    assert summary.llc_mean == pytest.approx(-2.0, abs=0.3)
    assert summary.verdict == "not_a_minimum"
    assert "3 nats" in summary.verdict_sentence


def test_a_loss_slightly_below_w_star_is_ok():
    chains = autoregressive(np.random.default_rng(6), 4, 500, 0.0, mean=5.0)
    assert summarize(draws_of(chains), 0.4, 1.0, 1.0, DIM).verdict == "ok"
    assert summarize(draws_of(chains), 0.6, 1.0, 1.0, DIM).verdict == "not_a_minimum"


def test_noisy_losses_below_w_star_are_judged_by_their_means():
    rng = np.random.default_rng(9)
    chains = autoregressive(rng, 4, 1000, 0.0, mean=5.0) + rng.normal(size=(4, 1000))
    assert summarize(draws_of(chains), 0.0, 1.0, 1.0, DIM).verdict == "not_a_minimum"
    assert summarize(draws_of(chains, exact_losses=False), 0.0, 1.0, 1.0, DIM).verdict == "ok"
    falling = chains + np.linspace(0, -20, 1000)
    assert summarize(draws_of(falling, exact_losses=False), 0.0, 1.0, 1.0, DIM).verdict == "not_a_minimum"


def test_a_common_drift_is_a_verdict():
    """All chains rise together: they agree with each other, and their halves do not."""
    rng = np.random.default_rng(10)
    chains = autoregressive(rng, 4, 1000, 0.5, mean=5.0)
    assert summarize(draws_of(chains), 0.0, 1.0, 1.0, DIM).verdict == "ok"
    rising = chains + np.linspace(0, 2.5, 1000)
    summary = summarize(draws_of(rising), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "drifting"
    assert summary.rhat_max <= MAX_RHAT
    assert "differ by +1" in summary.verdict_sentence


def test_a_chain_that_rejects_nearly_everything_is_stuck():
    chains = autoregressive(np.random.default_rng(11), 4, 1000, 0.5)
    assert summarize(draws_of(chains, acceptance=np.array([0.9, 0.11, 0.9, 0.9])), 0.0, 1.0, 1.0, DIM).verdict == "ok"
    summary = summarize(draws_of(chains, acceptance=np.array([0.9, 0.09, 0.9, 0.9])), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "stuck"
    assert "chain 1 accepted 9.0%" in summary.verdict_sentence


def test_divergent_transitions_are_a_verdict():
    chains = autoregressive(np.random.default_rng(7), 4, 500, 0.0)
    assert summarize(draws_of(chains, num_divergent=10), 0.0, 1.0, 1.0, DIM).verdict == "ok"
    summary = summarize(draws_of(chains, num_divergent=11, acceptance=np.full(4, 0.9)), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "divergent"
    assert "11 of 2000 transitions" in summary.verdict_sentence
    assert summary.acceptance == pytest.approx(0.9)


def test_a_large_error_is_a_verdict():
    rng = np.random.default_rng(0)
    summary = summarize(draws_of(autoregressive(rng, 2, 8, 0.0)), 0.0, 1.0, 1.0, DIM)
    assert summary.verdict == "too_short"
    assert summary.llc_std_error / summary.llc_mean == pytest.approx(0.37, abs=0.01)
    assert summarize(draws_of(autoregressive(rng, 2, 200, 0.0)), 0.0, 1.0, 1.0, DIM).verdict == "ok"


def test_every_verdict_has_a_sentence_and_a_code():
    assert [v.code for v in Verdict] == [
        "diverged",
        "divergent",
        "stuck",
        "not_a_minimum",
        "heated",
        "not_equilibrated",
        "not_local",
        "unmixed",
        "drifting",
        "uncertain",
        "too_short",
        "ok",
    ]
    assert all(v.value.endswith(".") for v in Verdict)


def judged(rng, temperature, degree=2.0, num_draws=1000):
    """Chains whose loss grows by `degree`, at a temperature that is the loss's own affair."""
    loss = autoregressive(rng, 4, num_draws, 0.5, mean=10.0)
    growth = degree * loss
    distance = DIM + (temperature - 1) * growth.mean() - growth
    return summarize(draws_of(loss, growth=growth, distance=distance), 0.0, 1.0, 1.0, DIM)


@pytest.mark.parametrize(
    ("temperature", "degree", "verdict"),
    [
        (1.0, 2.0, "ok"),
        (1.04, 2.0, "ok"),
        (1.07, 2.0, "heated"),
        (1.1, 2.0, "heated"),
        (0.93, 2.0, "not_equilibrated"),
        (0.2, 2.0, "not_equilibrated"),
        (1.0, 0.5, "ok"),
        (1.0, 0.1, "not_local"),
        (1.0, -0.5, "not_local"),
    ],
)
def test_the_temperature_and_the_degree_decide(temperature, degree, verdict):
    summary = judged(np.random.default_rng(3), temperature, degree)
    assert summary.verdict == verdict, summary.verdict_sentence
    assert summary.degree == pytest.approx(degree)
    assert summary.growth + summary.localisation == pytest.approx(DIM * summary.temperature)
    assert summary.distance == pytest.approx(summary.localisation**0.5)
    assert ("levels off" in summary.verdict_sentence) is (degree == 0.5)


def test_heat_that_the_step_gives_to_flat_directions_is_not_laid_on_the_loss():
    rng = np.random.default_rng(5)
    loss = autoregressive(rng, 4, 1000, 0.5, mean=10.0)

    def at(temperature, flat_heat):
        distance = DIM * temperature - 2 * loss
        return summarize(draws_of(loss, distance=distance, flat_heat=flat_heat), 0.0, 1.0, 1.0, DIM)

    assert at(1.05, 0.0).verdict == "heated"
    of_step = at(1.05, 5.0)
    assert of_step.verdict == "ok"
    assert of_step.flat_temperature == pytest.approx(1.05)
    hotter, colder = at(1.1, 5.0), at(1.0, 5.0)
    assert hotter.verdict == "heated"
    assert "(temperature 1.1 +- " in hotter.verdict_sentence
    assert "; at this step size 1.05 if the loss were flat)" in hotter.verdict_sentence
    assert colder.verdict == "not_equilibrated"


def test_a_temperature_that_is_not_known_vouches_for_nothing():
    rng = np.random.default_rng(4)
    loss = autoregressive(rng, 4, 1000, 0.5)
    growth = 2 * loss + 1000 * rng.normal(size=loss.shape)
    summary = summarize(draws_of(loss, growth=growth, distance=np.full(loss.shape, DIM)), 0.0, 1.0, 1.0, DIM)
    assert summary.temperature_std_error > 0.1
    assert summary.verdict in ("uncertain", "not_local")


def test_an_rhat_that_does_not_exist_is_never_ok():
    summary = summarize(draws_of(autoregressive(np.random.default_rng(0), 1, 4, 0.0)), 0.0, 1.0, 1.0, DIM)
    assert math.isnan(summary.rhat_max)
    assert summary.verdict == "unmixed"
