"""Diagonal preconditioners from moments of the loss gradient (RMSProp, Adam), always moving or learned in windows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from lambda_hat.config import SgldConfig
from lambda_hat.engine.model import Model
from lambda_hat.samplers.metric import Metric, diagonal, on_host


class Moments(NamedTuple):
    """Moving averages of the loss gradient g, without the localisation and the temperature."""

    count: Float[Array, ""]
    """Gradients seen."""
    first: Float[Array, " dim"]
    second: Float[Array, " dim"]
    """Of `g^2`, entry by entry."""


@dataclass(frozen=True)
class Preconditioner:
    """`P = 1 / (damping + sqrt(v))` with `v <- decay v + (1 - decay) g^2` (Li et al. 2016, arXiv 1512.07666)."""

    bias_correction: bool
    """Take `(v_t - decay^t v_0) / (1 - decay^t)` for v: the weighted mean of the squared gradients seen so far (Adam,
    arXiv 1412.6980, for any `v_0`). The same holds for the first moment."""
    decay: Float[Array, ""]
    momentum_decay: Float[Array, ""]
    damping: Float[Array, ""]
    initial_second_moment: Float[Array, ""]

    def init(self, w: Float[Array, " dim"]) -> Moments:
        """The moments before the first gradient."""
        zero = jnp.zeros_like(w)
        return Moments(jnp.zeros((), w.dtype), zero, zero + self.initial_second_moment)

    def update(self, moments: Moments, gradient: Float[Array, " dim"]) -> Moments:
        """The moments with one loss gradient (dim,) more."""
        return Moments(
            moments.count + 1,
            self.momentum_decay * moments.first + (1 - self.momentum_decay) * gradient,
            self.decay * moments.second + (1 - self.decay) * gradient**2,
        )

    def momentum(self, moments: Moments) -> Float[Array, " dim"]:
        """The first moment as it enters the drift, corrected if asked for."""
        if not self.bias_correction:
            return moments.first
        return moments.first / (1 - self.momentum_decay**moments.count)

    def second_moment(self, moments: Moments) -> Float[Array, " dim"]:
        """The second moment v, corrected if asked for."""
        if not self.bias_correction:
            return moments.second
        weight = self.decay**moments.count
        # If every gradient was zero, rounding can take the difference below zero.
        return jnp.maximum((moments.second - weight * self.initial_second_moment) / (1 - weight), 0)

    def scale(self, second_moment: Float[Array, " dim"]) -> Float[Array, " dim"]:
        """The diagonal of P."""
        return 1 / (self.damping + jnp.sqrt(second_moment))


ARGUMENTS = ("decay", "momentum_decay", "damping", "initial_second_moment")
"""Fields of the configuration that are numbers of the preconditioner, and arguments of the programs."""


def preconditioner(cfg: SgldConfig, arguments: dict[str, Array]) -> Preconditioner | None:
    """The preconditioner that `cfg` names, with its numbers from `arguments`; None where P is 1."""
    if cfg.precond not in ("rmsprop", "adam"):
        return None
    return Preconditioner(
        bias_correction=cfg.precond == "adam" and cfg.bias_correction,
        **{name: arguments[name] for name in ARGUMENTS},
    )


class Seen(NamedTuple):
    """The second moments that one chain has seen in a window."""

    moments: Moments
    total: Float[Array, " dim"]
    """Sum of the second moments after each transition."""
    count: Float[Array, ""]


class SecondMoment:
    """Learns P from the second moment's average over a window.

    The moving average alone remembers only `1 / (1 - decay)` steps, in which a slow chain sees a single place.
    """

    def __init__(self, precond: Preconditioner, model: Model):
        self._precond, self._model = precond, model

    def init(self, w: Float[Array, " dim"]) -> tuple[Metric, Seen]:
        """The metric and the state before the first transition."""
        moments = self._precond.init(w)
        seen = Seen(moments, jnp.zeros_like(w), jnp.zeros((), w.dtype))
        return diagonal(self._precond.scale(moments.second)), seen

    def keep(self, seen: Seen, keeps: Bool[Array, ""], w: Float[Array, " dim"], gradient: Float[Array, " dim"]) -> Seen:
        """The state with one `gradient` of the log posterior at `w` more, where `keeps` is true."""
        n_beta, gamma = self._model.posterior
        moments = self._precond.update(seen.moments, (-gradient - gamma * (w - self._model.w_star)) / n_beta)
        added = Seen(moments, seen.total + self._precond.second_moment(moments), seen.count + 1)
        return jax.tree.map(lambda new, old: jnp.where(keeps, new, old), added, seen)


def second_moment_fitted(cfg: SgldConfig, seen: Seen) -> Metric:
    """The metric of what the chains have seen in a window. NumPy arrays with an axis of chains."""
    total, count = seen.total.sum(axis=0), seen.count.sum()
    scale = 1 / (cfg.damping + np.sqrt(total / count))
    none = np.zeros((0,), total.dtype)
    return on_host(np.sqrt(scale).astype(total.dtype), np.zeros((0, total.shape[-1]), total.dtype), none)


def second_moment_emptied(seen: Seen) -> Seen:
    """The state at the start of the next window."""
    return seen._replace(total=np.zeros_like(seen.total), count=np.zeros_like(seen.count))
