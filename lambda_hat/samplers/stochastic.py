"""What the samplers on minibatch gradients share: the loss they record, the check of their step size, costs and notes.

None of them accepts or rejects, so their law is off by the step size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambda_hat.config import StochasticGradientConfig
from lambda_hat.samplers.base import LOSS_COST, Costs, Draws, Model, Sampler
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.samplers.pilot import run_pilots
from lambda_hat.samplers.run import Lane, run
from lambda_hat.targets.base import Target

PILOT_ARGUMENTS = ("step_size", "pilot_c", "pilot_steps")
"""Fields of the configuration that only choose the step size, which the program takes as a number."""


def posterior_gradient(
    model: Model, key: Array, w: Float[Array, " dim"], batch_size: int | None
) -> Float[Array, " dim"]:
    """Gradient of the negative log posterior, over a batch where there is one."""
    n_beta, gamma = model.posterior
    return gamma * (w - model.w_star) + n_beta * model.loss_gradient(key, w, batch_size)


def recorder(model: Model, cfg: StochasticGradientConfig) -> Callable[[Array, Array], Array]:
    """(key, w) -> the full loss; its difference from `w_star` on a batch where paired, or under the same random key
    where the loss is stochastic."""

    def record(key, w):
        if _paired(cfg, model.population):
            key_batch, key_loss = jax.random.split(key)
            batch = model.batch(key_batch, cfg.batch_size)
            return model.batch_loss(w, batch, key_loss) - model.batch_loss(model.w_star, batch, key_loss)
        if model.loss.stochastic:
            return model.full_loss(w, key) - model.full_loss(model.w_star, key)
        return model.full_loss(w)

    return record


def mala_acceptance(
    model: Model, key: Array, w: Float[Array, " dim"], step_size: Array, scale: Float[Array, " dim"] | None
) -> Float[Array, ""]:
    """Probability that Metropolis accepts one Langevin step of `step_size`, P = `scale`, on the full data from `w`
    (Roberts & Tweedie 1996)."""
    variance = step_size if scale is None else step_size * scale

    def log_density_ratio(there, here, gradient_here):
        """log q(there | here)."""
        return -0.5 * jnp.sum((there - here + 0.5 * variance * gradient_here) ** 2 / variance)

    key_noise, key_loss = jax.random.split(key)

    def potential(w):
        return model.posterior.potential(model.full_loss(w, key_loss), w, model.w_star)

    noise = jax.random.normal(key_noise, w.shape, w.dtype)

    def visit(here, _):
        value, gradient = jax.value_and_grad(potential)(here)
        return here - 0.5 * variance * gradient + jnp.sqrt(variance) * noise, (here, value, gradient)

    # As a loop of two the gradient is compiled once.
    _, ((_, proposal), values, gradients) = jax.lax.scan(visit, w, length=2)
    back = log_density_ratio(w, proposal, gradients[1]) - log_density_ratio(proposal, w, gradients[0])
    log_ratio = values[0] - values[1] + back
    return jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))


def _paired(cfg: StochasticGradientConfig, population: bool) -> bool:
    return cfg.loss_estimate == "paired" and cfg.batch_size is not None and not population


def records_differences(cfg: StochasticGradientConfig, target: Target) -> bool:
    """Whether `recorder` records `L(w) - L(w_star)`."""
    return target.loss.stochastic or _paired(cfg, target.population)


def batch_fraction(cfg: StochasticGradientConfig, target: Target) -> float:
    """A batch in units of the full data; 1 where there are no batches."""
    if cfg.batch_size is None or target.population:
        return 1.0
    return cfg.batch_size / target.num_data


def costs(cfg: StochasticGradientConfig, target: Target) -> Costs:
    """A gradient is a batch's; a recorded loss is one forward pass, two of a batch when paired, two when stochastic."""
    fraction = batch_fraction(cfg, target)
    if _paired(cfg, target.population):
        return Costs(fraction, 2 * fraction * LOSS_COST)
    return Costs(fraction, LOSS_COST * (2 if target.loss.stochastic else 1))


def notes(cfg: StochasticGradientConfig, target: Target) -> tuple[str, ...]:
    """What a reader of the estimate should know."""
    found = ["unadjusted: biased by its step size"]
    if cfg.loss_estimate == "paired" and not _paired(cfg, target.population):
        found.append("loss_estimate: paired needs batches, and this run has none; the loss is the full one")
    if not target.population and cfg.batch_size is not None and cfg.batch_size > target.num_data:
        found.append(
            f"batch_size {cfg.batch_size} exceeds the {target.num_data} rows of the data; drawn with replacement"
        )
    return tuple(found)


def run_with_pilot(sampler: Sampler, lanes: Sequence[Lane], chunks: Chunks) -> list[Draws]:
    """Run the chains, after a pilot chain of every lane where the configurations leave the step size open."""
    if lanes[0].cfg.step_size is not None:
        return run(sampler, lanes, chunks)
    pilots = run_pilots(lanes, chunks)
    tuned = [
        lane._replace(cfg=replace(lane.cfg, step_size=pilot.step_size))
        for lane, pilot in zip(lanes, pilots, strict=True)
    ]
    return [
        draws._replace(
            num_gradients=draws.num_gradients + pilot.num_gradients,
            fge=draws.fge + pilot.fge,
            notes=(*draws.notes, *pilot.notes),
        )
        for draws, pilot in zip(run(sampler, tuned, chunks), pilots, strict=True)
    ]
