"""The parts of a sampler: one chain's transition kernel with its adaptation, and the report of a transition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lambda_hat.config import SampleConfig
from lambda_hat.engine.model import Model
from lambda_hat.targets.base import Target

LOSS_COST = 1 / 3
"""Cost of a loss, in gradients of the same rows. By convention a gradient is one forward and two backward products."""
NUM_CHECKS = 50
"""Recorded draws of each chain at which `mala_checks` asks for a Metropolis step. Arbitrary."""


class Visit(NamedTuple):
    """The quantities of the configurational temperature, at one place or as a mean over several."""

    growth: Float[Array, ""]
    """`n_beta (w - w_star) . grad L_n`, or an unbiased estimate of it."""
    distance: Float[Array, ""]
    """`|w - w_star|^2`."""
    difference: Float[Array, ""]
    """`L_n(w) - L_n(w_star)`, where a step of the sampler estimates it; else NaN."""


def visit_of(model: Model, w: Float[Array, " dim"], log_density_gradient: Float[Array, " dim"]) -> Visit:
    """The visit of a place whose gradient of the log posterior is known.

    Args:
        model: The posterior.
        w: The place, (dim,).
        log_density_gradient: Gradient of the log posterior at `w`, (dim,).
    """
    offset = w - model.w_star
    distance = jnp.vdot(offset, offset)
    growth = -jnp.vdot(offset, log_density_gradient) - model.posterior.gamma * distance
    return Visit(growth, distance, jnp.full((), jnp.nan, w.dtype))


class Info(NamedTuple):
    """The report of one transition. A number that a sampler does not have is NaN or False."""

    acceptance: Array
    is_divergent: Array
    num_gradients: Array | int
    """Gradients that the transition evaluated, of a batch or of the full data."""
    visit: Visit
    """At the new state, or the mean over the places whose gradients the transition took."""


class Algorithm(NamedTuple):
    """One chain's transition kernel, and the adaptation before it."""

    init: Callable[[Array, Array], tuple[Any, Any, Array | int]]
    """(key, start) -> (state, learned, gradients evaluated)."""
    step: Callable[[Array, Any, Any], tuple[Any, Info]]
    """(key, state, tuned) -> (state, info)."""
    position: Callable[[Any], Array]
    """state -> (dim,)."""
    record: Callable[[Array, Array], Array] | None
    """(key, w) -> `L_n(w) - L_n(w_star)` at a recorded draw, or an unbiased estimate of it; None where the steps give
    it."""
    step_size: Callable[[Any], Array]
    """tuned -> scalar."""
    adapt: Callable[[Array, Array, Any, Any], tuple[Any, Any, Array | np.uint32 | int]] | None = None
    """(key, index, state, learned) -> (state, learned, gradients evaluated): one step of adaptation."""
    pool: Callable[[Array, Any], Any] = lambda index, learned: learned
    """(index, learned of all chains) -> the same, with what the chains share. Called after every step of adaptation."""
    settle: Callable[[Any], Any] = lambda learned: learned
    """learned -> tuned, once adaptation has ended."""
    mala: Callable[[Array, Array, Any], Array] | None = None
    """(key, w, tuned) -> the probability that a Metropolis step on the full data accepts one Langevin step of this step
    size from `w`; None for samplers with an acceptance of their own."""


class Costs(NamedTuple):
    """Unit costs of a chain, in full-gradient equivalents. The number of gradients is counted while the chain runs."""

    per_gradient: float
    per_record: float
    per_check: float = 0.0
    """Of a Metropolis check: the gradients at both ends of its step."""


def full_data_costs(cfg: SampleConfig, target: Target) -> Costs:
    """Unit costs where every gradient and every recorded loss is of the full data."""
    return Costs(per_gradient=1.0, per_record=LOSS_COST)


LENGTHS = ("num_draws", "num_burnin", "thin")
"""Fields of every configuration in which all lanes of a program agree."""


class Sampler(NamedTuple):
    """What one sampler module gives to `run`."""

    name: str
    arguments: tuple[str, ...]
    """Fields of its configuration that are arguments of the program, and so no part of its signature, beside "thin" and
    "jitter"."""
    strict: bool
    """Its program is traced under strict dtype promotion, which blackjax's own code does not support."""
    build: Callable[[Model, Any, dict[str, Array]], Algorithm]
    """(model, signature, values of `arguments`) -> algorithm, while the program is traced."""
    num_adapt: Callable[[Any], int] = lambda cfg: 0
    """configuration -> how many of the `num_burnin` transitions are steps of `Algorithm.adapt`."""
    costs: Callable[[Any, Any], Costs] = full_data_costs
    """(configuration, target) -> unit costs."""
    notes: Callable[[Any, Any], tuple[str, ...]] = lambda cfg, target: ()
    """(configuration, target) -> sentences for the report."""
    estimates_losses: Callable[[Any, Any], bool] = lambda cfg, target: False
    """(configuration, target) -> whether recorded losses are estimates, from batches or from a loss with randomness."""
    takes_noise: bool = False
    """It can sample a stochastic loss."""
    controls: Callable[[Any], bool] = lambda cfg: False
    """configuration -> whether its gradients are control variates, which need the gradient at `w_star`."""
    fixed_cost: bool = True
    """Every transition evaluates the same number of gradients, so lanes do not wait for each other."""
