"""What a target is: a loss, its data, and the point whose Local Learning Coefficient is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lambda_hat.paths import matching_paths

SLICE_ROWS = 16384
"""Rows per slice of the full-data losses of a build: the memory that they take is bounded by this."""


class Loss:
    """A mean loss over rows of data. Subclasses are frozen dataclasses: equal ones share one compiled program.

    Computes in the precision of its arguments, also under strict dtype promotion where `strict` says so.
    """

    strict: ClassVar[bool] = True
    """May be traced under strict dtype promotion."""
    stochastic: ClassVar[bool] = False
    """Is called with a random key as third argument."""

    def __call__(self, params: dict[str, Array], data: dict[str, Array], *key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean over the rows of `data`; for a population loss `data` are the constants of its closed form."""
        raise NotImplementedError

    def num_rows(self, data: dict[str, Array]) -> int:
        """Rows that the full data have."""
        return len(next(iter(data.values())))

    def batch(self, key: Key[Array, ""], data: dict[str, Array], batch_size: int) -> dict[str, Array]:
        """`batch_size` rows drawn with replacement."""
        rows = jax.random.randint(key, (batch_size,), 0, self.num_rows(data))
        return {name: array[rows] for name, array in data.items()}

    def full(
        self, params: dict[str, Array], data: dict[str, Array], slice_rows: int, *key: Key[Array, ""]
    ) -> Float[Array, ""]:
        """Mean loss over all rows of `data`, taken in slices of `slice_rows` rows where there are more.

        Differentiable; slices are recomputed backwards, so memory stays that of one slice. Not for population losses.
        """
        num_rows = self.num_rows(data)
        if num_rows <= slice_rows:
            return self(params, data, *key)
        num_slices, remainder = divmod(num_rows, slice_rows)

        @jax.checkpoint
        def of_slice(params, index):
            start = index * slice_rows
            rows = {name: jax.lax.dynamic_slice_in_dim(array, start, slice_rows) for name, array in data.items()}
            return self(params, rows, *(jax.random.fold_in(k, index) for k in key))

        def add(total, index):
            return total + of_slice(params, index), None

        zero = jnp.zeros((), jax.eval_shape(of_slice, params, 0).dtype)
        total, _ = jax.lax.scan(add, zero, jnp.arange(num_slices, dtype=jnp.int32))
        total = total * (slice_rows / num_rows)
        if remainder:
            rest = {name: array[num_rows - remainder :] for name, array in data.items()}
            rest_key = (jax.random.fold_in(k, num_slices) for k in key)
            total += self(params, rest, *rest_key) * (remainder / num_rows)
        return total

    def per_row(self, params: dict[str, Array], data: dict[str, Array], slice_rows: int) -> Float[Array, " rows"]:
        """The loss of every row by itself, `slice_rows` of them at a time."""

        def of_row(row):
            return self(params, {name: array[None] for name, array in row.items()})

        return jax.lax.map(of_row, data, batch_size=min(slice_rows, self.num_rows(data)))


@dataclass(frozen=True, eq=False)
class Target:
    """A loss, its data and `w_star`, as the samplers take them. Arrays are float64; samplers cast them."""

    loss: Loss
    w_star: dict[str, np.ndarray]
    """The point whose LLC is wanted, by path: "layers/0/weight"."""
    data: dict[str, np.ndarray]
    """Rows along the leading axes, or the constants of a population loss."""
    population: bool
    """The loss is a closed form; `data` is never subsampled."""
    n: int
    """Number of data points that the posterior is for."""
    loss_at_w_star: float
    """`L_n(w_star)` on the full data, in float64."""
    true_llc: float | None
    """The learning coefficient lambda, where it is known."""
    true_multiplicity: int | None
    held: dict[str, np.ndarray] = field(default_factory=dict)
    """Parameters that stay where they are, by path."""

    @property
    def dim(self) -> int:
        """Number of parameters that move."""
        return sum(array.size for array in self.w_star.values())

    @property
    def num_data(self) -> int:
        """Rows of data; 0 for a population loss."""
        return 0 if self.population else self.loss.num_rows(self.data)

    def restricted(self, patterns: Sequence[str]) -> Target:
        """The same target with only the parameters moving whose path matches one of the glob `patterns`.

        Its learning coefficient is another one, and not known. Raises ConfigError for a pattern that matches nothing.
        """
        moving = set(matching_paths(patterns, list(self.w_star)))
        if len(moving) == len(self.w_star):
            return self
        parts: list[dict[str, np.ndarray]] = [{}, {}]
        for path, array in self.w_star.items():
            parts[path not in moving][path] = array
        return replace(self, w_star=parts[0], held=self.held | parts[1], true_llc=None, true_multiplicity=None)


class Made(NamedTuple):
    """What a kind of target computes from its configuration; `info` is JSON-able."""

    w_star: dict[str, np.ndarray]
    data: dict[str, np.ndarray]
    info: dict[str, Any]
    target: Target | None = None
    """The whole, of a kind whose loss and number of data points are known only now."""


def regression_loss(residual: Float[Array, "rows outputs"], kind: str, sigma: float) -> Float[Array, ""]:
    """`nll`: Gaussian of standard deviation `sigma`, summed over outputs, without its constant, in nats.

    `mse`: mean square over rows and outputs.
    """
    if kind == "mse":
        return jnp.mean(residual**2)
    return jnp.mean(jnp.sum(residual**2, axis=-1)) / (2 * sigma**2)


def to_numpy(params: dict[str, Array]) -> dict[str, np.ndarray]:
    """Arrays off the device, in float64."""
    return {name: np.asarray(array, dtype=np.float64) for name, array in params.items()}
