import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.config import SgldConfig
from lambda_hat.samplers.precond import Preconditioner, preconditioner

NUMBERS = {
    name: jnp.asarray(value)
    for name, value in {"decay": 0.9, "momentum_decay": 0.5, "damping": 0.1, "initial_second_moment": 4.0}.items()
}
GRADIENTS = jnp.asarray([[1.0, 0.0], [2.0, 0.0], [-3.0, 0.0]])


def moments_after(precond):
    moments = precond.init(jnp.zeros(2))
    for gradient in GRADIENTS:
        moments = precond.update(moments, gradient)
    return moments


def test_rmsprop():
    precond = Preconditioner(bias_correction=False, **NUMBERS)
    v = 0.9**3 * 4 + 0.1 * (0.9**2 * 1 + 0.9 * 4 + 9)
    second = precond.second_moment(moments_after(precond))
    np.testing.assert_allclose(second, [v, 0.9**3 * 4], rtol=1e-5)
    np.testing.assert_allclose(precond.scale(second), [1 / (0.1 + v**0.5), 1 / (0.1 + (0.9**3 * 4) ** 0.5)], rtol=1e-5)


def test_adam_weighs_out_what_it_started_from():
    precond = Preconditioner(bias_correction=True, **NUMBERS)
    moments = moments_after(precond)
    v = 0.1 * (0.9**2 * 1 + 0.9 * 4 + 9) / (1 - 0.9**3)
    np.testing.assert_allclose(precond.second_moment(moments), [v, 0], rtol=1e-5, atol=1e-5)
    m = 0.5 * (0.25 * 1 + 0.5 * 2 - 3) / (1 - 0.5**3)
    np.testing.assert_allclose(precond.momentum(moments), [m, 0], rtol=1e-5)


def test_without_correction_the_momentum_starts_at_zero():
    precond = Preconditioner(bias_correction=False, **NUMBERS)
    np.testing.assert_allclose(precond.momentum(moments_after(precond)), [0.5 * (0.25 + 1 - 3), 0], rtol=1e-5)


@pytest.mark.parametrize(("name", "corrected"), [("rmsprop", False), ("adam", True)])
def test_only_adam_is_corrected(name, corrected):
    assert preconditioner(SgldConfig(precond=name), NUMBERS).bias_correction is corrected


def test_none_is_none():
    assert preconditioner(SgldConfig(), NUMBERS) is None
