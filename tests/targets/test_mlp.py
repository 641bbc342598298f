"""Students and teachers: architecture, data, and training that ends in a minimum."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import ACTIVATIONS, DataConfig, MlpBuild, ModelConfig, TrainingConfig, mlp_widths
from lambda_hat.errors import BuildFailed
from lambda_hat.targets import build_target
from lambda_hat.targets.mlp import ACTIVATIONS as FUNCTIONS
from lambda_hat.targets.mlp import DATA_STREAM, Architecture, draw_data, make_loss, student, teacher

SMALL = MlpBuild(
    model=ModelConfig(widths=[2]),
    data=DataConfig(n=200, input_dim=2),
    training=TrainingConfig(learning_rate=0.03, steps=1500, polish_steps=2000),
)


@pytest.fixture(scope="module")
def small():
    return build_target(SMALL)


def data_of(cfg, seed=0):
    with jax.enable_x64(True):
        key = jax.random.fold_in(jax.random.key(seed), DATA_STREAM)
        return {name: np.asarray(array) for name, array in draw_data(key, cfg.data, teacher(cfg)).items()}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_network_is_its_formula(activation, bias):
    arch = Architecture((3, 5, 4, 2), activation, bias)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = arch.init(jax.random.key(0))
        x = jax.random.normal(jax.random.key(1), (7, 3))
        outputs = jax.vmap(arch.module(params))(x)
        expected = x
        for layer in range(3):
            expected = expected @ params[f"layers/{layer}/weight"].T
            expected = expected + params[f"layers/{layer}/bias"][None] if bias else expected
            expected = FUNCTIONS[activation](expected) if layer < 2 else expected
    assert len(params) == (6 if bias else 3)
    np.testing.assert_allclose(outputs, expected, rtol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_loss_keeps_the_precision_of_its_arguments(precision):
    cfg = replace(SMALL, model=ModelConfig(widths=[3, 3], activation="gelu"))
    with jax.enable_x64(precision == "float64"), jax.numpy_dtype_promotion("strict"):
        params = {name: w.astype(precision) for name, w in student(cfg).init(jax.random.key(0)).items()}
        data = {"x": np.ones((5, 2), precision), "y": np.ones((5, 1), precision)}
        gradient = jax.jit(jax.grad(make_loss(cfg)))(params, data)
    assert {g.dtype.name for g in gradient.values()} == {precision}


@pytest.mark.parametrize("num_params", [1, 10, 100, 1000, 12345])
@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
def test_wanted_number_of_parameters(num_params, depth, bias):
    model = ModelConfig(depth=depth, num_params=num_params, bias=bias)

    def count(width):
        cfg = replace(SMALL, model=ModelConfig(widths=[width] * depth, bias=bias))
        return cfg.dim

    [width] = set(mlp_widths(model, 2, 1))
    distance = abs(count(width) - num_params)
    assert distance <= abs(count(width + 1) - num_params)
    assert width == 1 or distance <= abs(count(width - 1) - num_params)
    cfg = replace(SMALL, model=model)
    shapes = jax.eval_shape(student(cfg).init, jax.random.key(0))
    assert sum(s.size for s in shapes.values()) == cfg.dim == count(width)


def test_outputs_of_the_teacher_have_unit_variance():
    cfg = replace(SMALL, data=DataConfig(n=500, output_dim=3, noise="none"))
    np.testing.assert_allclose(np.std(data_of(cfg)["y"], axis=0), 1.0, rtol=1e-12)


def test_noise_is_added_to_the_same_teacher():
    clean = data_of(replace(SMALL, data=DataConfig(n=5000, input_dim=2, noise="none")))
    noisy = data_of(replace(SMALL, data=DataConfig(n=5000, input_dim=2, noise_std=0.2)))
    np.testing.assert_array_equal(clean["x"], noisy["x"])
    noise = noisy["y"] - clean["y"]
    assert np.std(noise) == pytest.approx(0.2, rel=4 / np.sqrt(2 * 5000))
    assert abs(np.corrcoef(noise[:, 0], clean["y"][:, 0])[0, 1]) < 4 / np.sqrt(5000)


def test_training_reaches_a_minimum(small):
    target, info = small
    assert info["polish_stopped_by"] == "gradient", info
    assert info["grad_max"] < 1e-6 and info["warnings"] == []
    assert info["train_loss"] <= info["adam_loss"]
    assert target.loss_at_w_star == pytest.approx(info["train_loss"], rel=1e-14)
    assert target.true_llc is None and target.true_multiplicity is None
    assert target.dim == SMALL.dim == 9 and target.num_data == target.n == 200
    # Student and teacher have one architecture, so what is left is the noise, less what 9 parameters fit of it. Its
    # mean square over 200 rows has a relative standard error of a tenth.
    clean = data_of(replace(SMALL, data=replace(SMALL.data, noise="none")))["y"]
    of_noise = np.mean((target.data["y"] - clean) ** 2) / 2
    assert of_noise == pytest.approx(0.01 / 2, rel=0.4)
    assert of_noise * (1 - 5 * 9 / 200) < target.loss_at_w_star < of_noise


def test_a_minimum_of_the_full_data_loss(small):
    target, _ = small
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        for _ in range(20):
            away = {name: w + 1e-3 * rng.normal(size=w.shape) for name, w in target.w_star.items()}
            assert float(target.loss(away, target.data)) > target.loss_at_w_star


def test_the_same_configuration_gives_the_same_bits(small):
    again, _ = build_target(SMALL)
    for name, w in small[0].w_star.items():
        np.testing.assert_array_equal(again.w_star[name], w)
    for name, array in small[0].data.items():
        np.testing.assert_array_equal(again.data[name], array)


def test_seeds_of_data_and_model_are_independent(small):
    base, _ = small
    quick = replace(SMALL.training, steps=50, polish_steps=0)
    fixed_data, _ = build_target(replace(SMALL, training=quick, seed=1, data=replace(SMALL.data, seed=0)))
    other_data, _ = build_target(replace(SMALL, training=quick, seed=0, data=replace(SMALL.data, seed=1)))
    np.testing.assert_array_equal(fixed_data.data["y"], base.data["y"])
    assert not np.array_equal(other_data.data["x"], base.data["x"])
    with jax.enable_x64(True):
        untrained = student(SMALL).init(jax.random.fold_in(jax.random.key(0), 1))
    assert not np.array_equal(fixed_data.w_star["layers/0/weight"], untrained["layers/0/weight"])


def test_minibatches_and_early_stopping():
    training = TrainingConfig(steps=3000, batch_size=32, patience=100, tolerance=0.5, polish_steps=0)
    target, info = build_target(replace(SMALL, training=training))
    assert info["adam_stopped_by"] == "patience" and info["adam_steps"] < 3000
    assert info["polish_steps"] == 0
    assert len(info["warnings"]) == 1 and "not a minimum" in info["warnings"][0]
    assert target.loss_at_w_star == pytest.approx(info["adam_loss"], rel=1e-12)


def test_training_that_diverges_fails_with_a_sentence():
    relu = replace(SMALL, model=ModelConfig(widths=[2, 2], activation="relu"))
    cfg = replace(relu, training=replace(SMALL.training, learning_rate=1e200))
    with pytest.raises(
        BuildFailed, match=r"not finite after 50 Adam steps; lower training\.learning_rate \(now 1e\+200\)"
    ):
        build_target(cfg)


def test_a_loss_without_bounds_fails_with_a_sentence():
    with pytest.raises(BuildFailed, match="not finite before training; check sigma"):
        build_target(replace(SMALL, data=replace(SMALL.data, noise_std=1e300)))


def test_a_dead_teacher_fails_with_a_sentence():
    cfg = replace(SMALL, data=DataConfig(n=3, input_dim=1, seed=10), teacher=ModelConfig(widths=[1], activation="relu"))
    with pytest.raises(BuildFailed, match=r"give another data\.seed"):
        build_target(cfg)


def test_activations_are_those_of_the_schema():
    assert set(FUNCTIONS) == set(ACTIVATIONS)
    assert jnp.tanh is FUNCTIONS["tanh"]
