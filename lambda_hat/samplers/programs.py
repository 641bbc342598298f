"""Compiled programs: one per signature and process, and refused where one would not fit into memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import numpy as np

from lambda_hat.errors import TooLarge

MOST_PROGRAMS = 100
"""Executables that a process keeps, those used last. On a CPU one takes about 170 memory mappings, of which Linux gives
a process 65,530 by default; at the limit the compiler aborts it."""

_programs: OrderedDict[Hashable, Callable] = OrderedDict()


class Compiled(NamedTuple):
    """An executable, the seconds that it took to make just now, and whether it was there already."""

    call: Callable
    seconds: float
    cache_hit: bool


def compiled(
    static: Hashable, make: Callable[[], Callable], args: tuple, strict: bool, donate: tuple[int, ...] = ()
) -> Compiled:
    """The executable of `make()` for arguments like `args`, from this process's cache or compiled now.

    static: everything but the arguments that decides what `make()` computes; with the shapes and dtypes of `args`
    and the precision mode it is the program's signature. `strict`: trace under strict dtype promotion (blackjax's
    own code does not take it). `donate`: positions of arguments whose memory the result may take over.
    """
    leaves, structure = jax.tree.flatten(args)
    avals = tuple((np.shape(leaf), str(leaf.dtype)) for leaf in leaves)
    key = (static, structure, avals, bool(jax.config.jax_enable_x64))
    if key in _programs:
        _programs.move_to_end(key)
        return Compiled(_programs[key], 0.0, True)
    start = time.perf_counter()
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        _programs[key] = jax.jit(make(), donate_argnums=donate).lower(*args).compile()
    if len(_programs) > MOST_PROGRAMS:
        _programs.popitem(last=False)
    return Compiled(_programs[key], time.perf_counter() - start, False)


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


def require_memory(program: Callable, available: int | None) -> None:
    """Raises TooLarge where a call of `program` would take more than `available` bytes; None: not known."""
    needed: Any = bytes_needed(program)
    if available is not None and needed > available:
        raise TooLarge(
            f"this run needs about {_gib(needed)} of memory, and its rank has {_gib(available)}; take fewer chains or "
            "draws, a smaller batch_size or slice_rows, or fewer ranks per node (site.ranks_per_node=N)"
        )


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
