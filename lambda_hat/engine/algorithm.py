"""The parts of a sampler: one chain's transition kernel with its adaptation, and the report of a transition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, UInt

from lambda_hat.config import SampleConfig
from lambda_hat.engine.model import Model
from lambda_hat.engine.windows import Windows
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


Count: TypeAlias = UInt[Array, ""] | Int[Array, ""] | np.uint32 | int
"""A number of gradients."""


class Info(NamedTuple):
    """The report of one transition. A number that a sampler does not have is NaN or False."""

    acceptance: Float[Array, ""]
    is_divergent: Bool[Array, ""]
    num_gradients: Count
    """Gradients that the transition evaluated, of a batch or of the full data."""
    visit: Visit
    """At the new state, or the mean over the places whose gradients the transition took."""


State = TypeVar("State")
Rule = TypeVar("Rule")
Metric = TypeVar("Metric")
Kept = TypeVar("Kept")
Tuned = TypeVar("Tuned")
Seen = TypeVar("Seen")


class Learned(NamedTuple):
    """What one chain has learned in adaptation. Every part is a pytree of arrays, empty where there is nothing."""

    rule: Any
    """Changes at every step of adaptation."""
    metric: Any
    """Changes where a window ends, and only there."""
    kept: Any
    """What the present window has shown, from which the next metric is fitted."""


@dataclass(frozen=True)
class Algorithm(Generic[State, Rule, Metric, Kept, Tuned, Seen]):
    """One chain's transition kernel, and what it learns while it adapts. All but Seen are pytrees of arrays."""

    init: Callable[[Key[Array, ""], Float[Array, " dim"]], tuple[State, Learned, Count]]
    """(key, start) -> (state, learned, gradients evaluated)."""
    tuned: Callable[[UInt[Array, ""], Rule, Metric], Tuned]
    """(index, rule, metric) -> what transition `index` takes, counted from 0 at the start of the chain."""
    step: Callable[[Key[Array, ""], State, Tuned], tuple[State, Info, Seen]]
    """(key, state, tuned) -> (state, info, what `learn` takes)."""
    position: Callable[[State], Float[Array, " dim"]]
    record: Callable[[Key[Array, ""], Float[Array, " dim"]], Float[Array, ""]] | None
    """(key, w) -> `L_n(w) - L_n(w_star)` at a recorded draw, or an unbiased estimate of it; None where the steps give
    it."""
    step_size: Callable[[Tuned], Float[Array, ""]]
    flat_heat: Callable[[Tuned], Float[Array, ""]] | None = None
    """tuned -> `dim (T - 1)`, if the loss were flat: the heat that the step gives to the localisation. None: the step
    gives none, or how much is not known."""
    learn: (
        Callable[
            [Key[Array, ""], UInt[Array, ""], UInt[Array, ""], State, Rule, Kept, Seen], tuple[State, Rule, Kept, Count]
        ]
        | None
    ) = None
    """(key, index, place as `Window.place`, state, rule, kept, seen) -> (state, rule, kept, gradients
    evaluated): what follows a step of adaptation."""
    pool: Callable[[Rule], Rule] | None = None
    """The rules of all chains -> the same, with what the chains share. Called after every step of adaptation."""
    mala: Callable[[Key[Array, ""], Float[Array, " dim"], Tuned], Float[Array, ""]] | None = None
    """(key, w, tuned) -> the probability that a Metropolis step on the full data accepts one Langevin step of this step
    size from `w`; None for samplers with an acceptance of their own."""


class Costs(NamedTuple):
    """Unit costs of a chain, in full-gradient equivalents. The number of gradients is counted while the chain runs."""

    per_gradient: float
    per_record: float
    per_check: float = 0.0
    """Of a Metropolis check: the gradients at both ends of its step."""


def all_of_burnin(cfg: SampleConfig) -> int:
    """Transitions of burn-in. Adaptation takes all of them."""
    assert cfg.num_burnin is not None
    return cfg.num_burnin


def full_data_costs(cfg: SampleConfig, target: Target) -> Costs:
    """Unit costs where every gradient and every recorded loss is of the full data."""
    return Costs(per_gradient=1.0, per_record=LOSS_COST)


LENGTHS = ("num_draws", "num_burnin", "thin")
"""Fields of every configuration in which all lanes of a program agree."""
Config = TypeVar("Config", bound=SampleConfig)


@dataclass(frozen=True)
class Sampler(Generic[Config]):
    """What one sampler module gives to `run`."""

    name: str
    arguments: tuple[str, ...]
    """Fields of its configuration that are arguments of the program, and so no part of its signature, beside "thin" and
    "jitter"."""
    strict: bool
    """Its program is traced under strict dtype promotion, which blackjax's own code does not support."""
    build: Callable[[Model, Config, dict[str, Array]], Algorithm]
    """(model, signature, values of `arguments`) -> algorithm, while the program is traced."""
    num_adapt: Callable[[Config], int]
    """configuration -> how many of the `num_burnin` transitions are steps of adaptation."""
    windows: Callable[[Config], Windows]
    """configuration -> the windows of adaptation."""
    new_window: Callable[[Config, Learned], Learned]
    """(configuration, what the chains of a run have learned) -> the same after a window has ended. These are NumPy
    arrays with an axis of chains."""
    costs: Callable[[Config, Target], Costs] = full_data_costs
    """(configuration, target) -> unit costs."""
    notes: Callable[[Config, Target], tuple[str, ...]] = lambda cfg, target: ()
    """(configuration, target) -> sentences for the report."""
    estimates_losses: Callable[[Config, Target], bool] = lambda cfg, target: False
    """(configuration, target) -> whether recorded losses are estimates, from batches or from a loss with randomness."""
    takes_noise: bool = False
    """It can sample a stochastic loss."""
    controls: Callable[[Config], bool] = lambda cfg: False
    """configuration -> whether its gradients are control variates, which need the gradient at `w_star`."""
    fixed_cost: bool = True
    """Every transition evaluates the same number of gradients, so lanes do not wait for each other."""
