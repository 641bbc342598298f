"""The random keys of a run and of its chains."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import jax
import numpy as np
from jaxtyping import Array, Key, UInt

CHAIN_STREAM = 0
"""Number of the random stream of the chains."""


class Keys(NamedTuple):
    """The random keys of one chain. Each transition and each draw folds its number into one of them."""

    start: Key[Array, ""]
    init: Key[Array, ""]
    adapt: Key[Array, ""]
    step: Key[Array, ""]
    draw: Key[Array, ""]


Seed: TypeAlias = UInt[Array | np.ndarray | np.uint32, ""]


def base_key(seed: Seed, identity: Seed, stream: int) -> Key[Array, ""]:
    """The random key of a run.

    Args:
        seed: The configuration's seed, a uint32.
        identity: The run's number, a uint32, which tells it from other runs with the same seed.
        stream: What the key is for.
    """
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), identity), stream)


def keys_of(key: Key[Array, ""], chain: UInt[Array, ""]) -> Keys:
    """The keys of one chain. `key` is that of the run."""
    # XLA takes several times as long to compile a split of a key.
    of_chain = jax.random.fold_in(key, chain)
    return Keys(*(jax.random.fold_in(of_chain, number) for number in range(len(Keys._fields))))
