"""The loss on other rows and data, as a configuration names them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import DlnBuild, DlnTarget, ObserveConfig, QuadraticBuild, SgldConfig
from lambda_hat.engine.observing import recorded
from lambda_hat.errors import ConfigError
from lambda_hat.omegaconf_support import build_dataclass
from lambda_hat.targets import build_target
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.custom_loss import MEAN_WEIGHT
from lambda_hat.targets.observables import with_observables

HERE = f"{__name__}:"
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, 5, size=(12, 6))
MASK = np.arange(6) < RNG.integers(1, 7, size=12)[:, None]
TABLE = RNG.normal(size=(5, 5))


def of_tokens(params, batch):
    """(rows, tokens): the losses of tokens, 0 where there is none."""
    log_p = jax.nn.log_softmax(params["table"])
    losses = -log_p[batch["tokens"][:, :-1], batch["tokens"][:, 1:]]
    return losses * batch["mask"][:, 1:]


def with_tokens(params, batch):
    """The same loss as `masked`, which gives the losses of its tokens."""
    log_p = jax.nn.log_softmax(params["table"])
    return -log_p[batch["tokens"][:, :-1], batch["tokens"][:, 1:]], batch["mask"][:, 1:]


def masked(params, batch):
    return jnp.sum(of_tokens(params, batch)), jnp.sum(batch["mask"][:, 1:] + 0.0)


def plain(params, batch):
    return jnp.mean((batch["x"] * params["w"] - 1) ** 2)


def others(first=0):
    return {"tokens": TOKENS[first:] % 3, "mask": MASK[first:]}


def of_another_kind():
    return {"tokens": TOKENS}


DATA = {"tokens": TOKENS, "mask": MASK}


def value(target, name):
    what, data = target.observed[name]
    with jax.enable_x64(True):
        return np.asarray(what(target.loss, target.w_star, target.data if data is None else data, 4))


@pytest.fixture(scope="module")
def language():
    return target_of(masked, {"table": TABLE}, DATA, None)


def test_the_loss_of_masked_rows_is_over_the_weight_of_these_rows(language):
    target = with_observables(
        language,
        {
            "all": ObserveConfig(),
            "first": ObserveConfig(rows=5),
            "others": ObserveConfig(data=HERE + "others", kwargs={"first": 2}),
            "rows": ObserveConfig(rows=5, per="row"),
            "tokens": ObserveConfig(function=HERE + "of_tokens", rows=5),
        },
    )
    first, other = {name: array[:5] for name, array in DATA.items()}, others(2)

    def mean(batch):
        return np.divide(*map(float, masked({"table": jnp.asarray(TABLE)}, batch)))

    with jax.enable_x64(True):
        expected = mean(DATA), mean(first), mean(other)
        of_first = np.asarray(of_tokens({"table": jnp.asarray(TABLE)}, first))
    assert [float(value(target, name)) for name in ("all", "first", "others")] == pytest.approx(expected, rel=1e-12)
    assert value(target, "all") == pytest.approx(language.loss_at_w_star, rel=1e-12)
    np.testing.assert_allclose(value(target, "rows"), of_first.sum(axis=1), rtol=1e-6)
    np.testing.assert_allclose(value(target, "tokens"), of_first, rtol=1e-12)
    shapes = recorded(target, "float32", 4)
    assert {name: shape.shape for name, shape in shapes.items()} == {
        "all": (), "first": (), "others": (), "rows": (5,), "tokens": (5, 5)
    }  # fmt: skip
    # Its own data are not held twice, and lanes on one target have one copy of the others.
    assert target.observed["all"].data is None
    again = with_observables(language, {"others": ObserveConfig(data=HERE + "others", kwargs={"first": 2})})
    assert again is with_observables(language, {"others": ObserveConfig(data=HERE + "others", kwargs={"first": 2})})


def test_losses_of_tokens_are_those_of_the_pair_of_their_sums(language):
    target = target_of(with_tokens, {"table": TABLE}, DATA, None)
    assert target.loss_at_w_star == pytest.approx(language.loss_at_w_star, rel=1e-12)
    np.testing.assert_array_equal(target.data[MEAN_WEIGHT], language.data[MEAN_WEIGHT])
    wanted = {"tokens": ObserveConfig(per="token"), "few": ObserveConfig(rows=5, per="token")}
    target = with_observables(target, {**wanted, "rows": ObserveConfig(per="row")})
    with jax.enable_x64(True):
        expected = np.asarray(of_tokens({"table": jnp.asarray(TABLE)}, DATA))
        batch, other = (one.loss.batch(jax.random.key(0), one.data, 4) for one in (target, language))
        assert float(target.loss.of_batch({"table": TABLE}, batch)) == pytest.approx(
            float(language.loss.of_batch({"table": TABLE}, other)), rel=1e-12
        )
    assert value(target, "tokens").dtype == np.float32
    np.testing.assert_allclose(value(target, "tokens"), expected, rtol=1e-6)
    np.testing.assert_array_equal(value(target, "few"), value(target, "tokens")[:5])
    np.testing.assert_allclose(value(target, "rows"), value(target, "tokens").sum(axis=1), rtol=1e-6)
    assert recorded(target, "float64", 4)["few"] == jax.ShapeDtypeStruct((5, 5), jnp.float32)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda p, b: (with_tokens(p, b)[0], b["mask"][:, 0]), r"arrays of shapes \(12, 5\) and \(12,\) on 12 rows"),
        (
            lambda p, b: (with_tokens(p, b)[0].T, b["mask"][:, 1:].T),
            r"expected the losses of .* \(rows, tokens\) = \(12, ",
        ),
        (lambda p, b: (with_tokens(p, b)[0], jax.nn.sigmoid(with_tokens(p, b)[0])), "its pair .* depends on the param"),
    ],
)
def test_arrays_that_are_no_losses_of_tokens_are_refused(loss, said):
    with pytest.raises(ConfigError, match=said):
        target_of(loss, {"table": TABLE}, DATA, None)


def test_a_loss_without_tokens_is_refused_in_a_sentence(language):
    said = r"observable it: the loss returns no losses of tokens; return \(losses, mask\)"
    with pytest.raises(ConfigError, match=said):
        recorded(with_observables(language, {"it": ObserveConfig(per="token")}), "float32", 4)


def test_deep_linear_networks_have_no_rows_to_choose_from():
    dln, _ = build_target(DlnBuild(target=DlnTarget(widths=[2, 2, 2], data="empirical", noise_std=0.1, n=50)))
    target = with_observables(dln, {"all": ObserveConfig(), "rows": ObserveConfig(per="row")})
    assert value(target, "rows").mean() == pytest.approx(float(value(target, "all")), rel=1e-5)
    with pytest.raises(ConfigError, match=r"observe.a: data and rows need .* does not store them; leave both out"):
        with_observables(dln, {"a": ObserveConfig(rows=3)})
    said = "observable it: per: token: the rows of this target have no tokens; write per: row"
    with pytest.raises(ConfigError, match=said):
        recorded(with_observables(dln, {"it": ObserveConfig(per="token")}), "float32", 4)


def stochastic(params, batch, key):
    return plain(params, batch) + 0 * jax.random.normal(key)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"rows": 13}, r"observe\.a\.rows: got 13, but there are 12 rows"),
        ({"data": "nowhere:f"}, r"observe\.a\.data: nowhere:f cannot be imported: ModuleNotFoundError"),
        ({"data": HERE + "DATA"}, r"observe\.a\.data: .* is a dict, expected a function"),
        ({"data": HERE + "of_another_kind"}, r"returned tokens \(12, 6\), expected data like the target's: mask \(12"),
        ({"function": HERE + "nothing"}, r"observe\.a\.function: .*:nothing cannot be imported: AttributeError"),
    ],
)
def test_what_is_not_there_is_refused(language, what, said):
    with pytest.raises(ConfigError, match=said):
        with_observables(language, {"a": ObserveConfig(**what)})


def test_a_loss_without_rows_or_with_randomness_is_refused():
    quadratic, _ = build_target(QuadraticBuild())
    with pytest.raises(ConfigError, match=r"observe\.a: this target has no rows: the loss is a closed form"):
        with_observables(quadratic, {"a": ObserveConfig()})
    noisy = target_of(stochastic, {"w": np.zeros(())}, {"x": np.arange(8.0)}, None)
    with pytest.raises(ConfigError, match=r"observe\.a: the loss takes a random key"):
        with_observables(noisy, {"a": ObserveConfig(per="row")})


@pytest.mark.parametrize(
    ("observe", "said"),
    [
        ({"a": {"per": "rows"}}, "per: unknown 'rows'; did you mean 'row'"),
        ({"a": {"per": "row", "function": "m:f"}}, "per: got 'row' beside a function"),
        ({"a": {"data": "module"}}, "data: got 'module', expected package.module:function"),
        ({"a": {"rows": 0}}, "rows: got 0, expected an integer of at least 1"),
        ({"a": {"kwargs": {"n": 1}}}, "kwargs: they are those of data, which is missing"),
        ({"a": {"row": 3}}, "'row' not in 'ObserveConfig'"),
        ({"llc": {}}, "observe: got the name 'llc'"),
        (["rows"], "observe: expected a mapping"),
    ],
)
def test_a_configuration_that_says_nothing_sensible_is_refused(observe, said):
    with pytest.raises(ConfigError, match=said):
        build_dataclass(SgldConfig, [("study.yaml", {"observe": observe})])
