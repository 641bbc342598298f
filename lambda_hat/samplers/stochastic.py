"""The part that samplers on minibatch gradients share: the chain around a transition, recorded losses, costs, notes.

None of them accepts or rejects, so their law is biased by the step size and by the noise of the batches.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PyTree, UInt

from lambda_hat.config import SgldConfig, StochasticGradientConfig
from lambda_hat.engine.algorithm import LOSS_COST, Algorithm, Costs, Info, Learned, Sampler, Visit, all_of_burnin
from lambda_hat.engine.model import Batches, Drawn, Model, finite
from lambda_hat.engine.windows import ALL, NOWHERE, Windows
from lambda_hat.samplers import low_rank
from lambda_hat.samplers.adaptation import (
    SETTLING,
    SHRINK,
    Adaptation,
    Allowed,
    Rule,
    Taken,
    first_of_window,
    langevin_step,
)
from lambda_hat.samplers.metric import Metric, identity
from lambda_hat.samplers.noise import normal_like
from lambda_hat.samplers.precond import SecondMoment, second_moment_emptied, second_moment_fitted
from lambda_hat.targets.base import Target

ARGUMENTS = ("num_burnin", "step_size", "heat")
"""Fields of the configuration that are arguments of the programs."""
MALA_ROWS = 4096
"""Most rows that a Metropolis check is computed on. Arbitrary."""


class Tuned(NamedTuple):
    """What a transition takes."""

    step_size: Float[Array, ""]
    metric: Metric


State = TypeVar("State")


class Force(NamedTuple):
    """The gradient of the negative log posterior at one place, from a batch."""

    gradient: Float[Array, " dim"]
    pulled: Float[Array, " dim"]
    """`A^T g`: the gradient in the coordinates in which P is 1."""
    visit: Visit


def force(model: Model, cfg: StochasticGradientConfig, drawn: Drawn, w: Float[Array, " dim"], metric: Metric) -> Force:
    """The gradient of the negative log posterior at `w`.

    Args:
        model: The posterior.
        cfg: Its `batch_size`, `accumulate`, `compute_dtype` and `gradient` say how the gradient is estimated.
        drawn: The batch.
        w: The place, (dim,).
        metric: The preconditioner.
    """
    assert cfg.gradient is not None
    n_beta, gamma = model.posterior
    offset = w - model.w_star
    found = model.evaluate(drawn, w, batches_of(cfg), cfg.gradient)
    gradient = gamma * offset + n_beta * found.gradient
    return Force(
        gradient,
        metric.adjoint(gradient),
        Visit(n_beta * found.growth, jnp.vdot(offset, offset), found.difference),
    )


class Transition(NamedTuple):
    """A transition of one chain."""

    state: Any
    visit: Visit
    taken: Callable[[], Taken]
    """What it shows to the adaptation; computed there, and only there."""


def algorithm(
    model: Model,
    cfg: StochasticGradientConfig,
    arguments: dict[str, Array],
    start: Callable[[Key[Array, ""], Float[Array, " dim"]], State],
    transition: Callable[[Key[Array, ""], State, Tuned], Transition],
    position: Callable[[State], Float[Array, " dim"]],
    allowed: Allowed = langevin_step,
    noisy: bool = False,
    learner: SecondMoment | None = None,
    flat_heat: Callable[[Tuned], Float[Array, ""]] | None = None,
) -> Algorithm:
    """One chain of a sampler on minibatch gradients.

    Args:
        model: The posterior.
        cfg: The signature.
        arguments: The fields of the sampler's `arguments`.
        start: (key, w) -> state.
        transition: (key, state, tuned) -> the transition.
        position: state -> w.
        allowed: The sampler's rule for the largest step, as `adaptation.langevin_step`.
        noisy: The rule takes the noise of the gradients.
        learner: Learns the metric where `precond` is neither `none` nor `low_rank`.
        flat_heat: As in `Algorithm`.
    """
    adaptation = Adaptation(model, cfg, batches_of(cfg), arguments, allowed, noisy)
    per_transition = gradients_per_step(cfg) * getattr(cfg, "num_integration_steps", 1)

    def first_metric(w: Float[Array, " dim"]) -> tuple[Metric, PyTree]:
        if cfg.precond == "low_rank":
            return low_rank.init(w, rows_of(cfg))
        return (identity(w), ()) if learner is None else learner.init(w)

    def init(key: Key[Array, ""], w: Float[Array, " dim"]) -> tuple[State, Learned, int]:
        return start(key, w), Learned(adaptation.init(w), *first_metric(w)) if cfg.learns else Learned((), (), ()), 0

    def tuned(index: UInt[Array, ""], rule: Any, metric: Any) -> Tuned:
        return Tuned(rule.step_size, metric) if cfg.learns else Tuned(arguments["step_size"], identity(model.w_star))

    def step(key: Key[Array, ""], state: State, tuned: Tuned):
        found = transition(key, state, tuned)
        nan = jnp.full((), jnp.nan, model.w_star.dtype)
        return found.state, Info(nan, jnp.zeros((), bool), per_transition, found.visit), (found.taken, tuned.metric)

    def learn(
        key: Key[Array, ""],
        index: UInt[Array, ""],
        place: UInt[Array, ""],
        state: State,
        rule: Rule,
        kept: Any,
        seen: tuple[Callable[[], Taken], Metric],
    ):
        taken, metric = seen[0](), seen[1]
        usable = finite(position(state)) & finite(taken.gradient) & jnp.isfinite(taken.squared)
        state = jax.tree.map(lambda a, b: jnp.where(usable, a, b), state, start(key, model.w_star))
        rule, more = adaptation.update(key, index, rule, metric, taken, usable)
        if cfg.precond == "low_rank":
            kept = low_rank.keep(kept, place, usable, taken.w, -taken.gradient)
        elif learner is not None:
            kept = learner.keep(kept, (place != NOWHERE) & usable, taken.w, -taken.gradient)
        return state, rule, kept, more

    def mala(key: Key[Array, ""], w: Float[Array, " dim"], tuned: Tuned):
        return mala_acceptance(model, key, w, tuned.step_size, tuned.metric)

    return Algorithm(
        init=init,
        tuned=tuned,
        step=step,
        learn=learn if cfg.learns else None,
        pool=adaptation.pool if cfg.learns else None,
        position=position,
        record=None if averages(cfg) else recorder(model, cfg),
        step_size=lambda tuned: tuned.step_size,
        flat_heat=flat_heat,
        mala=mala if cfg.mala_checks else None,
    )


def rows_of(cfg: StochasticGradientConfig) -> int:
    """Draws that each chain keeps of a window for a low-rank metric, which all chains share."""
    return -(-low_rank.ROWS // cfg.num_chains)


def windows(cfg: StochasticGradientConfig) -> Windows:
    """The windows of burn-in; what follows the last one settles the step."""
    burnin = num_adapt(cfg)
    rows = rows_of(cfg) if cfg.precond == "low_rank" else ALL
    return Windows(burnin - burnin // SETTLING, rows)


def new_window(cfg: StochasticGradientConfig, learned: Learned) -> Learned:
    """The metric and the rules of the chains after a window. NumPy arrays with an axis of chains."""
    rules, metrics, kept = learned
    step_size = rules.step_size
    if jax.tree.leaves(kept):
        metric = old = jax.tree.map(lambda x: x[0], metrics)
        if cfg.precond == "low_rank":
            metric, kept = low_rank.fitted(kept, old), low_rank.emptied(kept)
            # The curvatures along the directions of a metric that fits are about 1.
            step_size = np.full_like(step_size, SHRINK * 4 * cfg.heat)
        else:
            assert isinstance(cfg, SgldConfig)
            metric, kept = second_moment_fitted(cfg, kept), second_moment_emptied(kept)
            step_size = SHRINK * step_size * (np.sum(old.sigma**2) / np.sum(metric.sigma**2))
        metrics = jax.tree.map(lambda x: np.broadcast_to(x, (cfg.num_chains, *x.shape)), metric)
    return Learned(first_of_window(rules, step_size if cfg.step_size is None else rules.step_size), metrics, kept)


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
                return model.evaluate(model.drawn(key, batches), w, batches, cfg.gradient).difference

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
        found.append("the losses are paired, differences from w_star on batches; their noise is in the standard error")
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
    windows=windows,
    new_window=new_window,
    costs=costs,
    notes=notes,
    estimates_losses=estimates_losses,
    takes_noise=True,
    controls=controls,
)
"""A `Sampler` with what all of these samplers share."""
