"""What the programs of `chains` take and return.

In the shapes l = lanes, c = num_chains, d = room for draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt

from lambda_hat.engine.algorithm import Learned
from lambda_hat.engine.model import Anchor
from lambda_hat.estimate.draws import RowMoments
from lambda_hat.estimate.posterior import Posterior


class Bounds(NamedTuple):
    """Bounds of the loops, the same for every lane."""

    thin: UInt[Array | np.uint32, ""]
    num_adapt: UInt[Array | np.uint32, ""]
    """Transitions of adaptation."""
    num_burnin: UInt[Array | np.uint32, ""]
    """Transitions of burn-in, adaptation included."""
    check_every: UInt[Array | np.uint32, ""]
    """Recorded draws between two checks of the step size."""


class Place(NamedTuple):
    """Arrays of the targets, as in `Target`.

    Either every array has an axis of lanes, or none has, and all lanes sample one target.
    """

    w_star: Mapping[str, Array | np.ndarray]
    held: Mapping[str, Array | np.ndarray]
    data: Mapping[str, Array | np.ndarray]
    starts: Mapping[str, Array | np.ndarray]
    observed: Mapping[str, Mapping[str, Array | np.ndarray] | None]
    """The data of each observable."""


class Numbers(NamedTuple):
    """The arguments of every program."""

    keys: UInt[Array | np.ndarray, "l c 4 2"]
    """`chain_keys.words_of_keys` of each lane."""
    bounds: Bounds
    arguments: dict[str, Array]
    """Fields of the configurations by name; (l,) each."""
    posterior: Posterior
    """(l,) each."""
    place: Place


class Totals(NamedTuple):
    """Sums over transitions and over checks of the step size, with an axis of lanes or of one lane."""

    acceptance: Float[Array | np.ndarray, "*l c"]
    mala_acceptance: Float[Array | np.ndarray, "*l c"]
    num_divergent: UInt[Array | np.ndarray, "*l c"]
    num_gradients: UInt[Array | np.ndarray, "*l c"]


class Watched(NamedTuple):
    """The values of the observables by name, with an axis of lanes or of one lane."""

    draws: Mapping[str, Float[Array | np.ndarray, "*l c d ..."]]
    """At the recorded draws; NaN where `Running.draws` is."""
    at_w_star: Mapping[str, Float[Array | np.ndarray, "*l ..."]]


class Running(NamedTuple):
    """The chains of some lanes."""

    step: UInt[Array, ""]
    """Transitions made."""
    draw: UInt[Array, ""]
    """Draws recorded."""
    num_steps: UInt[Array, " l"]
    """Transitions of each lane; the count stops when all of its chains have died."""
    num_draws: UInt[Array, " l"]
    anchor: Anchor
    """Shapes (l,) and (l, dim)."""
    state: PyTree
    learned: Learned
    """With axes of lanes and chains, as `state`."""
    step_size: Float[Array, "l c"]
    flat_heat: Float[Array, "l c"]
    """`Algorithm.flat_heat`; 0 where there is none."""
    totals: Totals
    rows: RowMoments | None
    """Sums where `RowMoments` has means of squares and likelihoods."""
    alive: Bool[Array, "l c"]
    draws: Float[Array, "l c 3 d"]
    """`L_n(w) - L_n(w_star)`, and the means of growth and distance since the draw before; NaN for draws that are not
    recorded yet, and for all draws after a chain has died."""
    visits: Float[Array, "l c 3"]
    """Sums of the fields of `Visit` since the last draw."""
    watched: Watched

    def without_window(self) -> Running:
        """The chains without what a window has kept, which nothing reads after adaptation."""
        return self._replace(learned=self.learned._replace(kept=None))
