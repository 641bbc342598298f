"""The part that samplers on minibatch gradients share: the chain around a transition, recorded losses, costs, notes.

None of them accepts or rejects, so their law is biased by the step size and by the noise of the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt

from lambda_hat.config import StochasticGradientConfig
from lambda_hat.engine.algorithm import LOSS_COST, Algorithm, Costs, Info, Sampler, Visit, all_of_burnin
from lambda_hat.engine.model import Batches, Model, finite
from lambda_hat.samplers.adaptation import Adaptation, Allowed, Learned, Learner, Taken, langevin_step
from lambda_hat.samplers.metric import Metric
from lambda_hat.samplers.noise import normal_like
from lambda_hat.samplers.windows import LowRank
from lambda_hat.targets.base import Target

ARGUMENTS = ("num_burnin", "step_size", "heat")
"""Fields of the configuration that are arguments of the programs."""
MALA_ROWS = 4096
"""Most rows that a Metropolis check is computed on. Arbitrary."""


class Tuned(NamedTuple):
    """What a chain has after adaptation."""

    step_size: Float[Array, ""]
    metric: Metric


State = TypeVar("State")


class Force(NamedTuple):
    """The gradient of the negative log posterior at one place, from a batch."""

    gradient: Float[Array, " dim"]
    pulled: Float[Array, " dim"]
    """`A^T g`: the gradient in the coordinates in which P is 1."""
    visit: Visit
    noise: Float[Array, ""]
    """`n . P n` of the gradient's noise n, where it was asked for; else 0."""


def force(
    model: Model,
    cfg: StochasticGradientConfig,
    key: Key[Array, ""],
    w: Float[Array, " dim"],
    metric: Metric,
    noise: bool,
) -> Force:
    """The gradient of the negative log posterior at `w`, from a batch.

    Args:
        model: The posterior.
        cfg: Its `batch_size`, `accumulate`, `compute_dtype` and `gradient` say how the gradient is estimated.
        key: Draws the batch.
        w: The place, (dim,).
        metric: The preconditioner.
        noise: Estimate the noise of the gradient as well, from a second batch.
    """
    assert cfg.gradient is not None
    n_beta, gamma = model.posterior
    offset = w - model.w_star
    found = model.evaluate(key, w, batches_of(cfg), cfg.gradient)
    gradient = gamma * offset + n_beta * found.gradient
    visit = Visit(n_beta * found.growth, jnp.vdot(offset, offset), found.difference)
    of_noise = jnp.zeros((), w.dtype)
    if noise and cfg.batch_size is not None and not model.population:
        other = model.evaluate(jax.random.fold_in(key, 1), w, batches_of(cfg), cfg.gradient)
        difference = metric.adjoint(n_beta * (found.gradient - other.gradient))
        of_noise = 0.5 * jnp.vdot(difference, difference)
    return Force(gradient, metric.adjoint(gradient), visit, of_noise)


def algorithm(
    model: Model,
    cfg: StochasticGradientConfig,
    arguments: dict[str, Array],
    start: Callable[[Key[Array, ""], Float[Array, " dim"]], State],
    transition: Callable[[Key[Array, ""], State, Tuned, bool], tuple[State, Taken]],
    position: Callable[[State], Float[Array, " dim"]],
    allowed: Allowed = langevin_step,
    learner: Learner | None = None,
    flat_heat: Callable[[Tuned], Float[Array, ""]] | None = None,
) -> Algorithm[State, PyTree, Tuned]:
    """One chain of a sampler on minibatch gradients.

    Args:
        model: The posterior.
        cfg: The signature.
        arguments: The fields of the sampler's `arguments`.
        start: (key, w) -> state.
        transition: (key, state, tuned, whether in adaptation) -> (state, what the transition took).
        position: state -> w.
        allowed: The sampler's rule for the largest step, as `adaptation.langevin_step`.
        learner: Learns a metric that is not low-rank; None: there is none.
        flat_heat: As in `Algorithm`.
    """
    if cfg.precond == "low_rank":
        learner = LowRank(cfg.num_chains)
    adaptation = Adaptation(model, cfg, batches_of(cfg), arguments, allowed, learner)
    per_transition = gradients_per_step(cfg) * getattr(cfg, "num_integration_steps", 1)

    def init(key: Key[Array, ""], w: Float[Array, " dim"]) -> tuple[State, PyTree, int]:
        return start(key, w), adaptation.init(w) if cfg.learns else (), 0

    def adapt(key: Key[Array, ""], index: UInt[Array, ""], state: State, learned: Learned):
        after, taken = transition(key, state, Tuned(learned.step_size, learned.metric), True)
        usable = finite(position(after)) & finite(taken.gradient) & jnp.isfinite(taken.squared)
        after = jax.tree.map(lambda a, b: jnp.where(usable, a, b), after, start(key, model.w_star))
        learned, more = adaptation.update(key, index, learned, taken, usable)
        return after, learned, more + np.uint32(per_transition)

    def settle(learned):
        if not cfg.learns:
            return Tuned(arguments["step_size"], adaptation.init(model.w_star).metric)
        return Tuned(learned.step_size, learned.metric)

    def step(key: Key[Array, ""], state: State, tuned: Tuned):
        state, taken = transition(key, state, tuned, False)
        nan = jnp.full((), jnp.nan, model.w_star.dtype)
        return state, Info(nan, jnp.zeros((), bool), per_transition, taken.visit)

    def mala(key: Key[Array, ""], w: Float[Array, " dim"], tuned: Tuned):
        return mala_acceptance(model, key, w, tuned.step_size, tuned.metric)

    return Algorithm(
        init=init,
        adapt=adapt,
        pool=adaptation.pool,
        settle=settle,
        step=step,
        position=position,
        record=None if averages(cfg) else recorder(model, cfg),
        step_size=lambda tuned: tuned.step_size,
        flat_heat=flat_heat,
        mala=mala if cfg.mala_checks else None,
    )


def batches_of(cfg: StochasticGradientConfig) -> Batches | None:
    """The batches of the gradients; None: they are of the full data."""
    return None if cfg.batch_size is None else Batches(cfg.batch_size, cfg.accumulate, cfg.compute_dtype)


def gradients_per_step(cfg: StochasticGradientConfig) -> int:
    """Gradients that an evaluation takes: a control variate takes a second one, at `w_star`."""
    return 2 if cfg.gradient == "control_variate" else 1


def averages(cfg: StochasticGradientConfig) -> bool:
    """Whether a recorded loss is the mean of the losses that the steps have estimated since the last draw."""
    return cfg.loss_estimate == "paired" and cfg.gradient == "control_variate" and cfg.compute_dtype is None


def recorder(
    model: Model, cfg: StochasticGradientConfig
) -> Callable[[Key[Array, ""], Float[Array, " dim"]], Float[Array, ""]]:
    """What records a loss: (key, w) -> `L(w) - L(w_star)`.

    L is the full loss, or with `loss_estimate: paired` that of one batch, in the precision of the run. Both terms of a
    stochastic loss have the same random key. With control variates the first order is taken out.
    """

    def record(key: Key[Array, ""], w: Float[Array, " dim"]) -> Float[Array, ""]:
        if _paired(cfg, model.population):
            assert cfg.batch_size is not None
            batches = Batches(cfg.batch_size, cfg.accumulate)
            if cfg.gradient == "control_variate":
                return model.evaluate(key, w, batches, cfg.gradient).difference

            def of_slice(rows: dict[str, Array], key: Key[Array, ""] | None):
                return model.batch_loss(w, rows, key) - model.batch_loss(model.w_star, rows, key)

            key_batch, key_loss = jax.random.split(key)
            return model.over_slices(of_slice, model.batch(key_batch, batches.size), batches.slices, key_loss)
        if model.loss.stochastic:
            return model.full_loss(w, key) - model.full_loss(model.w_star, key)
        return model.excess_loss(w)

    return record


def mala_acceptance(
    model: Model, key: Key[Array, ""], w: Float[Array, " dim"], step_size: Float[Array, ""], metric: Metric
) -> Float[Array, ""]:
    """Probability that Metropolis accepts one Langevin step from `w` (Roberts & Tweedie 1996).

    Args:
        model: The posterior, of the full data or of `MALA_ROWS` of its rows.
        key: Draws the step, the rows, and the randomness of a stochastic loss.
        w: The place, (dim,).
        step_size: The step size, epsilon as in SGLD.
        metric: The preconditioner.
    """
    key_noise, key_loss, key_batch = jax.random.split(key, 3)
    rows = 0 if model.population else model.loss.num_rows(model.data)
    batch = model.batch(key_batch, MALA_ROWS) if rows > MALA_ROWS else None

    def potential(z: Float[Array, " dim"]) -> Float[Array, ""]:
        place = w + metric.forward(z)
        loss = model.full_loss(place, key_loss) if batch is None else model.batch_loss(place, batch, key_loss)
        return model.posterior.potential(loss, place, model.w_star)

    noise = normal_like(key_noise, w)

    def visit(here, _):
        value, gradient = jax.value_and_grad(potential)(here)
        return here - 0.5 * step_size * gradient + jnp.sqrt(step_size) * noise, (here, value, gradient)

    # A loop of length 2 compiles the gradient once.
    start = jnp.zeros_like(w)
    _, ((_, proposal), values, gradients) = jax.lax.scan(visit, start, length=2)

    def log_density_ratio(there, here, gradient_here):
        """The log density of a Langevin step from `here` to `there`, up to a constant."""
        return -0.5 * jnp.sum((there - here + 0.5 * step_size * gradient_here) ** 2) / step_size

    back = log_density_ratio(start, proposal, gradients[1]) - log_density_ratio(proposal, start, gradients[0])
    log_ratio = values[0] - values[1] + back
    return jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))


def _paired(cfg: StochasticGradientConfig, population: bool) -> bool:
    return cfg.loss_estimate == "paired" and cfg.batch_size is not None and not population


def num_adapt(cfg: StochasticGradientConfig) -> int:
    """Transitions of adaptation: all of burn-in where there is something to learn."""
    return all_of_burnin(cfg) if cfg.learns else 0


def estimates_losses(cfg: StochasticGradientConfig, target: Target) -> bool:
    """Whether recorded losses are estimates: from batches, or from a loss with randomness."""
    return target.loss.stochastic or _paired(cfg, target.population)


def controls(cfg: StochasticGradientConfig) -> bool:
    """Whether gradients are control variates."""
    return cfg.gradient == "control_variate"


def batch_fraction(cfg: StochasticGradientConfig, target: Target) -> float:
    """Rows of a batch as a share of the full data; 1 where there are no batches."""
    if cfg.batch_size is None or target.population:
        return 1.0
    return cfg.batch_size / target.num_data


def costs(cfg: StochasticGradientConfig, target: Target) -> Costs:
    """Unit costs: a gradient is that of a batch.

    A recorded loss is one forward pass over all data, or two of a stochastic loss. A paired one is two passes over a
    batch, or none where the steps estimate it.
    """
    fraction = batch_fraction(cfg, target)
    checked = 1.0 if target.population else min(1.0, MALA_ROWS / target.num_data)
    if averages(cfg):
        per_record = 0.0
    elif _paired(cfg, target.population):
        # With control variates: a loss, and a gradient at w_star.
        per_record = fraction * (LOSS_COST + (1 if cfg.gradient == "control_variate" else LOSS_COST))
    else:
        per_record = LOSS_COST * (2 if target.loss.stochastic else 1)
    return Costs(fraction, per_record, 2 * checked)


def notes(cfg: StochasticGradientConfig, target: Target) -> tuple[str, ...]:
    """Sentences for the report: what a reader of the estimate should know."""
    found = ["unadjusted: biased by its step size"]
    if cfg.loss_estimate == "paired" and not _paired(cfg, target.population):
        found.append("loss_estimate: paired needs batches, and this run has none; the loss is the full one")
    elif cfg.loss_estimate == "paired":
        found.append("the losses are paired estimates from batches; their noise is in the standard error")
    if cfg.compute_dtype is not None and not target.population:
        found.append(
            f"gradients, and with them growth and temperature, are computed in {cfg.compute_dtype}; "
            f"the recorded losses in {cfg.precision}"
        )
    if not target.population and cfg.batch_size is not None and cfg.batch_size > target.num_data:
        found.append(
            f"batch_size {cfg.batch_size} exceeds the {target.num_data} rows of the data; drawn with replacement"
        )
    return tuple(found)


sampler = partial(
    Sampler,
    num_adapt=num_adapt,
    costs=costs,
    notes=notes,
    estimates_losses=estimates_losses,
    takes_noise=True,
    controls=controls,
)
"""A `Sampler` with what all of these samplers share."""
