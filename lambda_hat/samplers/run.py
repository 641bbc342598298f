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
from jaxtyping import Array, Bool, Float, Int

from lambda_hat.config import RuntimeConfig, SampleConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import Algorithm, Draws, Model, Sampler, Work, cast, finite
from lambda_hat.targets.base import Loss, Target

_programs: dict[Hashable, Callable] = {}

CHAIN_STREAM, PILOT_STREAM = 0, 1


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
    num_divergent: Int[Array, " c"]
    alive: Bool[Array, " c"]
    step_size: Float[Array, " c"]


def base_key(seed: Array, identity: Array, stream: int) -> Array:
    """The key of a run, from its configuration alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), identity), stream)


def _chain(algorithm: Algorithm, num_draws: int, thin: Array, key: Array) -> Chains:
    """One chain: adaptation, then burn-in, then `num_draws` times `thin` transitions and one recorded loss.

    The transitions of burn-in belong to the first draw's loop, so that the kernel is compiled once for both.
    """
    none = np.uint32(0)
    key_adapt, key_draws = jax.random.split(key)
    state, tuned = algorithm.adapt(key_adapt)

    def draw(carry, index):
        key_draw = jax.random.fold_in(key_draws, index)
        skipped = jnp.where(index == 0, algorithm.num_burnin, none)

        def transition(i, carry):
            state, acceptance, num_divergent = carry
            state, info = algorithm.step(jax.random.fold_in(key_draw, i), state, tuned)
            counted = i >= skipped
            acceptance = acceptance + jnp.where(counted, info.acceptance, 0)
            num_divergent = num_divergent + jnp.where(counted & info.is_divergent, 1, 0).astype(jnp.int32)
            return state, acceptance, num_divergent

        carry = jax.lax.fori_loop(none, skipped + thin, transition, carry)
        w = algorithm.position(carry[0])
        # No step is numbered 2^32 - 1, so the record's key is none of theirs.
        loss = algorithm.record(jax.random.fold_in(key_draw, np.uint32(2**32 - 1)), w)
        return carry, jnp.where(finite(w), loss, jnp.nan)

    w = algorithm.position(state)
    start = (state, jnp.zeros((), w.dtype), jnp.zeros((), jnp.int32))
    (state, acceptance, num_divergent), loss = jax.lax.scan(draw, start, jnp.arange(num_draws, dtype=jnp.uint32))
    alive = finite(algorithm.position(state)) & finite(loss)
    transitions = thin.astype(w.dtype) * num_draws
    return Chains(loss, acceptance / transitions, num_divergent, alive, algorithm.step_size(tuned))


def flat_model(loss: Loss, population: bool, slice_rows: int, w_star, data, posterior: Posterior) -> Model:
    """The model over flat vectors, from the arguments of a program."""
    flat, unravel = ravel_pytree(w_star)
    return Model(loss, population, slice_rows, unravel, flat, data, posterior)


def _make(sampler: Sampler, spec: SampleConfig, loss: Loss, population: bool) -> Callable:
    """The program of a signature: vmapped chains; every number of the run is an argument."""

    def program(seed, identity, arguments: dict[str, Array], posterior: Posterior, w_star, data) -> Chains:
        model = flat_model(loss, population, spec.slice_rows, w_star, data, posterior)
        algorithm = sampler.build(model, spec, arguments)
        key = base_key(seed, identity, CHAIN_STREAM)
        keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(spec.num_chains, dtype=jnp.uint32))
        return jax.vmap(partial(_chain, algorithm, spec.num_draws, arguments["thin"]))(keys)

    return program


def signature(cfg: SampleConfig, arguments: tuple[str, ...]) -> SampleConfig:
    """`cfg` without what is an argument of the program: equal signatures share one compiled program."""
    neutral = ("target_id", "seed", "beta", "gamma", "prior_radius", *arguments)
    defaults = {f.name: f.default for f in dataclasses.fields(cfg) if f.name in neutral}
    return dataclasses.replace(cfg, runtime=RuntimeConfig(), **defaults)


def model_arguments(target: Target, posterior: Posterior, precision: str) -> tuple[Posterior, dict, dict]:
    """Posterior, `w_star` and data in the run's precision: the arguments that every program ends with."""
    scalar = np.dtype(precision).type
    return (
        Posterior(*map(scalar, posterior)),
        cast(target.w_star, precision),
        cast(target.data, precision),
    )


def numbers(cfg: SampleConfig, names: tuple[str, ...]) -> dict[str, np.generic]:
    """The named fields of `cfg` as arguments of a program: counts are uint32, the rest is in the run's precision."""
    scalar = np.dtype(cfg.precision).type
    values = {name: getattr(cfg, name) for name in names}
    return {name: np.uint32(value) if isinstance(value, int) else scalar(value) for name, value in values.items()}


def run(sampler: Sampler, target: Target, cfg: SampleConfig, identity: int, posterior: Posterior) -> Draws:
    """Sample with `sampler`, whose `arguments` all have a value in `cfg`. Call inside `jax.enable_x64(...)`."""
    spec = signature(cfg, sampler.arguments)
    args = (
        np.uint32(cfg.seed),
        np.uint32(identity),
        numbers(cfg, sampler.arguments),
        *model_arguments(target, posterior, cfg.precision),
    )
    program = compiled(
        (sampler.name, spec, target.loss, target.population),
        lambda: _make(sampler, spec, target.loss, target.population),
        args,
        sampler.strict,
    )
    start = time.perf_counter()
    chains = jax.device_get(program.call(*args))
    seconds = time.perf_counter() - start

    loss = chains.loss.astype(np.float64)
    loss[np.logical_or.accumulate(~np.isfinite(loss), axis=1)] = np.nan
    if sampler.records_differences(cfg, target):
        loss += target.loss_at_w_star
    work: Work = sampler.work(cfg, target)
    num_transitions = cfg.num_chains * cfg.num_draws * cfg.thin
    return Draws(
        loss=loss,
        acceptance=None if np.all(np.isnan(chains.acceptance)) else chains.acceptance.astype(np.float64),
        num_divergent=int(chains.num_divergent.sum()),
        chain_alive=chains.alive,
        step_size=chains.step_size.astype(np.float64),
        num_transitions=num_transitions,
        fge=cfg.num_chains * (work.before + cfg.num_draws * (cfg.thin * work.per_step + work.per_record)),
        seconds_compile=program.seconds,
        seconds_sample=seconds,
        cache_hit=program.cache_hit,
        notes=sampler.notes(cfg, target),
    )
