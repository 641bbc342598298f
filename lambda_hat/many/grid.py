"""Entries as Python objects, turned into the plain content of an experiments file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lambda_hat.errors import ConfigError


def grid_of(targets: Any, samplers: Any, source: str) -> dict[str, list[Any]]:
    """The content of an experiments file with these entries.

    Args:
        targets: One entry or several; a text is the name of a target.
        samplers: Likewise, of samplers.
        source: What error messages call the study.

    Raises:
        ConfigError: There is something in them that YAML cannot hold.
    """
    return {
        key: [_entry(entry, name, f"{source}: {key}[{index}]") for index, entry in enumerate(_several(entries))]
        for key, entries, name in (("targets", targets, "target"), ("samplers", samplers, "name"))
    }


def _several(entries: Any) -> list[Any]:
    return list(entries) if isinstance(entries, (list, tuple)) else [entries]


def _entry(entry: Any, name: str, where: str) -> Any:
    return {name: entry} if isinstance(entry, str) else _plain(entry, where)


def _plain(value: Any, where: str) -> Any:
    """`value` as YAML holds it: tuples, ranges and arrays become lists, scalars of NumPy numbers, and paths text."""
    if (as_list := getattr(value, "tolist", None)) is not None:
        # A scalar of NumPy becomes a number.
        value = as_list()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part, f"{where}: {key}") for key, part in value.items()}
    if isinstance(value, (list, tuple, range)):
        return [_plain(part, f"{where}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if callable(value):
        raise ConfigError(f"{where}: got {value!r:.60}, but ranks are other processes: {_in_a_module(value)}")
    raise ConfigError(f"{where}: got a {type(value).__name__}, expected text, numbers, lists and mappings of them")


def _in_a_module(function: Any) -> str:
    """What to write in place of a Python object."""
    name = getattr(function, "__name__", "make")
    module = getattr(function, "__module__", "__main__")
    if "<" in name or module in (None, "__main__"):
        name = "make" if "<" in name else name
        return (
            f"put a function that returns (loss, parameters, data) into a file of this folder, mymodel.py, and write "
            f"{{'target': {{'factory': 'mymodel:{name}'}}}}; estimate_llc takes Python objects"
        )
    return f"write its name, {{'target': {{'factory': '{module}:{name}'}}}}"
