"""`estimate_llc`: any pytree, any loss; the numbers of the flow; bad input in one sentence."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import LLCEstimate, estimate_llc
from lambda_hat.config import NutsConfig
from lambda_hat.errors import ConfigError
from lambda_hat.execute.sampling import estimate
from lambda_hat.targets.custom import target_of

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 3))
W = np.array([1.0, -2.0, 0.5])
Y = X @ W


def squares(params, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ params["w"] + params["b"] - y) ** 2)


LINEAR = {"w": W, "b": np.zeros(())}


def exact(design: np.ndarray, n_beta: float, gamma: float = 1.0) -> float:
    """`sum h / (2 (h + gamma))` over the curvatures of half the mean square of `design @ w`."""
    h = n_beta * np.linalg.eigvalsh(design.T @ design / len(design))
    return float(np.sum(h / (2 * (h + gamma))))


WITH_BIAS = np.column_stack([X, np.ones(len(X))])


def check(found: LLCEstimate, expected: float, allowance: float = 0.0):
    assert found.verdict == "ok", found.verdict_sentence
    assert found.std_error < 0.1 * expected
    assert abs(found.llc - expected) < 3 * found.std_error + allowance * expected


def test_the_default_is_sgld_at_beta_one_over_log_n():
    found = estimate_llc(squares, LINEAR, (X, Y), batch_size=None, thin=20)
    assert (found.sampler, found.n, found.dim, found.gamma) == ("sgld", 400, 4, 1.0)
    assert found.n_beta == pytest.approx(400 / np.log(400))
    assert found.losses.shape == (4, 2000) and found.per_chain.shape == (4,)
    check(found, exact(WITH_BIAS, found.n_beta), 0.05)
    text = repr(found)
    assert f"llc = {found.llc:.4g} +- {found.std_error:.2g}, ok" in text
    assert f"  T = {found.temperature:.3g} +- " in text and f"; degree {found.degree:.3g}" in text
    assert found.growth + found.localisation == pytest.approx(found.dim * found.temperature)
    assert abs(found.temperature - 1) < 0.1 and abs(found.degree - 2) < 0.2
    assert "4 chains of 2000 draws" in text and "note: unadjusted" in text


def test_n_beta_and_beta_say_the_same():
    kwargs = dict(sampler="nuts", num_draws=300, num_chains=2)
    one = estimate_llc(squares, LINEAR, (X, Y), n_beta=40.0, **kwargs)
    two = estimate_llc(squares, LINEAR, (X, Y), beta=0.1, **kwargs)
    assert one.n_beta == two.n_beta == 40.0
    np.testing.assert_array_equal(one.losses, two.losses)
    check(one, exact(WITH_BIAS, 40.0))


def test_an_equinox_module():
    linear = eqx.tree_at(
        lambda m: (m.weight, m.bias), eqx.nn.Linear(3, 1, key=jax.random.key(0)), (jnp.asarray(W[None]), jnp.zeros(1))
    )

    def loss(model, batch):
        return 0.5 * jnp.mean((jax.vmap(model)(batch["x"])[:, 0] - batch["y"]) ** 2)

    found = estimate_llc(loss, linear, {"x": X, "y": Y}, sampler="hmc", num_draws=2000)
    check(found, exact(WITH_BIAS, found.n_beta))


def test_a_module_with_functions_and_integers_among_its_leaves():
    mlp = eqx.nn.MLP(3, "scalar", 2, 1, activation=jnp.tanh, key=jax.random.key(0))

    def loss(model, batch):
        x, labels = batch
        return jnp.mean((jax.vmap(model)(x) - labels) ** 2)

    # Integer data stay integers, and the activation is a leaf that is no array.
    found = estimate_llc(loss, mlp, (X, np.zeros(400, np.int32)), sampler="sgld", num_draws=20, step_size=1e-4)
    assert found.dim == 3 * 2 + 2 + 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "params",
    [
        {"params": {"Dense_0": {"kernel": W[:, None], "bias": np.zeros(1)}}},
        {"linear/~/inner": {"kernel": jnp.asarray(W[:, None], jnp.float32), "bias": jnp.zeros(1)}},
        [[W[:, None], np.zeros(1, np.float32)]],
    ],
    ids=["flax", "haiku", "lists"],
)
def test_nested_containers(params):
    def loss(params, batch):
        bias, kernel = sorted(jax.tree.leaves(params), key=lambda leaf: leaf.size)
        return 0.5 * jnp.mean(((batch[0] @ kernel + bias)[:, 0] - batch[1]) ** 2)

    found = estimate_llc(loss, params, (X, Y), sampler="hmc", num_draws=1000)
    check(found, exact(WITH_BIAS, found.n_beta))


def test_without_data():
    found = estimate_llc(lambda w, _: 0.5 * jnp.sum(w**2), np.zeros(3), None, n=1000, sampler="nuts", num_draws=1000)
    t = 1000 / np.log(1000)
    check(found, 1.5 * t / (t + 1))


@pytest.mark.slow
@pytest.mark.parametrize(("restrict", "columns"), [("w", [0, 1, 2]), (["b"], [3]), (["*"], [0, 1, 2, 3])])
def test_a_restriction_is_the_llc_of_what_moves(restrict, columns):
    found = estimate_llc(squares, LINEAR, (X, Y), sampler="hmc", num_draws=1000, restrict=restrict)
    assert found.dim == len(columns)
    check(found, exact(WITH_BIAS[:, columns], found.n_beta))


def test_a_loss_with_randomness_gets_a_key():
    """Noise of the parameters' own: E_z L(w + z) - E_z L(w_star + z) is the loss without it."""

    def loss(params, batch, key):
        noise = 0.3 * jax.random.normal(key, params["w"].shape, params["w"].dtype)
        return squares({"w": params["w"] + noise, "b": params["b"]}, batch)

    found = estimate_llc(loss, LINEAR, (X, Y), batch_size=None, thin=20)
    assert found.loss_at_w_star > 0.05
    check(found, exact(WITH_BIAS, found.n_beta), 0.1)
    with pytest.raises(ConfigError, match=r"nuts needs a loss without randomness.* take sgld, sghmc or sgnht"):
        estimate_llc(loss, LINEAR, (X, Y), sampler="nuts")


@pytest.mark.parametrize("x64", [False, True])
def test_the_callers_precision_is_left_alone(x64):
    with jax.enable_x64(x64):
        params = {"w": jnp.asarray(W), "b": jnp.zeros(())}
        found = estimate_llc(squares, params, (jnp.asarray(X), jnp.asarray(Y)), sampler="hmc", num_draws=200)
        assert jax.config.jax_enable_x64 == x64
        assert params["w"].dtype == (jnp.float64 if x64 else jnp.float32)
    assert found.losses.dtype == np.float64


def test_it_is_the_flows_code():
    found = estimate_llc(squares, LINEAR, (X, Y), sampler="nuts", num_draws=50, num_chains=2, num_burnin=100, seed=3)
    cfg = NutsConfig(num_draws=50, num_chains=2, num_burnin=100, gamma=1.0, seed=3)
    np.testing.assert_array_equal(found.losses, estimate(target_of(squares, LINEAR, (X, Y), None), cfg).draws.loss)


def test_to_xarray():
    found = estimate_llc(squares, LINEAR, (X, Y), sampler="hmc", num_draws=50, num_burnin=50)
    data = found.to_xarray()
    assert data["llc"].dims == ("chain", "draw") and data["llc"].shape == (4, 50)
    assert float(data["llc"].mean()) == pytest.approx(found.llc)
    assert data.attrs["n_beta"] == found.n_beta


def test_singular_fluctuation_is_asked_for():
    noisy = Y + RNG.normal(size=len(Y))
    w = np.linalg.lstsq(WITH_BIAS, noisy, rcond=None)[0]
    params = {"w": w[:3], "b": w[3]}
    found = estimate_llc(squares, params, (X, noisy), sampler="nuts", num_draws=1000, singular_fluctuation=True)
    assert found.singular_fluctuation == pytest.approx(2, rel=0.2)
    assert 0.3 < found.waic < 0.8
    assert np.isnan(estimate_llc(squares, params, (X, noisy), sampler="hmc", num_draws=50).waic)


BAD = [
    (
        dict(loss_fn=lambda p, b: b[0] @ p["w"]),
        r"loss: it returned an array of shape \(\d+,\).* expected one real number",
    ),
    (dict(loss_fn=lambda p, b: 0), r"loss: it returned an array of shape \(\) and type int"),
    (dict(loss_fn=lambda p, b: jnp.sum(p["w"]) * jnp.nan), "loss: it is nan at the given parameters"),
    (dict(loss_fn=lambda p, b: jnp.mean(b[0])), "loss: its gradient is zero.*does not depend on them"),
    (dict(loss_fn=3), r"loss: got 3, expected a function"),
    (dict(data=(X, Y[:-1])), "data: its arrays disagree in length: 0 has 400, 1 has 399"),
    (dict(data=(X, 3.0)), "data: 1 is 3.0, expected an array with one entry per data point"),
    (dict(data={}), "data: there is no array in it"),
    (dict(data=None), "n: missing"),
    (dict(data=None, batch_size=8), "batch_size: got 8 with data=None"),
    (dict(n=2), "n: got 2, expected at least 3"),
    (dict(params={"w": np.ones(3, int)}), "params: there is no floating-point array"),
    (dict(params={"w": W + 0j, "b": 0.0}), "params: w is complex"),
    (dict(params={"w": W * np.nan, "b": np.zeros(())}), "params: w is not finite"),
    (dict(sampler="sgdl"), "sampler: unknown 'sgdl'; did you mean 'sgld'"),
    (dict(stepsize=1e-3), "stepsize: no option of sgld; did you mean 'step_size'"),
    (dict(beta=1.0, n_beta=2.0), "beta: got both beta = 1.0 and n_beta = 2.0"),
    (dict(beta=-1.0), "beta: got -1.0"),
    (dict(num_draws="many"), "num_draws"),
    (dict(restrict="v"), r"restrict: 'v' matches no parameter; the paths are b, w"),
    (dict(sampler="mclmc", restrict="b"), "mclmc needs at least 2 moving parameters, and this target has 1"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_input_is_one_sentence(change, message):
    arguments = {"loss_fn": squares, "params": LINEAR, "data": (X, Y)} | change
    with pytest.raises(ValueError, match=message) as caught:
        estimate_llc(arguments.pop("loss_fn"), arguments.pop("params"), arguments.pop("data"), **arguments)
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in str(caught.value)


def test_nothing_of_jax_is_imported_with_the_package(tmp_path):
    import subprocess
    import sys

    code = "import lambda_hat, sys; print('jax' in sys.modules, 'estimate_llc' in dir(lambda_hat))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_a_loss_that_asks_for_float64_warns_nobody():
    def wide(params, batch):
        return squares(params, batch) * jnp.ones((), jnp.float64)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate_llc(wide, LINEAR, (X, Y), num_draws=40, num_burnin=40, precision="float32")
    assert np.isfinite(found.llc)


def made(estimate) -> int:
    """Programs that were not in this process before."""
    return estimate.draws.programs_compiled + estimate.draws.programs_loaded


def test_the_same_function_is_compiled_once():
    first = estimate_llc(squares, LINEAR, (X, Y), sampler="nuts", num_draws=37)
    target = target_of(squares, LINEAR, (X + 1, Y), None)
    again = estimate(target, NutsConfig(num_draws=37, gamma=1.0, seed=5))
    assert made(again) == 0 and first.losses.shape == again.draws.loss.shape
    other = estimate(target_of(lambda p, b: squares(p, b), LINEAR, (X, Y), None), NutsConfig(num_draws=37))
    assert made(other) > 0
