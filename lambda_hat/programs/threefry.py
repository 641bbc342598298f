"""JAX's random numbers in smaller programs.

On CPUs JAX compiles a block of Threefry-2x32 as a loop of five passes. A loop is several kernels, which XLA can fuse
with nothing. A transition takes some ten blocks, most of them to derive a few keys, and they were half of its program.
Here a small block is written out: it becomes one kernel with what takes its bits. The bits are the same.

From JAX 0.11 on programs have JAX's own blocks. There LLVM visits the uses of every word again for each use
of the word before, and took more than ten minutes over some blocks (NUTS on two parameters, JAX 0.12.0.1).

Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.extend.random import threefry2x32_p
from jax.interpreters import mlir

SMALL = 64
"""Most counters of a block that is written out, because XLA computes it anew in every kernel that takes its bits.
Measured: without a bound, 16 lanes of a small network take a third longer a step; with 16 to 300, as long as with loops
alone."""
ROTATIONS = (np.array([13, 15, 26, 6], np.uint32), np.array([17, 29, 16, 24], np.uint32))
"""Bits by which the four rounds of a pass rotate, in even and in odd passes."""
PARITY = np.uint32(0x1BD11BDA)
"""The third word of a key is this, xor the other two."""
PASSES = 5
WRITTEN_OUT_BEFORE = (0, 11)
"""The first version of JAX whose own blocks stay."""

Words: TypeAlias = tuple[Any, Any]
"""Two arrays of uint32, of JAX or NumPy."""
State: TypeAlias = tuple[Words, tuple[Any, Any, Any], tuple[Any, Any]]
"""Of a block: its words, and the words of the key and the rotations in the order in which the next pass takes them."""


def block(
    key: Words,
    count: Words,
    repeat: Callable[[Callable[[Any, State], State], State], State],
) -> Words:
    """The random words of a counter, as `jax.random` computes them.

    Args:
        key: The words of the key.
        count: The words of the counter, whose shapes broadcast with those of `key`.
        repeat: `written_out` or `looped`.
    """

    def one_pass(index: Any, state: State) -> State:
        (x, y), words, rotations = state
        for bits in rotations[0]:
            x = x + y
            y = x ^ (y << bits | y >> (np.uint32(32) - bits))
        words = (*words[1:], words[0])
        return (x + words[0], y + words[1] + (index + np.uint32(1))), words, rotations[::-1]

    words = (*key, key[0] ^ key[1] ^ PARITY)
    return repeat(one_pass, ((count[0] + key[0], count[1] + key[1]), words, ROTATIONS))[0]


def written_out(one_pass: Callable[[Any, State], State], state: State) -> State:
    """Make the passes one after the other."""
    for index in range(PASSES):
        state = one_pass(np.uint32(index), state)
    return state


def looped(one_pass: Callable[[Any, State], State], state: State) -> State:
    """Make the passes by a loop of the program."""
    return jax.lax.fori_loop(np.uint32(0), np.uint32(PASSES), one_pass, state)


def fold_in(key: tuple[np.ndarray, np.ndarray], number: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words of `jax.random.fold_in(key, number)`, by NumPy.

    Args:
        key: The words of keys; arrays, because NumPy warns of the overflow of single numbers.
        number: Integers below 2^32, whose shape broadcasts with that of `key`.
    """
    number = np.asarray(number, np.uint32)
    return block(key, (np.zeros_like(number), number), written_out)


@functools.cache
def install() -> None:
    """Compile the blocks of this process's programs for CPUs in this way from now on, where JAX is old enough."""
    if jax.__version_info__ >= WRITTEN_OUT_BEFORE:
        return

    def lowered(repeat: Callable) -> Callable:
        return mlir.lower_fun(lambda *words: block(words[:2], words[2:], repeat), multiple_results=True)

    small, large = lowered(written_out), lowered(looped)

    def lower(context: Any, *words: Any) -> Any:
        return (small if context.avals_out[0].size <= SMALL else large)(context, *words)

    mlir.register_lowering(threefry2x32_p, lower, platform="cpu")
