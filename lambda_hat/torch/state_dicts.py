"""State dicts of torch: from a file, and into a module."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lambda_hat.errors import ConfigError
from lambda_hat.torch.on_jax import as_numpy, as_tensor, some, tools


def load_state(module: Any, arrays: Mapping[str, np.ndarray], source: str) -> None:
    """Copy the arrays of a state dict into the parameters and buffers of a module.

    Args:
        module: a `torch.nn.Module`.
        arrays: arrays by the names of `module.state_dict()`, where "/" may stand for ".". Of names of one tensor (tied
            weights) one is enough.
        source: what messages call the arrays.

    Raises:
        ConfigError: names are missing or unexpected, or shapes differ; all of them are named. Or two names of one
            tensor come with different values.
    """
    torch = tools().torch
    own = {name.replace(".", "/"): tensor for name, tensor in module.state_dict(keep_vars=True).items()}
    own = {path: tensor for path, tensor in own.items() if isinstance(tensor, torch.Tensor)}
    given = {name.replace(".", "/"): array for name, array in arrays.items()}
    places: dict[int, list[str]] = {}
    for path, tensor in own.items():
        places.setdefault(id(tensor), []).append(path)
    missing = [paths[0] for paths in places.values() if not given.keys() & set(paths)]
    unexpected = sorted(given.keys() - own.keys())
    shapes = [
        f"{path} of shape {given[path].shape}, expected {tuple(tensor.shape)}"
        for path, tensor in own.items()
        if path in given and given[path].shape != tuple(tensor.shape)
    ]
    said = [f"lacks {some(missing)}"] * bool(missing) + [f"also has {some(unexpected)}"] * bool(unexpected)
    said += [f"has {some(shapes)}"] * bool(shapes)
    if said:
        raise ConfigError(f"{source} {'; '.join(said)}; it must fit module.state_dict(){_prefix(own, given)}")
    for paths in places.values():
        there = [path for path in paths if path in given]
        for other in there[1:]:
            if not np.array_equal(given[there[0]], given[other]):
                raise ConfigError(f"{source}: {there[0]} and {other} are one tensor in the module, and differ here")
        with torch.no_grad():
            own[there[0]].copy_(as_tensor(given[there[0]]))


def _prefix(own: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The hint for names that a wrapper of torch has put something in front of."""
    for prefix in ("module/", "_orig_mod/"):
        if given and all(path.startswith(prefix) and path.removeprefix(prefix) in own for path in given):
            name = prefix.replace("/", ".")
            return f"; all its names begin with {name}, write {{n.removeprefix({name!r}): t for n, t in state.items()}}"
    return ""


def read_state_dict(path: Path, said: list[str]) -> dict[str, np.ndarray]:
    """Read the tensors of a file that `torch.save` wrote; a file that would run code is refused.

    Args:
        path: the file. Of a dictionary that holds one state dict among other things, as the optimiser's, that state
            dict is taken.
        said: takes sentences about what was left out.

    Raises:
        ConfigError: if the file holds none or several state dicts, or more than tensors and containers.
        RuntimeError: if it is damaged.
    """
    torch = tools().torch
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ConfigError(
            f"{path} is no file of tensors alone, and what else a pickle holds could run code; save the state dict: "
            "torch.save(module.state_dict(), path)"
        ) from None
    return {name: as_numpy(tensor) for name, tensor in _state_dict(content, path, said).items()}


def _state_dict(content: Any, path: Path, said: list[str]) -> dict[str, Any]:
    """The tensors of a state dict: `content` itself, or the only one in it."""
    kind = tools().torch.Tensor
    keys = list(map(str, content)) if isinstance(content, Mapping) else []

    def is_state_dict(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())

    if is_state_dict(content):
        tensors = {name: value for name, value in content.items() if isinstance(value, kind)}
        if len(tensors) < len(content):
            others = [key for key in keys if key not in tensors]
            said.append(f"{path.name}: no tensor, and left out: {some(others)}")
        return tensors
    inside = {str(name): value for name, value in content.items() if is_state_dict(value)} if keys else {}
    if len(inside) == 1:
        name, found = next(iter(inside.items()))
        if len(keys) > 1:
            said.append(f"{path.name}: its {name} is the state dict; left out: {some([k for k in keys if k != name])}")
        return _state_dict(found, path, said)
    if inside:
        raise ConfigError(
            f"{path} holds several state dicts, {some(list(inside))}; save the one that is meant: "
            f"torch.save(torch.load(path)[{next(iter(inside))!r}], new_path)"
        )
    found = f"a dict of {some(keys)}" if keys else f"a {type(content).__name__}"
    raise ConfigError(f"{path} holds {found}, expected a state dict: torch.save(module.state_dict(), path)")
