"""The windows of adaptation. Each window's metric holds in the next one.

The sampler chooses the part of burn-in after which the last window ends. The windows before it end at a half, a
quarter, ... of that. After the last window the metric stays, and the step size settles in it.

A window ends a dozen times in a run. What happens then is computed on the host, in NumPy: in a program, the fit of a
low-rank metric alone is some sixty kernels to compile, as many as a step of SGLD with its records.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt

LEAST_WINDOW = 16
"""Transitions of the first window, at least. Arbitrary."""
NUMBER = np.uint32
"""Type of counts of transitions in a program."""
NOWHERE = NUMBER(2**32 - 1)
"""The place of a transition that is not kept."""
ALL = 2**31
"""Transitions kept of a window, where it keeps every one."""


class Window(NamedTuple):
    """The transitions that a window keeps, as arguments of a program."""

    begin: UInt[Array | np.uint32, ""]
    stride: UInt[Array | np.uint32, ""]
    """From one transition that is kept to the next."""

    def place(self, index: UInt[Array, ""]) -> UInt[Array, ""]:
        """The place of transition `index` among those that are kept, counted from 0; NOWHERE where it is not kept."""
        since = index - self.begin
        kept = (index >= self.begin) & (since % self.stride == NUMBER(0))
        return jnp.where(kept, since // self.stride, NOWHERE)


NO_WINDOW = Window(NUMBER(2**32 - 1), NUMBER(1))
"""After the last window. No run has so many transitions."""


class Windows(NamedTuple):
    """The windows of one run."""

    last_end: int
    """Transitions after which the last window ends."""
    rows: int = ALL
    """Transitions that a window keeps, spread evenly over it, at most."""

    @property
    def ends(self) -> list[int]:
        """Transitions after which windows end."""
        least = max(min(LEAST_WINDOW, self.last_end), 1)
        halved = (self.last_end >> times for times in range(32))
        return sorted(end for end in halved if end >= least)

    def at(self, step: int) -> tuple[Window, int | None]:
        """The window of transition `step`, and where it ends; None after the last one."""
        begin = 0
        for end in self.ends:
            if step < end:
                return Window(NUMBER(begin), NUMBER(max(1, -(-(end - begin) // self.rows)))), end
            begin = end
        return NO_WINDOW, None
