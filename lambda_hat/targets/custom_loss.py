"""The user's own loss function as a `Loss`: a mean over rows, a pair (sum, weight), or the losses of tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lambda_hat.errors import ConfigError
from lambda_hat.targets.base import Arrays, Loss
from lambda_hat.targets.pytrees import Structure, is_array

MEAN_WEIGHT = "(mean weight of a row)"
"""The name of the constant that the data of a loss of pairs (sum, weight) hold. Over a batch,
`sum / (rows * mean weight)` is an unbiased estimate of the full loss. The ratio of the sum and the weight of the batch
itself is biased."""
PAIR = "(jnp.sum(mask * losses), jnp.sum(mask))"
"""The line to write for a masked loss."""
TOKENS = "(losses, mask)"
"""The line to write for a loss that gives the losses of tokens."""


class TokenLosses(NamedTuple):
    """The losses of tokens, and their weights."""

    losses: Float[Array, "rows tokens"]
    weights: Float[Array, "rows tokens"]


@dataclass(frozen=True)
class CustomLoss(Loss):
    """`function(params, batch)`, with `key=key` if the function has a parameter `key`, and `state=` if it has a state.

    The function returns the mean over the rows of the batch, or a pair (sum of their losses, sum of their weights), or
    a pair of arrays (rows, tokens), the losses of tokens and their weights, of which the sums are taken here.
    """

    identity: Hashable
    """Stands for the function: losses of equal identity and structure share compiled programs."""
    function: Callable[..., Any] = field(compare=False)
    params: Structure
    data: Structure | None
    """None if the function is called with None in place of data."""
    stochastic: bool
    """Whether the function has a parameter `key`."""
    state: tuple[str, ...] = ()
    """The paths of arrays that the function takes beside the parameters. They never move."""

    strict = False

    def reference(self, params: Arrays, rows: Arrays) -> tuple[float, float] | None:
        """The mean loss over `rows` as the framework computes it in which the function was written.

        Returns:
            The mean and the rounding unit of its precision; None if that framework is JAX.

        Raises:
            ConfigError: if the framework refuses the rows.
        """
        function: Any = self.function
        if self.data is None or not hasattr(function, "reference"):
            return None
        return function.reference(self.params.rebuild(params), self.data.rebuild(rows), **self._state(params))

    def __call__(self, params: Arrays, data: Arrays, *key: Key[Array, ""]) -> Float[Array, ""]:
        value = self.value(params, data, *key)
        return value[0] / value[1] if isinstance(value, tuple) else value

    def of_batch(self, params: Arrays, batch: Arrays, *key: Key[Array, ""]) -> Float[Array, ""]:
        value = self.value(params, batch, *key)
        if isinstance(value, tuple):
            return value[0] / (self.num_rows(batch) * batch[MEAN_WEIGHT])
        return value

    def of_row(self, params: Arrays, row: Arrays) -> Float[Array, ""]:
        """The loss of a single row. Of a pair (sum, weight) it is the sum, or 0 if the row has no weight."""
        value = self.value(params, row)
        if isinstance(value, tuple):
            return jnp.where(value[1] > 0, value[0], jnp.zeros_like(value[0]))
        return value

    def weight_per_row(self, data: dict[str, np.ndarray]) -> float:
        return float(data.get(MEAN_WEIGHT, 1.0))

    def terms(self, params: Arrays, data: Arrays, *key: Key[Array, ""]) -> tuple[Array, Array]:
        """The sum of the losses of the rows and the sum of their weights. In a mean every row has weight 1."""
        value = self.value(params, data, *key)
        if isinstance(value, tuple):
            return value
        rows = jnp.asarray(1 if self.data is None else self.num_rows(data), value.dtype)
        return value * rows, rows

    def whole(self, params: Arrays) -> Any:
        """The pytree of the user's parameters."""
        # JAX refuses to index a NumPy array with a traced index.
        return self.params.rebuild(params, lambda leaf: jnp.asarray(leaf) if _is_numeric(leaf) else leaf)

    def _state(self, params: Arrays) -> dict[str, Any]:
        """The argument `state` of the function, if it has one."""
        return {"state": {path: params[path] for path in self.state}} if self.state else {}

    def per_token(self, params: Arrays, data: Arrays, slice_rows: int) -> Float[Array, "rows tokens"]:
        """The loss of every token times its weight, `slice_rows` rows at a time: `of_row` is the sum over the tokens.

        Raises:
            ConfigError: if the function returns no losses of tokens; raised while it is traced.
        """

        def of_row(row: Arrays) -> Float[Array, " tokens"]:
            found = self._returned(params, row)
            if not isinstance(found, TokenLosses):
                raise ConfigError(f"the loss returns no losses of tokens; return {TOKENS} in place of {PAIR}")
            return (found.losses * found.weights)[0]

        return self.each_row(of_row, data, slice_rows)

    def value(self, params: Arrays, data: Arrays, *key: Key[Array, ""]) -> Any:
        """The mean over rows, or the pair of sums, in the precision of the parameters.

        Raises:
            ConfigError: if the function returns anything else; raised while it is traced.
        """
        found = self._returned(params, data, *key)
        if isinstance(found, TokenLosses):
            return jnp.sum(found.losses * found.weights), jnp.sum(found.weights)
        return found

    def _returned(self, params: Arrays, data: Arrays, *key: Key[Array, ""]) -> Any:
        """What the function returns, in the precision of the parameters.

        Raises:
            ConfigError: if the function returns anything else; raised while it is traced.
        """
        batch = None if self.data is None else self.data.rebuild(data)
        named = self._state(params) | ({"key": key[0]} if self.stochastic else {})
        whole = self.whole(params)
        # Of half-precision parameters the loss itself keeps the digits that the function gives it.
        first = next(path for path in self.params.paths if path is not None)
        dtype = jnp.promote_types(params[first].dtype, jnp.float32)
        with warnings.catch_warnings():
            # A loss may ask for float64 by name. In a float32 run it gets float32, and JAX would warn.
            warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
            returned = self.function(whole, batch, **named)
        if _is_pair(returned):
            if self.data is None:
                raise ConfigError("loss: it returned a pair of numbers with data=None; without rows it is one number")
            return tuple(jnp.asarray(number).astype(dtype) for number in returned)
        if _are_arrays(returned):
            losses, weights = returned
            _check_tokens(losses, weights, None if self.data is None else self.num_rows(data))
            return TokenLosses(jnp.asarray(losses).astype(dtype), jnp.asarray(weights).astype(dtype))
        return _one_number(returned).astype(dtype)


def _is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biuf"


def _is_number(value: Any) -> bool:
    if isinstance(value, (int, float)):
        return True
    return is_array(value) and value.shape == () and value.dtype.kind in "biufV"


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))


def _are_arrays(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(is_array(part) and part.ndim for part in value)


def _check_tokens(losses: Any, weights: Any, rows: int | None) -> None:
    """Raise ConfigError if two arrays are not the losses of tokens and their weights."""
    if rows is None:
        raise ConfigError("loss: it returned two arrays with data=None; without rows it is one number")
    if losses.shape != weights.shape or losses.ndim != 2 or len(losses) != rows:
        raise ConfigError(
            f"loss: it returned arrays of shapes {losses.shape} and {weights.shape} on {rows} rows, expected "
            f"the losses of tokens and their weights, both of shape (rows, tokens) = ({rows}, ...); write {TOKENS}"
        )


def _one_number(value: Any) -> Array:
    expected = "expected one real number, the mean loss over the batch"
    if isinstance(value, (tuple, list)) and len(value) > 1 and _is_number(value[0]):
        what = f"a {type(value).__name__} of {len(value)}, the second {_kind(value[1])}"
        raise ConfigError(
            f"loss: it returned {what}, {expected}; "
            "return the loss alone, lambda params, batch: loss(params, batch)[0], or a pair of numbers (sum, weight)"
        )
    if isinstance(value, dict) and value:
        name = next((name for name in value if "loss" in str(name)), next(iter(value)))
        raise ConfigError(
            f"loss: it returned a dict of {', '.join(map(str, value))}, {expected}; "
            f"return the loss alone, lambda params, batch: loss(params, batch)[{name!r}]"
        )
    if value is None:
        raise ConfigError(f"loss: it returned None, {expected}; end it with return jnp.mean(...)")
    if not (is_array(value) or isinstance(value, (int, float))):
        raise ConfigError(f"loss: it returned {_kind(value)}, {expected}; end it with return jnp.mean(...)")
    array = jnp.asarray(value)
    if array.shape != () or not jnp.issubdtype(array.dtype, jnp.floating):
        raise ConfigError(
            f"loss: it returned an array of shape {array.shape} and type {array.dtype}, {expected}; "
            "end it with jnp.mean(...)"
        )
    return array


def _kind(value: Any) -> str:
    return f"an array of shape {value.shape}" if is_array(value) else f"a {type(value).__name__}"
