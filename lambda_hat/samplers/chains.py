"""The chains of one run as programs that can stop after any transition: `begin`, `adapt`, `settle`, `advance`.

Each takes the run's arguments, and all but the first what the one before returned. `adapt` and `advance` also take the
transition to stop at. Their loops have bounds that are arguments, so the same executable makes every chunk: where the
borders of chunks lie changes no bit of the result.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Key, UInt

from lambda_hat.config import SampleConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import NUM_CHECKS, Algorithm, Model, RowMoments, Sampler, finite
from lambda_hat.targets.base import Loss

CHAIN_STREAM, PILOT_STREAM = 0, 1
LOOK_EVERY = 100
"""Transitions after which, at the latest, it is looked whether chains are still finite; the run ends where none is."""


class Numbers(NamedTuple):
    """The arguments of every program of a run."""

    seed: Array
    identity: Array
    arguments: dict[str, Array]
    """Fields of the configuration by name, and num_skipped: transitions of burn-in after those of adaptation."""
    posterior: Posterior
    w_star: dict[str, Array]
    held: dict[str, Array]
    data: dict[str, Array]


class Adapting(NamedTuple):
    """The chains in adaptation. c = num_chains."""

    step: UInt[Array, ""]
    """Transitions made."""
    state: Any
    learned: Any
    num_gradients: UInt[Array, " c"]
    alive: Bool[Array, " c"]


class Totals(NamedTuple):
    """Sums over transitions, and over checks of the step size. c = num_chains."""

    acceptance: Float[Array, " c"]
    mala_acceptance: Float[Array, " c"]
    num_divergent: UInt[Array, " c"]
    num_gradients: UInt[Array, " c"]


class Sampling(NamedTuple):
    """The chains after adaptation. c = num_chains, d = num_draws."""

    step: UInt[Array, ""]
    """Transitions made."""
    draw: UInt[Array, ""]
    """Draws recorded."""
    state: Any
    tuned: Any
    step_size: Float[Array, " c"]
    totals: Totals
    rows: RowMoments | None
    """Sums in place of the means of squares and likelihoods."""
    alive: Bool[Array, " c"]
    loss: Float[Array, "c d"]
    """NaN where nothing is recorded yet, and from where a chain has died."""


class Keys(NamedTuple):
    """The random keys of one chain; what happens at a transition or a draw folds its number in."""

    start: Key[Array, ""]
    init: Key[Array, ""]
    adapt: Key[Array, ""]
    step: Key[Array, ""]
    draw: Key[Array, ""]


def base_key(seed: Array, identity: Array, stream: int) -> Key[Array, ""]:
    """The key of a run, from its configuration alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), identity), stream)


def flat_model(loss: Loss, population: bool, slice_rows: int, numbers: Numbers) -> Model:
    """The model over flat vectors, from the arguments of a program."""
    flat, unravel = ravel_pytree(numbers.w_star)
    held = numbers.held
    return Model(loss, population, slice_rows, lambda w: held | unravel(w), flat, numbers.data, numbers.posterior)


def check_every(spec: SampleConfig) -> int:
    """Recorded draws from one check of the step size to the next."""
    return -(-spec.num_draws // NUM_CHECKS)


class Chains:
    """The programs of a signature. Every number of a run is an argument of theirs."""

    def __init__(self, sampler: Sampler, spec: SampleConfig, loss: Loss, population: bool):
        self._sampler, self._spec, self._loss, self._population = sampler, spec, loss, population

    def begin(self, numbers: Numbers) -> Adapting:
        """Every chain at its start, tuned where the tuner cannot be stopped on its way."""
        model, algorithm, keys = self._set_up(numbers)
        jitter = numbers.arguments["jitter"]

        def one(key: Keys):
            w = model.w_star
            start = w + jitter * jax.random.normal(key.start, w.shape, w.dtype)
            return algorithm.init(key.init, start)

        state, learned, num_gradients = jax.vmap(one)(keys)
        counted = jnp.broadcast_to(num_gradients, (self._spec.num_chains,)).astype(jnp.uint32)
        alive = jax.vmap(finite)(jax.vmap(algorithm.position)(state))
        return Adapting(jnp.zeros((), jnp.uint32), state, learned, counted, alive)

    def shapes(self, numbers: Numbers) -> Adapting:
        """What `begin` returns, as `jax.eval_shape` says it."""
        return jax.eval_shape(self.begin, numbers)

    def adapt(self, numbers: Numbers, carry: Adapting, upto: UInt[Array, ""]) -> Adapting:
        """Adaptation up to transition `upto`."""
        _, algorithm, keys = self._set_up(numbers)
        assert algorithm.adapt is not None

        def segment(carry: Adapting) -> Adapting:
            look = _next_look(carry.step)
            stop = jnp.minimum(look, upto)

            def transition(index, chains):
                def one(key: Keys, state, learned, num_gradients):
                    key_step = jax.random.fold_in(key.adapt, index)
                    state, learned, more = algorithm.adapt(key_step, index, state, learned)
                    return state, learned, num_gradients + jnp.asarray(more).astype(jnp.uint32)

                return jax.vmap(one)(keys, *chains)

            chains = (carry.state, carry.learned, carry.num_gradients)
            state, learned, num_gradients = jax.lax.fori_loop(carry.step, stop, transition, chains)
            alive = _still_alive(algorithm, carry.alive, state, stop == look)
            return Adapting(stop, state, learned, num_gradients, alive)

        return jax.lax.while_loop(lambda carry: (carry.step < upto) & jnp.any(carry.alive), segment, carry)

    def settle(self, numbers: Numbers, carry: Adapting) -> Sampling:
        """From adaptation to sampling."""
        model, algorithm, _ = self._set_up(numbers)
        spec, dtype = self._spec, model.w_star.dtype
        tuned = jax.vmap(algorithm.settle)(carry.learned) if jax.tree.leaves(carry.learned) else self._same(algorithm)
        zero = jnp.zeros((spec.num_chains,), dtype)
        unchecked = zero * jnp.nan if algorithm.mala is None else zero
        rows = None
        if spec.singular_fluctuation:
            num_rows = jax.eval_shape(model.row_losses, model.w_star).shape[0]
            none_yet = jnp.zeros((spec.num_chains, num_rows), dtype)
            rows = RowMoments(none_yet, none_yet, none_yet - jnp.inf)
        return Sampling(
            step=jnp.zeros((), jnp.uint32),
            draw=jnp.zeros((), jnp.uint32),
            state=carry.state,
            tuned=tuned,
            step_size=zero + jax.vmap(algorithm.step_size, axis_size=spec.num_chains)(tuned),
            totals=Totals(zero, unchecked, jnp.zeros((spec.num_chains,), jnp.uint32), carry.num_gradients),
            rows=rows,
            alive=carry.alive,
            loss=jnp.full((spec.num_chains, spec.num_draws), jnp.nan, dtype),
        )

    def _same(self, algorithm: Algorithm):
        """What every chain is tuned to where none learns anything."""
        return jax.tree.map(lambda x: jnp.broadcast_to(x, (self._spec.num_chains, *x.shape)), algorithm.settle(()))

    def advance(self, numbers: Numbers, carry: Sampling, upto: UInt[Array, ""]) -> Sampling:
        """Burn-in and draws up to transition `upto`; a draw is recorded after every `thin` transitions."""
        model, algorithm, keys = self._set_up(numbers)
        spec, dtype = self._spec, model.w_star.dtype
        thin, skipped = numbers.arguments["thin"], numbers.arguments["num_skipped"]

        def transition(index, chains):
            def one(key: Keys, state, tuned, totals: Totals):
                state, info = algorithm.step(jax.random.fold_in(key.step, index), state, tuned)
                counted = index >= skipped
                return state, totals._replace(
                    acceptance=totals.acceptance + jnp.where(counted, info.acceptance, 0).astype(dtype),
                    num_divergent=totals.num_divergent + (counted & info.is_divergent).astype(jnp.uint32),
                    num_gradients=totals.num_gradients + jnp.asarray(info.num_gradients).astype(jnp.uint32),
                )

            state, totals = chains
            return jax.vmap(one)(keys, state, carry.tuned, totals)

        def record(draw, state):
            """The loss of every chain, the check of its step size, and the losses of its rows."""

            def one(key: Keys, state, tuned):
                key_record, key_check = jax.random.split(jax.random.fold_in(key.draw, draw))
                w = algorithm.position(state)
                accepted = jnp.zeros((), dtype)
                if algorithm.mala is not None:
                    accepted = jax.lax.cond(
                        draw % np.uint32(check_every(spec)) == 0,
                        lambda: algorithm.mala(key_check, w, tuned),
                        lambda: jnp.zeros((), dtype),
                    )
                rows = model.row_losses(w) if spec.singular_fluctuation else ()
                return algorithm.record(key_record, w).astype(dtype), accepted, rows

            return jax.vmap(one)(keys, state, carry.tuned)

        def segment(now: Sampling) -> Sampling:
            look = _next_look(now.step)
            end_of_draw = skipped + (now.draw + np.uint32(1)) * thin
            stop = jnp.minimum(jnp.minimum(look, end_of_draw), upto)
            state, totals = jax.lax.fori_loop(now.step, stop, transition, (now.state, now.totals))
            is_draw = stop == end_of_draw
            alive = _still_alive(algorithm, now.alive, state, is_draw | (stop == look))
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(record, now.draw, state))
            loss, accepted, rows = jax.lax.cond(is_draw, record, lambda *_: nothing, now.draw, state)
            alive = alive & (jnp.isfinite(loss) | ~is_draw)
            recorded = jnp.where(is_draw & alive, loss, jnp.nan)
            moments = now.rows
            if moments is not None:
                added = _add_rows(moments, rows, now.draw)
                moments = jax.tree.map(lambda new, old: jnp.where(is_draw, new, old), added, moments)
            return now._replace(
                step=stop,
                draw=now.draw + is_draw.astype(jnp.uint32),
                state=state,
                totals=totals._replace(mala_acceptance=totals.mala_acceptance + accepted),
                rows=moments,
                alive=alive,
                # Between two draws this is a place that the next one fills.
                loss=jax.lax.dynamic_update_slice(now.loss, recorded[:, None], (np.uint32(0), now.draw)),
            )

        return jax.lax.while_loop(lambda now: (now.step < upto) & jnp.any(now.alive), segment, carry)

    def _set_up(self, numbers: Numbers) -> tuple[Model, Algorithm, Keys]:
        model = flat_model(self._loss, self._population, self._spec.slice_rows, numbers)
        algorithm = self._sampler.build(model, self._spec, numbers.arguments)
        key = base_key(numbers.seed, numbers.identity, CHAIN_STREAM)
        chains = jnp.arange(self._spec.num_chains, dtype=jnp.uint32)
        return model, algorithm, jax.vmap(partial(_keys_of, key))(chains)


def _keys_of(key: Key[Array, ""], chain: Array) -> Keys:
    return Keys(*jax.random.split(jax.random.fold_in(key, chain), len(Keys._fields)))


def _next_look(step: Array) -> Array:
    return (step // np.uint32(LOOK_EVERY) + np.uint32(1)) * np.uint32(LOOK_EVERY)


def _still_alive(algorithm: Algorithm, alive: Array, state: Any, looked: Array) -> Array:
    """Only at places that the numbers of transitions set: a chunk's border must not decide when a run ends."""
    return alive & (jax.vmap(finite)(jax.vmap(algorithm.position)(state)) | ~looked)


def _add_rows(rows: RowMoments, losses: Float[Array, "c rows"], index: Array) -> RowMoments:
    """Welford's update with draw `index`."""
    difference = losses - rows.mean
    mean = rows.mean + difference / (index + np.uint32(1)).astype(losses.dtype)
    return RowMoments(
        mean, rows.variance + difference * (losses - mean), jnp.logaddexp(rows.log_mean_likelihood, -losses)
    )
