"""The random keys of the chains of a run."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt

from lambda_hat.programs.threefry import fold_in

CHAIN_STREAM = 0
"""Number of the random stream of the chains."""


class Keys(NamedTuple):
    """The random keys of chains. Each transition and each draw folds its number into one of them."""

    start: Key[Array, "*chains"]
    init: Key[Array, "*chains"]
    step: Key[Array, "*chains"]
    draw: Key[Array, "*chains"]


def words_of_keys(seed: int, identity: int, num_chains: int) -> UInt[np.ndarray, "c 4 2"]:
    """The words of the keys of every chain of a run.

    They are those of `jax.random.fold_in`, first of the identity, then of the stream, of the chain, and of the place in
    `Keys`. They are made here, because XLA would compile each of these steps anew for every program.

    Args:
        seed: The configuration's seed, below 2^32.
        identity: The run's number, below 2^32, which tells it from other runs with the same seed.
        num_chains: The number of chains.
    """
    key = (np.zeros(1, np.uint32), np.array([seed], np.uint32))
    chains, places = np.arange(num_chains)[:, None], np.arange(len(Keys._fields))
    for number in (identity, CHAIN_STREAM, chains, places):
        key = fold_in(key, number)
    return np.stack(key, axis=-1)


def keys_of(words: UInt[Array | np.ndarray, "*chains 4 2"]) -> Keys:
    """The keys with these words."""
    keys = jax.random.wrap_key_data(jnp.asarray(words), impl="threefry2x32")
    return Keys(*(keys[..., place] for place in range(len(Keys._fields))))
