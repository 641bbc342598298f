"""The user's parameters and data as dicts of arrays by path, and the way back to their pytrees."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lambda_hat.errors import ConfigError

PARAMS_ROOT, DATA_ROOT = "params", "data"
"""The path of parameters, or of data, that are a single array."""
NO_NUMBERS = "OSUMm"
"""NumPy's kinds of dtype for objects, text and times."""


@dataclass(frozen=True)
class Structure:
    """The structure of a pytree, which turns a dict of arrays by path back into the pytree."""

    treedef: Any
    paths: tuple[str | None, ...]
    """The path of every leaf; None for a leaf that is in `static` and not in the dict."""
    static: tuple[Any, ...] = field(compare=False)
    """The leaves that are not in the dict."""
    fingerprint: tuple[Hashable, ...]
    """Stands for `static` when structures are compared."""

    def rebuild(
        self, arrays: Mapping[str, Array | np.ndarray], of_static: Callable[[Any], Any] = lambda leaf: leaf
    ) -> Any:
        """The pytree with the leaves `arrays`; `of_static` is applied to each of the other leaves."""
        rest = map(of_static, self.static)
        leaves = [next(rest) if path is None else arrays[path] for path in self.paths]
        return jax.tree.unflatten(self.treedef, leaves)


def split_params(params: Any) -> tuple[dict[str, np.ndarray], Structure]:
    """Split a pytree into its floating-point arrays and the rest, as `eqx.partition(params, eqx.is_inexact_array)`.

    Unlike there, NumPy's arrays and scalars count as arrays.

    Returns:
        The arrays by path, in float64, and the structure with the other leaves.

    Raises:
        ConfigError: if there is no such array, or one is complex or not finite, or two have the same path.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    arrays: dict[str, np.ndarray] = {}
    paths: list[str | None] = []
    static: list[Any] = []
    for where, leaf in leaves:
        path = path_of(where, PARAMS_ROOT)
        if not is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
            paths.append(None)
            static.append(leaf)
            continue
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ConfigError(f"params: {path} is complex; the samplers take real parameters, split it in two")
        if path in arrays:
            raise ConfigError(f"params: two arrays have the path {path}; rename one of them")
        paths.append(path)
        arrays[path] = np.asarray(leaf, dtype=np.float64)
    if not arrays or not any(array.size for array in arrays.values()):
        raise ConfigError(f"params: there is no floating-point array in it{_instead(leaves)}; nothing could be sampled")
    for path, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise ConfigError(f"params: {path} is not finite")
    return arrays, Structure(treedef, tuple(paths), tuple(static), tuple(map(_fingerprint, static)))


def _instead(leaves: list[tuple[Any, Any]]) -> str:
    """The part of the message that says what a pytree without parameters has instead."""
    if not leaves:
        return ""
    where, leaf = leaves[0]
    path = path_of(where, PARAMS_ROOT)
    if isinstance(leaf, (bool, int, float)):
        return f": {path} is the Python number {leaf!r}, which stays as it is, write jnp.asarray({float(leaf)!r})"
    if is_array(leaf):
        return f": {path} is of type {leaf.dtype}, which stays as it is, write {path.split('/')[-1]}.astype(float)"
    return f": {path} is a {type(leaf).__name__}, write np.asarray(...)"


def split_data(data: Any) -> tuple[dict[str, np.ndarray], Structure]:
    """Split a pytree of data into its arrays by path, and its structure. Half-precision floats become float32.

    Raises:
        ConfigError: if a leaf is not an array of numbers with a leading axis, or the leading axes differ in length.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(data, is_leaf=_is_stream)
    arrays: dict[str, np.ndarray] = {}
    for where, leaf in leaves:
        path = path_of(where, DATA_ROOT)
        if path in arrays:
            raise ConfigError(f"data: two arrays have the path {path}; rename one of them")
        arrays[path] = _rows(path, leaf)
    if not arrays:
        raise ConfigError("data: there is no array in it; give data=None and n for a loss without data")
    lengths = {path: len(array) for path, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{path} has {length}" for path, length in list(lengths.items())[:6])
        batches = "; of a list of batches write data = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)"
        raise ConfigError(
            f"data: its arrays disagree in length: {said}; the leading axis counts the data points"
            + batches * (isinstance(data, list) and len(data) > 1 and not is_array(data[0]))
        )
    if not next(iter(lengths.values())):
        raise ConfigError("data: its arrays are empty, expected at least one row")
    return arrays, Structure(treedef, tuple(arrays), (), ())


def _rows(path: str, leaf: Any) -> np.ndarray:
    """A leaf of the data as an array. Raise ConfigError if it is not an array of numbers with a leading axis."""
    expected = "expected an array with one entry per data point"
    if hasattr(leaf, "columns") and hasattr(leaf, "to_numpy"):
        raise ConfigError(
            f"data: {path} is a {type(leaf).__name__}; give its columns as arrays, "
            "{name: frame[name].to_numpy() for name in frame.columns}"
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise ConfigError(
            f"data: {path} is a masked array; give its mask as an array of its own, "
            "{'y': y.filled(0), 'mask': ~np.ma.getmaskarray(y)}"
        )
    if hasattr(leaf, "__iter__") and not hasattr(leaf, "__array__") and not isinstance(leaf, (str, bytes)):
        raise ConfigError(
            f"data: {path} is a {type(leaf).__name__}, {expected}; gather its batches first, "
            "data = jax.tree.map(lambda *parts: np.concatenate(parts), *batches)"
        )
    if isinstance(leaf, (bool, int, float)):
        hint = "; write np.asarray(...) around a list, and a constant into the loss"
        raise ConfigError(f"data: {path} is {leaf!r:.60}, {expected}{hint}")
    array = np.asarray(leaf)
    if array.dtype.kind in "SU" or (array.dtype == object and array.ndim and isinstance(array.flat[0], str)):
        raise ConfigError(
            f"data: {path} is text, expected numbers; write np.unique(column, return_inverse=True)[1] for classes, or "
            "leave it out"
        )
    if array.ndim == 0:
        raise ConfigError(f"data: {path} is {leaf!r:.60}, {expected}")
    if array.dtype.kind in NO_NUMBERS or array.dtype.names is not None:
        raise ConfigError(
            f"data: {path} is of type {array.dtype}, expected an array of numbers; write its .astype(float), or leave "
            "it out"
        )
    half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
    return array.astype(np.float32) if half else array


def notes_on(params: Any, w_star: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Sentences about what moves, or stays, that may surprise the user who gave these parameters.

    Args:
        params: the pytree of the user.
        w_star: what of it moves, by path.
    """
    leaves = [(path_of(where, PARAMS_ROOT), leaf) for where, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]
    moving = [(path, leaf) for path, leaf in leaves if path in w_star]
    notes = []
    places: dict[int, list[str]] = {}
    for path, leaf in moving:
        places.setdefault(id(leaf), []).append(path)
    for paths in places.values():
        if len(paths) > 1:
            notes.append(
                f"{' and '.join(paths)} are one array in params and move independently: for tied weights give the "
                "array once, and use it at both places in the loss"
            )
    half = sorted({str(leaf.dtype) for _, leaf in moving if leaf.dtype.itemsize < 4})
    if half:
        kinds = " and ".join(half)
        notes.append(f"params of type {kinds} are sampled, and given to the loss, in the precision of the run")
    floats = [path for path, leaf in leaves if type(leaf) is float]
    if floats:
        notes.append(
            f"{', '.join(floats[:3])}{', ...' * (len(floats) > 3)}: a Python float stays as it is, write "
            "jnp.asarray(...) for a parameter"
        )
    return tuple(notes)


class ById:
    """Compares an object by identity, and keeps it alive."""

    def __init__(self, content: Any):
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ById) and other.content is self.content

    def __hash__(self) -> int:
        return id(self.content)


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an array of JAX or NumPy, or a scalar of NumPy."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic))


def _is_stream(leaf: Any) -> bool:
    """Whether a leaf can only be iterated over, as generators, loaders and sets."""
    return hasattr(leaf, "__iter__") and not hasattr(leaf, "__getitem__")


def path_of(where: Any, root: str) -> str:
    """The path of a leaf, from its place as JAX tells it; `root` for a tree that is a single array."""
    return jax.tree_util.keystr(where, simple=True, separator="/") or root


def _fingerprint(leaf: Any) -> Hashable:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if is_array(leaf):
        array = np.asarray(leaf)
        return array.shape, str(array.dtype), array.tobytes()
    try:
        hash(leaf)
    except TypeError:
        return ById(leaf)
    # 1, 1.0 and True are equal, but a loss may treat them differently.
    return type(leaf), leaf
