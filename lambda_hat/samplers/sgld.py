"""Stochastic gradient Langevin dynamics, optionally preconditioned.

`dw = -(eps/2) P (gamma (w - w_star) + n_beta grad L_B(w)) + sqrt(eps P) xi` (Welling & Teh 2011; Li et al. 2016,
arXiv 1512.07666; Lau et al. 2023, arXiv 2308.12108). blackjax's `sgld` takes `eps/2` for this `eps`.

There is no accept-reject step, so the law is biased by the step size. On a quadratic of curvature `h`, with gradients
whose noise has variance `s^2`, the variance of w is `(1 + eps s^2 / 4) / (h (1 - eps h / 4))`. A P learned in burn-in
is constant while draws are recorded, and adds no bias. If P keeps adapting, the dynamics lack the divergence of P, and
converge to another law.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from lambda_hat.config import SgldConfig
from lambda_hat.engine.algorithm import Algorithm
from lambda_hat.engine.model import Model
from lambda_hat.samplers import precond as preconditioning
from lambda_hat.samplers import stochastic
from lambda_hat.samplers.adaptation import Taken
from lambda_hat.samplers.metric import diagonal
from lambda_hat.samplers.noise import normal_like
from lambda_hat.samplers.precond import Moments, SecondMoment, preconditioner
from lambda_hat.targets.base import Target


class State(NamedTuple):
    """The state of one chain."""

    w: Float[Array, " dim"]
    moments: Moments | None
    """None where no preconditioner keeps adapting."""


def build(model: Model, cfg: SgldConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of SGLD; `arguments` has the fields of `SGLD.arguments`."""
    precond = preconditioner(cfg, arguments)
    n_beta, gamma = model.posterior

    moving = precond if cfg.adapt == "always" or cfg.momentum_in_drift else None

    def start(key: Key[Array, ""], w: Float[Array, " dim"]) -> State:
        return State(w, None if moving is None else moving.init(w))

    def transition(key: Key[Array, ""], state: State, tuned: stochastic.Tuned) -> stochastic.Transition:
        key_batch, key_noise = jax.random.split(key)
        metric, w = tuned.metric, state.w
        drawn = model.drawn(key_batch, stochastic.batches_of(cfg))
        found = stochastic.force(model, cfg, drawn, w, metric)
        pulled, moments = found.pulled, None
        if moving is not None:
            assert state.moments is not None
            loss_gradient = (found.gradient - gamma * (w - model.w_star)) / n_beta
            moments = moving.update(state.moments, loss_gradient)
            if cfg.adapt == "always":
                metric = diagonal(moving.scale(moving.second_moment(moments)))
            drift = moving.momentum(moments) if cfg.momentum_in_drift else loss_gradient
            pulled = metric.adjoint(gamma * (w - model.w_star) + n_beta * drift)
        noise = normal_like(key_noise, w)
        moved = metric.forward(jnp.sqrt(tuned.step_size) * noise - 0.5 * tuned.step_size * pulled)

        def taken() -> Taken:
            localised = gamma * metric.trace
            return Taken(w, found.gradient, jnp.vdot(pulled, pulled), localised, found.visit, drawn)

        return stochastic.Transition(State(w + moved, moments), found.visit, taken)

    def flat_heat(tuned: stochastic.Tuned) -> Float[Array, ""]:
        dim = model.w_star.size
        # With a varying P the sum over directions is larger than this.
        share = 0.25 * tuned.step_size * gamma * tuned.metric.trace / dim
        return dim * share / (1 - share)

    return stochastic.algorithm(
        model,
        cfg,
        arguments,
        start,
        transition,
        position=lambda state: state.w,
        flat_heat=flat_heat if moving is None else None,
        learner=SecondMoment(precond, model) if precond is not None and cfg.adapt == "burnin" else None,
    )


def notes(cfg: SgldConfig, target: Target) -> tuple[str, ...]:
    """Sentences for the report: what a reader of the estimate should know."""
    found = list(stochastic.notes(cfg, target))
    if cfg.precond in ("rmsprop", "adam") and cfg.adapt == "always":
        found.append("biased: the preconditioner keeps adapting (adapt: always), so the chain converges to another law")
    if cfg.momentum_in_drift:
        found.append("biased: the drift uses the first moment in place of the gradient (momentum_in_drift: true)")
    return tuple(found)


SGLD = stochastic.sampler(
    name="sgld",
    arguments=(*stochastic.ARGUMENTS, *preconditioning.ARGUMENTS),
    strict=True,
    build=build,
    notes=notes,
)
