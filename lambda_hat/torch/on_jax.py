"""Torch's operations on arrays of JAX, by torchax, and what goes wrong there as sentences."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_hat.errors import ConfigError

MOST_NAMES = 10
"""A message lists at most this many names."""


class Tools(NamedTuple):
    """What is made of torch and torchax."""

    torch: Any
    """The package."""
    tensor: Any
    """A tensor of torch around an array of JAX."""
    env: Any
    """Inside it, torch's operations on such tensors are JAX's."""
    shell: Any
    """See `TorchLoss.shell`."""
    to_jax: Callable[[Any], Any]
    """The array in a tensor; anything else as it is."""
    unknown: type[Exception]
    """What torchax raises for an operation that it does not know."""
    version: str
    """Of torchax."""


@functools.cache
def tools() -> Tools:
    """The tools, which are made on first use. Raises ConfigError if torch and torchax cannot be imported."""
    try:
        torch: Any = importlib.import_module("torch")
        torchax: Any = importlib.import_module("torchax")
        inside: Any = importlib.import_module("torchax.tensor")
    except (ImportError, AttributeError) as error:
        # A torchax that does not know a newer torch raises AttributeError.
        raise ConfigError(
            f"torch and torchax cannot be imported together: {first_line(error)}; pip install 'lambda-hat[torch]'"
        ) from error
    mixed = inside.Tensor, inside.View

    class Environment(inside.Environment):
        """Takes plain tensors of torch for constants, such as masks that a module makes or keeps as attributes."""

        def t2j_iso(self, torchtensors: Any) -> Any:
            def to_jax(tensor: Any) -> Any:
                return tensor.jax() if isinstance(tensor, mixed) else jnp.asarray(as_numpy(tensor))

            return torch.utils._pytree.tree_map_only(torch.Tensor, to_jax, torchtensors)

        def get_and_rotate_prng_key(self, generator: Any = None) -> Any:
            raise ConfigError(
                "loss: the module draws random numbers though it is in evaluation mode, which a loss of torch cannot "
                "do here; draw them before, and give them as data"
            )

    class Shell(torch.nn.Module):
        def __init__(self, module: Any, function: Callable[[Any, Any], Any]):
            super().__init__()
            self.module, self.function = module, function

        def forward(self, batch: Any) -> Any:
            return self.function(self.module, batch)

    def to_jax(value: Any) -> Any:
        if isinstance(value, mixed):
            return value.jax()
        return jnp.asarray(as_numpy(value)) if isinstance(value, torch.Tensor) else value

    return Tools(torch, inside.Tensor, Environment(), Shell, to_jax, inside.OperatorNotFound, torchax.__version__)


def as_numpy(tensor: Any) -> np.ndarray:
    """A copy of a tensor of torch, whatever its type and device; NumPy itself knows no bfloat16."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        # Every bfloat16 is a float32 too.
        return tensor.float().numpy().astype(jnp.bfloat16)
    return np.array(tensor.numpy())


def as_tensor(array: Any) -> Any:
    """A copy of an array as a tensor on the CPU, floating-point numbers as float64: NumPy's bfloat16 is not torch's."""
    array = np.array(array)
    exact = array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
    return tools().torch.from_numpy(exact)


OF_USERS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What the code of a module may raise."""


@contextlib.contextmanager
def sentences() -> Iterator[None]:
    """Turn an exception of code that runs on JAX's arrays into a ConfigError with the line to write."""
    kit = tools()
    try:
        yield
    except ConfigError:
        raise
    except kit.unknown as error:
        name = first_line(error).removeprefix("Operator with name ").removesuffix(" has no lowering")
        raise ConfigError(
            f"loss: torchax {kit.version} has no JAX version of the operation {name}{line_of(error)}; write it by "
            "other operations of torch"
        ) from error
    except jax.errors.TracerArrayConversionError as error:
        raise ConfigError(
            f"loss: it gives a tensor to NumPy{line_of(error)}, which cannot be differentiated; write torch's functions"
        ) from error
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise ConfigError(
            f"loss: the code asks for the value of a tensor{line_of(error)}, by if, float(), .item() or a mask as "
            "index; a traced loss has shapes and no values: write torch.where(condition, a, b)"
        ) from error
    except OF_USERS as error:
        raise ConfigError(
            f"loss: torchax {kit.version} cannot run it{line_of(error)}: {type(error).__name__}: {first_line(error)}"
        ) from error


def line_of(error: BaseException) -> str:
    """The line of the user's code from which an exception came; empty if there is none."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_foreign()):
            return f" in line {frame.lineno} of {frame.filename}, {frame.line!r:.80}"
    return ""


@functools.cache
def _foreign() -> tuple[str, ...]:
    """How the names of files begin that are not the user's."""
    packages = (sys.modules[name] for name in ("torch", "torchax", "jax", "lambda_hat"))
    folders = [f"{Path(str(package.__file__)).parent}{os.sep}" for package in packages]
    return (*folders, contextlib.__file__, functools.__file__, "<")


def some(names: Sequence[str]) -> str:
    """The first names of many, and how many more there are."""
    return ", ".join(names[:MOST_NAMES]) + f", and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES)


def first_line(error: Exception) -> str:
    """The first line of a message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
