"""What is watched at the draws of a run is right, and changes nothing else."""

from __future__ import annotations

import random
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import ObserveConfig, SgldConfig
from lambda_hat.engine import chunks as chunks_module
from lambda_hat.engine.chunks import Chunks
from lambda_hat.errors import ConfigError, Paused, TooLarge
from lambda_hat.samplers import lane_key, make_lane, sample, sample_lanes
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.observables import with_functions, with_observables
from tests.engine.runs import runs_of_every_kind
from tests.engine.test_chunks import Stopping, assert_same
from tests.engine.test_lanes import assert_like

SMALL = {"num_chains": 2, "num_draws": 30, "num_burnin": 45, "thin": 7}
RUNS = runs_of_every_kind(**SMALL)
WATCHED = {
    "everything": ObserveConfig(),
    "first": ObserveConfig(rows=10),
    "rows": ObserveConfig(per="row"),
    "few": ObserveConfig(rows=3, per="row"),
}


def small_network(seed):
    """Two layers at random weights, which is as good a place to sample from as any, and needs no training."""
    rng = np.random.default_rng(seed)
    data = {"x": rng.normal(size=(100, 3)), "y": rng.normal(size=100)}
    params = {"layers": [rng.normal(size=(3, 4)), rng.normal(size=4)]}
    return target_of(_loss, params, data, None)


def _loss(params, batch):
    first, second = params["layers"]
    return jnp.mean((jnp.tanh(batch["x"] @ first) @ second - batch["y"]) ** 2) / 2


@pytest.fixture(scope="module")
def network():
    return small_network(3)


@pytest.fixture(scope="module")
def watched(network):
    return with_observables(network, WATCHED)


def assert_same_observed(one, other):
    assert one.observed.keys() == other.observed.keys() != set()
    for name, mine in one.observed.items():
        np.testing.assert_array_equal(mine.draws, other.observed[name].draws, err_msg=name)
        np.testing.assert_array_equal(mine.at_w_star, other.observed[name].at_w_star, err_msg=name)


@pytest.mark.parametrize(
    "name", ["sgld", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sghmc", "hmc", "mclmc"))]
)
def test_watching_changes_no_bit_of_the_chains(network, watched, name):
    cfg = replace(RUNS[name], **({"step_size": 1e-5} if getattr(RUNS[name], "step_size", None) else {}))
    draws, plain = sample(watched, cfg, 3), sample(network, cfg, 3)
    kept = [note for note in draws.notes if not note.startswith("observable")]
    assert_same(draws._replace(notes=tuple(kept)), plain)
    assert not plain.observed
    # The observables are those of these very draws.
    observed = {name: one.draws for name, one in draws.observed.items()}
    assert observed.keys() == WATCHED.keys()
    # The recorded loss is that of float64 at w_star, and of the precision of the run elsewhere.
    tolerance = 1e-6 * np.max(plain.loss)
    if draws.exact_losses:
        np.testing.assert_allclose(observed["everything"], plain.loss, rtol=0, atol=tolerance)
    np.testing.assert_allclose(observed["rows"].mean(axis=-1), observed["everything"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(observed["rows"][..., :10].mean(axis=-1), observed["first"], rtol=0, atol=tolerance)
    np.testing.assert_array_equal(observed["rows"][..., :3], observed["few"])
    assert observed["rows"].dtype == np.float32 and observed["rows"].shape == (2, 30, 100)
    assert draws.observed["everything"].at_w_star == pytest.approx(network.loss_at_w_star, rel=1e-5)


def in_pieces(target, cfg, path, pieces):
    """The draws of a run that is stopped at border after border, and how often it was."""
    for stops, border in enumerate(pieces):
        kept = Chunks(path, drain=Stopping(border))
        kept.load()
        try:
            return sample(target, cfg, 3, kept), stops
        except Paused:
            continue
    raise AssertionError("the run never ended")


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_has_the_same_rows(watched, tmp_path, monkeypatch):
    cfg = replace(RUNS["sgld"], step_size=1e-5)
    whole = sample(watched, cfg, 3)
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_GROWTH", 5)
    rng = random.Random(0)
    found, stops = in_pieces(watched, cfg, tmp_path / "checkpoint.npz", (rng.randint(2, 3) for _ in range(100)))
    assert stops > 3
    assert_same(found, whole)
    assert_same_observed(found, whole)
    assert all(np.all(np.isfinite(one.draws)) for one in found.observed.values())


@pytest.mark.slow
def test_lanes_watch_what_each_would_by_itself(watched):
    cfgs = [replace(RUNS["sgld"], step_size=1e-5, seed=seed) for seed in range(3)]
    lanes = [make_lane(watched, cfg, identity) for identity, cfg in enumerate(cfgs)]
    for identity, draws in enumerate(sample_lanes(lanes, Chunks(lanes=3))):
        alone = sample(watched, cfgs[identity], identity)
        assert_like(draws, alone)
        for name, one in draws.observed.items():
            scale = np.max(np.abs(alone.observed[name].draws))
            np.testing.assert_allclose(one.draws, alone.observed[name].draws, rtol=0, atol=1e-3 * scale)
            np.testing.assert_allclose(one.at_w_star, alone.observed[name].at_w_star, rtol=1e-4, atol=1e-9)


@pytest.mark.slow
def test_lanes_of_several_targets_watch_their_own_data():
    targets = [with_observables(small_network(seed), WATCHED) for seed in (3, 4)]
    cfg = replace(RUNS["sgld"], step_size=1e-5)
    lanes = [make_lane(target, cfg, 5) for target in targets]
    assert lane_key(lanes[0]) == lane_key(lanes[1])
    for target, draws in zip(targets, sample_lanes(lanes, Chunks(lanes=2)), strict=True):
        alone = sample(target, cfg, 5)
        np.testing.assert_allclose(draws.observed["few"].draws, alone.observed["few"].draws, rtol=0.01, atol=1e-6)


def test_only_what_watches_the_same_shares_a_program(network, watched):
    cfg = replace(RUNS["sgld"], step_size=1e-5)
    keys = [
        lane_key(make_lane(target, cfg, 0))
        for target in (network, watched, with_observables(network, {"first": ObserveConfig(rows=11)}))
    ]
    assert len(set(keys)) == 3
    assert lane_key(make_lane(with_observables(network, WATCHED), cfg, 0)) == keys[1]


@pytest.mark.slow
def test_chains_that_die_leave_nan_behind(target):
    dying = SgldConfig(num_chains=3, num_draws=40, num_burnin=0, step_size=1e3, thin=10)
    functions = {"square": lambda params: params["w"] ** 2, "whole": lambda params: jnp.int32(7)}
    draws = sample(with_functions(target("w1^2 w2^2"), functions), dying)
    assert not draws.chain_alive.any()
    gone = np.isnan(draws.loss)
    assert gone[:, 2:].all()
    np.testing.assert_array_equal(np.isnan(draws.observed["square"].draws), np.repeat(gone[..., None], 2, axis=-1))
    np.testing.assert_array_equal(draws.observed["whole"].draws, np.where(gone, np.nan, 7))


@pytest.mark.slow
def test_a_restricted_run_watches_the_whole_model(watched):
    part = watched.restricted(["layers/0"])
    draws = sample(part, replace(RUNS["sgld"], step_size=1e-5), 3)
    np.testing.assert_allclose(draws.observed["everything"].draws, draws.loss, rtol=0, atol=1e-6 * np.max(draws.loss))


def test_rows_that_do_not_fit_are_refused_before_anything_is_compiled(watched, monkeypatch):
    monkeypatch.setattr(Chunks, "program", lambda *args: pytest.fail("it compiled"))
    cfg = replace(RUNS["sgld"], num_draws=50000)
    with pytest.raises(
        TooLarge, match=r"rows: 2 chains of 50,000 draws of 100 values are 38\.1 MiB a run.* 158 MiB"
    ) as e:
        sample(watched, cfg, chunks=Chunks(memory=2**27))
    assert "128 MiB that there are; lower its rows, num_draws or num_chains" in str(e.value)


DATA = {"x": np.arange(8.0)}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda params: params["v"], "observable it: it cannot be computed by JAX: KeyError: 'v'"),
        (lambda params: float(params["w"]), "observable it: it cannot be computed by JAX: .*[Cc]oncret"),
        (lambda params: (params["w"], 1), "observable it: it returned tuple, expected one array of real numbers"),
        (lambda params: params["w"] * 1j, "observable it: it returned an array of complex64, expected one array"),
        (lambda params: None, "observable it: it returned NoneType"),
    ],
)
def test_a_function_that_cannot_be_watched_is_refused(function, said):
    target = target_of(lambda params, batch: jnp.mean((batch["x"] * params["w"]) ** 2), {"w": np.zeros(())}, DATA, None)
    with pytest.raises(ConfigError, match=said):
        make_lane(with_functions(target, {"it": function}), SgldConfig(**SMALL, precision="float32"), 0)


@pytest.mark.parametrize(
    ("observables", "said"),
    [
        ([abs], "observables: got list, expected functions by name"),
        ({"a b": abs}, "observables: got the name 'a b', expected letters"),
        ({"loss": abs}, "observables: got the name 'loss', .* none of loss, llc"),
        ({"a": 3}, "observables: a: got 3, expected a function params -> array"),
    ],
)
def test_observables_are_functions_by_name(target, observables, said):
    with pytest.raises(ConfigError, match=said):
        with_functions(target("quadratic"), observables)
