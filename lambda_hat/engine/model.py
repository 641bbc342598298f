"""The loss and the posterior as a kernel sees them: functions of a flat vector of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from lambda_hat.estimate.posterior import Posterior
from lambda_hat.targets.base import Loss, Observable


class Anchor(NamedTuple):
    """Loss and gradient of the full data at `w_star`, in the precision and the order of summation of the run."""

    loss: Float[Array, ""]
    gradient: Float[Array, " dim"]
    """Of the mean loss; of length 0 where no control variates need it."""


class Evaluation(NamedTuple):
    """An unbiased estimate of the gradient of `L_n` at a place `w`."""

    gradient: Float[Array, " dim"]
    growth: Float[Array, ""]
    """`(w - w_star) . gradient`."""
    difference: Float[Array, ""]
    """An unbiased estimate of `L_n(w) - L_n(w_star)` with control variates; NaN without."""


@dataclass(frozen=True)
class Model:
    """The loss and the posterior as functions of flat vectors (dim,) of the moving parameters.

    It is made while a program is traced, and holds arguments of the program.
    """

    loss: Loss
    population: bool
    """The loss is the population's, in closed form."""
    slice_rows: int
    """Rows whose losses are computed at a time."""
    unravel: Callable[[Float[Array, " dim"]], dict[str, Array]]
    """(dim,) -> all parameters by name."""
    w_star: Float[Array, " dim"]
    data: dict[str, Array]
    posterior: Posterior
    observables: tuple[tuple[str, Observable], ...] = ()
    observed: Mapping[str, dict[str, Array] | None] = field(default_factory=dict)
    """The data of each observable; None: `data`."""
    anchor: Anchor | None = None
    """None only while the anchor itself is computed."""

    def full_loss(self, w: Float[Array, " dim"], key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        """The mean loss over all rows, or the closed form, in nats. Without a key, a stochastic loss is a fixed one."""
        params, keys = self.unravel(w), self._keys(key)
        if self.population:
            return self.loss(params, self.data, *keys)
        return self.loss.full(params, self.data, self.slice_rows, *keys)

    def _keys(self, key: Key[Array, ""] | None) -> tuple[Key[Array, ""], ...]:
        if not self.loss.stochastic:
            return ()
        return (jax.random.key(0) if key is None else key,)

    def potential(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        """The negative log posterior over the full data, up to a constant."""
        return self.posterior.potential(self.full_loss(w), w, self.w_star)

    def log_density(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        """The log posterior over the full data, up to a constant."""
        return -self.potential(w)

    def batch(self, key: Key[Array, ""], batch_size: int) -> dict[str, Array]:
        """Draw `batch_size` rows with replacement."""
        return self.loss.batch(key, self.data, batch_size)

    def batch_loss(
        self, w: Float[Array, " dim"], batch: dict[str, Array], key: Key[Array, ""] | None = None
    ) -> Float[Array, ""]:
        """The mean loss of a batch in nats."""
        return self.loss.of_batch(self.unravel(w), batch, *self._keys(key))

    def row_losses(self, w: Float[Array, " dim"]) -> Float[Array, " rows"]:
        """The negative log likelihood of every row, in nats."""
        return self.loss.per_row(self.unravel(w), self.data, self.slice_rows)

    def observe(self, w: Float[Array, " dim"]) -> dict[str, Float[Array, "..."]]:
        """The value of every observable, by name; whole numbers and truth values in the precision of `w`."""
        params = self.unravel(w)

        def value(what: Observable, data: dict[str, Array] | None) -> Array:
            found = jnp.asarray(what(self.loss, params, self.data if data is None else data, self.slice_rows))
            return found if jnp.issubdtype(found.dtype, jnp.floating) else found.astype(w.dtype)

        return {name: value(what, self.observed[name]) for name, what in self.observables}

    def excess_loss(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        """`L_n(w) - L_n(w_star)`. Draws record this difference, in which the rounding of a large loss drops out."""
        assert self.anchor is not None
        return self.full_loss(w) - self.anchor.loss

    def evaluate(
        self, key: Key[Array, ""], w: Float[Array, " dim"], batch_size: int | None, gradient: str
    ) -> Evaluation:
        """Estimate the gradient of `L_n` at `w` from a batch B that is independent of `w`.

        Args:
            key: Draws the batch, and the randomness of a stochastic loss.
            w: The place, (dim,).
            batch_size: Rows of the batch; None: the full data.
            gradient: `plain` takes `g_B(w)`. `control_variate` takes `g_B(w) - g_B(w_star) + g(w_star)` (Baker et al.,
                arXiv 1706.05439), and takes the same first order out of the difference of losses.
        """
        offset = w - self.w_star

        def plain(found: Float[Array, " dim"]) -> Evaluation:
            return Evaluation(found, jnp.vdot(offset, found), jnp.full((), jnp.nan, w.dtype))

        if batch_size is None or self.population:
            return plain(jax.grad(self.full_loss)(w, key))
        key_batch, key_loss = (key, None) if not self.loss.stochastic else jax.random.split(key)
        batch = self.batch(key_batch, batch_size)
        if gradient == "plain":
            return plain(jax.grad(self.batch_loss)(w, batch, key_loss))
        assert self.anchor is not None

        loss, of_loss = jax.value_and_grad(self.batch_loss)(w, batch)
        loss_there, there = jax.value_and_grad(self.batch_loss)(self.w_star, batch)
        # Two products of gradients that exist anyway save the array of their difference: the step of a large network
        # is only a few passes over memory.
        excess = jnp.vdot(offset, there) - jnp.vdot(offset, self.anchor.gradient)
        return Evaluation(
            of_loss - (there - self.anchor.gradient),
            jnp.vdot(offset, of_loss) - excess,
            loss - loss_there - excess,
        )

    def curvature_along(
        self, key: Key[Array, ""], w: Float[Array, " dim"], direction: Float[Array, " dim"], batch_size: int | None
    ) -> Float[Array, " dim"]:
        """The Hessian of the mean loss times a vector.

        Args:
            key: Draws the batch, and the randomness of a stochastic loss.
            w: The place, (dim,).
            direction: The vector, (dim,).
            batch_size: Rows of the batch; None: the full data.
        """
        if batch_size is None or self.population:
            return jax.jvp(jax.grad(lambda w: self.full_loss(w, key)), (w,), (direction,))[1]
        key_batch, key_loss = (key, None) if not self.loss.stochastic else jax.random.split(key)
        batch = self.batch(key_batch, batch_size)
        return jax.jvp(jax.grad(lambda w: self.batch_loss(w, batch, key_loss)), (w,), (direction,))[1]


def cast(tree: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Convert float arrays to `precision`, "float32" or "float64"; integers stay as they are."""
    return {
        name: array.astype(precision) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in tree.items()
    }


def finite(w: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether every entry is finite."""
    return jnp.all(jnp.isfinite(w))
