"""What a loss must be, asked where it is given; and pairs (sum, weight), exact in slices and batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from lambda_hat import estimate_llc
from lambda_hat.config import HmcConfig, SgldConfig
from lambda_hat.engine.chunks import Chunks
from lambda_hat.engine.model import cast
from lambda_hat.errors import ConfigError
from lambda_hat.samplers import lane_key, make_lane, sample, sample_lanes
from lambda_hat.targets import loss_checks
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.custom_loss import MEAN_WEIGHT

RNG = np.random.default_rng(0)
N, D = 1000, 3
X = RNG.normal(size=(N, D))
MASK = (np.arange(N) < 500) | (RNG.random(N) < 0.05)
Y = X @ np.ones(D) + np.where(np.arange(N) < 500, 1.0, 5.0) * RNG.normal(size=N)
W = np.linalg.lstsq(X[MASK], Y[MASK], rcond=None)[0]
DATA = {"x": X, "y": Y, "m": MASK.astype(np.float32)}
"""Most labels are missing at the end, where they are noisier."""


@pytest.fixture(autouse=True)
def implicit_ranks():
    """A user's loss may broadcast."""
    with jax.numpy_rank_promotion("allow"):
        yield


def losses(w, b):
    return (b["x"] @ w - b["y"]) ** 2 / 2


def mean(w, b):
    return jnp.mean(losses(w, b))


def masked_mean(w, b):
    return jnp.sum(b["m"] * losses(w, b)) / jnp.sum(b["m"])


def pair(w, b):
    return jnp.sum(b["m"] * losses(w, b)), jnp.sum(b["m"])


def tokens(w, b):
    """Squared errors of the tokens of sequences of unequal lengths, per token."""
    per_token = (b["x"] @ w - b["y"]) ** 2 / 2
    there = jnp.arange(per_token.shape[1]) < b["length"][:, None]
    return jnp.sum(jnp.where(there, per_token, 0)), jnp.sum(there)


def exact(design: np.ndarray, n: int) -> float:
    """Of half the mean square of `design @ w`, at the default beta and gamma = 1."""
    h = n / np.log(n) * np.linalg.eigvalsh(design.T @ design / len(design))
    return float(np.sum(h / 2 / (h + 1)))


# --------------------------------------------------------------------------------------------------------------
# Pairs


@pytest.mark.parametrize("slice_rows", [250, 16384])
def test_a_masked_pair_is_exact_in_slices(slice_rows):
    found = estimate_llc(pair, W, DATA, sampler="hmc", num_draws=500, slice_rows=slice_rows)
    assert exact(X[MASK], N) == pytest.approx(1.489, abs=5e-4)
    assert found.verdict == "ok" and found.std_error < 0.06
    assert abs(found.llc - 1.489) < 3 * found.std_error
    assert found.loss_at_w_star == pytest.approx(np.mean((X[MASK] @ W - Y[MASK]) ** 2) / 2, rel=1e-12)


def test_a_batch_of_a_pair_is_unbiased():
    target = target_of(pair, W, DATA, None)
    assert target.data[MEAN_WEIGHT] == pytest.approx(MASK.mean()) and target.num_data == N
    with jax.enable_x64(True):
        here = {"params": jnp.asarray(W + 0.3)}

        def of_single_rows(p):
            batches = [
                {name: a[i : i + 1] if a.ndim else a for name, a in target.data.items()} for i in range(0, N, 10)
            ]
            return jnp.mean(jnp.stack([target.loss.of_batch(p, batch) for batch in batches]))

        few = {name: a[::10] if a.ndim else a for name, a in target.data.items()}
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-10),
            jax.value_and_grad(of_single_rows)(here),
            jax.value_and_grad(lambda p: target.loss.of_batch(p, few))(here),
        )
        whole = float(target.loss.full(here, target.data, 170))
        assert whole == pytest.approx(np.mean((X[MASK] @ (W + 0.3) - Y[MASK]) ** 2) / 2, rel=1e-12)
        assert float(target.loss.of_batch(here, target.data)) == pytest.approx(whole, rel=1e-12)
        # A batch without a label is worth 0, and has a gradient.
        unlabelled = {name: a[-3:] * 0 if a.ndim else a for name, a in target.data.items()}
        value, gradient = jax.value_and_grad(target.loss.of_batch)(here, unlabelled)
        assert value == 0 and np.all(gradient["params"] == 0)
        batch = target.loss.batch(jax.random.key(0), target.data, 7)
        assert batch["x"].shape == (7, D) and batch[MEAN_WEIGHT].shape == ()


@pytest.mark.slow
def test_batches_of_a_pair_are_sampled():
    quiet = DATA | {"y": X @ W}
    found = estimate_llc(pair, W, quiet, batch_size=100, num_draws=500, thin=20, loss_estimate="full")
    assert abs(found.llc - exact(X[MASK], N)) < 3 * found.std_error + 0.1


@pytest.mark.slow
def test_sequences_of_unequal_lengths():
    rng = np.random.default_rng(1)
    x, length = rng.normal(size=(200, 8, 2)) * np.linspace(0.2, 3, 200)[:, None, None], rng.integers(0, 9, size=200)
    there = np.arange(8) < length[:, None]
    y = np.where(there, x @ np.ones(2), np.nan)
    data = {"x": x, "y": y, "length": length}

    def mended(w, b):
        return tokens(w, b | {"y": jnp.where(jnp.isnan(b["y"]), 0, b["y"])})

    found = estimate_llc(mended, np.ones(2), data, sampler="hmc", num_draws=300, slice_rows=30)
    assert abs(found.llc - exact(x[there], 200)) < 3 * found.std_error + 0.01
    assert found.loss_at_w_star == 0
    with pytest.raises(ConfigError, match="gradient with respect to params is not finite"):
        target_of(tokens, np.ones(2), data, None)


def test_pairs_are_lanes_of_one_program():
    targets = [target_of(pair, W, DATA | {"m": m}, None) for m in (DATA["m"], np.ones(N, np.float32))]
    cfg = SgldConfig(num_chains=2, num_draws=20, num_burnin=10, step_size=1e-4, batch_size=50, loss_estimate="paired")
    lanes = [make_lane(target, cfg, i) for i, target in enumerate(targets)]
    assert lane_key(lanes[0]) == lane_key(lanes[1])
    for i, together in enumerate(sample_lanes(lanes, Chunks(lanes=2))):
        alone = sample(targets[i], cfg, i)
        np.testing.assert_allclose(together.loss, alone.loss, rtol=1e-6)
        assert together.weight_per_row == pytest.approx([MASK.mean(), 1.0][i])


def test_float32_is_kept():
    target = target_of(pair, W, DATA, None)
    here, data = (cast(arrays, "float32") for arrays in (target.w_star, target.data))
    for slice_rows in (300, N):
        value, gradient = jax.value_and_grad(target.loss.full)(here, data, slice_rows)
        assert value.dtype == gradient["params"].dtype == jnp.float32
        assert float(value) == pytest.approx(target.loss_at_w_star, rel=1e-6)


def test_the_singular_fluctuation_is_over_labelled_rows():
    """`n_beta / m / 2 sum_i (r_i^2 v_i + v_i^2 / 2)` over the m labelled rows, in closed form."""
    n_beta = N / np.log(N)
    x, r = X[MASK], (Y - X @ W)[MASK]
    v = np.einsum("ni,ij,nj->n", x, np.linalg.inv(n_beta * x.T @ x / len(x) + np.eye(D)), x)
    beta, variance = n_beta / len(x), np.sum(r**2 * v + v**2 / 2)
    found = estimate_llc(pair, W, DATA, sampler="hmc", num_draws=500, singular_fluctuation=True)
    assert found.singular_fluctuation == pytest.approx(beta * variance / 2, rel=0.15)
    predictive = np.mean(0.5 * np.log(1 + v) + r**2 / (2 * (1 + v)))
    assert found.waic == pytest.approx(predictive + beta * variance / len(x), abs=3e-3)


# --------------------------------------------------------------------------------------------------------------
# What is refused


def batch_norm(w, b):
    x = (b["x"] - b["x"].mean(0)) / (b["x"].std(0) + 1e-3)
    return jnp.mean((x @ w - b["y"]) ** 2)


def noisy(w, b, key):
    noise = 1 + 0.3 * jax.random.normal(key, b["y"].shape)
    return losses(w, b) * noise


PAIR = r"\(jnp.sum\(mask \* losses\), jnp.sum\(mask\)\)"
REFUSED = {
    "sum": (lambda w, b: jnp.sum(losses(w, b)), "a sum over the batch, twice as large for twice .* write jnp.mean"),
    "sum over all rows' number": (lambda w, b: jnp.sum(losses(w, b)) / N, "it is a sum over the batch"),
    "rarely masked mean": (
        lambda w, b: jnp.sum(jnp.where(b["y"] < 12, losses(w, b), 0)) / jnp.sum(b["y"] < 12),
        "its mean over slices",
    ),
    "masked mean": (masked_mean, rf"its mean over slices of the rows is .*, and its value .* return the pair .*{PAIR}"),
    "batch statistics": (batch_norm, "it is no mean over rows; .*statistics of the batch"),
    "noisy sum": (lambda w, b, key: jnp.sum(noisy(w, b, key)), "it is a sum over the batch"),
    "noisy masked mean": (
        lambda w, b, key: jnp.sum(b["m"] * noisy(w, b, key)) / jnp.sum(b["m"]),
        "its mean over slices of the rows is",
    ),
    "aux dict": (
        lambda w, b: (mean(w, b), {"acc": 1.0}),
        r"a tuple of 2, the second a dict, .* return the loss alone, lambda params, batch: loss\(params, batch\)\[0\]",
    ),
    "aux scalar": (lambda w, b: (mean(w, b), mean(w, b)), r"of \(loss, aux\) return the loss alone"),
    "mean and weight": (lambda w, b: (masked_mean(w, b), pair(w, b)[1]), f"is no sum over rows, .* return {PAIR}"),
    "sum and mean weight": (
        lambda w, b: (pair(w, b)[0], jnp.mean(b["m"])),
        f"the weight .* is a sum over rows too, {PAIR}",
    ),
    "weight of parameters": (
        lambda w, b: (pair(w, b)[0], jnp.sum(b["m"]) * jnp.sum(w**2)),
        "the weight of its pair .* depends on the parameters",
    ),
    "negative weight": (lambda w, b: (pair(w, b)[0], -pair(w, b)[1]), "is -.*, expected at least 0"),
    "no weight": (lambda w, b: (pair(w, b)[0], 0 * pair(w, b)[1]), "add up to 0, expected more than 0"),
    "vector": (losses, r"an array of shape \(256,\) and type float64, expected one real number, .* jnp.mean"),
    "shape (1,)": (lambda w, b: mean(w, b)[None], r"an array of shape \(1,\)"),
    "dict": (lambda w, b: {"acc": 1, "loss": mean(w, b)}, r"a dict of acc, loss, .* loss\(params, batch\)\['loss'\]"),
    "None": (lambda w, b: None, "it returned None, .* end it with return jnp.mean"),
    "string": (lambda w, b: "loss", "it returned a str, expected one real number"),
    "numpy": (lambda w, b: np.mean(losses(np.asarray(w), b)), "write jax.numpy in place of numpy"),
    "float()": (lambda w, b: float(mean(w, b)), r"float\(\), int\(\), .item\(\) or if; return the array itself"),
    "if": (lambda w, b: mean(w, b) if mean(w, b) > 0 else 0.0, r"write jnp.where\(condition, a, b\) in place of if"),
    "three arguments": (
        lambda p, x, y, m: jnp.mean((x @ p - y) ** 2),
        r"takes \(p, x, y, m\) .* called with \(params, batch\); write lambda params, batch: loss\(params, \*batch\)",
    ),
    "arguments by name": (lambda p, m, x, y: mean(p, {"x": x, "y": y}), r"write .* loss\(params, \*\*batch\)"),
    "key first": (lambda key, p, b: mean(p, b), r"takes \(key, p, b\) .* write def loss\(params, batch, key\)"),
    "own mistake": (lambda w, b: mean(w, b["X"]), r"it raised KeyError: 'X'; .* batch = \{'m': \*, 'x': \*, 'y': \*\}"),
}  # fmt: skip


@pytest.mark.parametrize(("loss", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_loss_is_refused_in_a_sentence(loss, message):
    with pytest.raises(ConfigError, match=message) as caught:
        target_of(loss, W, DATA, None)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 420


def test_without_data_there_is_no_pair():
    with pytest.raises(ConfigError, match="a pair of numbers with data=None"):
        target_of(lambda w, _: (jnp.sum(w**2), 3), W, None, 100)


def test_what_is_a_mean_passes():
    """Rounding, noise, regularisation, constants and integers are no reason to refuse."""

    def in_float32(w, b):
        logits = (b["x"].astype(jnp.float32) @ w.astype(jnp.float32)) * 100
        return jnp.mean(jax.nn.softplus(logits)) - 40

    def flat(w, b):
        return jnp.mean((b["x"] @ w) ** 4)

    passing = [
        in_float32,
        flat,
        lambda w, b: mean(w, b) + jnp.sum(w**2),
        lambda w, b, key: jnp.mean(noisy(w, b, key)),
        lambda w, b, key: mean(w + 0.1 * jax.random.normal(key, w.shape), b),
        lambda w, b: (jnp.sum(jnp.where(b["y"] > 0, losses(w, b), 0)), jnp.sum(b["y"] > 0)),
        lambda w, b: -jnp.mean(jax.nn.log_sigmoid(jnp.squeeze(b["x"] @ w[:, None]))),
    ]
    for loss in passing:
        target_of(loss, W, DATA, None)
    target_of(flat, np.zeros(D), DATA, None)
    target_of(mean, W, {name: a[:3] for name, a in DATA.items()}, None)


@pytest.mark.parametrize("row", [0, 999])
def test_a_gradient_that_is_nan_in_any_row_is_refused_with_its_path(row):
    y = X @ np.ones(D)
    y[row] = np.nan

    def trap(p, b):
        error = (b[0] @ p["layer"]["w"] + p["b"] - b[1]) ** 2
        return jnp.mean(jnp.where(jnp.isnan(b[1]), 0.0, error)) / 2

    with pytest.raises(
        ConfigError, match=r"with respect to (b|layer/w) is not finite .* jnp.where differentiates both"
    ):
        target_of(trap, {"layer": {"w": np.ones(D)}, "b": np.zeros(())}, (X, y), None)
    with pytest.raises(ConfigError, match="with respect to params is not finite"):
        target_of(lambda w, b: mean(w, b) + jnp.linalg.norm(w - 1), np.ones(D), DATA, None)


def test_the_same_arrays_are_not_asked_again(monkeypatch):
    programs = []
    call = loss_checks.call
    monkeypatch.setattr(loss_checks, "call", lambda *args: programs.append(args[0]) or call(*args))
    one = target_of(mean, W + 1, DATA, None)
    assert len(programs) == 2
    assert target_of(mean, W + 1, DATA, None).loss_at_w_star == one.loss_at_w_star and len(programs) == 2
    target_of(mean, W + 2, DATA, None)
    assert len(programs) == 4


# --------------------------------------------------------------------------------------------------------------
# Parameters and data

FRAME = pd.DataFrame({"x": X[:, 0], "y": Y})
BATCHES = [(X[:100], Y[:100]), (X[100:], Y[100:])]
CONTAINERS = {
    "frame": (FRAME, r"data is a DataFrame; .* \{name: frame\[name\].to_numpy\(\) for name in frame.columns\}"),
    "text": ({"label": np.array(["a"] * N)}, r"label is text, .* np.unique\(column, return_inverse=True\)\[1\]"),
    "text column": (dict(FRAME.assign(z="a")), "z is text"),
    "times": ({"t": np.arange(N).astype("datetime64[s]")}, r"t is of type datetime64\[s\], .* array of numbers"),
    "objects": ({"o": np.array([None] * N)}, "o is of type object"),
    "generator": ((batch for batch in BATCHES), "data is a generator, .* gather its batches first, data = "),
    "loader": (set("ab"), "data is a set, .* gather its batches first"),
    "batches": (BATCHES, r"disagree in length: 0/0 has 100, .* of a list of batches write data = jax.tree.map"),
    "lists": ((X.tolist(), Y.tolist()), r"0/0/0 is 0.12.*, expected an array .* write np.asarray\(...\) around a list"),
    "constant": ({"x": X, "sigma": 1.0}, "sigma is 1.0, expected an array .* a constant into the loss"),
    "masked array": ({"y": np.ma.masked_less(Y, 0)}, "y is a masked array; give its mask as an array"),
    "empty": ({"x": X[:0]}, "its arrays are empty"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "message"), CONTAINERS.values(), ids=CONTAINERS)
def test_data_that_are_no_arrays_are_refused_with_the_line_to_write(data, message):
    with pytest.raises(ConfigError, match=f"data: .*{message}|data: {message}") as caught:
        target_of(mean, W, data, 100)
    assert "\n" not in str(caught.value)


def test_series_booleans_and_integers_are_data():
    target = target_of(lambda w, b: jnp.mean((b["x"] * w - b["y"]) ** 2), np.ones(1), dict(FRAME), None)
    assert isinstance(target.data["x"], np.ndarray) and target.n == N
    target = target_of(mean, W, DATA | {"x": X > 0, "m": np.arange(N, dtype=np.uint8)}, None)
    assert target.data["x"].dtype == bool and target.data["m"].dtype == np.uint8


def test_integer_tables_among_the_parameters_take_traced_indices():
    params = {"w": W, "table": np.arange(10)[::-1].copy()}
    data = {"token": RNG.integers(0, 10, N), "x": X}
    target_of(lambda p, b: jnp.mean((b["x"] @ p["w"] - p["table"][b["token"]]) ** 2), params, data, None)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"w": 1.0}, r"no floating-point array in it: w is the Python number 1.0, .* write jnp.asarray\(1.0\)"),
        ([1, 2], r"0 is the Python number 1, which stays as it is, write jnp.asarray\(1.0\)"),
        ({"w": np.ones(3, int)}, r"w is of type int64, which stays as it is, write w.astype\(float\)"),
        ({"w": "abc"}, "w is a str"),
        ({}, "there is no floating-point array in it; nothing"),
    ],
)
def test_parameters_without_arrays_say_what_there_is(params, message):
    with pytest.raises(ConfigError, match=message):
        target_of(mean, params, DATA, None)


def test_notes_on_what_moves():
    statistics = {"params": {"w": W}, "batch_stats": {"mean": np.zeros(D)}}

    def loss(v, b):
        return jnp.mean(((b["x"] - v["batch_stats"]["mean"]) @ v["params"]["w"] - b["y"]) ** 2)

    target = target_of(loss, statistics, DATA, None)
    assert target.held_notes == (
        "batch_stats/mean stay as given: batch_stats, no parameters; dim does not count their 3 numbers",
    )
    assert (target.dim, list(target.held)) == (3, ["batch_stats/mean"])
    assert target.restricted(["params/*"]) is target
    with pytest.raises(ConfigError, match="params: all that there is in it are batch_stats; give the parameters too"):
        target_of(lambda v, b: 0.0, {"batch_stats": statistics["batch_stats"]}, DATA, None)
    draws = sample(target, HmcConfig(num_draws=10, num_burnin=20))
    assert draws.notes == target.held_notes == target.restricted(["params/w[0:1]"]).held_notes

    shared = np.zeros(1)
    tree = {"embed": shared, "head": shared, "scale": 2.0}
    notes = target_of(lambda p, b: jnp.mean((b["x"][:, 0] * p["embed"] * p["head"]) ** 2), tree, DATA, None).notes
    assert notes[0].startswith("embed and head are one array in params and move independently: for tied weights give")
    assert notes[1] == "scale: a Python float stays as it is, write jnp.asarray(...) for a parameter"
    assert target_of(mean, W, DATA, None).notes == ()
    half = jnp.asarray(W, jnp.bfloat16)
    assert target_of(mean, half, DATA, None).notes == (
        "params of type bfloat16 are sampled, and given to the loss, in the precision of the run",
    )


@pytest.mark.parametrize("loss", [mean, pair])
def test_a_large_network_is_checked_on_few_rows_at_a_time(monkeypatch, loss):
    whole = target_of(lambda w, b: loss(w, b), W, DATA, None)
    seen = set()

    def watched(w, b):
        seen.add(len(b["x"]))
        return loss(w, b)

    monkeypatch.setattr(loss_checks, "LARGE", 2)
    monkeypatch.setattr(loss_checks, "MOST_KEPT", 4000)
    sliced = target_of(watched, W, DATA, None)
    assert 8 <= max(seen) < 256
    assert sliced.loss_at_w_star == pytest.approx(whole.loss_at_w_star, rel=1e-12)
    assert sliced.data.get(MEAN_WEIGHT) == whole.data.get(MEAN_WEIGHT)


def test_slices_of_a_batch_of_pairs_add_up():
    cfg = SgldConfig(num_chains=2, num_draws=8, num_burnin=0, step_size=1e-3, batch_size=30, thin=2)
    target = target_of(pair, W, DATA, None)
    one, other = (sample(target, cfg, 3) for cfg in (cfg, dataclasses.replace(cfg, accumulate=5)))
    np.testing.assert_allclose(other.growth, one.growth, rtol=1e-3, atol=1e-3 * np.max(np.abs(one.growth)))
