"""Compiled programs: one per signature and process, and refused where one would not fit into memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lambda_hat.errors import TooLarge
from lambda_hat.programs.exchange import build

MOST_PROGRAMS = 100
"""Executables that a process keeps, those used last. On a CPU one takes about 170 memory mappings, of which Linux gives
a process 65,530 by default; at the limit the compiler aborts it."""

_programs: OrderedDict[Hashable, tuple[Callable, int]] = OrderedDict()
"""With the memory that a call takes: to ask XLA costs ten milliseconds."""
_results: dict[Hashable, Any] = {}


class Compiled(NamedTuple):
    """An executable, the seconds that it took just now, and where it came from."""

    call: Callable
    memory: int
    """Bytes that a call takes."""
    seconds: float
    """Tracing, loading, and waiting for another process to compile it, included."""
    source: Literal["process", "loaded", "compiled"]
    """It was in this process already, it came from the shared folder, or it was compiled."""


def compiled(
    static: Hashable,
    make: Callable[[], Callable],
    args: tuple,
    strict: bool,
    donate: tuple[int, ...] = (),
    shared: Path | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Compiled:
    """The executable of `make()` for arguments like `args`: this process's, the shared folder's, or compiled now.

    static: everything but the arguments that decides what `make()` computes; with the shapes and dtypes of `args`
    and the precision mode it is the program's signature. `strict`: trace under strict dtype promotion (blackjax's
    own code does not take it). `donate`: positions of arguments whose memory the result may take over. `shared` and
    `is_stopping` as of `exchange.build`.
    """
    key = _key(static, args)
    if key in _programs:
        _programs.move_to_end(key)
        return Compiled(*_programs[key], 0.0, "process")
    start = time.perf_counter()
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        lowered = jax.jit(make(), donate_argnums=donate).lower(*args)
        call, loaded = build(lowered, shared, is_stopping)
    _programs[key] = call, bytes_needed(call)
    if len(_programs) > MOST_PROGRAMS:
        _programs.popitem(last=False)
    return Compiled(*_programs[key], time.perf_counter() - start, "loaded" if loaded else "compiled")


def call(function: Callable, static: tuple[Hashable, ...], shared: Path | None, *args: Any) -> Any:
    """`function(*static, *args)` as a program: all numbers in `args` are arguments of it. shared: as of `compiled`."""
    arrays = jax.tree.map(jnp.asarray, args)
    identity = (function.__module__, function.__name__, *static)
    return compiled(identity, lambda: partial(function, *static), arrays, strict=False, shared=shared).call(*arrays)


def result_of(static: Hashable, make: Callable[[], Callable], args: tuple) -> Any:
    """Shapes and dtypes of what `make()` returns for arguments like `args`, traced once in a process: a tuner takes
    seconds. static: as of `compiled`."""
    key = _key(static, args)
    if key not in _results:
        _results[key] = jax.eval_shape(make(), *args)
    return _results[key]


def _key(static: Hashable, args: tuple) -> Hashable:
    leaves, structure = jax.tree.flatten(args)
    avals = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
    return static, structure, avals, bool(jax.config.jax_enable_x64)


def bytes_needed(program: Callable) -> int:
    """Memory that a call takes in all, as XLA planned it from the shapes: arguments, results, and what it computes in
    between."""
    planned = program.memory_analysis()
    return (
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes
    )


def require_memory(needed: int, available: int | None) -> None:
    """Raises TooLarge where more than `available` bytes are needed; None: not known."""
    if available is not None and needed > available:
        raise TooLarge(
            f"this run needs about {_gib(needed)} of memory, and its rank has {_gib(available)}; take fewer chains or "
            "draws, a smaller batch_size or slice_rows, or fewer ranks per node (site.ranks_per_node=N)"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
