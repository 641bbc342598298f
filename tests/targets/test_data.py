"""Moments of every input law and every noise, within four standard errors."""

import jax
import numpy as np
import pytest

from lambda_hat.config import INPUT_LAWS, NOISES, DataConfig
from lambda_hat.targets.data import draw_inputs, draw_noise

N, DIM = 40_000, 3


def inputs(**settings):
    with jax.enable_x64(True):
        return np.asarray(draw_inputs(jax.random.key(0), DataConfig(n=N, input_dim=DIM, **settings)))


def noise(kind, **settings):
    cfg = DataConfig(n=N, input_dim=DIM, output_dim=2, noise=kind, noise_std=0.3, **settings)

    @jax.jit
    def draw(key_inputs, key_noise):
        x = draw_inputs(key_inputs, cfg)
        return x, draw_noise(key_noise, cfg, x)

    with jax.enable_x64(True):
        x, values = draw(jax.random.key(0), jax.random.key(1))
    return np.asarray(x), np.asarray(values)


def assert_mean(samples, expected):
    """The mean over rows is the expected one, by its own standard error."""
    error = np.std(samples, axis=0) / np.sqrt(len(samples))
    assert np.all(np.abs(np.mean(samples, axis=0) - expected) < 4 * error)


def test_isotropic():
    x = inputs(input_law="isotropic")
    assert x.dtype == np.float64 and x.shape == (N, DIM)
    assert_mean(x, 0.0)
    for i in range(DIM):
        assert_mean(x * x[:, [i]], np.eye(DIM)[i])


def test_anisotropic():
    x = inputs(input_law="anisotropic", anisotropy=100.0)
    variances = np.array([100.0, 10.0, 1.0]) / 37.0
    assert_mean(x, 0.0)
    for i in range(DIM):
        assert_mean(x * x[:, [i]], np.diag(variances)[i])


def test_anisotropic_in_one_dimension_is_isotropic():
    with jax.enable_x64(True):
        cfg = DataConfig(n=N, input_dim=1, input_law="anisotropic")
        assert_mean(np.asarray(draw_inputs(jax.random.key(0), cfg)) ** 2, 1.0)


def test_mixture():
    x = inputs(input_law="mixture", num_components=3, separation=100.0)
    # The clusters are far apart: sorted by nearest centre they show unit spread inside and equal weights.
    centres = x[:1]
    for _ in range(2):
        distance = np.min(np.linalg.norm(x[:, None] - centres, axis=2), axis=1)
        centres = np.vstack([centres, x[np.argmax(distance)]])
    label = np.argmin(np.linalg.norm(x[:, None] - centres, axis=2), axis=1)
    for j in range(3):
        assert_mean((label == j).astype(float), 1 / 3)
        assert_mean((x[label == j] - x[label == j].mean(axis=0)) ** 2, 1.0)


def test_mixture_centres_have_the_stated_spread():
    with jax.enable_x64(True):
        cfg = DataConfig(n=8000, input_dim=64, input_law="mixture", num_components=500, separation=3.0)
        x = np.asarray(draw_inputs(jax.random.key(2), cfg))
    # 500 x 64 centre coordinates of variance 9: their mean square has a standard error of 9 sqrt(2 / 32000).
    assert np.mean(x**2) == pytest.approx(10.0, abs=4 * 9 * np.sqrt(2 / 32_000))


def test_no_noise():
    assert not np.any(noise("none")[1])


@pytest.mark.parametrize(
    ("kind", "settings", "variance"),
    [
        ("gaussian", {}, 0.09),
        ("heteroscedastic", {}, 0.09),
        ("student_t", {"noise_df": 8.0}, 0.09 * 8 / 6),
        ("outliers", {"outlier_fraction": 0.1, "outlier_scale": 5.0}, 0.09 * (0.9 + 0.1 * 25)),
    ],
)
def test_noise_variance(kind, settings, variance):
    _, e = noise(kind, **settings)
    assert e.shape == (N, 2)
    assert_mean(e, 0.0)
    assert_mean(e**2, variance)
    assert_mean(e[:, 0] * e[:, 1], 0.0)


def test_heteroscedastic_noise_grows_with_the_input():
    x, e = noise("heteroscedastic")
    norm2 = np.sum(x**2, axis=1)
    for part in (norm2 < np.median(norm2), norm2 >= np.median(norm2)):
        assert_mean(e[part] ** 2 / (0.045 * (1 + norm2[part] / norm2.mean()))[:, None], 1.0)


def test_outliers_are_rows():
    _, e = noise("outliers", outlier_fraction=0.2, outlier_scale=1e4)
    far = np.abs(e) > 3.0
    # An outlier lands within 3 of 0 with probability 8e-4 per entry.
    assert np.mean(far[:, 0] != far[:, 1]) < 1e-3
    assert_mean(far[:, 0].astype(float), 0.2 * (1 - 8e-4))


def test_every_law_and_noise_is_covered():
    assert set(INPUT_LAWS) == {"isotropic", "anisotropic", "mixture"}
    assert set(NOISES) == {"none", "gaussian", "heteroscedastic", "student_t", "outliers"}
