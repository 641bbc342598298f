"""A module of PyTorch as a loss in JAX: torchax runs the module's own code on JAX's arrays while the loss is traced."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_hat.errors import ConfigError

MOST_NAMES = 10
"""A message lists at most this many names."""
_LOCK = threading.RLock()
"""While a module computes, its parameters and its mode are replaced."""


def from_torch(
    module: Any, loss_fn: Callable[[Any, Any], Any], inputs: str | int | Sequence[str | int] | None = None
) -> tuple[TorchLoss, dict[str, np.ndarray]]:
    """Make a loss of JAX and its parameters from a module of PyTorch: `estimate_llc(*from_torch(...), data)`.

    Args:
        module: a `torch.nn.Module` with its trained parameters, which are copied. Those with `requires_grad` move,
            except that of several that are one tensor (tied weights) only the first is listed. Everything else is held:
            buffers, such as the running statistics of BatchNorm, and parameters without `requires_grad`. Whatever its
            mode, it is evaluated as after `module.eval()`: dropout is off, BatchNorm takes its running statistics.
        loss_fn: the loss in torch, the mean over the rows of the batch, or the pair (sum of the losses of the rows, sum
            of their weights). It is called as `loss_fn(module, batch)`; with `inputs` as `loss_fn(outputs, batch)`,
            where `outputs = module(batch[inputs])`. `batch` has the structure of the data, with tensors.
        inputs: the key of the entry of the batch with which the module is called, or a list of keys, for its arguments
            in order. None: `loss_fn` calls the module itself.

    Returns:
        The loss, `(params, batch) -> mean or pair`, and the parameters in the module's types, by their names in
        `module.state_dict()` with "/" for ".".

    Raises:
        ConfigError: if torch or torchax are missing, or if `module` is no module or has no parameter that moves. The
            loss raises it while it is traced, if torchax has no JAX version of an operation, or if the code asks for
            the value of a tensor.
    """
    torch = _machinery().torch
    if not isinstance(module, torch.nn.Module):
        raise ConfigError(f"module: got a {type(module).__name__}, expected a torch.nn.Module")
    if not callable(loss_fn):
        raise ConfigError(f"loss_fn: got {loss_fn!r:.60}, expected a function (module, batch) -> mean loss")
    names: dict[str, str] = {}
    moving: dict[str, np.ndarray] = {}
    held: dict[str, np.ndarray] = {}
    frozen: list[str] = []
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        path = name.replace(".", "/")
        names[path] = name
        if tensor.is_meta or torch.nn.parameter.is_lazy(tensor):
            raise ConfigError(f"module: {path} has no values yet; load its weights, or call a lazy module once")
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        frozen += [path] * (is_parameter and not tensor.requires_grad)
        array = as_numpy(tensor)
        if is_parameter and tensor.requires_grad:
            moving[path] = array
        else:
            held[path] = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    if not moving:
        what = f"none of its {len(frozen)} parameters has requires_grad" if frozen else "it has no parameters"
        raise ConfigError(f"module: {what}; nothing could be sampled: module.requires_grad_(True) lets them move")
    notes = []
    if any(part.training for part in module.modules()):
        notes.append("the module was in training mode, and is evaluated as after module.eval(): without dropout")
    if statistics := [path for path in held if path.endswith(("running_mean", "running_var"))]:
        notes.append(f"BatchNorm's statistics are held as they are: {_some(statistics)}")
    if frozen:
        notes.append(f"parameters without requires_grad are held as they are: {_some(frozen)}")
    shell = _machinery().shell(module, functools.partial(_call, loss_fn, _keys(inputs)))
    return TorchLoss(shell, names, held, tuple(notes)), moving


def _keys(inputs: Any) -> tuple[Any, ...] | None:
    if inputs is None or isinstance(inputs, (list, tuple)):
        return None if inputs is None else tuple(inputs)
    return (inputs,)


def _call(loss_fn: Callable[[Any, Any], Any], inputs: tuple[Any, ...] | None, module: Any, batch: Any) -> Any:
    if inputs is None:
        return loss_fn(module, batch)
    try:
        given = [batch[key] for key in inputs]
    except (LookupError, TypeError):
        has = list(batch) if isinstance(batch, Mapping) else f"a {type(batch).__name__}"
        raise ConfigError(f"inputs: got {list(inputs)}, expected keys of the batch, which is {has!s:.100}") from None
    return loss_fn(module(*given), batch)


@dataclass(frozen=True, eq=False)
class TorchLoss:
    """A loss of JAX, `(params, batch) -> mean or pair (sum, weight)`, that runs a module of torch."""

    shell: Any
    """A module whose only child is the user's, and which returns the loss of a batch."""
    names: dict[str, str]
    """The module's name of every parameter and buffer, by path."""
    state: dict[str, np.ndarray]
    """The arrays that the loss takes beside the parameters, by path. They do not move."""
    notes: tuple[str, ...]
    """Sentences about what is held."""

    def with_state(self, state: Mapping[str, np.ndarray]) -> TorchLoss:
        """The same loss with other values of `state`."""
        return TorchLoss(self.shell, self.names, dict(state), self.notes)

    def __call__(self, params: Mapping[str, Any], batch: Any) -> Any:
        """The loss, or the pair, in the precision of `params`.

        Args:
            params: the parameters by path, as `from_torch` returned them.
            batch: a pytree of arrays, the rows of the data.

        Raises:
            ConfigError: if the code cannot be traced. The message names the operation, or the line.
        """
        tools = _machinery()
        dtype = next(iter(params.values())).dtype

        def tensor(array: Any, dtype: Any = None) -> Any:
            array = jnp.asarray(array)
            return tools.tensor(array if dtype is None else array.astype(dtype), tools.env)

        def held(array: np.ndarray) -> Any:
            return tensor(array, dtype if jnp.issubdtype(array.dtype, jnp.floating) else None)

        tensors = {path: held(array) for path, array in self.state.items()}
        tensors |= {path: tensor(array) for path, array in params.items()}
        with _LOCK, _sentences(tools), tools.env:
            returned = self._evaluate(tensors, jax.tree.map(tensor, batch))
        if isinstance(returned, tuple):
            return tuple(map(tools.to_jax, returned))
        return tools.to_jax(returned)

    def reference(self, params: Mapping[str, Any], batch: Any) -> tuple[float, float]:
        """The mean loss as torch itself computes it, in the types and on the device of the module.

        Args:
            params: the parameters by path.
            batch: the rows, in which floating-point numbers take the type of the parameters.

        Returns:
            The mean, and the rounding unit of the module's type.

        Raises:
            ConfigError: if torch refuses the rows, for example for a token outside the vocabulary.
        """
        torch, module = _machinery().torch, self.shell.module
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        first = own[self.names[next(iter(params))]]

        def row(array: Any) -> Any:
            array = np.asarray(array)
            if jnp.issubdtype(array.dtype, jnp.floating):
                return _as_tensor(array).to(first.device, first.dtype)
            # Torch takes labels of this type alone.
            return _as_tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array).to(first.device)

        tensors = {
            path: _as_tensor(array).to(own[self.names[path]].device, own[self.names[path]].dtype)
            for path, array in {**self.state, **params}.items()
        }
        with _LOCK, _watched_embeddings(torch, module):
            try:
                returned = self._evaluate(tensors, jax.tree.map(row, batch))
            except ConfigError:
                raise
            except _OF_USERS as error:
                raise ConfigError(
                    f"loss: torch itself refuses rows of the data: {type(error).__name__}: {_first_line(error)}"
                    f"{_where(error)}"
                ) from error
        with contextlib.suppress(TypeError, ValueError, ZeroDivisionError, RuntimeError):
            eps = torch.finfo(first.dtype).eps
            return (float(returned[0]) / float(returned[1]) if isinstance(returned, tuple) else float(returned)), eps
        return float("nan"), 1.0

    def _evaluate(self, tensors: dict[str, Any], batch: Any) -> Any:
        torch = _machinery().torch
        with torch.no_grad(), _in_evaluation(self.shell):
            named = {f"module.{self.names[path]}": tensor for path, tensor in tensors.items()}
            return torch.func.functional_call(self.shell, named, (batch,))


# --------------------------------------------------------------------------------------------------------------
# Checkpoints


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
    torch = _machinery().torch
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
    said = [f"lacks {_some(missing)}"] * bool(missing) + [f"also has {_some(unexpected)}"] * bool(unexpected)
    said += [f"has {_some(shapes)}"] * bool(shapes)
    if said:
        raise ConfigError(f"{source} {'; '.join(said)}; it must fit module.state_dict(){_prefix(own, given)}")
    for paths in places.values():
        there = [path for path in paths if path in given]
        for other in there[1:]:
            if not np.array_equal(given[there[0]], given[other]):
                raise ConfigError(f"{source}: {there[0]} and {other} are one tensor in the module, and differ here")
        with torch.no_grad():
            own[there[0]].copy_(_as_tensor(given[there[0]]))


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
    torch = _machinery().torch
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
    kind = _machinery().torch.Tensor
    keys = list(map(str, content)) if isinstance(content, Mapping) else []

    def is_state_dict(value: Any) -> bool:
        return isinstance(value, Mapping) and any(isinstance(k, str) and isinstance(v, kind) for k, v in value.items())

    if is_state_dict(content):
        tensors = {name: value for name, value in content.items() if isinstance(value, kind)}
        if len(tensors) < len(content):
            others = [key for key in keys if key not in tensors]
            said.append(f"{path.name}: no tensor, and left out: {_some(others)}")
        return tensors
    inside = {str(name): value for name, value in content.items() if is_state_dict(value)} if keys else {}
    if len(inside) == 1:
        name, found = next(iter(inside.items()))
        if len(keys) > 1:
            said.append(f"{path.name}: its {name} is the state dict; left out: {_some([k for k in keys if k != name])}")
        return _state_dict(found, path, said)
    if inside:
        raise ConfigError(
            f"{path} holds several state dicts, {_some(list(inside))}; save the one that is meant: "
            f"torch.save(torch.load(path)[{next(iter(inside))!r}], new_path)"
        )
    found = f"a dict of {_some(keys)}" if keys else f"a {type(content).__name__}"
    raise ConfigError(f"{path} holds {found}, expected a state dict: torch.save(module.state_dict(), path)")


def as_numpy(tensor: Any) -> np.ndarray:
    """A copy of a tensor of torch, whatever its type and device; NumPy itself knows no bfloat16."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        # Every bfloat16 is a float32 too.
        return tensor.float().numpy().astype(jnp.bfloat16)
    return np.array(tensor.numpy())


def _as_tensor(array: Any) -> Any:
    """A copy of an array as a tensor on the CPU, floating-point numbers as float64: NumPy's bfloat16 is not torch's."""
    array = np.array(array)
    exact = array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array
    return _machinery().torch.from_numpy(exact)


# --------------------------------------------------------------------------------------------------------------
# Torch on JAX's arrays


class _Machinery(NamedTuple):
    torch: Any
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


@functools.cache
def _machinery() -> _Machinery:
    """What is made of torch and torchax, which are imported on first use."""
    try:
        torch: Any = importlib.import_module("torch")
        torchax: Any = importlib.import_module("torchax")
        inside: Any = importlib.import_module("torchax.tensor")
    except (ImportError, AttributeError) as error:
        # A torchax that does not know a newer torch raises AttributeError.
        raise ConfigError(
            f"torch and torchax cannot be imported together: {_first_line(error)}; pip install 'lambda-hat[torch]'"
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

    return _Machinery(torch, inside.Tensor, Environment(), Shell, to_jax, inside.OperatorNotFound, torchax.__version__)


@contextlib.contextmanager
def _in_evaluation(module: Any) -> Iterator[None]:
    training = [part for part in module.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


@contextlib.contextmanager
def _watched_embeddings(torch: Any, module: Any) -> Iterator[None]:
    """Refuse an index outside an embedding by the names of both. JAX takes another row, or NaN, without a word."""

    def watch(name: str, embedding: Any, args: tuple) -> None:
        rows = args[0] if args else None
        if rows is None or not rows.numel() or rows.dtype.is_floating_point:
            return
        least, most, count = int(rows.min()), int(rows.max()), embedding.num_embeddings
        if least < 0 or most >= count:
            raise ConfigError(
                f"data: {name.replace('.', '/')} looks up {least if least < 0 else most}, and has the rows 0 to "
                f"{count - 1}: a token outside the vocabulary; take the tokeniser of this model, and mark what is "
                "padded by a mask"
            )

    hooks = [
        part.register_forward_pre_hook(functools.partial(watch, name))
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Embedding)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


_OF_USERS = (
    ArithmeticError, AssertionError, AttributeError, LookupError, NameError, NotImplementedError, RuntimeError,
    TypeError, ValueError,
)  # fmt: skip
"""What the code of a module may raise."""


@contextlib.contextmanager
def _sentences(tools: _Machinery) -> Iterator[None]:
    """Turn an exception of code that runs on JAX's arrays into a ConfigError with the line to write."""
    try:
        yield
    except ConfigError:
        raise
    except tools.unknown as error:
        name = _first_line(error).removeprefix("Operator with name ").removesuffix(" has no lowering")
        raise ConfigError(
            f"loss: torchax {tools.version} has no JAX version of the operation {name}{_where(error)}; write it by "
            "other operations of torch"
        ) from error
    except jax.errors.TracerArrayConversionError as error:
        raise ConfigError(
            f"loss: it gives a tensor to NumPy{_where(error)}, which cannot be differentiated; write torch's functions"
        ) from error
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerIntegerConversionError,
    ) as error:
        raise ConfigError(
            f"loss: the code asks for the value of a tensor{_where(error)}, by if, float(), .item() or a mask as "
            "index; a traced loss has shapes and no values: write torch.where(condition, a, b)"
        ) from error
    except _OF_USERS as error:
        raise ConfigError(
            f"loss: torchax {tools.version} cannot run it{_where(error)}: {type(error).__name__}: {_first_line(error)}"
        ) from error


def _where(error: BaseException) -> str:
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


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + f", and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:200]
