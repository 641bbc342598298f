"""A module of torch and its loss as a loss of JAX: the module's own code runs on JAX's arrays while it is traced."""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lambda_hat.errors import ConfigError
from lambda_hat.torch.on_jax import OF_USERS, as_numpy, as_tensor, first_line, line_of, sentences, some, tools

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
        loss_fn: the loss in torch, the mean over the rows of the batch, the pair (sum of the losses of the rows, sum of
            their weights), or the losses of tokens and their weights, both of shape (rows, tokens). It is called as
            `loss_fn(module, batch)`; with `inputs` as `loss_fn(outputs, batch)`, where `outputs =
            module(batch[inputs])`. `batch` has the structure of the data, with tensors.
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
    torch = tools().torch
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
        notes.append(f"BatchNorm's statistics are held as they are: {some(statistics)}")
    if frozen:
        notes.append(f"parameters without requires_grad are held as they are: {some(frozen)}")
    shell = tools().shell(module, functools.partial(_call, loss_fn, _keys(inputs)))
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
    """The arrays that the loss takes beside the parameters, by path, in the types of the module. They do not move."""
    notes: tuple[str, ...]
    """Sentences about what is held."""

    def __call__(self, params: Mapping[str, Any], batch: Any, state: Mapping[str, Any] | None = None) -> Any:
        """The loss, or the pair, in the precision of `params`.

        Args:
            params: the parameters by path, as `from_torch` returned them.
            batch: a pytree of arrays, the rows of the data.
            state: other values of the arrays `self.state`; None: these. As arguments they are no part of a program.

        Raises:
            ConfigError: if the code cannot be traced. The message names the operation, or the line.
        """
        kit = tools()
        dtype = next(iter(params.values())).dtype

        def tensor(array: Any) -> Any:
            array = jnp.asarray(array)
            # Some of torch's functions take no mixture.
            is_float = jnp.issubdtype(array.dtype, jnp.floating)
            return kit.tensor(array.astype(dtype) if is_float else array, kit.env)

        tensors = {path: tensor(array) for path, array in {**(state or self.state), **params}.items()}
        with _LOCK, sentences(), kit.env, warnings.catch_warnings():
            # Torch's integers have 64 bits, and in a float32 run JAX's have 32.
            warnings.filterwarnings("ignore", "Explicitly requested dtype", UserWarning)
            returned = self._evaluate(tensors, jax.tree.map(tensor, batch))
        if isinstance(returned, tuple):
            return tuple(map(kit.to_jax, returned))
        return kit.to_jax(returned)

    def reference(
        self, params: Mapping[str, Any], batch: Any, state: Mapping[str, Any] | None = None
    ) -> tuple[float, float]:
        """The mean loss as torch itself computes it, in the types and on the device of the module.

        Args:
            params: the parameters by path.
            batch: the rows, in which floating-point numbers take the type of the parameters.
            state: as in a call.

        Returns:
            The mean, and the rounding unit of the module's type.

        Raises:
            ConfigError: if torch refuses the rows, for example for a token outside the vocabulary.
        """
        torch, module = tools().torch, self.shell.module
        own = dict(module.named_parameters()) | dict(module.named_buffers())
        first = own[self.names[next(iter(params))]]

        def row(array: Any) -> Any:
            array = np.asarray(array)
            if jnp.issubdtype(array.dtype, jnp.floating):
                return as_tensor(array).to(first.device, first.dtype)
            # Torch takes labels of this type alone.
            return as_tensor(array.astype(np.int64) if array.dtype.kind in "iu" else array).to(first.device)

        tensors = {
            path: as_tensor(array).to(own[self.names[path]].device, own[self.names[path]].dtype)
            for path, array in {**(state or self.state), **params}.items()
        }
        with _LOCK, _watched_embeddings(torch, module):
            try:
                returned = self._evaluate(tensors, jax.tree.map(row, batch))
            except ConfigError:
                raise
            except OF_USERS as error:
                raise ConfigError(
                    f"loss: torch itself refuses rows of the data: {type(error).__name__}: {first_line(error)}"
                    f"{line_of(error)}"
                ) from error
        with contextlib.suppress(TypeError, ValueError, ZeroDivisionError, RuntimeError):
            eps = torch.finfo(first.dtype).eps
            return _mean(returned), eps
        return float("nan"), 1.0

    def _evaluate(self, tensors: dict[str, Any], batch: Any) -> Any:
        torch = tools().torch
        with torch.no_grad(), _in_evaluation(self.shell):
            named = {f"module.{self.names[path]}": tensor for path, tensor in tensors.items()}
            return torch.func.functional_call(self.shell, named, (batch,))


def _mean(returned: Any) -> float:
    """The mean that a loss of torch means by what it returned."""
    if not isinstance(returned, tuple):
        return float(returned)
    total, weight = returned
    if getattr(weight, "ndim", 0):
        total, weight = (total * weight).sum(), weight.sum()
    return float(total) / float(weight)


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
