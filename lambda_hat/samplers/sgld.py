"""Stochastic gradient Langevin dynamics, optionally preconditioned.

`dw = -(eps/2) P (gamma (w - w_star) + n_beta grad L_B(w)) + sqrt(eps P) xi` (Welling & Teh 2011; Li et al. 2016,
arXiv 1512.07666; Lau et al. 2023, arXiv 2308.12108). blackjax's `sgld` takes `eps/2` for this `eps`.

There is no accept-reject step, so the law is off by the step: on a quadratic of curvature `h` the variance comes out
as `1 / (h (1 - eps h / 4))`. With `adapt: burnin` P is constant once draws are recorded and adds no error of its own;
kept adapting, the dynamics lack the divergence of P and converge to another law.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lambda_hat.config import SgldConfig
from lambda_hat.samplers import precond as preconditioning
from lambda_hat.samplers import stochastic
from lambda_hat.samplers.base import Algorithm, Info, Model, Sampler
from lambda_hat.samplers.precond import Moments, preconditioner
from lambda_hat.targets.base import Target


class State(NamedTuple):
    w: Float[Array, " dim"]
    moments: Moments | None


class Tuned(NamedTuple):
    step_size: Float[Array, ""]
    scale: Float[Array, " dim"] | None
    """The frozen diagonal of P; None where P is 1 or keeps adapting."""


def is_frozen(cfg: SgldConfig) -> bool:
    """Whether there is a preconditioner, and burn-in learns it for good."""
    return cfg.precond != "none" and cfg.adapt == "burnin"


def build(model: Model, cfg: SgldConfig, arguments: dict[str, Array]) -> Algorithm:
    """One chain of SGLD."""
    step_size = arguments["step_size"]
    precond = preconditioner(cfg, arguments)
    n_beta, gamma = model.posterior

    def move(key, w, loss_gradient, scale):
        drift = gamma * (w - model.w_star) + n_beta * loss_gradient
        noise = jax.random.normal(key, w.shape, w.dtype)
        if scale is None:
            return w - 0.5 * step_size * drift + jnp.sqrt(step_size) * noise
        return w - 0.5 * step_size * scale * drift + jnp.sqrt(step_size * scale) * noise

    def transition(key, state: State, frozen_scale) -> State:
        key_batch, key_noise = jax.random.split(key)
        g = model.loss_gradient(key_batch, state.w, cfg.batch_size)
        if precond is None:
            return State(move(key_noise, state.w, g, None), None)
        moments = precond.update(state.moments, g)
        scale = precond.scale(precond.second_moment(moments)) if frozen_scale is None else frozen_scale
        drift = precond.momentum(moments) if cfg.momentum_in_drift else g
        return State(move(key_noise, state.w, drift, scale), moments)

    # Only a preconditioner that will be frozen needs a burn-in of its own.
    adapts = is_frozen(cfg)

    # What is frozen is the second moment averaged over the second half of burn-in: the moving average alone
    # remembers 1 / (1 - decay) steps, in which a slow chain sees a single place.
    num_burnin = arguments["num_burnin"]
    averaged_from = num_burnin // 2

    def init(key, w):
        start = State(w, None if precond is None else precond.init(w))
        return start, jnp.zeros_like(w) if adapts else (), 0

    def adapt(key, index, state: State, total):
        state = transition(key, state, None)
        seen = precond.second_moment(state.moments)
        return state, total + jnp.where(index >= averaged_from, seen, jnp.zeros_like(seen)), 1

    def settle(total):
        if not adapts:
            return Tuned(step_size, None)
        return Tuned(step_size, precond.scale(total / (num_burnin - averaged_from).astype(total.dtype)))

    def step(key, state: State, tuned: Tuned):
        nan = jnp.full((), jnp.nan, state.w.dtype)
        info = Info(acceptance=nan, is_divergent=jnp.zeros((), bool), num_gradients=1)
        return transition(key, state, tuned.scale), info

    def mala(key, w, tuned: Tuned):
        return stochastic.mala_acceptance(model, key, w, step_size, tuned.scale)

    return Algorithm(
        init=init,
        adapt=adapt,
        settle=settle,
        step=step,
        position=lambda state: state.w,
        record=stochastic.recorder(model, cfg),
        step_size=lambda tuned: tuned.step_size,
        mala=None if precond is not None and not adapts else mala,
    )


def notes(cfg: SgldConfig, target: Target) -> tuple[str, ...]:
    """What a reader of the estimate should know."""
    found = list(stochastic.notes(cfg, target))
    if cfg.precond != "none" and cfg.adapt == "always":
        found.append("biased: the preconditioner keeps adapting (adapt: always), so the chain converges to another law")
    if cfg.momentum_in_drift:
        found.append("biased: the drift uses the first moment in place of the gradient (momentum_in_drift: true)")
    return tuple(found)


SGLD = Sampler(
    name="sgld",
    arguments=("num_burnin", *stochastic.PILOT_ARGUMENTS, *preconditioning.ARGUMENTS),
    strict=True,
    build=build,
    num_adapt=lambda cfg: cfg.num_burnin if is_frozen(cfg) else 0,
    costs=stochastic.costs,
    notes=notes,
    records_differences=stochastic.records_differences,
    takes_noise=True,
)
