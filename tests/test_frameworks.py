"""Modules of Flax, Haiku and Equinox as users give them: what moves, what is held and said, and training mode."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import estimate_llc
from lambda_hat.errors import ConfigError
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.pytrees import split_params
from lambda_hat.targets.training_state import held_paths

pytest.importorskip("flax", reason="the extra [test] has it")
hk = pytest.importorskip("haiku", reason="the extra [test] has it")
from flax import linen, nnx  # noqa: E402

RNG = np.random.default_rng(0)
X = (2 + 3 * RNG.normal(size=(256, 2))).astype(np.float32)
Y = np.sin(X[:, :1])


def mse(predicted, batch):
    return jnp.mean((predicted - batch[1]) ** 2) / 2


def examined(loss, params):
    return target_of(loss, params, (X, Y), None)


def held_and_said(target, kind: str, dim: int, held: int):
    """`dim` parameters move, and one note tells of `held` numbers that do not."""
    assert (target.dim, sum(array.size for array in target.held.values())) == (dim, held)
    (note,) = (note for note in target.held_notes if "stay as given" in note)
    assert note.endswith(f" stay as given: {kind}, no parameters; dim does not count their {held} numbers")
    assert all(path in note or "..." in note for path in target.held)


def in_training_mode(loss, params, said: str):
    with pytest.raises(ConfigError, match="^loss: a module is in training mode: [^\n]*" + said):
        examined(loss, params)


# ---------------------------------------------------------------------------------------------------------- Linen


class Linen(linen.Module):
    batch_norm_learns: bool = False
    drops: bool = False

    @linen.compact
    def __call__(self, x):
        x = linen.BatchNorm(use_running_average=not self.batch_norm_learns)(linen.Dense(4)(x))
        x = linen.Dropout(0.1, deterministic=not self.drops)(linen.tanh(x))
        return linen.Dense(1)(x)


def of_linen(**mode):
    return lambda variables, batch: mse(Linen(**mode).apply(variables, batch[0]), batch)


@pytest.fixture(scope="module")
def variables():
    return Linen().init(jax.random.key(0), X)


def test_linen_holds_its_batch_statistics(variables):
    held_and_said(examined(of_linen(), variables), "batch_stats", 25, 8)
    assert held_paths(variables["params"]) == {}


def test_linen_in_training_mode(variables):
    remedy = "ModifyScopeVariableError: .* is immutable; write use_running_average=True in its BatchNorm, and apply"
    in_training_mode(of_linen(batch_norm_learns=True), variables, remedy)
    in_training_mode(
        of_linen(drops=True), variables, "InvalidRngError: .*; write deterministic=True in its Dropout, or"
    )


@pytest.mark.slow
def test_linen_with_its_dropout_takes_a_key(variables):
    def with_key(v, b, key):
        return mse(Linen(drops=True).apply(v, b[0], rngs={"dropout": key}), b)

    assert examined(with_key, variables).loss.stochastic


# ------------------------------------------------------------------------------------------------------------ NNX


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first, self.norm = nnx.Linear(2, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop, self.last = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(nnx.tanh(self.norm(self.first(x)))))


@pytest.fixture
def module():
    model = Nnx(nnx.Rngs(0))
    model(jnp.asarray(X))
    return model


NNX = "variables of NNX other than nnx.Param"


def test_nnx_holds_everything_but_its_params(module):
    module.eval()
    definition, state = nnx.split(module)
    held_and_said(examined(lambda s, b: mse(nnx.merge(definition, s)(b[0]), b), state), NNX, 25, 8)
    floats = {"norm/mean/value": NNX, "norm/var/value": NNX}
    for given in (module, nnx.state(module), nnx.state(module, nnx.BatchStat)):
        arrays, _ = split_params(given)
        assert {path: kind for path, kind in held_paths(given).items() if path in arrays} == floats
    assert held_paths(nnx.split(module, nnx.Param, ...)[1]) == {}


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types:FutureWarning")
def test_nnx_in_training_mode(module):
    params = nnx.state(module, nnx.Param)
    line = r"TraceContextError: .*; call model.eval\(\) before nnx.split\(model, nnx.Param, ...\), and nnx.merge in the"
    in_training_mode(lambda p, b: mse(module(b[0]), b), params, line)
    definition, state = nnx.split(module)
    with pytest.raises(ConfigError, match=r"no mean over rows; .* replace statistics of the batch"):
        examined(lambda s, b: mse(nnx.merge(definition, s)(b[0]), b), state)


class Tied(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 2, use_bias=False, rngs=rngs)
        self.last = self.first

    def __call__(self, x):
        return self.last(nnx.tanh(self.first(x)))[:, :1]


def test_a_weight_at_two_places_is_one_parameter_or_it_is_said():
    tied = Tied(nnx.Rngs(0))
    assert [w.size for w in split_params(nnx.split(tied)[1])[0].values()] == [4]
    twice = examined(lambda m, b: mse(m(b[0]), b), tied)
    assert twice.dim == 8 and "are one array in params and move independently" in twice.notes[0]

    weight = jnp.ones((1, 2))
    pair = {"embed": eqx.nn.Linear(2, 1, use_bias=False, key=jax.random.key(0)), "head": weight}
    pair["embed"] = eqx.tree_at(lambda layer: layer.weight, pair["embed"], weight)

    def loss(both, batch):
        return mse(jnp.tanh(jax.vmap(both["embed"])(batch[0]) + batch[0] @ both["head"].T), batch)

    shared = eqx.nn.Shared(pair, lambda both: both["head"], lambda both: both["embed"].weight)
    once = examined(lambda both, b: loss(both(), b), shared)
    assert (once.dim, once.notes) == (2, ())


# ---------------------------------------------------------------------------------------------------------- Haiku


def _haiku(x, is_training):
    x = jnp.tanh(hk.BatchNorm(True, True, 0.9)(hk.Linear(4)(x), is_training))
    return hk.Linear(1)(hk.dropout(hk.next_rng_key(), 0.1, x) if is_training else x)


haiku = hk.transform_with_state(_haiku)


def test_haiku_holds_its_state():
    params, state = haiku.init(jax.random.key(0), X, True)
    _, state = haiku.apply(params, state, jax.random.key(1), X, True)
    both = examined(lambda both, b: mse(haiku.apply(*both, None, b[0], False)[0], b), (params, state))
    held_and_said(both, "moving averages of Haiku", 25, 16)
    assert held_paths(params) == {}
    in_training_mode(
        lambda p, b: mse(haiku.apply(p, state, None, b[0], True)[0], b),
        params,
        "MissingRNGError: .*; apply it with is_training=False, or give the loss a third parameter key and pass it",
    )


# -------------------------------------------------------------------------------------------------------- Equinox


class Equinox(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    last: eqx.nn.Linear
    drop: eqx.nn.Dropout | None

    def __init__(self, drops: bool = False):
        first, last = jax.random.split(jax.random.key(0))
        self.first, self.last = eqx.nn.Linear(2, 4, key=first), eqx.nn.Linear(4, 1, key=last)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="ema")
        self.drop = eqx.nn.Dropout(0.1) if drops else None

    def __call__(self, x, state):
        x, state = self.norm(self.first(x), state)
        return self.last(jnp.tanh(x) if self.drop is None else self.drop(jnp.tanh(x))), state


def predicted(model, state, x):
    return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)


def test_equinox_holds_its_state():
    model, state = eqx.nn.make_with_state(Equinox)()
    _, state = predicted(model, state, X)
    ready = eqx.nn.inference_mode(model)
    both = examined(lambda both, b: mse(predicted(*both, b[0])[0], b), (ready, state))
    held_and_said(both, "state of an Equinox model", 25, 8)
    assert held_paths(ready) == {}
    initial = {f"norm/ema_state_index/init/{place}" for place in (0, 1)}
    assert held_paths(Equinox()).keys() == initial | {"norm/ema_first_time_index/init"}
    in_training_mode(lambda m, b: mse(predicted(m, state, b[0])[0], b), model, r"write eqx.nn.inference_mode\(model\)$")
    dropping = eqx.tree_at(lambda m: m.drop, ready, eqx.nn.Dropout(0.1), is_leaf=lambda leaf: leaf is None)
    in_training_mode(
        lambda m, b: mse(predicted(m, state, b[0])[0], b),
        dropping,
        r"RuntimeError: .*; write eqx.nn.inference_mode\(model\), or give the loss a third parameter key",
    )


# --------------------------------------------------------------------------------------------------------- figures


class LinenRegression(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        normed = linen.BatchNorm(use_running_average=not train, momentum=0.5, use_bias=False, use_scale=False)(x)
        return linen.Dense(1)(normed)


class NnxRegression(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(2, momentum=0.5, use_bias=False, use_scale=False, rngs=rngs)
        self.layer = nnx.Linear(2, 1, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.norm(x))


class EquinoxRegression(eqx.Module):
    norm: eqx.nn.BatchNorm
    layer: eqx.nn.Linear

    def __init__(self):
        self.norm = eqx.nn.BatchNorm(2, "batch", channelwise_affine=False, momentum=0.5, mode="ema")
        self.layer = eqx.nn.Linear(2, 1, key=jax.random.key(0))

    def __call__(self, x, state):
        x, state = self.norm(x, state)
        return self.layer(x), state


def _with_linen():
    model = LinenRegression()
    variables = model.init(jax.random.key(0), X, False)
    for _ in range(9):
        _, new = model.apply(variables, X, True, mutable=["batch_stats"])
        variables = {**variables, **new}
    return lambda v, x: model.apply(v, x, False), variables


def _with_nnx():
    model = NnxRegression(nnx.Rngs(0))
    for _ in range(9):
        model(jnp.asarray(X))
    model.eval()
    return lambda m, x: m(x), model


def _with_haiku():
    def regression(x, is_training):
        return hk.Linear(1)(hk.BatchNorm(False, False, 0.5)(x, is_training))

    model = hk.without_apply_rng(hk.transform_with_state(regression))
    params, state = model.init(jax.random.key(0), X, True)
    for _ in range(9):
        _, state = model.apply(params, state, X, True)
    return lambda both, x: model.apply(*both, x, False)[0], (params, state)


def _with_equinox():
    model, state = eqx.nn.make_with_state(EquinoxRegression)()
    for _ in range(9):
        _, state = predicted(model, state, X)
    return lambda both, x: predicted(*both, x)[0], (eqx.nn.inference_mode(model), state)


@pytest.mark.slow
@pytest.mark.parametrize("made", [_with_linen, _with_nnx, _with_haiku, _with_equinox], ids=lambda made: made.__name__)
def test_a_regression_on_normalised_inputs_has_its_exact_llc(made):
    """`sum h / (2 (h + gamma))` over the curvatures of the normalised design, with the statistics held."""
    predict, params = made()
    y = np.asarray(predict(params, X))
    found = estimate_llc(lambda p, b: mse(predict(p, b[0]), b), params, (X, y), sampler="hmc", num_draws=1000)
    mean, var = X.mean(axis=0), X.var(axis=0)
    design = np.column_stack([(X - mean) / np.sqrt(var), np.ones(len(X))])
    h = found.n_beta * np.linalg.eigvalsh(design.T @ design / len(X))
    assert found.dim == 3 and found.verdict == "ok", found
    assert abs(found.llc - np.sum(h / (2 * (h + 1)))) < 3 * found.std_error + 0.01
    assert any("stay as given" in note for note in found.notes)
