"""What the samplers share: the model that a kernel sees, the shape of an algorithm, and the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from lambda_hat.config import SampleConfig
from lambda_hat.posterior import Posterior
from lambda_hat.targets.base import Loss, Target

LOSS_COST = 1 / 3
"""Cost of a loss in gradients of the same rows: a gradient is one forward and two backward products (a convention)."""
NUM_CHECKS = 50
"""Recorded draws of each chain at which the step size of an unadjusted sampler is checked. Arbitrary."""
HVP_COST = 2.0
"""Cost of a gradient together with a Hessian-vector product, in gradients (a convention)."""


@dataclass(frozen=True)
class Model:
    """The loss and the posterior as functions of flat vectors of the moving parameters. Made while a program is traced;
    holds its arguments."""

    loss: Loss
    population: bool
    slice_rows: int
    unravel: Callable[[Float[Array, " dim"]], dict[str, Array]]
    w_star: Float[Array, " dim"]
    data: dict[str, Array]
    posterior: Posterior

    def full_loss(self, w: Float[Array, " dim"], key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        """Mean loss over all rows, or the closed form. A stochastic loss without a key: one fixed realisation of it."""
        params, keys = self.unravel(w), self._keys(key)
        if self.population:
            return self.loss(params, self.data, *keys)
        return self.loss.full(params, self.data, self.slice_rows, *keys)

    def _keys(self, key: Key[Array, ""] | None) -> tuple[Key[Array, ""], ...]:
        if not self.loss.stochastic:
            return ()
        return (jax.random.key(0) if key is None else key,)

    def potential(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        """Negative log posterior over the full data."""
        return self.posterior.potential(self.full_loss(w), w, self.w_star)

    def log_density(self, w: Float[Array, " dim"]) -> Float[Array, ""]:
        return -self.potential(w)

    def batch(self, key: Key[Array, ""], batch_size: int) -> dict[str, Array]:
        """`batch_size` rows drawn with replacement."""
        return self.loss.batch(key, self.data, batch_size)

    def batch_loss(
        self, w: Float[Array, " dim"], batch: dict[str, Array], key: Key[Array, ""] | None = None
    ) -> Float[Array, ""]:
        return self.loss(self.unravel(w), batch, *self._keys(key))

    def row_losses(self, w: Float[Array, " dim"]) -> Float[Array, " rows"]:
        """The loss of every row."""
        return self.loss.per_row(self.unravel(w), self.data, self.slice_rows)

    def loss_gradient(
        self, key: Key[Array, ""], w: Float[Array, " dim"], batch_size: int | None
    ) -> Float[Array, " dim"]:
        """Gradient of the mean loss over a batch; over the full data, or of the closed form, where there is none."""
        if batch_size is None or self.population:
            return jax.grad(self.full_loss)(w, key)
        key_batch, key_loss = (key, None) if not self.loss.stochastic else jax.random.split(key)
        return jax.grad(self.batch_loss)(w, self.batch(key_batch, batch_size), key_loss)


class Info(NamedTuple):
    """What one transition reports. Numbers that a sampler does not have are NaN or False."""

    acceptance: Array
    is_divergent: Array
    num_gradients: Array | int
    """Gradients that it evaluated, of a batch or of the full data."""


class Algorithm(NamedTuple):
    """One chain's transition kernel and the adaptation that comes before.

    init: (key, start) -> (state, learned, gradients evaluated); a tuner that cannot be stopped between its steps does
    all of its work here.
    adapt: (key, index, state, learned) -> (state, learned, gradients evaluated), one step of adaptation.
    settle: learned -> tuned, once adaptation has ended.
    step: (key, state, tuned) -> (state, Info).
    position: state -> (dim,).
    record: (key, w) -> the loss of the estimate at a recorded draw.
    step_size: tuned -> scalar.
    mala: (key, w, tuned) -> the probability that a Metropolis step on the full data would accept one Langevin step of
    this step size from w; None for samplers that have an acceptance of their own.
    """

    init: Callable[[Array, Array], tuple[Any, Any, Array | int]]
    step: Callable[[Array, Any, Any], tuple[Any, Info]]
    position: Callable[[Any], Array]
    record: Callable[[Array, Array], Array]
    step_size: Callable[[Any], Array]
    adapt: Callable[[Array, Array, Any, Any], tuple[Any, Any, Array | int]] | None = None
    settle: Callable[[Any], Any] = lambda learned: learned
    mala: Callable[[Array, Array, Any], Array] | None = None


class Costs(NamedTuple):
    """What a chain computes, in full-gradient equivalents. How many gradients it takes is counted as it runs."""

    per_gradient: float
    per_record: float


def full_data_costs(cfg: SampleConfig, target: Target) -> Costs:
    """Every gradient and every recorded loss is of the full data."""
    return Costs(per_gradient=1.0, per_record=LOSS_COST)


class Sampler(NamedTuple):
    """What one sampler module gives to `run`.

    arguments: fields of its configuration that are no part of the program's signature, beside "thin" and "jitter".
    strict: its program is traced under strict dtype promotion (blackjax's own code does not take it).
    build: (model, signature, values of arguments) -> Algorithm, while the program is traced.
    num_adapt: configuration -> how many of the `num_burnin` transitions are steps of `Algorithm.adapt`.
    costs, notes, records_differences: (configuration, target) -> the unit costs, sentences for the report, and whether
    the program records `L(w) - L(w_star)` in place of `L(w)`.
    takes_noise: it can sample a stochastic loss.
    prepared: configuration -> the same with a value for every argument.
    fixed_cost: every transition evaluates the same number of gradients, so lanes do not wait for each other.
    """

    name: str
    arguments: tuple[str, ...]
    strict: bool
    build: Callable[[Model, Any, dict[str, Array]], Algorithm]
    num_adapt: Callable[[Any], int] = lambda cfg: 0
    costs: Callable[[Any, Any], Costs] = full_data_costs
    notes: Callable[[Any, Any], tuple[str, ...]] = lambda cfg, target: ()
    records_differences: Callable[[Any, Any], bool] = lambda cfg, target: False
    takes_noise: bool = False
    prepared: Callable[[Any], Any] = lambda cfg: cfg
    fixed_cost: bool = True


class RowMoments(NamedTuple):
    """Running moments of every row's loss over one chain's recorded draws. c = num_chains, r = rows."""

    mean: Array
    """(c, r) mean of l_i."""
    variance: Array
    """(c, r) mean of (l_i - mean)^2."""
    log_mean_likelihood: Array
    """(c, r) log of the mean of exp(-l_i)."""


class Draws(NamedTuple):
    """The result of one run. Shapes: c = num_chains, d = num_draws."""

    loss: np.ndarray
    """(c, d) float64: L_n(w) at recorded draws, or its paired estimate; NaN from where a chain has died."""
    acceptance: np.ndarray | None
    """(c,) mean acceptance probability after burn-in; None for samplers without one."""
    mala_acceptance: np.ndarray | None
    """(c,) mean probability that a Metropolis step would accept the step of a sampler that has none, on the full data,
    at `NUM_CHECKS` of the recorded draws; None for the others."""
    num_divergent: int
    """Transitions after burn-in that diverged, or (mclmc) were reverted because they became non-finite."""
    chain_alive: np.ndarray
    """(c,) bool; False: the chain became non-finite."""
    step_size: np.ndarray
    """(c,) float64."""
    num_transitions: int
    """Transitions after burn-in, over all chains: what `num_divergent` is a part of. Fewer than the configuration asks
    for where every chain has died."""
    num_gradients: int
    """Gradients evaluated over all chains, of a batch or of the full data: pilot, tuning, burn-in included."""
    fge: float
    """Full-gradient equivalents over all chains: recorded losses and checks of the step size included as well."""
    seconds_compile: float
    seconds_sample: float
    programs_compiled: int
    programs_loaded: int
    """Loaded from the folder through which processes exchange them. Programs that were in this process already count
    as neither."""
    notes: tuple[str, ...]
    """Sentences for the report."""
    row_moments: RowMoments | None = None
    """Of the losses of single rows, where `singular_fluctuation` asks for them."""
    exact_losses: bool = True
    """`loss` is L_n itself; else an unbiased estimate of it, from batches or from a loss with randomness."""


def cast(tree: dict[str, np.ndarray], precision: str) -> dict[str, np.ndarray]:
    """Float arrays in the run's precision; integers as they are."""
    return {
        name: array.astype(precision) if np.issubdtype(array.dtype, np.floating) else array
        for name, array in tree.items()
    }


def finite(w: Array) -> Array:
    """Whether every entry is finite."""
    return jnp.all(jnp.isfinite(w))
