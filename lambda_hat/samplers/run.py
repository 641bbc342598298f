"""Runs one sampler: chains in one compiled program, one program per signature and process."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, UInt

from lambda_hat.config import RuntimeConfig, SampleConfig
from lambda_hat.errors import ConfigError
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import (
    LOSS_COST,
    NUM_CHECKS,
    Algorithm,
    Draws,
    Model,
    RowMoments,
    Sampler,
    cast,
    finite,
)
from lambda_hat.targets.base import Loss, Target

_programs: dict[Hashable, Callable] = {}

CHAIN_STREAM, PILOT_STREAM = 0, 1
COMMON_ARGUMENTS = ("thin", "jitter")
CHECK_COST = 2.0
"""Of one check of the step size: gradients at both ends of the step."""


class Compiled(NamedTuple):
    """An executable, the seconds that it took to make just now, and whether it was there already."""

    call: Callable
    seconds: float
    cache_hit: bool


def compiled(static: Hashable, make: Callable[[], Callable], args: Any, strict: bool) -> Compiled:
    """The executable of `make()` for arguments like `args`, from this process's cache or compiled now.

    static: everything but the arguments that decides what `make()` computes; with the shapes and dtypes of `args`
    and the precision mode it is the program's signature. `strict`: trace under strict dtype promotion (blackjax's
    own code does not take it).
    """
    leaves, structure = jax.tree.flatten(args)
    avals = tuple((np.shape(leaf), np.result_type(leaf).name) for leaf in leaves)
    key = (static, structure, avals, bool(jax.config.jax_enable_x64))
    if key in _programs:
        return Compiled(_programs[key], 0.0, True)
    start = time.perf_counter()
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        _programs[key] = jax.jit(make()).lower(*args).compile()
    return Compiled(_programs[key], time.perf_counter() - start, False)


class Chains(NamedTuple):
    """What the compiled program returns. c = num_chains, d = num_draws."""

    loss: Float[Array, "c d"]
    acceptance: Float[Array, " c"]
    mala_acceptance: Float[Array, " c"]
    num_divergent: Int[Array, " c"]
    num_gradients: UInt[Array, " c"]
    alive: Bool[Array, " c"]
    step_size: Float[Array, " c"]
    rows: RowMoments | None


def base_key(seed: Array, identity: Array, stream: int) -> Array:
    """The key of a run, from its configuration alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), identity), stream)


class Totals(NamedTuple):
    """Sums over transitions, and over checks of the step size."""

    acceptance: Float[Array, ""]
    mala_acceptance: Float[Array, ""]
    num_divergent: UInt[Array, ""]
    num_gradients: UInt[Array, ""]


def _chain(model: Model, algorithm: Algorithm, spec: SampleConfig, thin: Array, jitter: Array, key: Array) -> Chains:
    """One chain: adaptation, then burn-in, then `num_draws` times `thin` transitions and one recorded loss.

    The transitions of burn-in belong to the first draw's loop, so that the kernel is compiled once for both.
    """
    none = np.uint32(0)
    dtype = model.w_star.dtype
    key_start, key_adapt, key_draws = jax.random.split(key, 3)
    start = model.w_star + jitter * jax.random.normal(key_start, model.w_star.shape, dtype)
    state, tuned, num_gradients = algorithm.adapt(key_adapt, start)
    check_every = -(-spec.num_draws // NUM_CHECKS)
    num_checks = _num_checks(spec)

    def draw(carry, index):
        state, totals, rows = carry
        key_draw = jax.random.fold_in(key_draws, index)
        skipped = jnp.where(index == 0, algorithm.num_burnin, none)

        def transition(i, carry):
            state, totals = carry
            state, info = algorithm.step(jax.random.fold_in(key_draw, i), state, tuned)
            counted = i >= skipped
            return state, totals._replace(
                acceptance=totals.acceptance + jnp.where(counted, info.acceptance, 0).astype(dtype),
                num_divergent=totals.num_divergent + (counted & info.is_divergent).astype(jnp.uint32),
                num_gradients=totals.num_gradients + jnp.asarray(info.num_gradients).astype(jnp.uint32),
            )

        state, totals = jax.lax.fori_loop(none, skipped + thin, transition, (state, totals))
        w = algorithm.position(state)
        # No step has one of the last two numbers, so these keys are none of theirs.
        loss = algorithm.record(jax.random.fold_in(key_draw, np.uint32(2**32 - 1)), w)
        if algorithm.mala is not None:
            key_check = jax.random.fold_in(key_draw, np.uint32(2**32 - 2))
            accepted = jax.lax.cond(
                index % check_every == 0,
                lambda: algorithm.mala(key_check, w, tuned),
                lambda: jnp.zeros((), dtype),
            )
            totals = totals._replace(mala_acceptance=totals.mala_acceptance + accepted)
        if rows is not None:
            rows = _add_rows(rows, model.row_losses(w), index)
        return (state, totals, rows), jnp.where(finite(w), loss, jnp.nan)

    zero = jnp.zeros((), dtype)
    totals = Totals(zero, zero, jnp.zeros((), jnp.uint32), jnp.asarray(num_gradients).astype(jnp.uint32))
    rows = None
    if spec.singular_fluctuation:
        none_yet = jnp.zeros(jax.eval_shape(model.row_losses, model.w_star).shape, dtype)
        rows = RowMoments(none_yet, none_yet, none_yet - jnp.inf)
    draws = jnp.arange(spec.num_draws, dtype=jnp.uint32)
    (state, totals, rows), loss = jax.lax.scan(draw, (state, totals, rows), draws)
    alive = finite(algorithm.position(state)) & finite(loss)
    transitions = thin.astype(dtype) * spec.num_draws
    if rows is not None:
        count = jnp.asarray(spec.num_draws, dtype)
        rows = RowMoments(rows.mean, rows.variance / count, rows.log_mean_likelihood - jnp.log(count))
    return Chains(
        loss=loss,
        acceptance=totals.acceptance / transitions,
        mala_acceptance=zero * jnp.nan if algorithm.mala is None else totals.mala_acceptance / num_checks,
        num_divergent=totals.num_divergent,
        num_gradients=totals.num_gradients,
        alive=alive,
        step_size=algorithm.step_size(tuned),
        rows=rows,
    )


def _num_checks(spec: SampleConfig) -> int:
    """Recorded draws of a chain at which the step size is checked."""
    return -(-spec.num_draws // -(-spec.num_draws // NUM_CHECKS))


def _add_rows(rows: RowMoments, losses: Float[Array, " rows"], index: Array) -> RowMoments:
    """Welford's update with draw `index`; sums in place of the means of squares and likelihoods."""
    difference = losses - rows.mean
    mean = rows.mean + difference / (index + np.uint32(1)).astype(losses.dtype)
    return RowMoments(
        mean, rows.variance + difference * (losses - mean), jnp.logaddexp(rows.log_mean_likelihood, -losses)
    )


def flat_model(loss: Loss, population: bool, slice_rows: int, w_star, held, data, posterior: Posterior) -> Model:
    """The model over flat vectors, from the arguments of a program."""
    flat, unravel = ravel_pytree(w_star)
    return Model(loss, population, slice_rows, lambda w: held | unravel(w), flat, data, posterior)


def _make(sampler: Sampler, spec: SampleConfig, loss: Loss, population: bool) -> Callable:
    """The program of a signature: vmapped chains; every number of the run is an argument."""

    def program(seed, identity, arguments: dict[str, Array], posterior: Posterior, w_star, held, data) -> Chains:
        model = flat_model(loss, population, spec.slice_rows, w_star, held, data, posterior)
        algorithm = sampler.build(model, spec, arguments)
        key = base_key(seed, identity, CHAIN_STREAM)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(spec.num_chains, dtype=jnp.uint32))
        return jax.vmap(partial(_chain, model, algorithm, spec, arguments["thin"], arguments["jitter"]))(keys)

    return program


def signature(cfg: SampleConfig, arguments: tuple[str, ...]) -> SampleConfig:
    """`cfg` without what is an argument of the program: equal signatures share one compiled program."""
    neutral = ("target_id", "seed", "beta", "gamma", "prior_radius", "restrict", *COMMON_ARGUMENTS, *arguments)
    defaults = {f.name: f.default for f in dataclasses.fields(cfg) if f.name in neutral}
    return dataclasses.replace(cfg, runtime=RuntimeConfig(), **defaults)


def model_arguments(target: Target, posterior: Posterior, precision: str) -> tuple[Posterior, dict, dict, dict]:
    """Posterior, `w_star`, held parameters and data in the run's precision: what every program's arguments end with."""
    scalar = np.dtype(precision).type
    return (
        Posterior(*map(scalar, posterior)),
        cast(target.w_star, precision),
        cast(target.held, precision),
        cast(target.data, precision),
    )


def numbers(cfg: SampleConfig, names: tuple[str, ...]) -> dict[str, np.generic]:
    """The named fields of `cfg` as arguments of a program: counts are uint32, the rest is in the run's precision."""
    scalar = np.dtype(cfg.precision).type
    values = {name: getattr(cfg, name) for name in names}
    return {name: np.uint32(value) if isinstance(value, int) else scalar(value) for name, value in values.items()}


def run(sampler: Sampler, target: Target, cfg: SampleConfig, identity: int, posterior: Posterior) -> Draws:
    """Sample with `sampler`, whose `arguments` all have a value in `cfg`. Call inside `jax.enable_x64(...)`."""
    if target.loss.stochastic and not sampler.takes_noise:
        raise ConfigError(
            f"{sampler.name} needs a loss without randomness, and this one takes a key; take sgld, sghmc or sgnht"
        )
    spec = signature(cfg, sampler.arguments)
    args = (
        np.uint32(cfg.seed),
        np.uint32(identity),
        numbers(cfg, (*COMMON_ARGUMENTS, *sampler.arguments)),
        *model_arguments(target, posterior, cfg.precision),
    )
    program = compiled(
        (sampler.name, spec, target.loss, target.population),
        lambda: _make(sampler, spec, target.loss, target.population),
        args,
        sampler.strict and target.loss.strict,
    )
    start = time.perf_counter()
    chains = jax.device_get(program.call(*args))
    seconds = time.perf_counter() - start

    loss = chains.loss.astype(np.float64)
    loss[np.logical_or.accumulate(~np.isfinite(loss), axis=1)] = np.nan
    if sampler.records_differences(cfg, target):
        loss += target.loss_at_w_star
    costs = sampler.costs(cfg, target)
    checks = 0 if np.all(np.isnan(chains.mala_acceptance)) else _num_checks(cfg)
    per_record = costs.per_record + LOSS_COST * cfg.singular_fluctuation
    num_gradients = int(chains.num_gradients.sum(dtype=np.int64))
    return Draws(
        loss=loss,
        acceptance=_known(chains.acceptance),
        mala_acceptance=_known(chains.mala_acceptance),
        num_divergent=int(chains.num_divergent.sum()),
        chain_alive=chains.alive,
        step_size=chains.step_size.astype(np.float64),
        num_transitions=cfg.num_chains * cfg.num_draws * cfg.thin,
        num_gradients=num_gradients,
        fge=num_gradients * costs.per_gradient + cfg.num_chains * (cfg.num_draws * per_record + checks * CHECK_COST),
        seconds_compile=program.seconds,
        seconds_sample=seconds,
        cache_hit=program.cache_hit,
        notes=sampler.notes(cfg, target),
        row_moments=chains.rows,
        exact_losses=not sampler.records_differences(cfg, target),
    )


def _known(values: np.ndarray) -> np.ndarray | None:
    return None if np.all(np.isnan(values)) else values.astype(np.float64)
