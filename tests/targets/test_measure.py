"""What a gradient of a custom loss takes, measured when its target is built."""

from __future__ import annotations

import itertools
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import CustomBuild, CustomTarget, SgldConfig
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import estimate
from lambda_hat.planning.cost import CostModel, measured_shape
from lambda_hat.targets import load_target
from lambda_hat.targets.custom import target_of
from lambda_hat.targets.measure import measure

RNG = np.random.default_rng(0)


def network(params, batch):
    x, y = batch
    for weight in params[:-1]:
        x = jnp.tanh(x @ weight)
    return jnp.mean((x @ params[-1] - y) ** 2)


def repeated(params, batch):
    """A loss that costs much more than its parameters tell."""
    x, y = batch

    def layer(x, _):
        return jnp.tanh(x @ params[0]), None

    return jnp.mean((jax.lax.scan(layer, x, length=100)[0] - y) ** 2)


def squares(w, _):
    return jnp.sum(w**2)


def noisy_squares(w, _, key):
    return jnp.sum((w + jax.random.normal(key)) ** 2)


def target_with(loss, widths, n):
    weights = [RNG.normal(size=shape) / np.sqrt(shape[0]) for shape in itertools.pairwise(widths)]
    return target_of(loss, weights, (RNG.normal(size=(n, widths[0])), RNG.normal(size=(n, widths[-1]))), None)


def test_it_follows_the_work_and_not_the_number_of_parameters():
    once = measure(target_with(network, [24, 24], 500))
    often = measure(target_with(repeated, [24, 24], 500))
    assert once.keys() == {"gradient", "loss"}
    assert 0 < once["gradient"] < 1e-5
    assert often["gradient"] > 10 * once["gradient"]
    assert 0.05 < often["loss"] <= 1


@pytest.mark.parametrize("loss", [squares, noisy_squares])
def test_losses_without_data_and_with_randomness(loss):
    target = target_of(loss, np.ones(3), None, 100)
    assert 0 < measure(target)["gradient"] < 1e-3


def test_few_rows_and_integers():
    def loss(w, batch):
        return jnp.mean((w[batch["i"]] - batch["y"]) ** 2)

    target = target_of(loss, np.ones(3), {"i": np.array([0, 1, 2]), "y": np.ones(3)}, None)
    with jax.enable_x64(True):
        assert 0 < measure(target)["gradient"] < 1e-3
        assert jax.config.jax_enable_x64


@pytest.mark.slow
def test_it_predicts_what_a_run_takes(monkeypatch):
    target = target_with(repeated, [24, 24], 300)
    cfg = SgldConfig(num_chains=2, num_draws=60, num_burnin=60, step_size=1e-9, batch_size=128)
    expected = CostModel().seconds(measured_shape(target.dim, 300, measure(target)), cfg)
    # Of cores, which other work on the machine hardly changes.
    monkeypatch.setattr("lambda_hat.engine.chunks.time.perf_counter", time.process_time)
    draws = estimate(target, cfg).draws
    assert expected / 3 < draws.seconds_sample < 3 * expected


def test_a_built_target_says_it_and_keeps_its_name(tmp_path, monkeypatch):
    (tmp_path / "measured_zoo.py").write_text(
        "import numpy as np, jax.numpy as jnp\n"
        "def make():\n    return (lambda w, b: jnp.mean((b @ w) ** 2)), np.zeros(2), np.ones((50, 2))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    cfg = CustomBuild(target=CustomTarget(factory="measured_zoo:make"))
    build_into(tmp_path / "one", cfg)
    build_into(tmp_path / "two", cfg)
    one, two = (json.loads((tmp_path / name / "meta.json").read_text()) for name in ("one", "two"))
    assert one["measured"].keys() == {"gradient", "loss"} and "measured" not in one["build"]
    assert one["config"] == two["config"] and one["files"] == two["files"]
    assert load_target(tmp_path / "one")[0].dim == 2
