"""Targets from the user's own loss, parameters and data: Python objects, or a factory that a configuration names."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lambda_hat.config import CustomBuild, CustomTarget
from lambda_hat.errors import BuildFailed, ConfigError, LambdaHatError
from lambda_hat.id_utils import canonical_json
from lambda_hat.store.files import DAMAGED_NPZ
from lambda_hat.targets.base import Made, Target
from lambda_hat.targets.custom_loss import MEAN_WEIGHT, CustomLoss
from lambda_hat.targets.loss_checks import examine
from lambda_hat.targets.pytrees import ById, notes_on, split_data, split_params
from lambda_hat.targets.training_state import held_paths, notes_on_held


def target_of(
    loss_fn: Any,
    params: Any,
    data: Any,
    n: int | None,
    identity: Hashable = None,
    programs: Path | None = None,
) -> Target:
    """Make the target of a loss at `params`, which become its `w_star`.

    Args:
        loss_fn: `(params, batch) -> mean loss`, or the pair (sum of the losses of the rows, sum of their weights). If
            it has a parameter called `key`, it is given a random key.
        params: any pytree; its floating-point arrays are sampled, apart from those of `held_paths`.
        data: any pytree of arrays with one entry per data point; None for a loss without data.
        n: number of data points; default: the length of the arrays of `data`. Required if `data` is None.
        identity: stands for `loss_fn` in compiled programs; default: the object itself.
        programs: the folder through which processes exchange compiled programs; None: there is none.

    Raises:
        ConfigError: if the loss is neither a mean over rows nor such a pair, if it or its gradient is not finite at
            `params`, if it does not depend on `params`, or if the arrays of `data` differ in length. No chain has been
            compiled by then.
    """
    if not callable(loss_fn):
        raise ConfigError(f"loss: got {loss_fn!r:.60}, expected a function (params, batch) -> mean loss")
    w_star, structure = split_params(params)
    kinds = held_paths(params)
    held = {path: w_star.pop(path) for path in kinds if path in w_star}
    if not w_star:
        raise ConfigError(
            f"params: all that there is in it are {', '.join({*kinds.values()})}; give the parameters too"
        )
    arrays, data_structure = ({}, None) if data is None else split_data(data)
    if n is None:
        if data_structure is None:
            raise ConfigError("n: missing; without data, say for how many data points the loss is the mean")
        n = len(next(iter(arrays.values())))
    if n < 3 or n != int(n):
        raise ConfigError(f"n: got {n}, expected at least 3 data points, a whole number")
    loss = CustomLoss(
        ById(loss_fn) if identity is None else identity, loss_fn, structure, data_structure, _keyed(loss_fn)
    )
    with jax.enable_x64(True):
        at_w_star = examine(loss, w_star, arrays, programs, held)
    if at_w_star.mean_weight is not None:
        arrays[MEAN_WEIGHT] = np.array(at_w_star.mean_weight)
    return Target(
        loss,
        w_star,
        arrays,
        data_structure is None,
        int(n),
        at_w_star.loss,
        None,
        None,
        held=held,
        notes=notes_on_held({path: array.size for path, array in held.items()}, kinds) + notes_on(params, w_star),
    )


def _keyed(function: Callable[..., Any]) -> bool:
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


# --------------------------------------------------------------------------------------------------------------
# Targets of a study


def make(cfg: CustomBuild, programs: Path | None = None) -> Made:
    """Call the factory, and replace its parameters by the arrays of the checkpoint, if there is one.

    Raises:
        BuildFailed: if the factory cannot be imported, or returns anything but a loss, parameters and data that make a
            target. Exceptions of the factory itself are not caught.
    """
    target = cfg.target
    loss_fn, params, data = _call_factory(target)
    try:
        if target.checkpoint is not None:
            params = with_checkpoint(params, Path(target.checkpoint), target.checkpoint_sha256)
        built = target_of(loss_fn, params, data, target.n, _identity(target), programs)
    except LambdaHatError as error:
        raise BuildFailed(f"{target.factory}: {error}") from error
    return Made(built.w_star, built.data, {}, built)


def make_loss(cfg: CustomBuild) -> CustomLoss:
    """The loss of a target that is already built. The factory is called again; only its loss is used."""
    loss_fn, params, data = _call_factory(cfg.target)
    structure = split_params(params)[1]
    data_structure = None if data is None else split_data(data)[1]
    return CustomLoss(_identity(cfg.target), loss_fn, structure, data_structure, _keyed(loss_fn))


def with_checkpoint(params: Any, path: Path, sha256: str | None) -> Any:
    """Replace every floating-point array of `params` by the array of the same path in a file.

    Args:
        params: any pytree.
        path: a .safetensors or .npz file; a "." in its names stands for the "/" of a path.
        sha256: the expected digest of the file; None: any.

    Raises:
        BuildFailed: if the file cannot be read, has another digest, or its arrays do not fit `params`.
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
        # Last, so that no file in that folder shadows an installed package.
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
    # A build computes in float64; the factory runs with JAX's default, as in the user's own process.
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
