"""How many runs are vmapped into one program beside their chains: a number of lanes, or `auto`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

MOST_LANES = 64
"""Of `auto`. More gained little on a CPU, and compiling took 17 s at 128."""

T = TypeVar("T")


def even_pieces(items: Sequence[T], most: int) -> list[list[T]]:
    """The items in the fewest pieces of at most `most`, the largest first, of sizes that differ by one at most."""
    count = math.ceil(len(items) / most)
    return [list(items[i::count]) for i in range(count)]
