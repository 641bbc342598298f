"""The loss and the posterior as a kernel sees them: functions of a flat vector of parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

from lambda_hat.estimate.posterior import Posterior
from lambda_hat.targets.base import Loss, Observable

Tree = TypeVar("Tree")
"""A pytree of arrays."""
SIDE_BY_SIDE = 1024
"""Most parameters of a network whose gradients at `w` and at `w_star` are one array operation. Below it a step mostly
starts operations, above it it mostly moves memory: measured with networks of 16 to 1.3 million parameters on a CPU."""


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


class Batches(NamedTuple):
    """Batches of rows, and how their gradients are computed."""

    size: int
    """Rows, drawn with replacement."""
    slices: int = 1
    """Slices of equal size that are computed one after another."""
    dtype: str | None = None
    """The type in which the loss is computed, forward and backward; None: that of the parameters."""


class Drawn(NamedTuple):
    """What an estimate of the gradient is made from."""

    rows: dict[str, Array] | None
    """The batch; None: the full data."""
    key: Key[Array, ""] | None
    """Randomness of a stochastic loss."""


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
        self,
        w: Float[Array, " dim"],
        batch: dict[str, Array],
        key: Key[Array, ""] | None = None,
        dtype: str | None = None,
    ) -> Float[Array, ""]:
        """The mean loss of a batch in nats, in the precision of `w`; computed in `dtype`, where one is given."""
        params = self.unravel(w)
        if dtype is not None:
            # Constants without rows, such as a mean weight, keep their digits.
            params = {name: _floats_in(dtype, array) for name, array in params.items()}
            batch = {name: _floats_in(dtype, array) if array.ndim else array for name, array in batch.items()}
        return self.loss.of_batch(params, batch, *self._keys(key)).astype(w.dtype)

    def over_slices(
        self,
        function: Callable[[dict[str, Array], Key[Array, ""] | None], Tree],
        batch: dict[str, Array],
        slices: int,
        key: Key[Array, ""] | None,
    ) -> Tree:
        """The mean of a function over equal slices of a batch, one after another. Of a mean over rows it is the mean.

        Args:
            function: (slice, key) -> arrays.
            batch: As `batch` draws it.
            slices: The number of slices.
            key: Randomness of a stochastic loss; every slice has its own.
        """
        if slices == 1:
            return function(batch, key)
        rows, constants = self.loss.in_slices(batch, slices)

        def of_slice(index: Array, rows: dict[str, Array]) -> Tree:
            return function(rows | constants, None if key is None else jax.random.fold_in(key, index))

        def add(total: Tree, one: tuple[Array, dict[str, Array]]) -> tuple[Tree, None]:
            return jax.tree.map(jnp.add, total, of_slice(*one)), None

        each = jnp.arange(slices, dtype=jnp.uint32), rows
        first = jax.eval_shape(of_slice, *jax.tree.map(lambda x: x[0], each))
        total, _ = jax.lax.scan(add, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), first), each)
        return jax.tree.map(lambda x: x / slices, total)

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

    def drawn(self, key: Key[Array, ""], batches: Batches | None) -> Drawn:
        """Draw what an estimate of the gradient is made from.

        Args:
            key: Draws the batch, and the randomness of a stochastic loss.
            batches: What batches there are; None: the full data.
        """
        if batches is None or self.population:
            return Drawn(None, key)
        key_batch, key_loss = (key, None) if not self.loss.stochastic else jax.random.split(key)
        return Drawn(self.batch(key_batch, batches.size), key_loss)

    def evaluate(self, drawn: Drawn, w: Float[Array, " dim"], batches: Batches | None, gradient: str) -> Evaluation:
        """Estimate the gradient of `L_n` at `w` from a batch B that is independent of `w`.

        Args:
            drawn: The batch.
            w: The place, (dim,).
            batches: As it was drawn with.
            gradient: `plain` takes `g_B(w)`. `control_variate` takes `g_B(w) - g_B(w_star) + g(w_star)` (Baker et al.,
                arXiv 1706.05439), and takes the same first order out of the difference of losses.
        """
        offset = w - self.w_star

        def plain(found: Float[Array, " dim"]) -> Evaluation:
            return Evaluation(found, jnp.vdot(offset, found), jnp.full((), jnp.nan, w.dtype))

        if drawn.rows is None or batches is None:
            return plain(jax.grad(self.full_loss)(w, drawn.key))
        if gradient == "plain":

            def of_slice(rows: dict[str, Array], key: Key[Array, ""] | None):
                return jax.grad(self.batch_loss)(w, rows, key, batches.dtype)

            return plain(self.over_slices(of_slice, drawn.rows, batches.slices, drawn.key))
        assert self.anchor is not None

        num_parameters = sum(array.size for array in jax.tree.leaves(self.unravel(w)))

        def at_both(rows: dict[str, Array], key: Key[Array, ""] | None):
            def at(w: Float[Array, " dim"]):
                return jax.value_and_grad(self.batch_loss)(w, rows, None, batches.dtype)

            if num_parameters > SIDE_BY_SIDE:
                return at(w), at(self.w_star)
            losses, gradients = jax.vmap(at)(jnp.stack([w, self.w_star]))
            return (losses[0], gradients[0]), (losses[1], gradients[1])

        (loss, of_loss), (loss_there, there) = self.over_slices(at_both, drawn.rows, batches.slices, None)
        # Two products of gradients that exist anyway save the array of their difference: the step of a large network
        # is only a few passes over memory.
        excess = jnp.vdot(offset, there) - jnp.vdot(offset, self.anchor.gradient)
        return Evaluation(
            of_loss - (there - self.anchor.gradient),
            jnp.vdot(offset, of_loss) - excess,
            loss - loss_there - excess,
        )

    def curvature_along(
        self, drawn: Drawn, w: Float[Array, " dim"], direction: Float[Array, " dim"], batches: Batches | None
    ) -> Float[Array, " dim"]:
        """The Hessian of the mean loss times a vector.

        Args:
            drawn: The batch.
            w: The place, (dim,).
            direction: The vector, (dim,).
            batches: As it was drawn with.
        """
        if drawn.rows is None or batches is None:
            return jax.jvp(jax.grad(lambda w: self.full_loss(w, drawn.key)), (w,), (direction,))[1]

        def of_slice(rows: dict[str, Array], key: Key[Array, ""] | None):
            return jax.jvp(jax.grad(lambda w: self.batch_loss(w, rows, key, batches.dtype)), (w,), (direction,))[1]

        return self.over_slices(of_slice, drawn.rows, batches.slices, drawn.key)


def cast(tree: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Convert float arrays to `precision`, "float32" or "float64"; integers stay as they are."""
    return {
        name: array.astype(precision) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in tree.items()
    }


def _floats_in(dtype: str, array: Array) -> Array:
    return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array


def finite(w: Float[Array, "..."]) -> Bool[Array, ""]:
    """Whether every entry is finite."""
    return jnp.all(jnp.isfinite(w))
