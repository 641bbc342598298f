"""Targets from the user's own loss, parameters and data: Python objects, or a factory that a configuration names."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lambda_hat.config import CustomBuild, CustomTarget
from lambda_hat.config.checkpoint_file import content_hash
from lambda_hat.errors import BuildFailed, ConfigError, LambdaHatError
from lambda_hat.id_utils import canonical_json
from lambda_hat.targets.base import Made, Target
from lambda_hat.targets.checkpoint_arrays import read_arrays
from lambda_hat.targets.custom_loss import MEAN_WEIGHT, CustomLoss
from lambda_hat.targets.imports import imported
from lambda_hat.targets.loss_checks import examine
from lambda_hat.targets.pytrees import ById, Structure, notes_on, split_data, split_params
from lambda_hat.targets.training_state import held_paths, notes_on_held
from lambda_hat.torch import TorchLoss, from_torch
from lambda_hat.torch.state_dicts import load_state


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
        loss_fn: `(params, batch) -> mean loss`, or the pair (sum of the losses of the rows, sum of their weights), or
            the losses of tokens and their weights, both of shape (rows, tokens). If it has a parameter called `key`, it
            is given a random key. The state of a `lambda_hat.torch.TorchLoss` is held, and given to it as `state`.
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
    statistics = {path: w_star.pop(path) for path in kinds if path in w_star}
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
    loss = _loss(ById(loss_fn) if identity is None else identity, loss_fn, structure, data_structure)
    held = statistics | {path: array for path, array in _state_of(loss_fn).items() if path not in w_star}
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
        notes=notes_on(params, w_star),
        held_notes=(
            *notes_on_held({path: array.size for path, array in statistics.items()}, kinds),
            *(loss_fn.notes if isinstance(loss_fn, TorchLoss) else ()),
        ),
    )


def _loss(identity: Hashable, loss_fn: Any, params: Structure, data: Structure | None) -> CustomLoss:
    return CustomLoss(identity, loss_fn, params, data, _keyed(loss_fn), tuple(_state_of(loss_fn)))


def _state_of(loss_fn: Any) -> dict[str, np.ndarray]:
    return loss_fn.state if isinstance(loss_fn, TorchLoss) else {}


def _keyed(function: Callable[..., Any]) -> bool:
    try:
        return "key" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


# --------------------------------------------------------------------------------------------------------------
# Targets of a study


def make(cfg: CustomBuild, programs: Path | None = None) -> Made:
    """Call the function, and replace its parameters by the arrays of the checkpoint, if there is one.

    Raises:
        BuildFailed: if the function cannot be imported, or returns anything but a loss, parameters and data that make a
            target. Exceptions of the function itself are not caught.
    """
    target = cfg.target
    made = _made_by(*_identity(target))
    said: list[str] = []
    try:
        stored = None
        if target.checkpoint is not None:
            stored = _read_checkpoint(Path(target.checkpoint), target.checkpoint_sha256, said)
        loss_fn, params, data = _as_jax(target.torch is not None, made, stored, str(target.checkpoint))
        built = target_of(loss_fn, params, data, target.n, _identity(target), programs)
    except LambdaHatError as error:
        raise BuildFailed(f"{target.function}: {error}") from error
    return Made(built.w_star, built.data, {}, replace(built, held_notes=(*built.held_notes, *said)))


def make_loss(cfg: CustomBuild) -> CustomLoss:
    """The loss of a target that is already built. The function is called again; only its loss is used."""
    return _loss_of(*_identity(cfg.target))


@functools.lru_cache(maxsize=8)
def _loss_of(function: str, is_torch: bool, kwargs: str, version: int) -> CustomLoss:
    # Its data may be large, and are not kept.
    loss_fn, params, data = _as_jax(is_torch, _call_function(function, is_torch, json.loads(kwargs)))
    structure = split_params(params)[1]
    data_structure = None if data is None else split_data(data)[1]
    return _loss((function, is_torch, kwargs, version), loss_fn, structure, data_structure)


@functools.lru_cache(maxsize=1)
def _made_by(function: str, is_torch: bool, kwargs: str, version: int) -> tuple[Any, Any, Any]:
    """What the function returns. The checkpoints of a trajectory are built one after the other from the same."""
    return _call_function(function, is_torch, json.loads(kwargs))


def _as_jax(
    is_torch: bool, made: tuple, stored: dict[str, np.ndarray] | None = None, path: str = ""
) -> tuple[Any, Any, Any]:
    """The loss, parameters and data that the function returned, with the arrays `stored` in the checkpoint at `path`.

    Raises:
        LambdaHatError: if the arrays do not fit, or a module of torch cannot be used.
    """
    first, second, data = made
    if not is_torch:
        return first, second if stored is None else with_arrays(second, stored, path), data
    if stored is not None:
        load_state(first, stored, f"target.checkpoint: {path}")
    return *from_torch(first, second), data


def _read_checkpoint(path: Path, sha256: str | None, said: list[str]) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name. Raises BuildFailed if it cannot be read, or its content has another hash."""
    try:
        found = content_hash(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BuildFailed(f"target.checkpoint: {path} cannot be read: {reason}") from None
    if sha256 is not None and found != sha256:
        raise BuildFailed(
            f"target.checkpoint: {path} has changed: its sha256 is {found}, expected {sha256}; compose the study again"
        )
    return read_arrays(path, said)


def with_arrays(params: Any, arrays: Mapping[str, np.ndarray], path: str) -> Any:
    """Replace every floating-point array of `params` by the one of the same path.

    Args:
        params: any pytree.
        arrays: arrays by name; a "." in a name stands for the "/" of a path.
        path: the file from which they come.

    Raises:
        BuildFailed: if the arrays do not fit `params`.
    """
    stored = {name.replace(".", "/"): array for name, array in arrays.items()}
    own, structure = split_params(params)
    missing, unexpected = sorted(own.keys() - stored.keys()), sorted(stored.keys() - own.keys())
    if missing or unexpected:
        said = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"also has {', '.join(unexpected)}"] * bool(
            unexpected
        )
        raise BuildFailed(f"target.checkpoint: {path} {' and '.join(said)}; its arrays must be those of the parameters")
    for name, array in own.items():
        if stored[name].shape != array.shape:
            raise BuildFailed(
                f"target.checkpoint: {path}: {name} has the shape {stored[name].shape}, expected {array.shape}"
            )
    return structure.rebuild(stored)


def _identity(target: CustomTarget) -> tuple[str, bool, str, int]:
    return target.function, target.torch is not None, canonical_json(target.kwargs), target.version


def _call_function(named: str, is_torch: bool, kwargs: dict[str, Any]) -> tuple[Any, Any, Any]:
    key, expected = ("torch", "(module, loss_fn, data)") if is_torch else ("factory", "(loss, parameters, data)")
    try:
        function = imported(f"target.{key}", named)
    except ConfigError as error:
        raise BuildFailed(str(error)) from error
    # A build computes in float64; the factory runs with JAX's default, as in the user's own process.
    with jax.enable_x64(False):
        made = function(**kwargs)
    if not isinstance(made, tuple) or len(made) != 3 or not callable(made[0]):
        raise BuildFailed(f"target.{key}: {named} returned {_describe(made)}, expected a tuple {expected}")
    return made


def _describe(made: Any) -> str:
    if isinstance(made, tuple):
        return f"a tuple of {len(made)}: ({', '.join(type(part).__name__ for part in made)})"
    return f"a {type(made).__name__}"
