"""What a run can watch beside its loss: the loss on other rows, of every row or token, or any function."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lambda_hat.config import NO_ROWS, ObserveConfig
from lambda_hat.config.observe import check_name
from lambda_hat.errors import ConfigError, LambdaHatError
from lambda_hat.id_utils import canonical_json
from lambda_hat.programs.compiling import call
from lambda_hat.targets.base import SLICE_ROWS, Arrays, Loss, Observable, Observed, Target, each_row
from lambda_hat.targets.custom_loss import MEAN_WEIGHT, CustomLoss
from lambda_hat.targets.imports import imported
from lambda_hat.targets.pytrees import ById, split_data


@dataclass(frozen=True)
class MeanLoss(Observable):
    """The mean loss over all rows of the data."""

    def __call__(self, loss: Loss, params: Arrays, data: Arrays, slice_rows: int) -> Array:
        return loss.full(params, data, slice_rows)


@dataclass(frozen=True)
class RowLosses(Observable):
    """The loss of every row, as float32: its fluctuation is far above the rounding, and there are many."""

    def __call__(self, loss: Loss, params: Arrays, data: Arrays, slice_rows: int) -> Array:
        return loss.per_row(params, data, slice_rows).astype(jnp.float32)


@dataclass(frozen=True)
class LossesOfTokens(Observable):
    """The loss of every token times its weight, as float32, (rows, tokens)."""

    def __call__(self, loss: Loss, params: Arrays, data: Arrays, slice_rows: int) -> Array:
        if not isinstance(loss, CustomLoss):
            raise ConfigError("per: token: the rows of this target have no tokens; write per: row")
        return loss.per_token(params, data, slice_rows).astype(jnp.float32)


PER = {None: MeanLoss, "mean": MeanLoss, "row": RowLosses, "token": LossesOfTokens}


@dataclass(frozen=True)
class OfParams(Observable):
    """A function of the parameters alone, or of the parameters and the data."""

    identity: Hashable
    """Stands for the function: observables of equal identity share compiled programs."""
    function: Callable[..., Any] = field(compare=False)
    with_data: bool

    def __call__(self, loss: Loss, params: Arrays, data: Arrays, slice_rows: int) -> Any:
        is_custom = isinstance(loss, CustomLoss)
        whole = loss.whole(params) if is_custom else params
        if not self.with_data:
            return self.function(whole)
        if not is_custom:
            return self.function(whole, data)
        return self.function(whole, None if loss.data is None else loss.data.rebuild(data))


def with_functions(target: Target, observables: Any) -> Target:
    """The target, at whose draws functions of its parameters are recorded.

    Args:
        target: the target.
        observables: by name, functions of a pytree like the parameters, each of which returns an array.

    Raises:
        ConfigError: if a name or a function is none.
    """
    if observables is None:
        return target
    if not isinstance(observables, Mapping):
        raise ConfigError(
            f"observables: got {type(observables).__name__}, expected functions by name, "
            'observables={"norm": lambda params: ...}'
        )
    observed = {}
    for name, function in observables.items():
        check_name(name, "observables")
        if not callable(function):
            raise ConfigError(f"observables: {name}: got {function!r:.60}, expected a function params -> array")
        # Without data of its own: what a function takes from its surroundings is part of the program.
        observed[name] = Observed(OfParams(ById(function), function, False), {})
    return replace(target, observed=observed)


def with_observables(target: Target, observe: Mapping[str, ObserveConfig] | None) -> Target:
    """The target, at whose draws is recorded what a configuration names.

    Raises:
        ConfigError: if a function cannot be imported, its data are not like the target's, or the target has no rows.
    """
    if not observe:
        return target
    return _with_observables(target, canonical_json({name: asdict(what) for name, what in observe.items()}))


@lru_cache(maxsize=4)
def _with_observables(target: Target, observe: str) -> Target:
    """As `with_observables`. Lanes on one target share its data, and so must share those of its observables."""
    wanted = {name: ObserveConfig(**what) for name, what in json.loads(observe).items()}
    return replace(target, observed={name: _observed(target, name, what) for name, what in wanted.items()})


def _observed(target: Target, name: str, cfg: ObserveConfig) -> Observed:
    where = f"observe.{name}"
    data = _data(target, where, cfg)
    if cfg.function is not None:
        identity = canonical_json([cfg.function, cfg.version])
        return Observed(OfParams(identity, imported(f"{where}.function", cfg.function), True), data)
    if target.population:
        raise ConfigError(
            f"{where}: this target has no rows: {NO_ROWS['population']}; leave it out, or give a function"
        )
    if target.loss.stochastic:
        raise ConfigError(f"{where}: the loss takes a random key, so that its value at a draw is no number of the draw")
    return Observed(PER[cfg.per](), data)


def _data(target: Target, where: str, cfg: ObserveConfig) -> dict[str, np.ndarray] | None:
    """The data of an observable; None for those of the target, which are then not stored twice."""
    loss = target.loss
    if cfg.data is None and cfg.rows is None:
        return None
    if target.population or not loss.has_rows:
        why = "it has none" if target.population else "it does not store them"
        raise ConfigError(f"{where}: data and rows need a target with rows of data, and {why}; leave both out")
    arrays = {path: array for path, array in target.data.items() if array.ndim}
    if cfg.data is not None:
        arrays = _other_data(target, f"{where}.data", cfg)
    count = len(next(iter(arrays.values())))
    if cfg.rows is not None and cfg.rows > count:
        raise ConfigError(f"{where}.rows: got {cfg.rows}, but there are {count} rows; leave it out for all")
    data = each_row(lambda array: array[: cfg.rows], arrays)
    data |= {path: array for path, array in target.data.items() if not array.ndim}
    if MEAN_WEIGHT in data:
        assert isinstance(loss, CustomLoss)
        data[MEAN_WEIGHT] = _mean_weight(loss, target, data, where)
    return data


def _other_data(target: Target, where: str, cfg: ObserveConfig) -> dict[str, np.ndarray]:
    assert cfg.data is not None
    function = imported(where, cfg.data)
    with jax.enable_x64(False):
        made = function(**cfg.kwargs)
    try:
        arrays, structure = split_data(made)
    except LambdaHatError as error:
        raise ConfigError(f"{where}: {cfg.data}: {error}") from None
    expected = {path: array for path, array in target.data.items() if array.ndim}
    same = structure == target.loss.data if isinstance(target.loss, CustomLoss) else arrays.keys() == expected.keys()
    if not same:
        raise ConfigError(
            f"{where}: {cfg.data} returned {_shapes(arrays)}, expected data like the target's: {_shapes(expected)}"
        )
    # The loss may need the dtype that it has seen.
    return {path: array.astype(expected[path].dtype) for path, array in arrays.items()}


def _shapes(arrays: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{path} {array.shape}" for path, array in arrays.items())


def _mean_weight(loss: CustomLoss, target: Target, data: dict[str, np.ndarray], where: str) -> np.ndarray:
    """The mean weight of a row, by which a batch of a loss of pairs is divided."""
    rows = loss.num_rows(data)
    params = {**target.held, **target.w_star}
    with jax.enable_x64(True):
        weights = [
            float(call(_weight, (loss,), None, params, each_row(lambda array, i=i: array[i : i + SLICE_ROWS], data)))
            for i in range(0, rows, SLICE_ROWS)
        ]
    if not sum(weights) > 0:
        raise ConfigError(f"{where}: the weights of its rows sum to {sum(weights):g}, expected a number above 0")
    return np.array(sum(weights) / rows)


def _weight(loss: CustomLoss, params: dict[str, Array], data: dict[str, Array]) -> Array:
    return loss.terms(params, data)[1]
