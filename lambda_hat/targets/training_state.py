"""Modules of Flax, Haiku and Equinox: arrays of theirs that are no parameters, and what they say in training mode.

None of the libraries is imported: their classes are known by name.
"""

from __future__ import annotations

import sys
from typing import Any

import jax

from lambda_hat.targets.pytrees import PARAMS_ROOT, path_of

COLLECTION = "batch_stats"
"""Linen's name for running statistics, among its variables or in a training state."""
MOVING_AVERAGE = {"average", "counter", "hidden"}
"""What Haiku's `ExponentialMovingAverage`, and with it its `BatchNorm`, keeps."""
NO_PARAMETERS = {
    ("flax.nnx", "Variable"): "variables of NNX other than nnx.Param",
    ("equinox.nn", "State"): "state of an Equinox model",
    ("equinox.nn", "StateIndex"): "state of an Equinox model",
}
"""Classes, by the beginning of their module's name and their own, whose arrays training never moves by gradients."""
PARAM = ("flax.nnx", "Param")

REMEDIES = {
    "ModifyScopeVariableError": "write use_running_average=True in its BatchNorm, and apply it without mutable",
    "InvalidRngError": "write deterministic=True in its Dropout, or give the loss a third parameter key and write "
    'rngs={"dropout": key}',
    "TraceContextError": "call model.eval() before nnx.split(model, nnx.Param, ...), and nnx.merge in the loss",
    "MissingRNGError": "apply it with is_training=False, or give the loss a third parameter key and pass it",
    "Dropout requires a key": "write eqx.nn.inference_mode(model), or give the loss a third parameter key and pass it",
    "Old and new values have different structures": "write eqx.nn.inference_mode(model)",
}
"""By the class of an exception, or by the words of its message: what to write."""


def held_paths(params: Any) -> dict[str, str]:
    """The paths of arrays in a pytree that are statistics or another state of training, and what each belongs to.

    They are Linen's `batch_stats`, variables of NNX other than `nnx.Param`, Haiku's moving averages, and the state of
    an Equinox model.
    """
    found: dict[str, str] = {}
    nodes, _ = jax.tree_util.tree_flatten_with_path(params, is_leaf=lambda node: _kind(node) is not None)
    for where, node in nodes:
        if (kind := _kind(node)) is not None:
            leaves = jax.tree_util.tree_flatten_with_path(node)[0]
            found |= {path_of((*where, *inner), PARAMS_ROOT): kind for inner, _ in leaves}
    leaves = [path_of(where, PARAMS_ROOT) for where, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    beside: dict[str, set[str]] = {}
    for path in leaves:
        parent, _, name = path.rpartition("/")
        beside.setdefault(parent, set()).add(name)
    for path in leaves:
        parent = path.rpartition("/")[0]
        if COLLECTION in parent.split("/"):
            found[path] = COLLECTION
        elif beside[parent] == MOVING_AVERAGE:
            found[path] = "moving averages of Haiku"
    return found


def notes_on_held(held: dict[str, int], kinds: dict[str, str]) -> tuple[str, ...]:
    """A sentence for every kind of array that is held.

    Args:
        held: the size of every array that is held, by path.
        kinds: the result of `held_paths`.
    """
    paths: dict[str, list[str]] = {}
    for path in held:
        paths.setdefault(kinds[path], []).append(path)
    return tuple(
        f"{', '.join(some[:2])}{', ...' * (len(some) > 2)} stay as given: {kind}, no parameters; dim does not count "
        f"their {sum(held[path] for path in some)} numbers"
        for kind, some in paths.items()
    )


def remedy(error: Exception) -> str | None:
    """What to write where a module in training mode has raised `error`; None if it is another mistake."""
    said = f"{type(error).__name__}: {error}"
    return next((line for words, line in REMEDIES.items() if words in said), None)


def flax_errors() -> tuple[type[Exception], ...]:
    """The base class of Flax's exceptions, if Flax is loaded."""
    module = sys.modules.get("flax.errors")
    return () if module is None else (module.FlaxError,)


def _kind(node: Any) -> str | None:
    """What `node` is, if it is one of the classes whose arrays are no parameters."""
    classes = [(base.__module__, base.__name__) for base in type(node).__mro__]
    if any(_is(found, PARAM) for found in classes):
        return None
    return next((kind for known, kind in NO_PARAMETERS.items() if any(_is(found, known) for found in classes)), None)


def _is(found: tuple[str, str], known: tuple[str, str]) -> bool:
    return found[1] == known[1] and f"{found[0]}.".startswith(f"{known[0]}.")
