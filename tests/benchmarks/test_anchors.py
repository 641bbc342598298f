"""The benchmarks that estimates are held against: what is exact in them, what they draw, and their short forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import integrate

from benchmarks import calibration, equilibrium, measure, metrics, networks, wells
from lambda_hat import estimate_llc
from lambda_hat.estimate.posterior import Posterior
from lambda_hat.estimate.verdict import LOW_DEGREE, MIN_DEGREE
from tests.benchmarks.running import run


@pytest.mark.parametrize("powers", calibration.POWERS)
@pytest.mark.parametrize("t", [3.0, 145.0])
def test_the_calibration_is_exact_at_every_temperature(powers, t):
    def moment(p, factor):
        return integrate.quad(lambda w: factor(w**p / 2) * math.exp(-t * w**p / 2), 0, 10, points=[t ** (-1 / p)])[0]

    mean = sum(moment(p, lambda loss: loss) / moment(p, lambda loss: 1.0) for p in powers)
    assert t * mean == pytest.approx(calibration.exact(powers), rel=1e-8)
    # Weak types: the loss is called with NumPy arrays here, and inside programs by the estimator.
    at = {"w": np.full(len(powers), 2.0)}
    assert float(calibration.loss_of(powers)(at, None)) == pytest.approx(sum(2.0**p / 2 for p in powers))


def test_the_published_network_has_its_size_and_no_loss_at_w_star():
    loss, params, data, _ = equilibrium.make(50)
    assert networks.size(params) == 850
    assert np.abs(data["x"]).max() <= 10
    with jax.enable_x64(True):
        assert float(loss(params, data)) == 0


def test_the_quadratic_value_is_that_of_the_whole_hessian():
    made = equilibrium.make(30)
    loss, params, data, _ = made
    with jax.enable_x64(True):
        flat, unravel = ravel_pytree(params)
        hessian = jax.hessian(lambda w: loss(unravel(w), data))(flat)
    h = np.maximum(np.linalg.eigvalsh(hessian), 0) * 30 / np.log(30)
    assert equilibrium.quadratic(made, slice_rows=20) == pytest.approx(np.sum(h / (2 * (h + 1))), rel=1e-6)


def test_networks_are_of_the_sizes_that_their_tables_name():
    assert networks.size(networks.mlp(n=10)[1]) == 7705
    assert networks.size(networks.transformer(5)[1]) == 105_408
    assert networks.size(networks.mlp(networks.LARGE, 3)[1]) == 4_005_601


def test_the_transformer_begins_at_a_uniform_guess_and_sees_no_token_that_is_to_come():
    loss, params, data = networks.transformer(20)
    assert float(loss(params, data)) == pytest.approx(math.log(32), abs=0.1)
    short = {"tokens": data["tokens"][:, :10]}
    shorter = params | {"places": params["places"][:10]}
    changed = data["tokens"].copy()
    changed[:, 10:] = 0
    of_short = float(loss(shorter, short))
    first_nine = [
        float(loss(shorter, {"tokens": tokens[:, :10]})) for tokens in (data["tokens"], changed)
    ]  # the same rows, whatever follows
    assert first_nine == [of_short, of_short]


def test_training_lowers_the_loss_of_the_transformer():
    made, losses = networks.trained(networks.transformer(50), 60)
    assert losses[-1] < losses[0] - 0.05
    assert set(made[1]) == set(networks.transformer(5)[1])


def test_the_regression_is_at_its_minimum_and_badly_scaled():
    target = metrics.regression()
    x, residual = target.data["x"], target.data["y"] - target.data["x"] @ target.w_star["w"]
    assert np.abs(x.T @ residual).max() < 1e-6 * np.abs(x).max() * len(x)
    posterior = Posterior(target.n / np.log(target.n), 1.0)
    h = posterior.n_beta * np.linalg.eigvalsh(x.T @ x / len(x)) + 1
    assert 3e4 < h[-1] / h[0] < 3e5
    assert metrics.exact(target, None, posterior) == pytest.approx(np.sum((h - 1) / h) / 2)


@pytest.mark.parametrize("well", wells.WELLS, ids=lambda well: well.name)
def test_a_well_has_its_slope_its_curvature_and_the_integration_by_parts(well):
    r = np.linspace(0.01, 4, 50)
    assert np.gradient(well.loss(r), r)[5:-5] == pytest.approx(well.slope(r)[5:-5], abs=0.02)
    assert 2 * well.loss(np.array([1e-3]))[0] / 1e-6 == pytest.approx(well.curvature, rel=1e-4)
    # Along a line, E[r U'(r)] = 1 of exp(-U): the growth is what the localisation leaves.
    found = wells.exact(well, 1, 30.0, 10.0)
    total = [
        integrate.quad(lambda r, k=k: r**k * math.exp(-30 * well.loss(np.array([r]))[0] - 5 * r**2), 0, 5)[0]
        for k in (0, 2)
    ]
    assert found.degree * found.llc == pytest.approx(1 - 10 * total[1] / total[0], rel=1e-4)


def test_no_posterior_in_a_well_lies_between_the_basin_and_the_plateau():
    found = list(wells.found(quick=False))
    for row in found:
        assert (row.degree < MIN_DEGREE) == (row.degree < LOW_DEGREE)
        assert (row.degree < MIN_DEGREE) or abs(math.log(row.llc / row.of_basin)) < math.log(1.4), row
        assert (row.degree > MIN_DEGREE) or abs(math.log(row.llc / row.of_basin)) > math.log(1.2), row


@pytest.mark.parametrize(("gamma", "verdict"), [(0.1, "not_local"), (10.0, "ok")])
def test_the_sampler_sees_whether_it_is_still_in_the_well(gamma, verdict):
    def loss(params, batch):
        return -jnp.expm1(-jnp.sum(params["w"] ** 2) / 2) + 0 * jnp.mean(batch)

    exact = wells.exact(wells.WELLS[0], 20, 30.0, gamma)
    found = estimate_llc(loss, {"w": np.zeros(20)}, np.zeros(50), sampler="hmc", n_beta=30.0, gamma=gamma)
    assert found.verdict == verdict, found.verdict_sentence
    assert abs(found.llc - exact.llc) < 4 * found.std_error + 0.05 * exact.llc
    assert found.degree == pytest.approx(exact.degree, abs=0.15)


def test_options_that_a_sampler_has_not_are_left_out():
    assert measure.known("sgld", step_size=1e-3, num_integration_steps=3) == {"step_size": 1e-3}


def test_figures_have_their_errors_beside_them():
    assert measure.with_error(1.23456, 0.0123) == "1.23 ± 0.012"
    assert measure.with_error(1.23456, None) == "1.23"
    assert measure.with_error(None, None) == "–"
    assert measure.number(float("nan")) == "–"


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("beside", [], "the following arguments are required: --devinterp"),
        ("metrics", ["--targets", "dl"], "--targets: got dl, expected some of small mlp, regression"),
        ("defaults", ["mpl"], "unknown network mpl; there are mlp, transformer"),
        ("promise", ["mpl"], "unknown network mpl; there are mlp, transformer, large"),
    ],
)
def test_bad_input_is_refused(name, words, message):
    assert message in run(name, *words, status=2, timeout=60).stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("calibration", "| p | exact | sampler | estimate | error | T | degree | verdict |"),
        ("equilibrium", "| n | SGLD, published | MALA, published | ours, the same settings | T | verdict | judge |"),
        ("metrics", "| target | sampler | metric | ESS | gradients | ESS per 1,000 gradients | exact | estimate |"),
        ("defaults", "| network | parameters | loss at w* | core-minutes | verdict | estimate | T | degree |"),
        ("large", "| gradient | bare, ms | ours, ms | ours / bare | fixed costs of a call, s | peak MB, ours / bare |"),
        ("wells", "| degree | posteriors | their degrees | exact value over that of the basin |"),
        pytest.param(
            "promise",
            "| network | parameters | before it is built, s | built, s | measured, s | measured / before |",
            marks=[pytest.mark.mpi, pytest.mark.parsl],
        ),
    ],
)
def test_a_short_form_writes_its_table(tmp_path, name, head):
    run(name, "--quick", "--out", tmp_path, timeout=900)
    assert head in (tmp_path / f"{name}.md").read_text()
