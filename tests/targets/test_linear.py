"""Deep linear networks: teachers, the closed-form loss, and minima of noisy data."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lambda_hat.config import DlnBuild, DlnTarget
from lambda_hat.engine.model import cast
from lambda_hat.targets import build_target
from lambda_hat.targets.linear import draw_rows, product


def dln(widths, rank=None, loss="nll", sigma=1.0, seed=0, **target):
    return DlnBuild(target=DlnTarget(widths=widths, rank=rank, **target), loss=loss, sigma=sigma, seed=seed)


def all_rows(target):
    """Every data point: x (n, inputs) and y (n, outputs)."""
    with jax.enable_x64(True):
        rows = draw_rows(target.data, np.arange(target.num_data), target.loss.noisy)
    x, e = np.asarray(rows["x"]), np.asarray(rows["e"])
    return x, x @ target.data["W_star"].T + e


def end_to_end(params):
    return np.asarray(product(params, len(params)))


@pytest.mark.parametrize(("rank", "expected"), [(None, 3), (3, 3), (2, 2), (1, 1), (0, 0)])
def test_rank_of_the_teacher(rank, expected):
    target, _ = build_target(dln([5, 4, 3, 6], rank))
    assert {name: w.shape for name, w in target.w_star.items()} == {
        "layers/0/weight": (4, 5),
        "layers/1/weight": (3, 4),
        "layers/2/weight": (6, 3),
    }
    assert all(w.dtype == np.float64 for w in target.w_star.values())
    singular = np.linalg.svd(target.data["W_star"], compute_uv=False)
    assert np.sum(singular > 1e-12) == expected
    if rank in (1, 2):
        assert singular[rank - 1] > 0.8**3 - 1e-12 and singular[0] < 1.25**3 + 1e-12
        for w in target.w_star.values():
            assert not np.any(w[rank:]) and not np.any(w[:, rank:])
    if rank == 0:
        assert not any(np.any(w) for w in target.w_star.values())
    assert target.loss_at_w_star == 0.0 and target.population and target.dim == 4 * 5 + 3 * 4 + 6 * 3


def test_dense_factors_have_variance_one_over_inputs():
    target, _ = build_target(dln([200, 100, 50]))
    w = target.w_star["layers/0/weight"]
    assert np.var(w) == pytest.approx(1 / 200, rel=4 * np.sqrt(2 / w.size))


@pytest.mark.parametrize(("loss", "sigma"), [("nll", 0.5), ("mse", 1.0)])
def test_empirical_loss_approaches_the_population_loss(loss, sigma):
    population, _ = build_target(dln([3, 2, 4], loss=loss, sigma=sigma))
    empirical, _ = build_target(dln([3, 2, 4], loss=loss, sigma=sigma, data="empirical", n=100_000))
    assert empirical.num_data == 100_000 and not empirical.population
    assert empirical.loss_at_w_star < 1e-28
    for name, w in population.w_star.items():
        np.testing.assert_array_equal(empirical.w_star[name], w)
    with jax.enable_x64(True):
        away = {name: w + 0.3 for name, w in population.w_star.items()}
        expected = float(population.loss(away, population.data))
        got = float(empirical.loss.full(away, empirical.data, 1000))
    scale = 1 / 4 if loss == "mse" else 1 / (2 * sigma**2)
    assert expected == pytest.approx(scale * np.sum((end_to_end(away) - population.data["W_star"]) ** 2), rel=1e-6)
    # The mean of |D x|^2 over n standard normal x has a relative standard error of at most sqrt(2 / n).
    assert got == pytest.approx(expected, rel=4 * np.sqrt(2 / 100_000))


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
@pytest.mark.parametrize(("loss", "sigma"), [("nll", 0.5), ("mse", 1.0)])
def test_the_second_moments_give_the_mean_over_the_rows(loss, sigma, noise_std):
    """More rows than are drawn at a time, and no multiple of them."""
    target, _ = build_target(dln([3, 2, 4], loss=loss, sigma=sigma, data="empirical", n=5000, noise_std=noise_std))
    x, y = all_rows(target)
    assert x.shape == (5000, 3) and len(np.unique(x)) > 14_900
    rng = np.random.default_rng(0)
    params = {name: w + 0.3 * rng.normal(size=w.shape) for name, w in target.w_star.items()}
    residual = y - x @ end_to_end(params).T
    expected = np.mean(residual**2) if loss == "mse" else np.mean(np.sum(residual**2, axis=1)) / (2 * sigma**2)
    with jax.enable_x64(True):
        assert float(target.loss.full(params, target.data, 100)) == pytest.approx(expected, rel=1e-10)
        rows = np.asarray(target.loss.per_row(params, target.data, 100))
        indices = np.arange(5000)
        batch = draw_rows(target.data, indices, target.loss.noisy) | {"W_star": target.data["W_star"]}
        exact = jax.grad(lambda p: target.loss.full(p, target.data, 100))(params)
        over_rows = jax.grad(target.loss)(params, batch)
    assert rows.shape == (5000,) and rows.mean() == pytest.approx(expected, rel=1e-10)
    for name, gradient in exact.items():
        np.testing.assert_allclose(gradient, over_rows[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_minibatches_are_rows_of_the_data_in_every_precision(precision):
    target, _ = build_target(dln([3, 2, 4], data="empirical", n=40, noise_std=0.4))
    x, _ = all_rows(target)
    with jax.enable_x64(precision == "float64"):
        batch = target.loss.batch(jax.random.key(5), cast(target.data, precision), 1000)
    drawn = np.asarray(batch["x"])
    assert drawn.dtype == precision and drawn.shape == (1000, 3)
    # With replacement, every one of the 40 rows comes up in 1,000 draws.
    np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(x.astype(precision), axis=0))


@pytest.mark.parametrize("noise_std", [0.0, 0.4])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_rows_that_are_kept_are_those_that_are_drawn_again(precision, noise_std):
    target, _ = build_target(dln([3, 2, 4], data="empirical", n=40, noise_std=noise_std))
    kept = cast(target.data, precision)
    again = {name: array for name, array in kept.items() if name != "normals"}
    assert len(again) == len(kept) - 1
    with jax.enable_x64(precision == "float64"):
        batches = [target.loss.batch(jax.random.key(5), data, 1000) for data in (kept, again)]
        rows = [target.loss.per_row(cast(target.w_star, precision), data, 16) for data in (kept, again)]
    for name, array in batches[0].items():
        assert array.dtype == precision
        np.testing.assert_array_equal(array, batches[1][name])
    np.testing.assert_array_equal(*rows)


def test_rows_are_kept_up_to_four_mebibytes():
    cfg = dln([8, 2, 8], data="empirical", n=2**16, noise_std=0.4)
    assert cfg.target.keeps_rows and not replace(cfg.target, n=2**16 + 1).keeps_rows
    assert replace(cfg.target, n=2**17, noise_std=0.0).keeps_rows
    too_many, _ = build_target(replace(cfg, target=replace(cfg.target, n=2**16 + 1)))
    assert "normals" not in too_many.data


@pytest.mark.parametrize(("widths", "rank"), [([4, 3, 5], None), ([4, 3, 5], 1)])
def test_noisy_data_are_taken_at_their_minimum(widths, rank):
    cfg = dln(widths, rank, data="empirical", noise_std=0.5, n=500)
    target, info = build_target(cfg)
    x, y = all_rows(target)
    assert info["polish_stopped_by"] in ("gradient", "stalled") and info["grad_norm"] < 1e-6
    assert info["warnings"] == []
    assert info["train_loss"] == pytest.approx(target.loss_at_w_star, rel=1e-14)
    # Reduced rank regression has its minimum in closed form: the best rank-3 map under the metric of the inputs.
    ols = np.linalg.lstsq(x, y, rcond=None)[0].T
    root = np.linalg.cholesky(x.T @ x / len(x))
    u, s, vt = np.linalg.svd(ols @ root)
    best = (u[:, :3] * s[:3]) @ vt[:3] @ np.linalg.inv(root)
    expected = np.mean(np.sum((y - x @ best.T) ** 2, axis=1)) / 2
    assert target.loss_at_w_star == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(end_to_end(target.w_star), best, atol=1e-4)


def test_seed_draws_another_teacher():
    one, other = (build_target(dln([3, 2, 3], seed=seed))[0] for seed in (0, 1))
    assert not np.array_equal(one.data["W_star"], other.data["W_star"])
