"""The values that nulls of a sampler's configuration stand for. They follow from the target's size and loss."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

from lambda_hat.config.samplers import (
    LEAST_ADAPTATION,
    HmcConfig,
    NutsConfig,
    SampleConfig,
    SghmcConfig,
    StochasticGradientConfig,
)

MOST_LOW_RANK = 20_000
"""A low-rank metric is learned for at most this many parameters, because its window keeps
`4 num_chains * WINDOW_ROWS * dim` numbers."""
MOST_GRADIENTS = 60
"""Most gradients that a chain of a stochastic sampler takes between two draws; a control variate counts as two.
Arbitrary: on the small network fifty such draws are worth about one independent draw."""
MOST_WORK = 2.5e10
"""Most work of a stochastic sampler's run, in gradients times rows times parameters, unless that leaves less than one
transition per draw. Arbitrary: about ten seconds of a core for a dense network."""
BURNIN_SHARE = 4
"""The transitions after burn-in of a stochastic sampler, over those of burn-in. Arbitrary."""
ROUNDING = 2.0**-24
"""Relative rounding error of float32."""
MOST_ROUNDING = 0.01
"""Largest rounding error of `n_beta L_n`, in nats, at which a run may be float32. Arbitrary."""
TARGET_ACCEPTANCE = {"hmc": 0.9, "nuts": 0.98}
"""For losses that are not in closed form. NUTS reaches stiff places of trained networks, where at .9 it diverged in 2
to 4 % of the transitions."""


class Facts(NamedTuple):
    """The properties of a target that the defaults depend on."""

    dim: int
    rows: int
    """Rows of the full data; 0 for a loss in closed form."""
    stochastic: bool = False
    """The loss has randomness of its own."""
    potential_at_w_star: float = 0.0
    """`n_beta L_n(w_star)` in nats."""


def resolved(cfg: SampleConfig, facts: Facts) -> Any:
    """`cfg` with its default in place of every null that has one."""
    if isinstance(cfg, StochasticGradientConfig):
        return _stochastic(cfg, facts)
    filled: dict[str, Any] = {
        "precision": cfg.precision or "float64",
        "num_burnin": cfg.default_burnin if cfg.num_burnin is None else cfg.num_burnin,
        "thin": cfg.thin or cfg.default_thin,
    }
    keys = vars(cfg)
    if "metric" in keys:
        filled["metric"] = keys["metric"] or ("low_rank" if facts.dim <= MOST_LOW_RANK else "diagonal")
    if isinstance(cfg, (HmcConfig, NutsConfig)) and cfg.target_acceptance is None:
        filled["target_acceptance"] = TARGET_ACCEPTANCE[cfg.name]
    return replace(cfg, **filled)


def _stochastic(cfg: StochasticGradientConfig, facts: Facts) -> StochasticGradientConfig:
    batch_size = cfg.batch_size if facts.rows > 0 else None
    batches, rows = batch_size is not None, batch_size or max(facts.rows, 1)
    gradient = cfg.gradient or "control_variate"
    if not batches or facts.stochastic:
        gradient = "plain"
    gradients = gradients_of(cfg) * (2 if gradient == "control_variate" else 1)
    thin = cfg.thin
    if thin is None:
        work = cfg.num_chains * cfg.num_draws * (1 + 1 / BURNIN_SHARE) * gradients * rows * facts.dim
        thin = max(1, min(MOST_GRADIENTS // gradients, int(MOST_WORK / work)))
    loss_estimate = cfg.loss_estimate
    if loss_estimate is None:
        # A loss takes a third of the work of a gradient.
        loss_estimate = "full" if not batches or facts.rows <= 3 * thin * gradients * rows else "paired"
    precond = cfg.precond
    if precond is None:
        precond = "low_rank" if cfg.step_size is None and facts.dim <= MOST_LOW_RANK else "none"
    precise = abs(facts.potential_at_w_star) * ROUNDING <= MOST_ROUNDING
    return replace(
        cfg,
        precision=cfg.precision or ("float32" if precise else "float64"),
        thin=thin,
        num_burnin=_burnin(cfg, thin),
        gradient=gradient,
        loss_estimate=loss_estimate,
        precond=precond,
    )


def _burnin(cfg: StochasticGradientConfig, thin: int) -> int:
    if cfg.num_burnin is not None:
        return cfg.num_burnin
    return max(cfg.num_draws * thin // BURNIN_SHARE, LEAST_ADAPTATION)


def gradients_of(cfg: StochasticGradientConfig) -> int:
    """Gradients of one transition, on a batch or the full data.

    The gradient of a control variate at `w_star` is not counted.
    """
    return cfg.num_integration_steps if isinstance(cfg, SghmcConfig) else 1
