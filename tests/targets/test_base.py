"""The mean over rows, in slices or at once, and identity of losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.targets.analytic import PolynomialLoss
from lambda_hat.targets.base import regression_loss
from lambda_hat.targets.linear import DlnEmpiricalLoss, DlnPopulationLoss
from lambda_hat.targets.mlp import Architecture, MlpLoss

ARCH = Architecture((3, 4, 2), "tanh", True)


@pytest.mark.parametrize(
    ("same", "other"),
    [
        (lambda: PolynomialLoss(3), lambda: PolynomialLoss(4)),
        (lambda: DlnPopulationLoss(2, 0.5), lambda: DlnPopulationLoss(3, 0.5)),
        (lambda: DlnEmpiricalLoss(2, 0.5, False, 9), lambda: DlnEmpiricalLoss(2, 1.0, False, 9)),
        (lambda: MlpLoss(Architecture((3, 4, 2), "tanh", True), "nll", 1.0), lambda: MlpLoss(ARCH, "nll", 2.0)),
    ],
)
def test_equal_losses_share_a_hash(same, other):
    assert same() == same() and hash(same()) == hash(same())
    assert same() != other()


@pytest.mark.parametrize("slice_rows", [1, 7, 10, 20, 21])
def test_slices_give_the_mean_over_all_rows(slice_rows):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=(20, 2))}
    loss = MlpLoss(ARCH, "nll", 0.7)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = ARCH.init(jax.random.key(0))
        whole = jax.value_and_grad(lambda p: loss(p, data))(params)
        sliced = jax.jit(jax.value_and_grad(lambda p: loss.full(p, data, slice_rows)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14), sliced, whole)


@pytest.mark.parametrize("slice_rows", [1, 7, 20, 21])
def test_single_rows_make_up_the_mean(slice_rows):
    rng = np.random.default_rng(0)
    data = {"x": rng.normal(size=(20, 3)), "y": rng.normal(size=(20, 2))}
    loss = MlpLoss(ARCH, "nll", 0.7)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = ARCH.init(jax.random.key(0))
        rows = jax.jit(lambda p: loss.per_row(p, data, slice_rows))(params)
        third = loss(params, {name: array[3:4] for name, array in data.items()})
        np.testing.assert_allclose(np.mean(rows), loss(params, data), rtol=1e-12)
    assert rows.shape == (20,) and float(rows[3]) == pytest.approx(float(third), rel=1e-12)


def test_slices_keep_float32():
    data = {"x": np.ones((5, 3), np.float32), "y": np.zeros((5, 2), np.float32)}
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
        params = {name: w.astype(jnp.float32) for name, w in ARCH.init(jax.random.key(0)).items()}
        value = jax.jit(lambda p: MlpLoss(ARCH, "nll", 1.0).full(p, data, 2))(params)
    assert value.dtype == jnp.float32


def test_regression_loss_scales():
    residual = np.array([[1.0, 2.0], [3.0, 4.0]])
    assert regression_loss(residual, "mse", 5.0) == pytest.approx(30 / 4)
    assert regression_loss(residual, "nll", 2.0) == pytest.approx(30 / 2 / 8)
