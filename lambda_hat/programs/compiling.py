"""Compiled programs: one for each signature in a process. A program that does not fit into memory is refused."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from lambda_hat.errors import TooLarge
from lambda_hat.programs import threefry
from lambda_hat.programs.broken_builds import refuse_broken_build
from lambda_hat.programs.compile_cache import build

MOST_PROGRAMS = 100
"""Executables that a process keeps: those used last. On a CPU one takes about 170 memory mappings. Linux gives a
process 65,530 of them by default, and at that limit the compiler aborts the process."""

_programs: OrderedDict[Hashable, tuple[Callable, int]] = OrderedDict()
"""Executables with the bytes that a call takes, because asking XLA for these takes ten milliseconds."""
_results: dict[Hashable, Any] = {}
"""Shapes and dtypes of results."""


class Compiled(NamedTuple):
    """An executable and where it came from."""

    call: Callable
    memory: int
    """Bytes that a call takes."""
    seconds: float
    """Time that it took just now, with tracing, loading, and waiting for another process to compile it."""
    source: Literal["process", "loaded", "compiled"]
    """This process already had it, or it was loaded from the shared folder, or it was compiled."""


def compiled(
    static: Hashable,
    make: Callable[[], Callable],
    args: tuple,
    strict: bool,
    donate: tuple[int, ...] = (),
    shared: Path | None = None,
    is_stopping: Callable[[], bool] = lambda: False,
) -> Compiled:
    """The executable of a function: that of this process, or of the shared folder, or compiled now.

    Args:
        static: Everything beside the arguments that decides what `make()` computes. With the shapes and dtypes of
            `args` and the precision mode it is the program's signature.
        make: Makes the function.
        args: Arrays, or shapes and dtypes, like the arguments.
        strict: Trace under strict dtype promotion, which blackjax's own code does not support.
        donate: Positions of arguments whose memory the result may take over; by default none.
        shared: The folder through which programs are exchanged; None: there is none.
        is_stopping: Asked while another process compiles the program; once it is true, the wait ends.
    """
    key = _key(static, args)
    if key in _programs:
        _programs.move_to_end(key)
        return Compiled(*_programs[key], 0.0, "process")
    start = time.perf_counter()
    if jax.default_backend() == "cpu":
        refuse_broken_build()
    threefry.install()
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        lowered = jax.jit(make(), donate_argnums=donate).lower(*args)
        call, loaded = build(lowered, shared, is_stopping)
    _programs[key] = call, bytes_needed(call)
    if len(_programs) > MOST_PROGRAMS:
        _programs.popitem(last=False)
    return Compiled(*_programs[key], time.perf_counter() - start, "loaded" if loaded else "compiled")


def call(function: Callable, static: tuple[Hashable, ...], shared: Path | None, *args: Any) -> Any:
    """Compute `function(*static, *args)` by a program.

    Args:
        function: The function.
        static: Arguments that are part of the program.
        shared: The folder through which programs are exchanged; None: there is none.
        *args: Arrays and numbers, which are arguments of the program.
    """
    arrays = jax.tree.map(jnp.asarray, args)
    identity = (function.__module__, function.__name__, *static)
    return compiled(identity, lambda: partial(function, *static), arrays, strict=False, shared=shared).call(*arrays)


def result_of(static: Hashable, make: Callable[[], Callable], args: tuple) -> Any:
    """Shapes and dtypes of what `make()` returns for arguments like `args`; the arguments are as of `compiled`.

    A process traces a function once, which may take seconds.
    """
    key = _key(static, args)
    if key not in _results:
        _results[key] = jax.eval_shape(make(), *args)
    return _results[key]


def _key(static: Hashable, args: tuple) -> Hashable:
    leaves, structure = jax.tree.flatten(args)
    avals = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
    # Type checkers do not see JAX's options.
    return static, structure, avals, bool(cast(Any, jax.config).jax_enable_x64)


def bytes_needed(program: Callable) -> int:
    """Bytes that a call takes in all, as XLA planned it from the shapes: arguments, results and what lies between."""
    planned = program.memory_analysis()
    return (
        planned.argument_size_in_bytes
        + planned.output_size_in_bytes
        - planned.alias_size_in_bytes
        + planned.temp_size_in_bytes
    )


def require_memory(needed: int, available: int | None) -> None:
    """Refuse a program that does not fit into memory.

    Args:
        needed: Bytes that a call takes.
        available: Bytes that there are; None: not known.

    Raises:
        TooLarge: More than `available` bytes are needed.
    """
    if available is not None and needed > available:
        raise TooLarge(
            f"this run needs about {_gib(needed)} of memory, and its rank has {_gib(available)}; take fewer chains or "
            "draws, chains_at_once: 1, accumulate: M for slices of a batch, a smaller slice_rows, or fewer ranks per "
            "node (site.ranks_per_node=N)"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
