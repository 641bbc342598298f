"""The step size and the preconditioner of the stochastic samplers, learned in burn-in from the chain's own gradients.

**The step size.** In the stationary law of SGLD, a step does not change `E[|w - w_star|^2]`. Let g be the gradient that
the step takes, noise included, and P its preconditioner. Then exactly

    E[(w - w_star) . g] / dim = 1 + eps E[g . P g] / (4 dim).

This is the configurational temperature; its excess over 1 is the heat of discretisation and minibatches together. On a
quadratic each direction i has an excess of `eps h_i / 4`. The part that comes from the loss raises the estimate,
`growth / 2`, by the share `eps (E[g . P g] - gamma tr P) / (4 growth)`. The step is the largest at which this share is
`heat`.

**The preconditioner.** `low_rank` fits a diagonal and a few directions to draws and gradients of a window. Gradients
show the curvature of a direction before the chains have spread along it. Each window gives the metric of the next one;
after the last window the metric stays, and the step settles in it. The step starts tiny, because derivatives vanish at
a singular `w_star`, and grows by at most `GROWTH` a transition. A chain whose step overflows starts again at `w_star`.

Chains share what they learn, because a single chain meets too little of a curvature that varies.

**Stability.** A mean does not see the stiff places that a chain enters now and then, where a step above 4 over the
curvature throws it out. A power iteration on Hessian-vector products of batches follows the largest curvature that the
chain meets in its metric. `STABILITY` over that curvature bounds the step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree, UInt

from lambda_hat.config import StochasticGradientConfig
from lambda_hat.engine.algorithm import Visit
from lambda_hat.engine.model import Batches, Model
from lambda_hat.samplers.metric import Metric, identity
from lambda_hat.samplers.noise import normal_like
from lambda_hat.samplers.precond import SecondMoment
from lambda_hat.samplers.windows import NUMBER, LowRank, Windows

FIRST_STEP = 1e-8
"""First step, in units of w^2. Arbitrary: small beside any scale of w that a float32 run can resolve."""
GROWTH = 1.1
"""Factor by which a step grows in a transition, at most. Arbitrary."""
HALF = 0.5
"""Longest later step of a window, in units of a step at which a transition overflowed. Arbitrary."""
SHRINK = 0.1
"""First step in a new metric, in units of the step that an ideal metric allows. Arbitrary."""
STABILITY = 2.0
"""Bound of the step times the largest curvature met. Arbitrary: where it is reached, and only there, SGLD's variance is
twice too large."""
EVERY = 4
"""Transitions between two Hessian-vector products."""
HVP_GRADIENTS = 2
"""Cost of a Hessian-vector product in gradients, by convention."""
MIXING = 0.1
"""Share of noise in the vector of the power iteration. Without noise it would keep an eigenvector that is no longer the
top one. Arbitrary."""
SETTLING = 5
"""One part in this many of burn-in follows the last window. Arbitrary."""


Learner: TypeAlias = LowRank | SecondMoment
"""Learns a metric in the windows of burn-in."""
Allowed: TypeAlias = Callable[
    [Float[Array, ""], Float[Array, ""], Float[Array, ""], Float[Array, ""]], Float[Array, ""]
]
"""(squared, noise, growth, heat) -> the largest step, as `langevin_step`."""


class Taken(NamedTuple):
    """What a transition shows to the adaptation, as means over its gradients g."""

    w: Float[Array, " dim"]
    gradient: Float[Array, " dim"]
    """Of the negative log posterior at `w`, as the transition took it."""
    squared: Float[Array, ""]
    """`g . P g`."""
    localised: Float[Array, ""] | float
    """`gamma tr P`: the part of the mean of `squared` that comes from the localisation."""
    noise: Float[Array, ""]
    """`n . P n` of the gradient's noise n, where the sampler estimates it; else 0."""
    visit: Visit


class Sums(NamedTuple):
    """Sums of the fields of `Taken` over the transitions since the last window ended."""

    count: Float[Array, ""]
    squared: Float[Array, ""]
    localised: Float[Array, ""] | float
    noise: Float[Array, ""]
    growth: Float[Array, ""]


class Learned(NamedTuple):
    """The state of one chain's adaptation."""

    step_size: Float[Array, ""]
    limit: Float[Array, ""]
    """Bound of the step; infinite until a transition overflows in this window."""
    metric: Metric
    sums: Sums
    overflowed: Bool[Array, ""]
    """The last transition of this chain overflowed."""
    direction: Float[Array, " dim"]
    """Unit vector of the power iteration, in the coordinates in which P is 1."""
    curvature: Float[Array, ""]
    """The largest curvature met since the last window ended."""
    draws: PyTree
    """The learner's state, from which the next metric is fitted."""


class Adaptation:
    """The adaptation of one chain in burn-in.

    Args:
        model: The posterior.
        cfg: The signature.
        batches: What batches its gradients are of; None: the full data.
        arguments: The fields of the sampler's `arguments`.
        allowed: The sampler's rule for the largest step, as `langevin_step`.
        learner: Learns the metric; None where P is 1.
    """

    def __init__(
        self,
        model: Model,
        cfg: StochasticGradientConfig,
        batches: Batches | None,
        arguments: dict[str, Array],
        allowed: Allowed,
        learner: Learner | None,
    ):
        self._model, self._allowed, self._learner = model, allowed, learner
        self._batches = batches
        self._given = None if cfg.step_size is None else arguments["step_size"]
        self._heat = arguments["heat"]
        num_burnin = arguments["num_burnin"]
        self._windows = Windows(num_burnin - num_burnin // NUMBER(SETTLING))

    def init(self, w: Float[Array, " dim"]) -> Learned:
        """The state of a chain that starts at `w`, (dim,)."""
        zero = jnp.zeros((), w.dtype)
        draws, metric = ((), identity(w)) if self._learner is None else self._learner.init(w)
        step_size = jnp.asarray(FIRST_STEP, w.dtype) if self._given is None else self._given
        sums = Sums(zero, zero, zero, zero, zero)
        direction = jnp.full_like(w, w.size**-0.5)
        return Learned(
            step_size, jnp.full_like(zero, jnp.inf), metric, sums, jnp.zeros((), bool), direction, zero, draws
        )

    def update(
        self, key: Key[Array, ""], index: UInt[Array, ""], learned: Learned, taken: Taken, usable: Bool[Array, ""]
    ) -> tuple[Learned, UInt[Array | np.uint32, ""]]:
        """Add what one chain has seen in a transition.

        Args:
            key: Draws the batch and the noise of a Hessian-vector product.
            index: The transition, counted from 0.
            learned: The chain's state.
            taken: What the transition shows.
            usable: Whether the transition did not overflow.

        Returns:
            The chain's state, and the gradients that this evaluated.
        """
        seen = Sums(jnp.ones_like(taken.squared), taken.squared, taken.localised, taken.noise, taken.visit.growth)
        sums = jax.tree.map(lambda total, x: jnp.where(usable, total + x, total), learned.sums, seen)
        learned = learned._replace(sums=sums, overflowed=learned.overflowed | ~usable)
        more = NUMBER(0)
        if self._given is None:
            looks = index % NUMBER(EVERY) == NUMBER(0)
            direction, curvature = jax.lax.cond(
                looks, self._follow, lambda *_: (learned.direction, learned.curvature), key, learned, taken.w
            )
            learned = learned._replace(direction=direction, curvature=curvature)
            more = looks.astype(jnp.uint32) * NUMBER(HVP_GRADIENTS)
        if self._learner is not None:
            keeps = usable & self._windows.is_kept(index, self._learner.rows)
            draws = self._learner.keep(learned.draws, keeps, taken.w, -taken.gradient)
            learned = learned._replace(draws=draws)
        return learned, more

    def pool(self, index: UInt[Array, ""], learned: Learned) -> Learned:
        """Share what the chains have learned up to transition `index`. `learned` has an axis of chains."""
        num_chains = learned.step_size.shape[0]
        old = jax.tree.map(lambda x: x[0], learned)
        sums = jax.tree.map(lambda total: jnp.sum(total, axis=0), learned.sums)
        any_overflow = jnp.any(learned.overflowed)
        step_size = jnp.minimum(GROWTH * old.step_size, self._largest(sums, jnp.max(learned.curvature)))
        limit = jnp.where(any_overflow, jnp.minimum(old.limit, HALF * old.step_size), old.limit)
        step_size = jnp.minimum(step_size, limit)
        ends = self._windows.is_end(index)
        metric, draws = old.metric, learned.draws
        if self._learner is not None:
            metric = jax.lax.cond(ends, self._learner.fit, lambda draws, metric: metric, learned.draws, old.metric)
            draws = jax.vmap(self._learner.begin, (0, None))(draws, ends)
            # The curvatures along the directions of a metric that fits are about 1.
            anew = 4 * self._heat if self._learner.fits else step_size * old.metric.trace / metric.trace
            step_size = jnp.where(ends, SHRINK * anew, step_size)
        sums, curvature = jax.tree.map(
            lambda total: jnp.where(ends, jnp.zeros_like(total), total), (learned.sums, learned.curvature)
        )
        limit = jnp.where(ends, jnp.full_like(limit, jnp.inf), limit)
        step_size = step_size if self._given is None else self._given
        step_size, limit, metric = jax.tree.map(
            lambda x: jnp.broadcast_to(x, (num_chains, *x.shape)), (step_size, limit, metric)
        )
        overflowed = jnp.zeros_like(learned.overflowed)
        return Learned(step_size, limit, metric, sums, overflowed, learned.direction, curvature, draws)

    def _follow(
        self, key: Key[Array, ""], learned: Learned, w: Float[Array, " dim"]
    ) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Make one step of the power iteration.

        Returns:
            The new direction u, and the largest `|H u|` so far, which bounds the top curvature from below.
        """
        key_batch, key_noise = jax.random.split(jax.random.fold_in(key, 2))
        n_beta, gamma = self._model.posterior
        along = learned.metric.forward(learned.direction)
        of_loss = self._model.curvature_along(key_batch, w, along, self._batches)
        product = learned.metric.adjoint(n_beta * of_loss + gamma * along)
        size = jnp.linalg.norm(product)
        noise = normal_like(key_noise, w) * MIXING / jnp.sqrt(jnp.full((), w.size, w.dtype))
        mixed = jnp.where(size > 0, product / size, learned.direction) + noise
        met = jnp.isfinite(size)
        direction = jnp.where(met, mixed / jnp.linalg.norm(mixed), learned.direction)
        return direction, jnp.where(met, jnp.maximum(learned.curvature, size), learned.curvature)

    def _largest(self, sums: Sums, curvature: Float[Array, ""]) -> Float[Array, ""]:
        squared, localised, noise, growth = (total / jnp.maximum(sums.count, 1) for total in sums[1:])
        dim = self._model.w_star.size
        of_loss = self._allowed(squared - localised, noise, growth, self._heat)
        of_all = self._allowed(squared, noise, jnp.full_like(growth, dim), self._heat)
        # Where the loss is flat, or falls away from w_star, the localisation alone bounds the step.
        of_heat = jnp.minimum(of_all, jnp.where(growth > 0, of_loss, of_all))
        stable = STABILITY / jnp.maximum(curvature, jnp.finfo(curvature.dtype).tiny)
        return jnp.where(sums.count > 0, jnp.minimum(of_heat, stable), stable)


def langevin_step(
    squared: Float[Array, ""], noise: Float[Array, ""], growth: Float[Array, ""], heat: Float[Array, ""]
) -> Float[Array, ""]:
    """The largest step of SGLD at which the excess is the share `heat` of `growth`.

    Args:
        squared: Mean of `g . P g`, from the loss alone or in all.
        noise: Mean of `n . P n` of the gradient's noise, which `squared` already has for SGLD.
        growth: Mean of `(w - w_star) . g`, from the loss alone or in all.
        heat: The share.
    """
    return 4 * heat * growth / jnp.maximum(squared, jnp.finfo(squared.dtype).tiny)
