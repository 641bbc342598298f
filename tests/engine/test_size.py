"""`chains_at_once`, `accumulate` and `compute_dtype` change how the numbers of a run are computed."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat import estimate_llc
from lambda_hat.config import SAMPLE_SCHEMAS, DlnBuild, DlnTarget, MlpBuild, SgldConfig
from lambda_hat.engine import chunks as chunks_module
from lambda_hat.engine.chunks import Chunks
from lambda_hat.engine.run import Programs
from lambda_hat.engine.windows import NO_WINDOW
from lambda_hat.errors import ConfigError, Paused
from lambda_hat.id_utils import Run
from lambda_hat.programs.compiling import compiled
from lambda_hat.samplers import make_lane, sample, sample_lanes, sampler_of
from lambda_hat.targets import build_target
from lambda_hat.targets.custom import target_of
from tests.engine.runs import runs_of_every_kind
from tests.engine.test_chunks import Stopping
from tests.engine.test_lanes import assert_like

SMALL = {"num_chains": 4, "num_draws": 20, "num_burnin": 45, "thin": 3}
RUNS = {
    # Directions of equal curvature are arbitrary, and rounding would choose other ones. Rounding grows with every step
    # that learns a step size.
    name: replace(cfg, metric="diagonal", num_burnin=max(cfg.min_burnin, 20)) if hasattr(cfg, "metric") else cfg
    for name, cfg in runs_of_every_kind(**SMALL).items()
}
BATCHED = {"num_chains": 2, "num_draws": 20, "num_burnin": 20, "thin": 3, "batch_size": 12}


@pytest.mark.parametrize(("name", "at_once"), [("sgld, learning", 2), ("hmc", 1)])
def test_chains_one_after_another_are_the_chains_side_by_side(target, name, at_once):
    cfg = RUNS[name]
    assert_like(
        sample(target("quadratic"), replace(cfg, chains_at_once=at_once), 3), sample(target("quadratic"), cfg, 3)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RUNS if name != "hmc"])
def test_chains_of_every_sampler_may_go_one_after_another(target, name):
    cfg = RUNS[name]
    assert_like(sample(target("quadratic"), replace(cfg, chains_at_once=1), 3), sample(target("quadratic"), cfg, 3))


@pytest.fixture(scope="module")
def network():
    return build_target(MlpBuild())[0]


@pytest.fixture(scope="module")
def linear():
    return build_target(DlnBuild(target=DlnTarget(data="empirical")))[0]


@pytest.mark.parametrize(("kind", "gradient"), [("network", "control_variate"), ("linear", "plain")])
def test_slices_of_a_batch_give_the_gradient_of_the_batch(request, kind, gradient):
    """Same rows, same noise: equal up to rounding."""
    found = request.getfixturevalue(kind)
    cfg = SgldConfig(**BATCHED, step_size=1e-6, gradient=gradient, loss_estimate="paired")
    whole = sample(found, cfg, 3)
    assert_like(sample(found, replace(cfg, accumulate=3), 3), whole)


@pytest.mark.slow
def test_slices_serve_adaptation_too(network):
    cfg = SgldConfig(**BATCHED, singular_fluctuation=True, precision="float64")
    assert_like(sample(network, replace(cfg, accumulate=4, chains_at_once=1), 3), sample(network, cfg, 3))


@pytest.mark.slow
def test_every_slice_of_a_random_loss_has_its_own_randomness():
    seen = []

    def loss(w, batch, key):
        seen.append(batch["x"].shape)
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2 + 0.01 * jnp.mean(jax.random.normal(key) * w)

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2))
    data = {"x": x, "y": x @ np.ones(2) + rng.normal(size=300)}
    common = {"batch_size": 30, "num_chains": 4, "num_draws": 400, "n_beta": 50.0, "step_size": 2e-3, "num_burnin": 200}
    found = estimate_llc(loss, np.ones(2), data, accumulate=3, **common)
    assert (10, 2) in seen
    whole = estimate_llc(loss, np.ones(2), data, **common)
    assert abs(found.llc - whole.llc) < 4 * np.hypot(found.std_error, whole.std_error)


def test_the_memory_is_that_of_what_is_computed_at_a_time():
    """Of a program whose activations are most of its memory."""
    rng = np.random.default_rng(0)
    w = {"in": rng.normal(size=(2, 300)), "out": rng.normal(size=300) / 300}
    data = {"x": rng.normal(size=(600, 2)), "y": rng.normal(size=600)}
    wide = target_of(lambda w, b: jnp.mean((jnp.tanh(b["x"] @ w["in"]) @ w["out"] - b["y"]) ** 2), w, data, None)

    def planned(**keys):
        keys |= {"batch_size": 512, "slice_rows": 64}
        cfg = SgldConfig(num_chains=4, num_draws=8, num_burnin=20, step_size=1e-6, thin=1, **keys)
        programs = Programs(sampler_of(cfg), [make_lane(wide, cfg, 0)], Chunks())
        carry = programs.result_of("begin")
        static, make = programs._identity("advance")
        return compiled(static, make, (programs.numbers, carry, NO_WINDOW, np.uint32(9)), False, (1,)).memory

    whole, one, sliced = (planned(**keys) for keys in ({}, {"chains_at_once": 1}, {"accumulate": 8}))
    assert one < whole / 2
    assert sliced < whole / 2


def test_a_run_of_bfloat16_gradients_records_losses_in_its_precision(network):
    """Every recorded loss is that of a float32 parameter vector in float32: the same number as the full loss there."""
    cfg = SgldConfig(**BATCHED, step_size=1e-6, loss_estimate="full")
    lane = make_lane(network, replace(cfg, compute_dtype="bfloat16"), 3)
    assert lane.cfg.precision == "float32"
    text = {}
    for name in ("begin", "advance"):
        programs = Programs(sampler_of(lane.cfg), [lane], Chunks())
        args = () if name == "begin" else (programs.result_of("begin"), NO_WINDOW, np.uint32(9))
        text[name] = str(jax.make_jaxpr(programs._identity(name)[1]())(programs.numbers, *args))
    assert "bf16" not in text["begin"] and "bf16" in text["advance"]
    rough, exact = sample(network, lane.cfg, 3), sample(network, cfg, 3)
    assert rough.loss.dtype == np.float64
    assert not np.array_equal(rough.loss, exact.loss)
    assert any("bfloat16" in note and "recorded losses in float32" in note for note in rough.notes)


@pytest.mark.slow
def test_paired_losses_beside_bfloat16_gradients_take_a_batch_more(network):
    cfg = SgldConfig(**BATCHED, step_size=1e-6, loss_estimate="paired", compute_dtype="bfloat16")
    rough, exact = sample(network, cfg, 3), sample(network, replace(cfg, compute_dtype=None), 3)
    assert rough.fge > exact.fge
    full = sample(network, replace(cfg, loss_estimate="full"), 3)
    # The same chain: its losses, estimated and in full, differ by the noise of a batch with control variates.
    error = np.std(rough.loss - full.loss) / np.sqrt(rough.loss.size)
    assert 0 < abs(np.mean(rough.loss - full.loss)) < 5 * error


@pytest.mark.slow
def test_the_estimate_of_bfloat16_gradients_is_right_within_errors():
    """Of noisy linear regression, whose posterior is Gaussian: lambda_t = tr(H (H + gamma/n_beta)^-1) / 2."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 8))
    y = x @ rng.normal(size=8) + rng.normal(size=2000)
    w_star = np.linalg.lstsq(x, y, rcond=None)[0]
    n_beta, gamma = 100.0, 10.0

    def loss(w, batch):
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2) / 2

    h = np.linalg.eigvalsh(x.T @ x / 2000)
    exact = np.sum(h / (h + gamma / n_beta)) / 2
    found = estimate_llc(
        loss,
        w_star,
        {"x": x, "y": y},
        compute_dtype="bfloat16",
        n_beta=n_beta,
        gamma=gamma,
        batch_size=64,
        num_draws=4000,
    )
    assert abs(found.llc - exact) < 4 * found.std_error + 0.02 * exact
    assert abs(found.temperature - 1) < 4 * found.temperature_std_error + 0.05


@pytest.mark.slow
def test_a_run_of_one_chain_at_a_time_in_pieces_is_the_run_in_one_piece(network, tmp_path, monkeypatch):
    cfg = SgldConfig(**BATCHED, chains_at_once=1, accumulate=3, compute_dtype="bfloat16")
    whole = sample(network, cfg, 3)
    monkeypatch.setattr(chunks_module, "CHUNK_SECONDS", 1e9)
    monkeypatch.setattr(chunks_module, "MOST_GROWTH", 7)
    pauses = 0
    while True:
        kept = Chunks(tmp_path / "checkpoint.npz", drain=Stopping(3))
        kept.load()
        try:
            found = sample(network, cfg, 3, kept)
            break
        except Paused:
            pauses += 1
    assert pauses > 3
    np.testing.assert_array_equal(found.loss, whole.loss)


@pytest.mark.slow
def test_lanes_of_one_chain_at_a_time_are_the_runs_by_themselves(network):
    cfgs = [SgldConfig(**BATCHED, step_size=1e-6, chains_at_once=1, accumulate=2, seed=seed) for seed in range(3)]
    together = sample_lanes([make_lane(network, cfg, 5) for cfg in cfgs], Chunks(lanes=3))
    for cfg, lane in zip(cfgs, together, strict=True):
        assert_like(lane, sample(network, cfg, 5))


BAD = [
    ({"chains_at_once": 0}, "chains_at_once: got 0, expected a divisor of num_chains, which is 4"),
    ({"chains_at_once": 5}, "chains_at_once: got 5, expected a divisor of num_chains, which is 4"),
    ({"chains_at_once": 3}, "chains_at_once: got 3, expected a divisor of num_chains, which is 4"),
    ({"accumulate": 0}, "accumulate: got 0, expected a divisor of batch_size, which is 32"),
    ({"accumulate": 5}, "accumulate: got 5, expected a divisor of batch_size, which is 32"),
    (
        {"accumulate": 2, "batch_size": None},
        "accumulate: got 2, but batch_size is null; write a batch_size, or slice_rows",
    ),
    ({"compute_dtype": "bfloat16", "batch_size": None}, "compute_dtype: got bfloat16, but batch_size is null"),
    ({"compute_dtype": "float16"}, "compute_dtype: unknown 'float16'"),
]


@pytest.mark.parametrize(("keys", "message"), BAD, ids=str)
def test_bad_values_are_refused_in_a_sentence(keys, message):
    with pytest.raises(ConfigError) as refused:
        SgldConfig(**keys)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize("key", ["accumulate", "compute_dtype"])
def test_samplers_on_the_full_data_have_no_batches_to_slice(key):
    with pytest.raises(ConfigError, match=f"{key}: no option of hmc"):
        estimate_llc(lambda w, batch: jnp.mean(w**2), np.ones(2), {"x": np.ones(9)}, sampler="hmc", **{key: 2})


IDS = {
    "sgld": "run_sgld_5b8395ce", "sghmc": "run_sghmc_5a4249f7", "sgnht": "run_sgnht_4ef82c2c",
    "mala": "run_mala_1e5b04d8", "hmc": "run_hmc_ab83e07e", "nuts": "run_nuts_b199be8f",
    "mclmc": "run_mclmc_ed1eaee6", "adjusted_mclmc": "run_adjusted_mclmc_c5d8223e",
}  # fmt: skip
"""Of the defaults on tgt_0123456789ab, before there were these keys."""


@pytest.mark.parametrize("name", IDS)
def test_runs_without_these_keys_keep_their_ids(name):
    assert Run.of(SAMPLE_SCHEMAS[name](target_id="tgt_0123456789ab")).run_id == IDS[name]


def test_how_a_run_is_computed_is_in_its_id_and_not_in_its_random_numbers():
    base = Run.of(SgldConfig(target_id="tgt_1"))
    for keys in ({"chains_at_once": 1}, {"accumulate": 4}, {"compute_dtype": "bfloat16"}):
        other = Run.of(replace(base.cfg, **keys))
        assert other.run_id != base.run_id and other.digest != base.digest
        assert other.identity == base.identity
