"""What the observables of a run record, and the room that it takes, before anything is compiled."""

from __future__ import annotations

import math
from functools import lru_cache

import jax
import numpy as np

from lambda_hat.config import SampleConfig
from lambda_hat.engine.model import cast
from lambda_hat.errors import ConfigError, TooLarge
from lambda_hat.planning.observed_size import in_words
from lambda_hat.targets.base import Target, all_parameters

COPIES = 3
"""Copies of the recorded values that a process holds at the end of a run: the state, the draws, and their file."""

_UNTRACEABLE = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, NotImplementedError)
"""What JAX, or a function of the user, raises while it is traced."""


@lru_cache(maxsize=8)
def recorded(target: Target, precision: str, slice_rows: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The shape and dtype of every observable of a target, by name. Large models take a second to trace.

    Args:
        target: The target.
        precision: "float32" or "float64".
        slice_rows: Rows whose losses are computed at a time.

    Raises:
        ConfigError: An observable cannot be traced, or is no array of numbers.
    """
    with jax.enable_x64(precision == "float64"):
        return {name: _recorded(target, name, precision, slice_rows) for name in target.observed}


def _recorded(target: Target, name: str, precision: str, slice_rows: int) -> jax.ShapeDtypeStruct:
    what, data = target.observed[name]

    def value(w_star, held, starts, data):
        return what(target.loss, all_parameters(w_star, held, starts), data, slice_rows)

    arrays = (target.w_star, target.held, target.starts, target.data if data is None else data)
    try:
        found = jax.eval_shape(value, *(cast(tree, precision) for tree in arrays))
    except ConfigError as error:
        raise ConfigError(f"observable {name}: {error}") from error
    except _UNTRACEABLE as error:
        said = str(error).strip().partition("\n")[0]
        raise ConfigError(f"observable {name}: it cannot be computed by JAX: {type(error).__name__}: {said}") from error
    if not isinstance(found, jax.ShapeDtypeStruct) or np.dtype(found.dtype).kind not in "biufV":
        kind = type(found).__name__ if not isinstance(found, jax.ShapeDtypeStruct) else f"an array of {found.dtype}"
        raise ConfigError(f"observable {name}: it returned {kind}, expected one array of real numbers of a fixed shape")
    return found


def bytes_recorded(cfg: SampleConfig, shape: jax.ShapeDtypeStruct, num_draws: int) -> int:
    """Bytes of an observable over `num_draws` draws of every chain."""
    return cfg.num_chains * num_draws * math.prod(shape.shape) * np.dtype(shape.dtype).itemsize


def require_room(
    cfg: SampleConfig, shapes: dict[str, jax.ShapeDtypeStruct], lanes: int, room: int, memory: int | None
) -> None:
    """Refuse observables that do not fit into memory.

    Args:
        cfg: The configuration of the lanes.
        shapes: What `recorded` says.
        lanes: Runs that are sampled side by side.
        room: Draws that the state has room for.
        memory: Bytes that there are; None: not known.

    Raises:
        TooLarge: There are too few.
    """
    sizes = {name: lanes * bytes_recorded(cfg, shape, room) for name, shape in shapes.items()}
    if memory is None or COPIES * sum(sizes.values()) <= memory:
        return
    largest = max(sizes, key=lambda name: sizes[name])
    raise TooLarge(
        f"observable {largest}: {factors(cfg, shapes[largest])}, and while it samples the process needs "
        f"{in_words(COPIES * sum(sizes.values()))} for all observables, of {in_words(memory)} that there are; lower "
        "its rows, num_draws or num_chains, or watch the mean"
    )


def factors(cfg: SampleConfig, shape: jax.ShapeDtypeStruct) -> str:
    """The size of an observable in a run, with its factors."""
    values = math.prod(shape.shape)
    size = in_words(bytes_recorded(cfg, shape, cfg.num_draws))
    return f"{cfg.num_chains} chains of {cfg.num_draws:,} draws of {values:,} values are {size} a run"


def notes_on(cfg: SampleConfig, shapes: dict[str, jax.ShapeDtypeStruct]) -> tuple[str, ...]:
    """Sentences on the size of what is recorded, for observables that are more than one number."""
    return tuple(f"observable {name}: {factors(cfg, shape)}" for name, shape in shapes.items() if shape.shape)
