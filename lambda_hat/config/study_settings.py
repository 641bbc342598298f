"""The schema of an experiments file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lambda_hat.config.common import positive_int
from lambda_hat.errors import ConfigError

AUTO = "auto"
"""Of `lanes`: every rank measures how many are best."""


def check_lanes(name: str, value: object) -> int | str:
    """A number of lanes, or `auto`. Raises ConfigError naming `name`."""
    text = str(value)
    if text == AUTO or (text.isdecimal() and int(text) >= 1):
        return text if text == AUTO else int(text)
    raise ConfigError(f"{name}: got {value!r}, expected an integer of at least 1, or {AUTO}")


@dataclass(frozen=True)
class StudySettings:
    """The keys of an experiments file.

    `key=value` words override the file, and options override both. Apart from the grid only `jax_enable_x64: false`
    changes numbers, and `lanes` their rounding.
    """

    store_root: str = "runs"
    """The store: the folder that keeps targets, runs and packs; `--store`."""
    results_root: str = "results"
    """The folder that the table and the pictures are written to; `--results`."""
    site: str = "local"
    """Where the study runs: a name in `conf/site`, or the path of a file; `--site`."""
    pack: int = 32
    """Most runs of one pack, which is one MPI launch; `--pack`."""
    retries: int = 1
    """Tries in a row that may finish no further run. Until then the runs that packs lost are packed again; 0: never.
    `--retries`."""
    lanes: Any = 1
    """Runs of one program that a rank samples side by side: a number, or `auto`. 1 keeps every bit. `--lanes`."""
    jax_enable_x64: bool = True
    """If false, every run without a `precision` of its own is float32."""
    compile_cache: bool = True
    """Share compiled programs through the store's `cache`. If false, each process compiles its own, as suits a slow
    store."""
    targets: list[Any] = field(default_factory=list)
    """The target entries of the grid."""
    samplers: list[Any] = field(default_factory=list)
    """The sampler entries of the grid."""

    def __post_init__(self):
        positive_int("pack", self.pack)
        positive_int("retries", self.retries, 0)
        object.__setattr__(self, "lanes", check_lanes("lanes", self.lanes))
