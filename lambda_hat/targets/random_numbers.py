"""Whole random numbers in a small program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

HALF, LOW = np.uint32(16), np.uint32(0xFFFF)
"""Bits of half a word, and the lower half."""


def random_numbers(key: Key[Array, ""], shape: tuple[int, ...], below: int | Int[Array, ""]) -> Int[Array, "..."]:
    """Draw whole numbers from 0 to `below - 1`, as int32.

    Each is the upper word of 32 random bits times `below`, and its probability is within `below / 2^32` of equal,
    relatively. `jax.random.randint` draws twice as many bits to come closer, and divides; its program is about twice as
    large.

    Args:
        key: The random key.
        shape: The shape.
        below: At least 1 and below 2^31.
    """
    bits, below = jax.random.bits(key, shape, jnp.uint32), jnp.asarray(below).astype(jnp.uint32)
    upper, lower = bits >> HALF, bits & LOW
    of_upper, of_lower = below >> HALF, below & LOW
    # The upper word of a product of two words, from the products of their halves.
    first, second = upper * of_lower, lower * of_upper
    carried = ((lower * of_lower >> HALF) + (first & LOW) + (second & LOW)) >> HALF
    return (upper * of_upper + (first >> HALF) + (second >> HALF) + carried).astype(jnp.int32)
