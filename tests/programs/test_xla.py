"""That the installed XLA computes what it is asked to. jaxlib 0.10.2 does not on CPUs, where a reduction follows matrix
products in one program (jax issue 39103)."""

import importlib.metadata
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.errors import ConfigError
from lambda_hat.programs.broken_builds import refuse_broken_build

WIDTHS = [379, 184, 411, 252, 312, 64, 288, 375, 180, 449, 250]


@pytest.mark.parametrize(("precision", "rtol"), [("float32", 1e-4), ("float64", 1e-10)])
def test_a_sum_after_a_chain_of_products(precision, rtol):
    rng = np.random.default_rng(0)
    factors = [(rng.normal(size=(b, a)) / np.sqrt(a)).astype(precision) for a, b in pairwise(WIDTHS)]

    def product(factors):
        # As linear.product does it: from the narrowest width outwards.
        below, above = factors[4], factors[5]
        for factor in factors[3::-1]:
            below = below @ factor
        for factor in factors[6:]:
            above = factor @ above
        return above @ below

    target = 2 * np.linalg.multi_dot([f.astype(np.float64) for f in reversed(factors)])
    with jax.enable_x64(precision == "float64"):
        value = jax.jit(lambda factors, target: jnp.sum((product(factors) - target) ** 2))(
            factors, target.astype(precision)
        )
        gradient = jax.jit(jax.grad(lambda factors: 0.5 * jnp.sum(product(factors) ** 2)))(factors)
    np.testing.assert_allclose(value, np.sum(target**2) / 4, rtol=rtol)
    # Every factor scales the sum by its square.
    for factor, g in zip(factors, gradient, strict=True):
        np.testing.assert_allclose(np.sum(factor * np.asarray(g), dtype=np.float64), np.sum(target**2) / 4, rtol=rtol)


@pytest.mark.parametrize(("precision", "rows"), [("float32", 32_769), ("float64", 16_385)])
def test_a_sum_after_a_product_per_row(precision, rows):
    x = np.zeros((rows, 3), precision)
    x[:, 0] = np.arange(rows)
    with jax.enable_x64(precision == "float64"):
        squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3, dtype=precision) @ row) ** 2)))(x)
    np.testing.assert_allclose(squares, x[:, 0] ** 2, rtol=1e-6)


def test_a_build_that_computes_wrong_sums_is_refused(monkeypatch):
    refuse_broken_build.__wrapped__()
    monkeypatch.setattr(importlib.metadata, "version", {"jaxlib": "0.10.2"}.__getitem__)
    with pytest.raises(ConfigError, match=r"jaxlib 0\.10\.2 computes wrong numbers on CPUs: .*; write pip"):
        refuse_broken_build.__wrapped__()
