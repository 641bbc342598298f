"""Chains computed all at once, or some at a time to bound the memory of what one evaluation takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jaxtyping import Array, PyTree

Tree = TypeVar("Tree")
"""A pytree of arrays."""


def of_chains(function: Callable[..., Tree], at_once: int | None, *args: PyTree) -> Tree:
    """Call a function for every chain.

    Args:
        function: (*args of a chain) -> arrays.
        at_once: Chains at a time, a divisor of their number; None: all.
        *args: Arrays with a leading axis of chains.

    Returns:
        The arrays of `function`, with a leading axis of chains.
    """
    if at_once is None:
        return jax.vmap(function)(*args)
    # An axis of length one would make XLA's products of matrices slower.
    return jax.lax.map(lambda chain: function(*chain), args, batch_size=None if at_once == 1 else at_once)


def update_chains(function: Callable[..., Tree], at_once: int | None, fixed: tuple[PyTree, ...], state: Tree) -> Tree:
    """Replace the state of every chain.

    Args:
        function: (*fixed of a chain, state of a chain) -> state of the chain.
        at_once: As for `of_chains`.
        fixed: Arrays with a leading axis of chains.
        state: Arrays with a leading axis of chains, whose memory the result takes over.
    """
    if at_once is None:
        return jax.vmap(function)(*fixed, state)

    def group(index: Array, state: Tree) -> Tree:
        def of_group(x: Array) -> Array:
            if at_once == 1:
                return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)
            return jax.lax.dynamic_slice_in_dim(x, index * np.int32(at_once), at_once)

        here = jax.tree.map(of_group, (*fixed, state))
        new = function(*here) if at_once == 1 else jax.vmap(function)(*here)
        put = jax.lax.dynamic_update_index_in_dim if at_once == 1 else jax.lax.dynamic_update_slice_in_dim
        return jax.tree.map(lambda x, of_new: put(x, of_new, index * np.int32(at_once), 0), state, new)

    num_chains = jax.tree.leaves(state)[0].shape[0]
    return jax.lax.fori_loop(np.int32(0), np.int32(num_chains // at_once), group, state)
