"""Gradients of batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from lambda_hat.config import DlnBuild, DlnTarget
from lambda_hat.engine import model
from lambda_hat.engine.model import Anchor, Batches, Drawn, Model, cast
from lambda_hat.estimate.posterior import Posterior
from lambda_hat.targets import build_target


@pytest.mark.parametrize("slices", [1, 4])
def test_a_control_variate_is_the_same_side_by_side_and_one_by_one(slices, monkeypatch):
    """And it is `g_B(w) - g_B(w_star) + g(w_star)`, with its growth and its difference of losses."""
    target, _ = build_target(DlnBuild(target=DlnTarget(widths=[3, 2, 4], data="empirical", n=40, noise_std=0.4)))
    with jax.enable_x64(True):
        w_star, unravel = ravel_pytree(jax.tree.map(jnp.asarray, target.w_star))
        data = jax.tree.map(jnp.asarray, cast(target.data, "float64"))
        posterior = Posterior(jnp.asarray(10.0), jnp.asarray(1.0))
        # Away from a minimum the gradient at w_star counts.
        gradient = jnp.linspace(-1.0, 1.0, w_star.size)
        anchored = Model(
            target.loss, False, 100, unravel, w_star, data, posterior, anchor=Anchor(jnp.zeros(()), gradient)
        )
        w = w_star + 0.1 * jnp.cos(jnp.arange(w_star.size))
        rows = anchored.batch(jax.random.key(1), 16)
        found = []
        for most in (0, w_star.size):
            monkeypatch.setattr(model, "SIDE_BY_SIDE", most)
            found.append(anchored.evaluate(Drawn(rows, None), w, Batches(16, slices), "control_variate"))
        of_batch = jax.value_and_grad(anchored.batch_loss)
        (loss, here), (loss_there, there) = of_batch(w, rows), of_batch(w_star, rows)
        offset = w - w_star
        expected = here - there + gradient
        growth = offset @ expected
        difference = loss - loss_there - offset @ (there - gradient)
    for each in found:
        np.testing.assert_allclose(each.gradient, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(each.growth, growth, rtol=1e-12)
        np.testing.assert_allclose(each.difference, difference, rtol=1e-10)
