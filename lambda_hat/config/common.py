"""What the schemas share: checks of single values, and the sections that belong to no id.

The checks let None pass, because OmegaConf refuses it for every key that may not be null.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from typing import Any

from lambda_hat.errors import ConfigError, nearest

NO_ROWS = {
    "population": "the loss is a closed form, without rows of data",
    "mse": "loss: mse is not a negative log likelihood, write loss: nll",
    "stochastic": "the loss is random, so the loss of a row is not a negative log likelihood",
}
"""Why a target has no singular fluctuation."""


def flat(cfg: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key of a configuration, those of its sections dotted, after `prefix`; and its value."""
    for key, value in vars(cfg).items():
        if is_dataclass(value):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def require(condition: bool, key: str, got: object, expected: str) -> None:
    """Raise ConfigError with `key` and `got` unless `condition` holds."""
    if not condition:
        raise ConfigError(f"{key}: got {got!r}, expected {expected}")


def positive_int(key: str, value: int | None, least: int = 1) -> None:
    """Raise ConfigError unless `value` is None or at least `least`."""
    require(value is None or value >= least, key, value, f"an integer of at least {least}")


def positive(key: str, value: float | None) -> None:
    """Raise ConfigError unless `value` is None, or finite and above 0."""
    require(value is None or 0 < value < math.inf, key, value, "a finite number above 0")


def non_negative(key: str, value: float | None) -> None:
    """Raise ConfigError unless `value` is None, or finite and at least 0."""
    require(value is None or 0 <= value < math.inf, key, value, "a finite number of at least 0")


def fraction(key: str, value: float | None) -> None:
    """Raise ConfigError unless `value` is None or strictly between 0 and 1."""
    require(value is None or 0 < value < 1, key, value, "a number strictly between 0 and 1")


def choice(key: str, value: str | None, valid: tuple[str, ...]) -> None:
    """Raise ConfigError, with the nearest valid word, unless `value` is None or one of `valid`."""
    if value is not None and value not in valid:
        raise ConfigError(f"{key}: unknown {value!r}; {nearest(value, valid)}")


@dataclass(frozen=True)
class RuntimeConfig:
    """What a process may use. It belongs to no id, because it decides where a number is computed and not which."""

    cores_per_rank: int = 1
    """Cores that a process computes on. A study takes the site's value instead."""
    checkpoint_every: float = 60.0
    """Longest time between two writes of a run's state, in seconds. A killed rank loses at most the work since the
    last."""

    def __post_init__(self):
        positive_int("runtime.cores_per_rank", self.cores_per_rank)
        positive("runtime.checkpoint_every", self.checkpoint_every)


@dataclass(frozen=True)
class StoreConfig:
    """Where results lie. It belongs to no id, so a store can be moved."""

    root: str = "runs"
    """The folder; `store_root` of a study."""
