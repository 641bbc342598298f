"""The normal noise of the stochastic samplers. In a large network it is most of the time of a step."""

from __future__ import annotations

import jax
from jaxtyping import Array, Float, Key


def normal_like(key: Key[Array, ""], w: Float[Array, " dim"]) -> Float[Array, " dim"]:
    """Draw a standard normal number for every entry of `w`."""
    # A block of threefry is two words of 32 bits. By jax's default, which is made for arrays on several devices, every
    # number of 32 bits takes a whole block, and half of it is thrown away.
    with jax.threefry_partitionable(False):
        return jax.random.normal(key, w.shape, w.dtype)
