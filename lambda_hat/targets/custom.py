"""A loss, parameters and data of the user's own, from Python objects or from a factory that a configuration names."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lambda_hat.config import CustomBuild, CustomTarget
from lambda_hat.errors import BuildFailed, ConfigError, LambdaHatError
from lambda_hat.files import DAMAGED_NPZ
from lambda_hat.id_utils import canonical_json
from lambda_hat.targets.base import SLICE_ROWS, Loss, Made, Target

PARAMS_ROOT, DATA_ROOT = "params", "data"
"""Paths of parameters, or data, that are a single array."""
PROBE_ROWS = 64
"""Rows on which a loss is tried before anything is compiled."""
PROBE_SCALES = (1e-3, 1e-1, 1.0)
"""Standard deviations of the steps off `w_star` at which a loss is asked whether it depends on the parameters."""
NOISE_DRAWS = 16
"""Realisations that the loss at `w_star` of a loss with randomness is the mean of."""


@dataclass(frozen=True)
class Structure:
    """How a dict of arrays by path becomes the user's pytree again."""

    treedef: Any
    paths: tuple[str | None, ...]
    """Of every leaf; None where the leaf is no array of the dict, and comes from `static`."""
    static: tuple[Any, ...] = field(compare=False)
    fingerprint: tuple[Hashable, ...]
    """What tells one `static` from another."""

    def rebuild(self, arrays: dict[str, Array]) -> Any:
        rest = iter(self.static)
        leaves = [next(rest) if path is None else arrays[path] for path in self.paths]
        return jax.tree.unflatten(self.treedef, leaves)


@dataclass(frozen=True)
class CustomLoss(Loss):
    """`function(params, batch)`, or `function(params, batch, key=key)` where it has a parameter of that name.

    `identity` stands for the function: losses of equal identity and structure share compiled programs.
    """

    identity: Hashable
    function: Callable[..., Any] = field(compare=False)
    params: Structure
    data: Structure | None
    """None: the function gets None in place of data."""
    stochastic: bool

    strict = False

    def __call__(self, params: dict[str, Array], data: dict[str, Array], *key: Key[Array, ""]) -> Float[Array, ""]:
        batch = None if self.data is None else self.data.rebuild(data)
        named = {"key": key[0]} if self.stochastic else {}
        value = jnp.asarray(self.function(self.params.rebuild(params), batch, **named))
        if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
            raise ConfigError(
                f"loss: it returned an array of shape {value.shape} and type {value.dtype}, expected one real number, "
                "the mean loss over the batch; end it with jnp.mean(...)"
            )
        return value.astype(next(iter(params.values())).dtype)


def split_params(params: Any) -> tuple[dict[str, np.ndarray], Structure]:
    """The floating-point arrays of a pytree by path, in float64, and how to put them back; other leaves stay as they
    are (as by `eqx.partition(params, eqx.is_inexact_array)`; NumPy arrays count as arrays).

    Raises ConfigError where there are none, or complex ones, or two of one path.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
    arrays: dict[str, np.ndarray] = {}
    paths: list[str | None] = []
    static: list[Any] = []
    for where, leaf in leaves:
        path = jax.tree_util.keystr(where, simple=True, separator="/") or PARAMS_ROOT
        if not _is_array(leaf) or not jnp.issubdtype(leaf.dtype, jnp.inexact):
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
        raise ConfigError("params: there is no floating-point array in it; nothing could be sampled")
    for path, array in arrays.items():
        if not np.all(np.isfinite(array)):
            raise ConfigError(f"params: {path} is not finite")
    return arrays, Structure(treedef, tuple(paths), tuple(static), tuple(map(_fingerprint, static)))


def split_data(data: Any) -> tuple[dict[str, np.ndarray], Structure]:
    """The arrays of a pytree by path, and how to put them back; half-precision floats become float32.

    Raises ConfigError where a leaf is no array with a leading axis, or the leading axes disagree.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(data)
    arrays: dict[str, np.ndarray] = {}
    for where, leaf in leaves:
        path = jax.tree_util.keystr(where, simple=True, separator="/") or DATA_ROOT
        array = np.asarray(leaf)
        if array.ndim == 0 or array.dtype == object:
            raise ConfigError(f"data: {path} is {leaf!r:.60}, expected an array with one entry per data point")
        if path in arrays:
            raise ConfigError(f"data: two arrays have the path {path}; rename one of them")
        half = jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize < 4
        arrays[path] = array.astype(np.float32) if half else array
    if not arrays:
        raise ConfigError("data: there is no array in it; give data=None and n for a loss without data")
    lengths = {path: len(array) for path, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{path} has {length}" for path, length in lengths.items())
        raise ConfigError(f"data: its arrays disagree in length: {said}; the leading axis counts the data points")
    return arrays, Structure(treedef, tuple(arrays), (), ())


def target_of(loss_fn: Callable[..., Any], params: Any, data: Any, n: int | None, identity: Hashable = None) -> Target:
    """The target of a loss at `params`, which are its `w_star`.

    loss_fn: `(params, batch) -> mean loss`; a parameter called `key` gets a random key. n: number of data points, by
    default the leading axis of `data`; needed where `data` is None. identity: what stands for `loss_fn` in compiled
    programs, by default the object itself.
    Raises ConfigError for a loss that is not one real number, not finite at `params`, or does not depend on them, and
    for data whose arrays disagree in length; nothing has been compiled then.
    """
    if not callable(loss_fn):
        raise ConfigError(f"loss: got {loss_fn!r:.60}, expected a function (params, batch) -> mean loss")
    w_star, structure = split_params(params)
    arrays, data_structure = ({}, None) if data is None else split_data(data)
    if n is None:
        if data_structure is None:
            raise ConfigError("n: missing; without data, say for how many data points the loss is the mean")
        n = len(next(iter(arrays.values())))
    if n < 3:
        raise ConfigError(f"n: got {n}, expected at least 3 data points")
    loss = CustomLoss(
        _ById(loss_fn) if identity is None else identity, loss_fn, structure, data_structure, _keyed(loss_fn)
    )
    with jax.enable_x64(True):
        _probe(loss, w_star, arrays)
        at_w_star = loss_at(loss, w_star, arrays)
    if not np.isfinite(at_w_star):
        raise ConfigError(f"loss: it is {at_w_star:g} at the given parameters, expected a finite number")
    return Target(loss, w_star, arrays, data_structure is None, int(n), at_w_star, None, None)


def loss_at(loss: CustomLoss, params: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> float:
    """The full-data loss; of a loss with randomness the mean over `NOISE_DRAWS` keys."""

    def full(params, data, *key):
        return loss(params, data, *key) if loss.data is None else loss.full(params, data, SLICE_ROWS, *key)

    compiled = jax.jit(full)
    if not loss.stochastic:
        return float(compiled(params, data))
    return float(np.mean([compiled(params, data, jax.random.key(i)) for i in range(NOISE_DRAWS)]))


def _probe(loss: CustomLoss, params: dict[str, np.ndarray], data: dict[str, np.ndarray]) -> None:
    """Try the loss on a few rows: its shape, that it is finite, and that it depends on the parameters."""
    rows = {name: array[:PROBE_ROWS] for name, array in data.items()}
    key = (jax.random.key(0),) if loss.stochastic else ()
    jax.eval_shape(loss, params, rows, *key)
    value = float(loss(params, rows, *key))
    if not np.isfinite(value):
        raise ConfigError(f"loss: it is {value:g} at the given parameters, expected a finite number")
    rng = np.random.default_rng(0)
    for scale in PROBE_SCALES:
        # w_star itself is a critical point: its gradient says nothing.
        near = {name: array + scale * rng.normal(size=array.shape) for name, array in params.items()}
        gradient = jax.grad(loss)(near, rows, *key)
        if any(np.any(np.asarray(g) != 0) for g in gradient.values()):
            return
    raise ConfigError(
        "loss: its gradient is zero, at and around the given parameters: it does not depend on them; use the params "
        "that it is called with, and no argmax or rounding"
    )


class _ById:
    """Equal where the object is the same one; keeps it alive."""

    def __init__(self, content: Any):
        self.content = content

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.content is self.content

    def __hash__(self) -> int:
        return id(self.content)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, (jax.Array, np.ndarray))


def _fingerprint(leaf: Any) -> Hashable:
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    if _is_array(leaf):
        array = np.asarray(leaf)
        return array.shape, str(array.dtype), array.tobytes()
    try:
        hash(leaf)
    except TypeError:
        return _ById(leaf)
    # 1, 1.0 and True are equal, and not the same to a loss.
    return type(leaf), leaf


def _keyed(function: Callable[..., Any]) -> bool:
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


# --------------------------------------------------------------------------------------------------------------
# Targets of a study


def make(cfg: CustomBuild, programs: Path | None = None) -> Made:
    """Call the factory, and put the checkpoint's arrays in place of its parameters.

    Raises BuildFailed, naming the factory, where it cannot be imported or returns something else than a loss,
    parameters and data; and whatever the factory raises.
    """
    target = cfg.target
    loss_fn, params, data = _call_factory(target)
    try:
        if target.checkpoint is not None:
            params = with_checkpoint(params, Path(target.checkpoint), target.checkpoint_sha256)
        built = target_of(loss_fn, params, data, target.n, _identity(target))
    except LambdaHatError as error:
        raise BuildFailed(f"{target.factory}: {error}") from error
    return Made(built.w_star, built.data, {}, built)


def make_loss(cfg: CustomBuild) -> CustomLoss:
    """The loss of a target that is built already: the factory is called again, and only its loss is used."""
    loss_fn, params, data = _call_factory(cfg.target)
    structure = split_params(params)[1]
    data_structure = None if data is None else split_data(data)[1]
    return CustomLoss(_identity(cfg.target), loss_fn, structure, data_structure, _keyed(loss_fn))


def with_checkpoint(params: Any, path: Path, sha256: str | None) -> Any:
    """`params` with every floating-point array replaced by the file's array of the same path ("." is "/" there).

    Raises BuildFailed where the file is not the one that `sha256` says, or its arrays do not fit.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BuildFailed(f"target.checkpoint: {path} cannot be read: {error.strerror or error}") from None
    digest = hashlib.sha256(content).hexdigest()
    if sha256 is not None and digest != sha256:
        raise BuildFailed(
            f"target.checkpoint: {path} has changed: its sha256 is {digest}, expected {sha256}; compose the study again"
        )
    stored = {name.replace(".", "/"): array for name, array in _read_arrays(path).items()}
    arrays, structure = split_params(params)
    missing, unexpected = sorted(arrays.keys() - stored.keys()), sorted(stored.keys() - arrays.keys())
    if missing or unexpected:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"also has {', '.join(unexpected)}"] * bool(
            unexpected
        )
        raise BuildFailed(f"target.checkpoint: {path} {' and '.join(said)}; its arrays must be those of the parameters")
    for name, array in arrays.items():
        if stored[name].shape != array.shape:
            raise BuildFailed(
                f"target.checkpoint: {path}: {name} has the shape {stored[name].shape}, expected {array.shape}"
            )
    return structure.rebuild(stored)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return dict(arrays)
        return dict(load_file(path))
    except (*DAMAGED_NPZ, SafetensorError) as error:
        raise BuildFailed(f"target.checkpoint: {path} cannot be read as {path.suffix[1:]}: {error}") from None


def _identity(target: CustomTarget) -> Hashable:
    return target.factory, canonical_json(target.kwargs), target.version


def _call_factory(target: CustomTarget) -> tuple[Any, Any, Any]:
    module_name, _, function_name = target.factory.partition(":")
    if os.getcwd() not in sys.path:
        # Last, so that nothing in that folder stands in the way of an installed package.
        sys.path.append(os.getcwd())
    try:
        function: Any = importlib.import_module(module_name)
        for word in function_name.split("."):
            function = getattr(function, word)
    except (ImportError, AttributeError) as error:
        raise BuildFailed(
            f"target.factory: {target.factory} cannot be imported: {type(error).__name__}: {error}; modules are looked "
            f"for among the installed packages, on PYTHONPATH and in {os.getcwd()}"
        ) from error
    # As in a process of the user's own, whatever this one computes in.
    with jax.enable_x64(False):
        made = function(**target.kwargs)
    if not isinstance(made, tuple) or len(made) != 3 or not callable(made[0]):
        raise BuildFailed(
            f"target.factory: {target.factory} returned {_describe(made)}, expected a tuple (loss, parameters, data)"
        )
    return made


def _describe(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {len(made)}: ({', '.join(type(part).__name__ for part in made)})"
    return f"a {type(made).__name__}"
