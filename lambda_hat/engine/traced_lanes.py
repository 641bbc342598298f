"""What the programs take from their targets, and the lanes of a program while it is traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from lambda_hat.engine.algorithm import LENGTHS
from lambda_hat.engine.model import Model
from lambda_hat.engine.states import Numbers
from lambda_hat.targets.base import Loss, Observable, all_parameters

Tree = TypeVar("Tree")
"""A pytree of arrays."""


class TargetSpec(NamedTuple):
    """What a program takes from its targets beside their arrays."""

    loss: Loss
    population: bool
    one_target: bool
    """`Place` has no axis of lanes."""
    observables: tuple[tuple[str, Observable], ...] = ()
    """By name."""


class Lanes:
    """The lanes of a program while it is traced."""

    def __init__(self, target: TargetSpec, slice_rows: int, numbers: Numbers):
        w_star, held, data, starts, observed = numbers.place
        axis = None if target.one_target else 0
        one = w_star if target.one_target else jax.tree.map(lambda array: array[0], w_star)
        unravel = ravel_pytree(one)[1]

        def flat(w_star: Mapping[str, Array | np.ndarray]) -> Float[Array, " dim"]:
            return ravel_pytree(w_star)[0]

        def model(w_star, held, data, starts, observed, posterior) -> Model:
            def parameters(w: Float[Array, " dim"]) -> dict[str, Array]:
                return all_parameters(unravel(w), held, starts)

            watched = target.observables, observed
            return Model(target.loss, target.population, slice_rows, parameters, w_star, data, posterior, *watched)

        self._model = model
        # Lengths get no axis of lanes. A predicate with that axis makes `lax.cond` compute both of its branches, and a
        # metric would be fitted at every transition instead of at the end of each window.
        arguments = {name: x[0] if name in LENGTHS else x for name, x in numbers.arguments.items()}
        of_arguments = {name: None if name in LENGTHS else 0 for name in arguments}
        w = flat(w_star) if axis is None else jax.vmap(flat)(w_star)
        self._numbers = (arguments, w, held, data, starts, observed)
        self._axes = (of_arguments, *[axis] * 5)
        self._posterior = numbers.posterior
        self._is_single = numbers.keys.shape[0] == 1

    def map(self, function: Callable[..., Tree], *args: PyTree) -> Tree:
        """Call a function for every lane.

        Args:
            function: (model, arguments, *args) -> arrays of one lane.
            *args: Arrays with an axis of lanes.

        Returns:
            The arrays of `function`, with an axis of lanes.
        """

        def of_lane(numbers, posterior, *args):
            arguments, w_star, held, data, starts, observed = numbers
            return function(self._model(w_star, held, data, starts, observed, posterior), arguments, *args)

        if self._is_single:
            # With one more axis, of length one, XLA takes a fourth longer for products of matrices.
            arguments, *places = self._numbers
            arguments = {name: _first(self._axes[0][name], x) for name, x in arguments.items()}
            numbers = (arguments, *map(_first, self._axes[1:], places))
            found = of_lane(numbers, *(_first(0, tree) for tree in (self._posterior, *args)))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], found)
        in_axes = (self._axes, *[0] * (1 + len(args)))
        return jax.vmap(of_lane, in_axes)(self._numbers, self._posterior, *args)


def _first(axis: int | None, tree: Tree) -> Tree:
    """The first lane of `tree`; `axis` is as for `jax.vmap`."""
    return tree if axis is None else jax.tree.map(lambda x: x[0], tree)
