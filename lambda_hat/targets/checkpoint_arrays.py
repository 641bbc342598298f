"""The arrays of a checkpoint by name, from the formats in which networks are saved. No file is read that runs code."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lambda_hat.config.checkpoint_file import INDEX, shards_of
from lambda_hat.errors import BuildFailed, ConfigError
from lambda_hat.store.files import DAMAGED_NPZ
from lambda_hat.torch.state_dicts import read_state_dict

ORBAX_ITEM = "default"
"""The folder inside a step in which Orbax's `CheckpointManager` puts a checkpoint that has no other name."""


def read_arrays(path: Path, said: list[str] | None = None) -> dict[str, np.ndarray]:
    """Read all arrays of a checkpoint, by the names that they have in it.

    Args:
        path: one of
            - a .npz or .safetensors file;
            - the .index.json of a checkpoint in several files, which lie beside it;
            - a .pt, .pth or .bin file of tensors, as `torch.save(module.state_dict(), path)` writes it. A dictionary
              that holds one state dict among other things, as the optimiser's, stands for that state dict;
            - a folder that Orbax wrote, whose names are paths with "/".
        said: takes sentences about what was left out.

    Returns:
        The arrays in the types in which they are stored, bfloat16 too.

    Raises:
        BuildFailed: if there is no such file, it cannot be read, or it holds anything but arrays.
    """
    said = [] if said is None else said
    try:
        if path.is_dir():
            return _of_orbax(path)
        if path.name.endswith(INDEX):
            return _of_index(path, said)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: _from_bits(array) for name, array in arrays.items()}
        if path.suffix == ".safetensors":
            return _of_safetensors(path)
        return read_state_dict(path, said)
    except ConfigError as error:
        raise BuildFailed(f"target.checkpoint: {error}") from error
    except DAMAGED_NPZ as error:
        kind = "a checkpoint of Orbax" if path.is_dir() else path.suffix[1:]
        reason = _first_line(error)
        if "allow_pickle" in reason:
            # NumPy says this of any file that is none of its own, and how to run its code.
            reason = "it is no file of NumPy, or holds Python objects, which are never loaded"
        raise BuildFailed(f"target.checkpoint: {path} cannot be read as {kind}: {reason}") from None


def _from_bits(array: np.ndarray) -> np.ndarray:
    """NumPy writes bfloat16 as two bytes without a type, and no other type of numbers that way."""
    return array.view(jnp.bfloat16) if array.dtype == np.dtype("V2") else array


def _of_safetensors(path: Path) -> dict[str, np.ndarray]:
    # A package of the extra [study].
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _of_index(path: Path, said: list[str]) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for shard in shards_of(path):
        arrays |= read_arrays(shard, said)
    named = json.loads(path.read_text())["weight_map"]
    if missing := sorted(named.keys() - arrays.keys()):
        raise BuildFailed(f"target.checkpoint: the files that {path} names lack {_some(missing)}")
    return {name: arrays[name] for name in named}


def _of_orbax(path: Path) -> dict[str, np.ndarray]:
    try:
        ocp: Any = importlib.import_module("orbax.checkpoint")
    except ImportError as error:
        raise BuildFailed(
            f"target.checkpoint: {path} is a folder, which Orbax reads, but it cannot be imported: {error}; "
            "pip install orbax-checkpoint"
        ) from error
    inner = path / ORBAX_ITEM
    with warnings.catch_warnings():
        # Orbax warns that arrays come to other devices than they were saved from.
        warnings.simplefilter("ignore")
        restored = ocp.StandardCheckpointer().restore((inner if inner.is_dir() else path).absolute())
    return dict(_leaves(restored))


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a tree of mappings and lists, with their paths."""
    if isinstance(tree, (Mapping, list, tuple)):
        for key, inner in tree.items() if isinstance(tree, Mapping) else enumerate(tree):
            yield from _leaves(inner, f"{path}/{key}" if path else str(key))
    elif hasattr(tree, "shape"):
        yield path, np.asarray(tree)


def _some(names: list[str]) -> str:
    return ", ".join(names[:10]) + ", ..." * (len(names) > 10)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
