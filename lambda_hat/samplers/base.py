"""What the samplers share: the model that a kernel sees, the shape of an algorithm, and the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lambda_hat.posterior import Posterior
from lambda_hat.targets.base import Loss, full_loss

LOSS_COST = 1 / 3
"""Cost of a loss in gradients of the same rows: a gradient is one forward and two backward products (a convention)."""
HVP_COST = 2.0
"""Cost of a gradient together with a Hessian-vector product, in gradients (a convention)."""


@dataclass(frozen=True)
class Model:
    """The loss and the posterior as functions of flat vectors. Made while a program is traced; holds its arguments."""

    loss: Loss
    population: bool
    slice_rows: int
    unravel: Callable[[Float[Array, " dim"]], dict[str, Array]]
    w_star: Float[Array, " dim"]
    data: dict[str, Array]
    posterior: Posterior

    def full_loss(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        """Mean loss over all rows, or the closed form."""
        if self.population:
            return self.loss(self.unravel(w), self.data)
        return full_loss(self.loss, self.unravel(w), self.data, self.slice_rows)

    def potential(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        """Negative log posterior over the full data."""
        return self.posterior.potential(self.full_loss(w), w, self.w_star)

    def log_density(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        return -self.potential(w)

    def batch(self, key: Key[Array, ""], batch_size: int) -> dict[str, Array]:
        """`batch_size` rows drawn with replacement."""
        num_data = len(next(iter(self.data.values())))
        rows = jax.random.randint(key, (batch_size,), 0, num_data)
        return {name: array[rows] for name, array in self.data.items()}

    def batch_loss(self, w: Float[Array, " dim"], batch: dict[str, Array]) -> Float[Array, ""]:
        return self.loss(self.unravel(w), batch)

    def loss_gradient(
        self, key: Key[Array, ""], w: Float[Array, " dim"], batch_size: int | None
    ) -> Float[Array, " dim"]:
        """Gradient of the mean loss over a batch; over the full data, or of the closed form, where there is none."""
        if batch_size is None or self.population:
            return jax.grad(self.full_loss)(w)
        return jax.grad(self.batch_loss)(w, self.batch(key, batch_size))


class Info(NamedTuple):
    """What one transition reports. Numbers that a sampler does not have are NaN or False."""

    acceptance: Array
    is_divergent: Array


class Algorithm(NamedTuple):
    """One chain's transition kernel and the adaptation that comes before.

    adapt: (key) -> (state, tuned); starts at `w_star`.
    num_burnin: transitions between adaptation and the first draw's `thin`, a uint32.
    step: (key, state, tuned) -> (state, Info).
    position: state -> (dim,).
    record: (key, w) -> the loss of the estimate at a recorded draw.
    step_size: tuned -> scalar.
    """

    adapt: Callable[[Array], tuple[Any, Any]]
    num_burnin: Array
    step: Callable[[Array, Any, Any], tuple[Any, Info]]
    position: Callable[[Any], Array]
    record: Callable[[Array, Array], Array]
    step_size: Callable[[Any], Array]


class Work(NamedTuple):
    """What one chain computes, in full-gradient equivalents."""

    before: float
    """Burn-in, adaptation and tuning."""
    per_step: float
    per_record: float


class Sampler(NamedTuple):
    """What one sampler module gives to `run`.

    arguments: fields of its configuration that are no part of the program's signature; "thin" is always one.
    strict: its program is traced under strict dtype promotion (blackjax's own code does not take it).
    build: (model, signature, values of arguments) -> Algorithm, while the program is traced.
    work, notes, records_differences: (configuration, target) -> the work of one chain, sentences for the report, and
    whether the program records `L(w) - L(w_star)` in place of `L(w)`.
    """

    name: str
    arguments: tuple[str, ...]
    strict: bool
    build: Callable[[Model, Any, dict[str, Array]], Algorithm]
    work: Callable[[Any, Any], Work]
    notes: Callable[[Any, Any], tuple[str, ...]]
    records_differences: Callable[[Any, Any], bool] = lambda cfg, target: False


class Draws(NamedTuple):
    """The result of one run. Shapes: c = num_chains, d = num_draws."""

    loss: np.ndarray
    """(c, d) float64: L_n(w) at recorded draws, or its paired estimate; NaN from where a chain has died."""
    acceptance: np.ndarray | None
    """(c,) mean acceptance probability after burn-in; None for samplers without one."""
    num_divergent: int
    """Transitions after burn-in that diverged (hmc) or were reverted because they became non-finite (mclmc)."""
    chain_alive: np.ndarray
    """(c,) bool; False: the chain became non-finite."""
    step_size: np.ndarray
    """(c,) float64."""
    num_transitions: int
    """Transitions after burn-in, over all chains: what `num_divergent` is a part of."""
    fge: float
    """Full-gradient equivalents over all chains: pilot, tuning, burn-in and recorded losses included."""
    seconds_compile: float
    seconds_sample: float
    cache_hit: bool
    """The compiled programs were already in this process."""
    notes: tuple[str, ...]
    """Sentences for the report."""


def cast(tree: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Float arrays in the run's precision; integers as they are."""
    return {
        name: array.astype(precision) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in tree.items()
    }


def finite(w: Array) -> Array:
    """Whether every entry is finite."""
    return jnp.all(jnp.isfinite(w))
