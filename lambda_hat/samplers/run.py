"""Runs one sampler: its chains side by side, in chunks, from a configuration to draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from lambda_hat.config import RuntimeConfig, SampleConfig
from lambda_hat.errors import ConfigError
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import LOSS_COST, Draws, RowMoments, Sampler, cast
from lambda_hat.samplers.chains import Adapting, Chains, Numbers, Sampling, check_every
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.targets.base import Target

COMMON_ARGUMENTS = ("thin", "jitter")
CHECK_COST = 2.0
"""Of one check of the step size: gradients at both ends of the step."""
ADAPT, SAMPLE = "adapt", "sample"
"""Phases of a run, as a checkpoint names them."""


def signature(cfg: SampleConfig, arguments: tuple[str, ...]) -> SampleConfig:
    """`cfg` without what is an argument of the programs: equal signatures share compiled programs."""
    neutral = ("target_id", "seed", "beta", "gamma", "prior_radius", "restrict", *COMMON_ARGUMENTS, *arguments)
    defaults = {f.name: f.default for f in dataclasses.fields(cfg) if f.name in neutral}
    return dataclasses.replace(cfg, runtime=RuntimeConfig(), **defaults)


def arguments_of(cfg: SampleConfig, names: tuple[str, ...]) -> dict[str, np.generic]:
    """The named fields of `cfg` as arguments of a program: counts are uint32, the rest is in the run's precision."""
    scalar = np.dtype(cfg.precision).type
    values = {name: getattr(cfg, name) for name in names}
    return {name: np.uint32(value) if isinstance(value, int) else scalar(value) for name, value in values.items()}


def numbers_of(
    target: Target, cfg: SampleConfig, identity: int, posterior: Posterior, arguments: dict[str, np.generic]
) -> Numbers:
    """The arguments of every program of a run, in its precision."""
    scalar = np.dtype(cfg.precision).type
    return Numbers(
        seed=np.uint32(cfg.seed),
        identity=np.uint32(identity),
        arguments=arguments,
        posterior=Posterior(*map(scalar, posterior)),
        w_star=cast(target.w_star, cfg.precision),
        held=cast(target.held, cfg.precision),
        data=cast(target.data, cfg.precision),
    )


def run(
    sampler: Sampler, target: Target, cfg: SampleConfig, identity: int, posterior: Posterior, chunks: Chunks
) -> Draws:
    """Sample with `sampler`, whose `arguments` all have a value in `cfg`. Call inside `jax.enable_x64(...)`.

    Raises ConfigError, TooLarge, Paused.
    """
    if target.loss.stochastic and not sampler.takes_noise:
        raise ConfigError(
            f"{sampler.name} needs a loss without randomness, and this one takes a key; take sgld, sghmc or sgnht"
        )
    arguments = arguments_of(cfg, (*COMMON_ARGUMENTS, *sampler.arguments))
    arguments["num_skipped"] = np.uint32(cfg.num_burnin - sampler.num_adapt(cfg))
    numbers = jax.device_put(numbers_of(target, cfg, identity, posterior, arguments))
    end = _without_state(_sampled(sampler, target, cfg, numbers, chunks))
    num_draws = int(end.draw)
    num_transitions = max(int(end.step) - int(arguments["num_skipped"]), 0)
    loss = end.loss.astype(np.float64)
    if sampler.records_differences(cfg, target):
        loss += target.loss_at_w_star
    checks = 0 if np.all(np.isnan(end.totals.mala_acceptance)) else -(-num_draws // check_every(cfg))
    num_gradients = int(end.totals.num_gradients.sum(dtype=np.int64))
    costs = sampler.costs(cfg, target)
    per_record = costs.per_record + LOSS_COST * cfg.singular_fluctuation
    notes = sampler.notes(cfg, target)
    if num_draws < cfg.num_draws:
        notes += (f"ended after {num_draws} of {cfg.num_draws} draws: every chain had become non-finite",)
    return Draws(
        loss=loss,
        acceptance=_known(end.totals.acceptance / max(num_transitions, 1)),
        mala_acceptance=_known(end.totals.mala_acceptance / max(checks, 1)),
        num_divergent=int(end.totals.num_divergent.sum()),
        chain_alive=end.alive,
        step_size=end.step_size.astype(np.float64),
        num_transitions=cfg.num_chains * num_transitions,
        num_gradients=num_gradients,
        fge=num_gradients * costs.per_gradient + cfg.num_chains * (num_draws * per_record + checks * CHECK_COST),
        seconds_compile=chunks.facts["seconds_compile"],
        seconds_sample=chunks.facts["seconds_sample"],
        programs_compiled=chunks.facts["programs_compiled"],
        programs_loaded=chunks.facts["programs_loaded"],
        notes=notes,
        row_moments=_moments(end.rows, max(num_draws, 1)),
        exact_losses=not sampler.records_differences(cfg, target),
    )


def _sampled(sampler: Sampler, target: Target, cfg: SampleConfig, numbers: Numbers, chunks: Chunks) -> Sampling:
    """The chains after their last transition, or after the last of them has died."""
    spec = signature(cfg, sampler.arguments)
    chains = Chains(sampler, spec, target.loss, target.population)

    def program(name: str, *args, donate: tuple[int, ...] = ()) -> Callable:
        static = (sampler.name, name, spec, target.loss, target.population)
        strict = sampler.strict and target.loss.strict
        return chunks.program(static, lambda: getattr(chains, name), (numbers, *args), strict, donate)

    def loop(name: str, phase: str, carry, total: int):
        advance = program(name, carry, np.uint32(total), donate=(1,))
        return chunks.drive(phase, partial(advance, numbers), carry, total, lambda carry: bool(np.any(carry.alive)))

    sampling = chunks.restore(SAMPLE, lambda: jax.eval_shape(chains.settle, numbers, chains.shapes(numbers)))
    if sampling is None:
        adapting: Adapting | None = chunks.restore(ADAPT, lambda: chains.shapes(numbers))
        if adapting is None:
            adapting = program("begin")(numbers)
        num_adapt = sampler.num_adapt(cfg)
        if num_adapt:
            adapting = loop("adapt", ADAPT, adapting, num_adapt)
        sampling = program("settle", adapting)(numbers, adapting)
    return loop("advance", SAMPLE, sampling, cfg.num_steps - sampler.num_adapt(cfg))


def _without_state(carry: Sampling) -> Sampling:
    """Off the device, but for what only the next transition would need."""
    return jax.device_get(carry._replace(state=(), tuned=()))


def _moments(sums: RowMoments | None, count: int) -> RowMoments | None:
    if sums is None:
        return None
    return RowMoments(sums.mean, sums.variance / count, sums.log_mean_likelihood - np.log(count))


def _known(values: np.ndarray) -> np.ndarray | None:
    return None if np.all(np.isnan(values)) else values.astype(np.float64)
