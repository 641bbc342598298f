"""The types `Loss` and `Target`: a loss, its data, and the point whose Local Learning Coefficient is wanted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lambda_hat.config import NO_ROWS
from lambda_hat.config.parameter_paths import moving_parts
from lambda_hat.targets.random_numbers import random_numbers

Arrays = Mapping[str, Array | np.ndarray]
"""Parameters or data by name."""
PART = "\0"
"""Stands before the number of a moving part in its name, because no path of a user has it."""
SLICE_ROWS = 16384
"""Rows per slice when a build evaluates the loss on the full data. It bounds the memory of that evaluation."""


class Loss:
    """A mean loss over rows of data, computed in the precision of its arguments.

    Subclasses are frozen dataclasses. Equal instances share one compiled program.
    """

    strict: ClassVar[bool] = True
    """Whether the loss can be traced under strict dtype promotion."""
    stochastic: ClassVar[bool] = False
    """Whether the loss takes a random key as third argument."""
    has_rows: ClassVar[bool] = True
    """Whether the data hold the rows themselves."""

    @property
    def no_likelihood(self) -> str | None:
        """The reason why the loss of a row is no negative log likelihood; None if it is one."""
        return NO_ROWS["stochastic"] if self.stochastic else None

    def __call__(self, params: Arrays, data: Arrays, *key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean over the rows of `data`. For a population loss, `data` are the constants of its closed form."""
        raise NotImplementedError

    def of_batch(self, params: Arrays, batch: Arrays, *key: Key[Array, ""]) -> Float[Array, ""]:
        """An unbiased estimate of `full` from a `batch` of rows drawn from the data, together with its constants."""
        return self(params, batch, *key)

    def of_row(self, params: Arrays, row: Arrays) -> Float[Array, ""]:
        """The negative log likelihood of a single row; the arrays of `row` have a leading axis of length 1."""
        return self(params, row)

    def weight_per_row(self, data: dict[str, np.ndarray]) -> float:
        """The mean weight of a row: `full` is the sum of `of_row`, divided by the number of rows times this."""
        return 1.0

    def num_rows(self, data: Arrays) -> int:
        """The number of rows of the full data. Arrays without an axis are constants."""
        return next(len(array) for array in data.values() if array.ndim)

    def batch(self, key: Key[Array, ""], data: Arrays, batch_size: int) -> dict[str, Any]:
        """Draw `batch_size` rows with replacement; the constants come with them."""
        rows = random_numbers(key, (batch_size,), self.num_rows(data))
        return each_row(lambda array: array[rows], data)

    def in_slices(self, batch: Arrays, slices: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The rows of a batch in `slices` of equal size, each array (slices, rows, ...); and the batch's constants."""
        rows = {name: array for name, array in batch.items() if array.ndim}
        constants = {name: array for name, array in batch.items() if not array.ndim}
        return each_row(lambda array: array.reshape(slices, -1, *array.shape[1:]), rows), constants

    def full(self, params: Arrays, data: Arrays, slice_rows: int, *key: Key[Array, ""]) -> Float[Array, ""]:
        """The mean loss over all rows of `data`, in slices of at most `slice_rows` rows. Not for population losses.

        Its gradient recomputes each slice, so that the memory stays that of one slice.
        """
        num_rows = self.num_rows(data)
        if num_rows <= slice_rows:
            return self.of_batch(params, data, *key)
        num_slices, remainder = divmod(num_rows, slice_rows)

        @jax.checkpoint
        def of_slice(params, index):
            start = index * slice_rows
            rows = each_row(lambda array: jax.lax.dynamic_slice_in_dim(array, start, slice_rows), data)
            return self.of_batch(params, rows, *(jax.random.fold_in(k, index) for k in key))

        def add(total, index):
            return total + of_slice(params, index), None

        zero = jnp.zeros((), jax.eval_shape(of_slice, params, 0).dtype)
        total, _ = jax.lax.scan(add, zero, jnp.arange(num_slices, dtype=jnp.int32))
        total = total * (slice_rows / num_rows)
        if remainder:
            rest = each_row(lambda array: array[num_rows - remainder :], data)
            rest_key = (jax.random.fold_in(k, num_slices) for k in key)
            total += self.of_batch(params, rest, *rest_key) * (remainder / num_rows)
        return total

    def per_row(self, params: Arrays, data: Arrays, slice_rows: int) -> Float[Array, " rows"]:
        """The value of `of_row` for every row, `slice_rows` rows at a time."""
        return self.each_row(lambda row: self.of_row(params, row), data, slice_rows)

    def each_row(self, function: Callable[[dict[str, Any]], Array], data: Arrays, slice_rows: int) -> Array:
        """The value of a function for every row, `slice_rows` rows at a time, (rows, ...).

        Args:
            function: (row with a leading axis of length 1, and the constants) -> array.
            data: the full data.
            slice_rows: how many rows are computed side by side.
        """
        constants = {name: array for name, array in data.items() if not array.ndim}

        def of_row(row):
            return function({name: array[None] for name, array in row.items()} | constants)

        rows = {name: array for name, array in data.items() if array.ndim}
        return jax.lax.map(of_row, rows, batch_size=min(slice_rows, self.num_rows(data)))


def each_row(take: Callable[[Any], Any], data: Arrays) -> dict[str, Any]:
    """Apply `take` to every array of `data` that has rows. Arrays without an axis are constants and stay."""
    return {name: take(array) if array.ndim else array for name, array in data.items()}


class Observable:
    """A function of the parameters that is recorded beside the loss.

    Subclasses are frozen dataclasses. Equal instances share one compiled program.
    """

    def __call__(self, loss: Loss, params: Arrays, data: Arrays, slice_rows: int) -> Array:
        """The value at `params`, of any shape.

        Args:
            loss: the loss of the target.
            params: all parameters, by path.
            data: the data that it is a function of.
            slice_rows: rows whose losses are computed at a time.
        """
        raise NotImplementedError


class Observed(NamedTuple):
    """An observable and its data."""

    what: Observable
    data: dict[str, np.ndarray] | None
    """None: the data of the target."""


@dataclass(frozen=True, eq=False)
class Target:
    """A loss, its data and `w_star`. The samplers cast floating-point arrays to the precision of the run."""

    loss: Loss
    w_star: dict[str, np.ndarray]
    """The point whose LLC is wanted: float64 arrays by path, such as "layers/0/weight", or parts of arrays."""
    data: dict[str, np.ndarray]
    """Arrays with one row per data point, or the constants of a population loss."""
    population: bool
    """Whether the loss is a closed form, whose `data` are never subsampled."""
    n: int
    """The number of data points in the posterior."""
    loss_at_w_star: float
    """`L_n(w_star)` on the full data, in float64."""
    true_llc: float | None
    """The learning coefficient lambda; None if it is not known."""
    true_multiplicity: int | None
    held: dict[str, np.ndarray] = field(default_factory=dict)
    """What the loss takes beside the moving parameters and never moves, by path: parameters that are held fixed, whole
    arrays also where a part of them moves, and a network's state, such as BatchNorm's statistics, of any type."""
    notes: tuple[str, ...] = ()
    """Sentences about the parameters that move, for the report of every run."""
    held_notes: tuple[str, ...] = ()
    """Sentences about what is held whatever moves, and how the network is evaluated, for the report of every run."""
    starts: dict[str, np.ndarray] = field(default_factory=dict)
    """Where the moving parts of arrays begin along every axis, by their names in `w_star`."""
    observed: dict[str, Observed] = field(default_factory=dict)
    """What is recorded beside the loss, by name. It changes no chain."""

    @property
    def no_likelihood(self) -> str | None:
        """The reason why there is no singular fluctuation; None if there is one."""
        return NO_ROWS["population"] if self.population else self.loss.no_likelihood

    @property
    def dim(self) -> int:
        """The number of parameters that move."""
        return sum(array.size for array in self.w_star.values())

    @property
    def num_data(self) -> int:
        """The number of rows of data; 0 for a population loss."""
        return 0 if self.population else self.loss.num_rows(self.data)

    def restricted(self, patterns: Sequence[str]) -> Target:
        """The same target, in which only the parameters move that match one of the `patterns` of `moving_parts`.

        Its learning coefficient is not known, and `notes`, which are about all parameters, are dropped.

        Raises:
            ConfigError: as `moving_parts`.
        """
        parts = moving_parts(patterns, {path: array.shape for path, array in self.w_star.items()})
        if len(parts) == len(self.w_star) and all(boxes is None for boxes in parts.values()):
            return self
        w_star, starts = {path: self.w_star[path] for path, boxes in parts.items() if boxes is None}, {}
        held = self.held | {path: array for path, array in self.w_star.items() if path not in w_star}
        for path, boxes in parts.items():
            for number, box in enumerate(boxes or ()):
                # The place is no part of the name: such parts of one shape share their programs.
                name = f"{path}{PART}{number}"
                w_star[name], starts[name] = self.w_star[path][box.slices], np.array(box.start, np.int32)
        return replace(self, w_star=w_star, held=held, starts=starts, true_llc=None, true_multiplicity=None, notes=())


def all_parameters(moving: Arrays, held: Arrays, starts: Arrays) -> dict[str, Any]:
    """The arrays that a loss takes, by path.

    Args:
        moving: As `Target.w_star`, or other values of the same shapes.
        held: As `Target.held`.
        starts: As `Target.starts`.
    """
    params = {**held, **{path: array for path, array in moving.items() if path not in starts}}
    for name, start in starts.items():
        path = name.rpartition(PART)[0]
        params[path] = jax.lax.dynamic_update_slice(params[path], moving[name], list(start))
    return params


class Made(NamedTuple):
    """What the module of a kind of target computes from its configuration."""

    w_star: dict[str, np.ndarray]
    data: dict[str, np.ndarray]
    info: dict[str, Any]
    """JSON-able information about the build."""
    target: Target | None = None
    """The finished target, for a kind whose loss and n do not follow from the configuration."""


def regression_loss(residual: Float[Array | np.ndarray, "rows outputs"], kind: str, sigma: float) -> Float[Array, ""]:
    """The loss of regression with the given residuals.

    Args:
        residual: outputs minus predictions.
        kind: `nll` is the Gaussian negative log likelihood in nats without its constant, summed over outputs; `mse` is
            the mean square over rows and outputs.
        sigma: standard deviation of the Gaussian; `mse` ignores it.
    """
    if kind == "mse":
        return jnp.mean(residual**2)
    return jnp.mean(jnp.sum(residual**2, axis=-1)) / (2 * sigma**2)


def no_likelihood(kind: str) -> str | None:
    """The reason why a regression loss of this kind is no negative log likelihood; None if it is one."""
    return NO_ROWS["mse"] if kind == "mse" else None


def to_numpy(params: Arrays) -> dict[str, np.ndarray]:
    """Copy arrays from the device, as float64."""
    return {name: np.asarray(array, dtype=np.float64) for name, array in params.items()}
