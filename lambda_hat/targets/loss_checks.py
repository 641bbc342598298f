"""Checks that a user's function is a loss that can be sampled, made before any chain starts.

On a few rows from all over the data, at `w_star` and away from it, two things are checked: the loss depends on the
parameters, and its mean over slices of the rows equals its value over all of them. The loss at `w_star` and its
gradient are then evaluated once on the full data, and must be finite.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_hat.errors import ConfigError
from lambda_hat.programs.compiling import call
from lambda_hat.targets.base import each_row
from lambda_hat.targets.custom_loss import PAIR, CustomLoss
from lambda_hat.targets.loss_errors import sentences
from lambda_hat.targets.reference_checks import check_reference, try_extremes

PROBE_ROWS, PROBE_SLICES = 256, 4
"""The number of rows on which a loss is tried, and of equal slices of them whose mean is compared with the whole."""
GRADIENT_ROWS = 64
"""The number of these rows on which the gradient is evaluated, to see whether the loss depends on the parameters."""
GRADIENT_SCALES = (1e-3, 1e-1, 1.0)
"""Standard deviations of the steps from `w_star` to the points of that gradient. At `w_star` itself it may be zero."""
SCALES = (0.0, 1e-1)
"""Standard deviations of the steps from `w_star` to the points at which slices are compared. At `w_star` itself a
noiseless loss is zero on every slice."""
NOISE_DRAWS = 16
"""The loss of a stochastic function at `w_star` is the mean over this many random keys."""
SLICE_ROWS = 1024
"""Rows per slice on the full data. It bounds the memory of the gradient, which keeps intermediate values of rows."""
LARGE, MOST_KEPT = 1_000_000, 2**27
"""In a network of more than LARGE parameters the gradient of a slice may keep so many bytes of its rows. Arbitrary."""
LEAST_ROWS = 2 * PROBE_SLICES
"""Rows of a slice in such a network, at least: a slice of the rows on which a loss is tried has two."""
TOLERANCES = {r"\b(bf16|f16|f8\w*)\[": 5e-2, r"\bf32\[": 1e-4, "": 1e-9}
"""Relative differences up to these count as rounding, by the least precise type in the traced loss. Arbitrary, and far
above the rounding of one sum."""
LEAST = 0.1
"""Differences are relative to at least this many nats, because a small loss may be the difference of large ones."""
NOISE_ERRORS = 6.0
"""Differences of up to this many standard errors over `NOISE_DRAWS` count as chance. By Student's t law chance exceeds
them once in 40,000."""

MOST_EXAMINED = 100
"""Most results that are kept; the oldest is dropped."""
_examined: OrderedDict[Hashable, AtWStar] = OrderedDict()
"""Results by loss and digest of its arrays, so that a second sampler on the same target repeats no check."""


class Seen(NamedTuple):
    """The values of a loss on a few rows. p = points, k = random keys, s = slices."""

    depends: Any
    """() bool: False if the gradient is zero at every point."""
    whole: Any
    """(p, k, 2) over all rows: the mean and 1, or the sum and the weight."""
    parts: Any
    """(p, k, s, 2) the same for every slice."""


class AtWStar(NamedTuple):
    """The loss at `w_star` on the full data."""

    loss: float
    mean_weight: float | None
    """The mean weight of a row; None for a loss that is a mean."""


def examine(
    loss: CustomLoss,
    params: dict[str, np.ndarray],
    data: dict[str, np.ndarray],
    programs: Path | None = None,
    held: dict[str, np.ndarray] | None = None,
) -> AtWStar:
    """Check a loss, and return its value at `w_star` on the full data. Call it inside `jax.enable_x64(True)`.

    Args:
        loss: the loss.
        params: the parameters `w_star`, by path.
        data: the full data, by path; empty for a loss without data.
        programs: the folder through which processes exchange compiled programs; None: there is none.
        held: arrays by path that the loss takes beside `params` and that never move; None: there are none.

    Raises:
        ConfigError: if the loss could not be sampled; it says why, and what to write instead.
    """
    held = held or {}
    known = loss, _digest(params, held, data)
    if known in _examined:
        return _examined[known]
    num_rows = len(next(iter(data.values()))) if data else 0
    # A slice has at least two rows, because a loss may squeeze an axis of length 1.
    slices = min(PROBE_SLICES, max(num_rows // 2, 1))
    most = _most_rows(loss, params, held, data)
    chosen = np.linspace(0, num_rows - 1, min(PROBE_ROWS, most, num_rows) // slices * slices).astype(int)
    rows = {name: _exact(array[chosen]) for name, array in data.items()}
    try_extremes(loss, params | held, data)
    is_pair, tolerance = _form(loss, _shapes(params | held), _shapes(rows))
    with sentences(loss):
        seen = Seen(*map(np.asarray, call(_probe, (loss, slices), programs, params, held, rows)))
    value = seen.whole[0, 0, 0]
    if not np.isfinite(value):
        raise ConfigError(f"loss: it is {value:g} at the given parameters, expected a finite number")
    if not seen.depends:
        raise ConfigError(
            "loss: its gradient is zero, at and around the given parameters: it does not depend on them; use the "
            "params that it is called with, and no argmax or rounding"
        )
    if num_rows:
        (_check_pair if is_pair else _check_mean)(seen, tolerance)
        check_reference(loss, params | held, rows, seen.whole[0, 0], tolerance)
    _examined[known] = _on_all_rows(loss, params, held, data, is_pair, min(SLICE_ROWS, most), programs)
    if len(_examined) > MOST_EXAMINED:
        _examined.popitem(last=False)
    return _examined[known]


def _digest(*parts: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    for part in parts:
        for name, array in part.items():
            digest.update(f"{name} {array.dtype} {array.shape} ".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _exact(array: np.ndarray) -> np.ndarray:
    """Cast float32 data to float64, the precision of the check."""
    return array.astype(np.float64) if array.dtype == np.float32 else array


# --------------------------------------------------------------------------------------------------------------
# What it returns


def _shapes(arrays: dict[str, np.ndarray]) -> tuple:
    return tuple((name, array.shape, array.dtype) for name, array in arrays.items())


@lru_cache(maxsize=100)
def _form(loss: CustomLoss, params: tuple, data: tuple) -> tuple[bool, float]:
    """Whether the loss returns a pair (sum, weight), and its entry of `TOLERANCES`. Raises ConfigError."""
    args = [{name: jax.ShapeDtypeStruct(shape, dtype) for name, shape, dtype in part} for part in (params, data)]
    _check_signature(loss)
    key = (jax.random.key(0),) if loss.stochastic else ()
    with sentences(loss):
        traced, shape = jax.make_jaxpr(lambda *args: loss.value(*args, *key), return_shape=True)(*args)
    text = str(traced)
    return isinstance(shape, tuple), next(
        tolerance for types, tolerance in TOLERANCES.items() if re.search(types, text)
    )


def _check_signature(loss: CustomLoss) -> None:
    try:
        signature = inspect.signature(loss.function)
    except (TypeError, ValueError):
        return
    named = {"key": None} if loss.stochastic else {}
    try:
        signature.bind(None, None, **named)
    except TypeError:
        names = list(signature.parameters)
        called = "(params, batch, key=key)" if loss.stochastic else "(params, batch)"
        paths = [] if loss.data is None else list(loss.data.paths)
        fits = len(paths) == len(names) - 1 > 1 and not loss.stochastic
        stars = "**" if paths == names[1:] else "*"
        line = f"lambda params, batch: loss(params, {stars}batch)" if fits else f"def loss{called.replace('key=', '')}"
        raise ConfigError(f"loss: it takes ({', '.join(names)}) and is called with {called}; write {line}") from None


# --------------------------------------------------------------------------------------------------------------
# On a few rows


def _probe(loss: CustomLoss, slices: int, params: dict, held: dict, rows: dict) -> Seen:
    def at(scale):
        """A point off `w_star` in an arbitrary direction, by cosines: random numbers take XLA seconds to compile."""
        return {
            name: w
            + scale * jnp.sqrt(2.0) * jnp.cos(i + jnp.sqrt(5.0) * jnp.arange(w.size, dtype=w.dtype)).reshape(w.shape)
            for i, (name, w) in enumerate(params.items())
        }

    def depends(scale):
        few = each_row(lambda array: array[:GRADIENT_ROWS], rows)
        gradient = jax.grad(lambda p: loss.terms(held | p, few, *_keys(loss, 0))[0])(at(scale))
        return jnp.any(jnp.stack([jnp.any(g != 0) for g in gradient.values()]))

    def next_scale(carry):
        index, _ = carry
        return index + 1, depends(jnp.array(GRADIENT_SCALES)[index])

    start = jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    _, found = jax.lax.while_loop(lambda c: (c[0] < len(GRADIENT_SCALES)) & ~c[1], next_scale, start)

    def numbers(p, some, key):
        value = loss.value(held | p, some, *key)
        return jnp.stack(value if isinstance(value, tuple) else (value, jnp.ones_like(value)))

    def at_point(scale):
        def of(index):
            p, key = at(scale), _keys(loss, index)
            whole = numbers(p, rows, key)
            if not rows:
                return whole, whole[None]
            parts = jax.tree.map(lambda array: array.reshape(slices, -1, *array.shape[1:]), rows)
            return whole, jax.lax.map(lambda some: numbers(p, some, key), parts)

        return jax.lax.map(of, jnp.arange(NOISE_DRAWS if loss.stochastic else 1))

    return Seen(found, *jax.lax.map(at_point, jnp.array(SCALES)))


def _keys(loss: CustomLoss, index: Any) -> tuple:
    return (jax.random.key(index),) if loss.stochastic else ()


def _differ(one: np.ndarray, other: np.ndarray, tolerance: float) -> bool:
    """Whether two values, each of shape (points, keys), differ by more than rounding and noise."""
    for a, b in zip(one, other, strict=True):
        if not np.all(np.isfinite(a)):
            continue
        if not np.all(np.isfinite(b)):
            return True
        difference = a - b
        error = np.std(difference, ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else 0.0
        scale = max(np.max(np.abs(a)), np.max(np.abs(b)), LEAST)
        if abs(np.mean(difference)) > tolerance * scale + NOISE_ERRORS * error:
            return True
    return False


def _check_mean(seen: Seen, tolerance: float) -> None:
    """Raise ConfigError if the mean over slices differs from the value over all rows."""
    whole, parts = seen.whole[..., 0], seen.parts[..., 0]
    if not _differ(whole, parts.mean(axis=-1), tolerance):
        return
    if not _differ(whole, parts.sum(axis=-1), tolerance):
        raise ConfigError(
            "loss: it is a sum over the batch, twice as large for twice the rows, expected the mean; write "
            "jnp.mean(...) in place of jnp.sum(...), or divide by the number of rows of the batch"
        )
    point = next(p for p in range(len(whole)) if _differ(whole[p : p + 1], parts[p : p + 1].mean(axis=-1), tolerance))
    mean = f"{parts[point].mean():.6g}"
    raise ConfigError(
        f"loss: its mean over slices of the rows is {mean}, and its value over all of them {whole[point].mean():.6g}: "
        f"it is no mean over rows; for a masked mean return the pair (sum, weight), {PAIR}; replace statistics of the "
        "batch (batch normalisation) by fixed numbers"
    )


def _check_pair(seen: Seen, tolerance: float) -> None:
    """Raise ConfigError if the pair is not (sum over rows, sum of weights that do not depend on the parameters)."""
    (total, weight), (totals, weights) = (np.moveaxis(part, -1, 0) for part in (seen.whole, seen.parts))
    is_sum = not _differ(total, totals.sum(axis=-1), tolerance)
    is_weight = not _differ(weight, weights.sum(axis=-1), tolerance)
    if not is_weight:
        line = f"the weight of (sum, weight) is a sum over rows too, {PAIR}"
        if not is_sum:
            line = f"of (loss, aux) return the loss alone, loss(params, batch)[0]; for masked rows return {PAIR}"
        raise ConfigError(f"loss: it returned a pair whose second number does not grow with the rows: {line}")
    if not is_sum:
        raise ConfigError(
            "loss: the first number of its pair (sum, weight) is no sum over rows, it is not twice as large for twice "
            f"the rows; return {PAIR}"
        )
    if not np.all(np.isfinite(weight)) or not np.all(weights >= 0):
        raise ConfigError(f"loss: the weight of its pair (sum, weight) is {np.min(weights):g}, expected at least 0")
    if np.any(np.abs(weight - weight[0]) > tolerance * np.abs(weight[0])):
        raise ConfigError(
            "loss: the weight of its pair (sum, weight) depends on the parameters; it may depend on the batch alone, "
            "as jnp.sum(mask) does"
        )


# --------------------------------------------------------------------------------------------------------------
# On all rows


def _on_all_rows(
    loss: CustomLoss, params: dict, held: dict, data: dict, is_pair: bool, most_rows: int, programs: Path | None
) -> AtWStar:
    slice_rows = _slice_rows(len(next(iter(data.values()))), most_rows) if data else 0
    total = weight = 0.0
    for index in range(NOISE_DRAWS if loss.stochastic else 1):
        with sentences(loss):
            more, rows, finite = call(_sums, (loss, slice_rows, index == 0), programs, params, held, data, index)
        total, weight = total + float(more), weight + float(rows)
        for path, is_finite in finite.items():
            if np.isfinite(total) and not is_finite:
                raise ConfigError(
                    f"loss: its gradient with respect to {path} is not finite at the given parameters, though its "
                    "value is; jnp.where differentiates both of its branches: replace NaN before computing with it, "
                    "y = jnp.where(jnp.isnan(y), 0, y), and add a small number inside a square root"
                )
    if is_pair and not weight > 0:
        raise ConfigError(f"loss: the weights of its pairs (sum, weight) add up to {weight:g}, expected more than 0")
    at_w_star = total / weight
    if not np.isfinite(at_w_star):
        raise ConfigError(f"loss: it is {at_w_star:g} at the given parameters, expected a finite number")
    draws = NOISE_DRAWS if loss.stochastic else 1
    return AtWStar(at_w_star, weight / (draws * loss.num_rows(data)) if is_pair else None)


def _slice_rows(num_rows: int, most: int) -> int:
    """The number of rows of a slice: at most `most`, and if possible one that divides the rows without a rest.

    A rest would have to be compiled as well.
    """
    least = -(-num_rows // most)
    return next((num_rows // k for k in range(least, 2 * least + 1) if num_rows % k == 0), most)


def _most_rows(loss: CustomLoss, params: dict, held: dict, data: dict) -> int:
    """The number of rows whose gradient fits into `MOST_KEPT`, in a large network; else `SLICE_ROWS`."""
    if not data or sum(w.size for w in params.values()) <= LARGE:
        return SLICE_ROWS

    def kept(num_rows: int) -> int:
        """Bytes that the backward pass needs from the forward pass."""
        rows = {name: jax.ShapeDtypeStruct((num_rows, *x.shape[1:]), x.dtype) for name, x in data.items()}
        with sentences(loss):
            pullback = jax.eval_shape(
                lambda p, rows: jax.vjp(lambda p: loss.terms(held | p, rows, *_keys(loss, 0))[0], p)[1], params, rows
            )
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(pullback))

    # A row by itself may lose its axis in the loss.
    per_row = max(kept(4) - kept(2), 2) / 2
    return max(min(int(MOST_KEPT / per_row), SLICE_ROWS), LEAST_ROWS)


def _sums(
    loss: CustomLoss, slice_rows: int, with_gradient: bool, params: dict, held: dict, data: dict, seed: Any
) -> tuple:
    """The sums of losses and of weights over all rows, and by path whether the gradient is finite."""

    def of(rows, index):
        key = tuple(jax.random.fold_in(k, index) for k in _keys(loss, seed))
        if not with_gradient:
            return *loss.terms(held | params, rows, *key), {}
        (total, weight), gradient = jax.value_and_grad(lambda p: loss.terms(held | p, rows, *key), has_aux=True)(params)
        return total, weight, gradient

    num_rows = loss.num_rows(data) if data else 0
    if num_rows <= slice_rows:
        total, weight, gradient = of(data, 0)
    else:
        num_slices, rest = divmod(num_rows, slice_rows)

        def add(sums, index):
            start = index * slice_rows
            rows = each_row(lambda array: jax.lax.dynamic_slice_in_dim(array, start, slice_rows), data)
            return jax.tree.map(jnp.add, sums, of(rows, index)), None

        none = jax.tree.map(jnp.zeros_like, (jnp.zeros(()), jnp.zeros(()), params if with_gradient else {}))
        sums, _ = jax.lax.scan(add, none, jnp.arange(num_slices))
        if rest:
            left = each_row(lambda array: array[num_rows - rest :], data)
            sums = jax.tree.map(jnp.add, sums, of(left, num_slices))
        total, weight, gradient = sums
    return total, weight, {path: jnp.all(jnp.isfinite(g)) for path, g in gradient.items()}
