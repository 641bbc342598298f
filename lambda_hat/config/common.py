"""What the schemas share: the checks of single values, and sections that are no part of any id."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lambda_hat.errors import ConfigError, nearest


def require(condition: bool, key: str, got: object, expected: str) -> None:
    if not condition:
        raise ConfigError(f"{key}: got {got!r}, expected {expected}")


def positive_int(key: str, value: int, least: int = 1) -> None:
    require(value >= least, key, value, f"an integer of at least {least}")


def positive(key: str, value: float) -> None:
    require(math.isfinite(value) and value > 0, key, value, "a finite number above 0")


def non_negative(key: str, value: float) -> None:
    require(math.isfinite(value) and value >= 0, key, value, "a finite number of at least 0")


def fraction(key: str, value: float) -> None:
    require(0 < value < 1, key, value, "a number strictly between 0 and 1")


def choice(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise ConfigError(f"{key}: unknown {value!r}; {nearest(value, valid)}")


@dataclass(frozen=True)
class RuntimeConfig:
    """What a process may use. Not part of any id: it decides where a number is computed, not which."""

    cores_per_rank: int = 1
    """Cores that a process computes on. In a study the site's value takes its place."""
    checkpoint_every: float = 60.0
    """Seconds after which a run's state is written, at the latest. What is lost with a rank that is killed."""

    def __post_init__(self):
        positive_int("runtime.cores_per_rank", self.cores_per_rank)
        positive("runtime.checkpoint_every", self.checkpoint_every)


@dataclass(frozen=True)
class StoreConfig:
    """Where results lie. Not part of any id, so a store can be moved."""

    root: str = "runs"
    """The folder; `store_root` of a study."""
