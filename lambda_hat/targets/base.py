"""What a target is: a loss, its data, and the point whose Local Learning Coefficient is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SLICE_ROWS = 16384
"""Rows per slice of the full-data losses of a build: the memory that they take is bounded by this."""


class Loss(Protocol):
    """A mean loss. Implementations are frozen dataclasses: equal ones share one compiled program."""

    def __call__(self, params: dict[str, Array], data: dict[str, Array]) -> Float[Array, ""]:
        """The mean over the leading axis of `data`; for a population loss `data` are the constants of its closed form.

        Computes in the precision of its arguments, also under strict dtype promotion.
        """
        ...


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

    @property
    def dim(self) -> int:
        """Number of parameters."""
        return sum(array.size for array in self.w_star.values())

    @property
    def num_data(self) -> int:
        """Rows of data; 0 for a population loss."""
        return 0 if self.population else len(next(iter(self.data.values())))


class Made(NamedTuple):
    """What a kind of target computes from its configuration; `info` is JSON-able."""

    w_star: dict[str, np.ndarray]
    data: dict[str, np.ndarray]
    info: dict[str, Any]


def full_loss(loss: Loss, params: dict[str, Array], data: dict[str, Array], slice_rows: int) -> Float[Array, ""]:
    """Mean loss over all rows of `data`, taken in slices of `slice_rows` rows where there are more.

    Differentiable; slices are recomputed backwards, so memory stays that of one slice. Not for population losses.
    """
    num_rows = len(next(iter(data.values())))
    if num_rows <= slice_rows:
        return loss(params, data)
    num_slices, remainder = divmod(num_rows, slice_rows)

    @jax.checkpoint
    def of_slice(params, start):
        rows = {name: jax.lax.dynamic_slice_in_dim(array, start, slice_rows) for name, array in data.items()}
        return loss(params, rows)

    def add(total, start):
        return total + of_slice(params, start), None

    zero = jnp.zeros((), jax.eval_shape(of_slice, params, 0).dtype)
    total, _ = jax.lax.scan(add, zero, jnp.arange(num_slices, dtype=jnp.int32) * slice_rows)
    total = total * (slice_rows / num_rows)
    if remainder:
        rest = {name: array[num_rows - remainder :] for name, array in data.items()}
        total += loss(params, rest) * (remainder / num_rows)
    return total


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
