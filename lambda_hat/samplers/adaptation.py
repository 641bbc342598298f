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
from jaxtyping import Array, Bool, Float, Key, UInt

from lambda_hat.config import StochasticGradientConfig
from lambda_hat.engine.algorithm import Visit
from lambda_hat.engine.model import Batches, Drawn, Model
from lambda_hat.engine.windows import NUMBER
from lambda_hat.samplers.metric import Metric
from lambda_hat.samplers.noise import normal_like

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
NOISE_EVERY = 8
"""Transitions between two looks at the noise of the gradients."""
HVP_GRADIENTS = 2
"""Cost of a Hessian-vector product in gradients, by convention."""
MIXING = 0.1
"""Share of noise in the vector of the power iteration. Without noise it would keep an eigenvector that is no longer the
top one. Arbitrary."""
SETTLING = 5
"""One part in this many of burn-in follows the last window. Arbitrary."""


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
    localised: Float[Array, ""]
    """`gamma tr P`: the part of the mean of `squared` that comes from the localisation."""
    visit: Visit
    drawn: Drawn
    """What a gradient at `w` is made from."""


class Sums(NamedTuple):
    """Sums over the transitions since the last window ended."""

    count: Float[Array, ""]
    squared: Float[Array, ""]
    localised: Float[Array, ""]
    growth: Float[Array, ""]
    looks: Float[Array, ""]
    """Transitions at which the noise was looked at."""
    noise: Float[Array, ""]
    """`n . P n` of the gradient's noise n, where the sampler asks for it; else 0."""


class Rule(NamedTuple):
    """The rule of one chain's step."""

    step_size: Float[Array, ""]
    limit: Float[Array, ""]
    """Bound of the step; infinite until a transition overflows in this window."""
    sums: Float[Array, " fields"]
    """Of the fields of `Sums`, in one array: every array is a kernel to compile."""
    overflowed: Bool[Array, ""]
    """The last transition of this chain overflowed."""
    direction: Float[Array, " dim"]
    """Unit vector of the power iteration, in the coordinates in which P is 1."""
    curvature: Float[Array, ""]
    """The largest curvature met since the last window ended."""


class Adaptation:
    """How the chains of a run learn their step.

    Args:
        model: The posterior.
        cfg: The signature.
        batches: What batches its gradients are of; None: the full data.
        arguments: The fields of the sampler's `arguments`.
        allowed: The sampler's rule for the largest step, as `langevin_step`.
        noisy: The rule takes the noise of the gradients, which costs one more gradient at every look at it.
    """

    def __init__(
        self,
        model: Model,
        cfg: StochasticGradientConfig,
        batches: Batches | None,
        arguments: dict[str, Array],
        allowed: Allowed,
        noisy: bool,
    ):
        self._model, self._allowed = model, allowed
        self._batches, self._gradient = batches, cfg.gradient or "plain"
        self._noisy = noisy and batches is not None and not model.population
        self._given = None if cfg.step_size is None else arguments["step_size"]
        self._heat = arguments["heat"]

    def init(self, w: Float[Array, " dim"]) -> Rule:
        """The rule of a chain that starts at `w`, (dim,)."""
        zero = jnp.zeros((), w.dtype)
        step_size = jnp.asarray(FIRST_STEP, w.dtype) if self._given is None else self._given
        direction = jnp.full_like(w, w.size**-0.5)
        sums = jnp.zeros(len(Sums._fields), w.dtype)
        return Rule(step_size, jnp.full_like(zero, jnp.inf), sums, jnp.zeros((), bool), direction, zero)

    def update(
        self,
        key: Key[Array, ""],
        index: UInt[Array, ""],
        rule: Rule,
        metric: Metric,
        taken: Taken,
        usable: Bool[Array, ""],
    ) -> tuple[Rule, UInt[Array | np.uint32, ""]]:
        """Add what one chain has seen in a transition.

        Args:
            key: Draws the noise of the power iteration, and a second batch.
            index: The transition, counted from 0.
            rule: The chain's rule.
            metric: The metric of the transition.
            taken: What the transition shows.
            usable: Whether the transition did not overflow.

        Returns:
            The chain's rule, and the gradients that this evaluated.
        """
        one = jnp.ones_like(taken.squared)
        direction, curvature, looks, noise, more = rule.direction, rule.curvature, 0 * one, 0 * one, NUMBER(0)
        key_direction, key_batch = jax.random.split(key) if self._noisy else (key, key)
        if self._given is None:
            follows = index % NUMBER(EVERY) == NUMBER(0)
            direction, curvature = jax.lax.cond(
                follows,
                lambda: self._follow(key_direction, rule, metric, taken),
                lambda: (rule.direction, rule.curvature),
            )
            more = follows.astype(jnp.uint32) * NUMBER(HVP_GRADIENTS)
        if self._given is None and self._noisy:
            is_look = index % NUMBER(NOISE_EVERY) == NUMBER(0)
            looks = is_look.astype(one.dtype)
            noise = jax.lax.cond(is_look, lambda: self._noise(key_batch, metric, taken), lambda: 0 * one)
            more += is_look.astype(jnp.uint32) * NUMBER(2 if self._gradient == "control_variate" else 1)
        seen = jnp.stack(Sums(one, taken.squared, taken.localised, taken.visit.growth, looks, noise))
        return (
            rule._replace(
                sums=jnp.where(usable, rule.sums + seen, rule.sums),
                overflowed=rule.overflowed | ~usable,
                direction=direction,
                curvature=curvature,
            ),
            more,
        )

    def pool(self, rules: Rule) -> Rule:
        """Share what the chains have seen. `rules` has an axis of chains."""
        if self._given is not None:
            return rules
        old = jax.tree.map(lambda x: x[0], rules)
        sums = Sums(*jnp.sum(rules.sums, axis=0))
        step_size = jnp.minimum(GROWTH * old.step_size, self._largest(sums, jnp.max(rules.curvature)))
        limit = jnp.where(jnp.any(rules.overflowed), jnp.minimum(old.limit, HALF * old.step_size), old.limit)
        step_size, limit = jax.tree.map(
            lambda x: jnp.broadcast_to(x, rules.limit.shape), (jnp.minimum(step_size, limit), limit)
        )
        return rules._replace(step_size=step_size, limit=limit, overflowed=jnp.zeros_like(rules.overflowed))

    def _follow(
        self, key: Key[Array, ""], rule: Rule, metric: Metric, taken: Taken
    ) -> tuple[Float[Array, " dim"], Float[Array, ""]]:
        """Make one step of the power iteration.

        Returns:
            The new direction u, and the largest `|H u|` so far, which bounds the top curvature from below.
        """
        n_beta, gamma = self._model.posterior
        along = metric.forward(rule.direction)
        of_loss = self._model.curvature_along(taken.drawn, taken.w, along, self._batches)
        product = metric.adjoint(n_beta * of_loss + gamma * along)
        size = jnp.linalg.norm(product)
        noise = normal_like(key, taken.w) * MIXING / jnp.sqrt(jnp.full((), taken.w.size, taken.w.dtype))
        mixed = jnp.where(size > 0, product / size, rule.direction) + noise
        met = jnp.isfinite(size)
        direction = jnp.where(met, mixed / jnp.linalg.norm(mixed), rule.direction)
        return direction, jnp.where(met, jnp.maximum(rule.curvature, size), rule.curvature)

    def _noise(self, key: Key[Array, ""], metric: Metric, taken: Taken) -> Float[Array, ""]:
        """`n . P n` of the gradient's noise n, from a second batch at the same place."""
        n_beta, gamma = self._model.posterior
        other = self._model.drawn(key, self._batches)
        again = self._model.evaluate(other, taken.w, self._batches, self._gradient).gradient
        difference = metric.adjoint(taken.gradient - gamma * (taken.w - self._model.w_star) - n_beta * again)
        return 0.5 * jnp.vdot(difference, difference)

    def _largest(self, sums: Sums, curvature: Float[Array, ""]) -> Float[Array, ""]:
        squared, localised, growth = (
            total / jnp.maximum(sums.count, 1) for total in (sums.squared, sums.localised, sums.growth)
        )
        noise = sums.noise / jnp.maximum(sums.looks, 1)
        dim = self._model.w_star.size
        of_loss = self._allowed(squared - localised, noise, growth, self._heat)
        of_all = self._allowed(squared, noise, jnp.full_like(growth, dim), self._heat)
        # Where the loss is flat, or falls away from w_star, the localisation alone bounds the step.
        of_heat = jnp.minimum(of_all, jnp.where(growth > 0, of_loss, of_all))
        stable = STABILITY / jnp.maximum(curvature, jnp.finfo(curvature.dtype).tiny)
        return jnp.where(sums.count > 0, jnp.minimum(of_heat, stable), stable)


def first_of_window(rules: Rule, step_size: Float[np.ndarray, " c"]) -> Rule:
    """The rules of the chains at the start of a window, whose first step is given. NumPy arrays."""
    return rules._replace(
        step_size=step_size,
        limit=np.full_like(rules.limit, np.inf),
        sums=np.zeros_like(rules.sums),
        curvature=np.zeros_like(rules.curvature),
    )


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
