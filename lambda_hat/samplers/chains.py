"""The chains of runs as programs that can stop after any transition: `begin`, `adapt`, `settle`, `advance`.

Each takes the runs' arguments, and all but the first what the one before returned. `adapt` and `advance` also take the
transition to stop at. Their loops have bounds that are arguments, so the same executable makes every chunk: where the
borders of chunks lie changes no bit of the result.

Runs of one signature are lanes of one program, whose arrays have an axis of lanes before that of chains; a run by
itself is one lane. Lanes share the bounds of the loops and nothing else: one whose chains have all died stays as it is
while the others go on.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Key, UInt

from lambda_hat.config import SampleConfig
from lambda_hat.posterior import Posterior
from lambda_hat.samplers.base import Algorithm, Model, RowMoments, Sampler, finite
from lambda_hat.targets.base import Loss

CHAIN_STREAM, PILOT_STREAM = 0, 1
LOOK_EVERY = 100
"""Transitions after which, at the latest, it is looked whether chains are still finite; a run ends where none is."""


class Bounds(NamedTuple):
    """Bounds of loops, the same for every lane."""

    thin: UInt[Array, ""]
    num_skipped: UInt[Array, ""]
    """Transitions of burn-in after those of adaptation."""
    check_every: UInt[Array, ""]
    """Recorded draws from one check of the step size to the next."""


class Place(NamedTuple):
    """Where runs sample. Every array has an axis of lanes, or none has: all lanes are then of one target."""

    w_star: dict[str, Array]
    held: dict[str, Array]
    data: dict[str, Array]


class Numbers(NamedTuple):
    """The arguments of every program. l = lanes."""

    seed: UInt[Array, " l"]
    identity: UInt[Array, " l"]
    bounds: Bounds
    arguments: dict[str, Array]
    """Fields of the configurations by name, (l,) each."""
    posterior: Posterior
    """(l,) each."""
    place: Place


class Adapting(NamedTuple):
    """The chains in adaptation. l = lanes, c = num_chains."""

    step: UInt[Array, ""]
    """Transitions made."""
    state: Any
    learned: Any
    num_gradients: UInt[Array, "l c"]
    alive: Bool[Array, "l c"]


class Totals(NamedTuple):
    """Sums over transitions, and over checks of the step size. l = lanes, c = num_chains."""

    acceptance: Float[Array, "l c"]
    mala_acceptance: Float[Array, "l c"]
    num_divergent: UInt[Array, "l c"]
    num_gradients: UInt[Array, "l c"]


class Sampling(NamedTuple):
    """The chains after adaptation. l = lanes, c = num_chains, d = room for draws."""

    step: UInt[Array, ""]
    """Transitions made."""
    draw: UInt[Array, ""]
    """Draws recorded."""
    num_steps: UInt[Array, " l"]
    """Transitions of each lane, no more once all of its chains have died."""
    num_draws: UInt[Array, " l"]
    state: Any
    tuned: Any
    step_size: Float[Array, "l c"]
    totals: Totals
    rows: RowMoments | None
    """Sums in place of the means of squares and likelihoods."""
    alive: Bool[Array, "l c"]
    loss: Float[Array, "l c d"]
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


class TargetSpec(NamedTuple):
    """What a program takes from its targets, beside their arrays."""

    loss: Loss
    population: bool
    one_target: bool
    """`Place` has no axis of lanes."""


class Lanes:
    """The lanes of a program while it is traced."""

    def __init__(self, target: TargetSpec, slice_rows: int, numbers: Numbers):
        w_star, held, data = numbers.place
        axis = None if target.one_target else 0
        one = w_star if target.one_target else jax.tree.map(lambda array: array[0], w_star)
        unravel = ravel_pytree(one)[1]

        def flat(w_star: dict[str, Array]) -> Float[Array, " dim"]:
            return ravel_pytree(w_star)[0]

        def model(w_star, held, data, posterior) -> Model:
            return Model(
                target.loss, target.population, slice_rows, lambda w: held | unravel(w), w_star, data, posterior
            )

        self._model = model
        self._numbers = (numbers.arguments, flat(w_star) if axis is None else jax.vmap(flat)(w_star), held, data)
        self._axes = (0, axis, axis, axis)
        self._posterior = numbers.posterior

    def map(self, function: Callable[..., Any], *args: Any) -> Any:
        """`function(model, arguments, *args)` of every lane; `args` have an axis of lanes."""

        def of_lane(numbers, posterior, *args):
            arguments, w_star, held, data = numbers
            return function(self._model(w_star, held, data, posterior), arguments, *args)

        if self._posterior.gamma.shape == (1,):
            # Products of matrices with one more axis, of length one, take XLA a fourth longer.
            numbers = tuple(map(_first, self._axes, self._numbers))
            found = of_lane(numbers, *(_first(0, tree) for tree in (self._posterior, *args)))
            return jax.tree.map(lambda x: jnp.asarray(x)[None], found)
        in_axes = (self._axes, *[0] * (1 + len(args)))
        return jax.vmap(of_lane, in_axes)(self._numbers, self._posterior, *args)


def _first(axis: int | None, tree: Any) -> Any:
    """What the first lane has of it; `axis` as for `jax.vmap`."""
    return tree if axis is None else jax.tree.map(lambda x: x[0], tree)


class Chains:
    """The programs of a signature. Every number of a run is an argument of theirs; `spec.num_draws` is the room for
    draws."""

    def __init__(self, sampler: Sampler, spec: SampleConfig, target: TargetSpec):
        self._sampler, self._spec, self._target = sampler, spec, target

    def begin(self, numbers: Numbers) -> Adapting:
        """Every chain at its start, tuned where the tuner cannot be stopped on its way."""

        def of_lane(algorithm: Algorithm, model: Model, jitter: Array, keys: Keys):
            def one(key: Keys):
                w = model.w_star
                start = w + jitter * jax.random.normal(key.start, w.shape, w.dtype)
                return algorithm.init(key.init, start)

            state, learned, num_gradients = jax.vmap(one)(keys)
            counted = jnp.broadcast_to(num_gradients, (self._spec.num_chains,)).astype(jnp.uint32)
            return state, learned, counted, _finite_chains(algorithm, state)

        of_lanes, keys = self._set_up(numbers)
        return Adapting(jnp.zeros((), jnp.uint32), *of_lanes(of_lane, numbers.arguments["jitter"], keys))

    def adapt(self, numbers: Numbers, carry: Adapting, upto: UInt[Array, ""]) -> Adapting:
        """Adaptation up to transition `upto`."""
        of_lanes, keys = self._set_up(numbers)

        def segment(carry: Adapting) -> Adapting:
            look = _next_look(carry.step)
            stop = jnp.minimum(look, upto)

            def transition(index, chains):
                def of_lane(algorithm: Algorithm, model: Model, keys: Keys, *chains):
                    assert algorithm.adapt is not None

                    def one(key: Keys, state, learned, num_gradients):
                        key_step = jax.random.fold_in(key.adapt, index)
                        state, learned, more = algorithm.adapt(key_step, index, state, learned)
                        return state, learned, num_gradients + jnp.asarray(more).astype(jnp.uint32)

                    return jax.vmap(one)(keys, *chains)

                return of_lanes(of_lane, keys, *chains)

            chains = (carry.state, carry.learned, carry.num_gradients)
            state, learned, num_gradients = jax.lax.fori_loop(carry.step, stop, transition, chains)
            alive = _still_alive(of_lanes, carry.alive, state, stop == look)
            num_gradients = _where_alive(carry.alive, num_gradients, carry.num_gradients)
            return Adapting(stop, state, learned, num_gradients, alive)

        return jax.lax.while_loop(lambda carry: (carry.step < upto) & jnp.any(carry.alive), segment, carry)

    def settle(self, numbers: Numbers, carry: Adapting) -> Sampling:
        """From adaptation to sampling."""
        spec = self._spec

        def of_lane(algorithm: Algorithm, model: Model, learned):
            dtype, shape = model.w_star.dtype, (spec.num_chains,)
            if jax.tree.leaves(learned):
                tuned = jax.vmap(algorithm.settle)(learned)
            else:
                # What every chain is tuned to where none learns anything.
                tuned = jax.tree.map(lambda x: jnp.broadcast_to(x, (*shape, *x.shape)), algorithm.settle(()))
            zero = jnp.zeros(shape, dtype)
            rows = None
            if spec.singular_fluctuation:
                num_rows = jax.eval_shape(model.row_losses, model.w_star).shape[0]
                none_yet = jnp.zeros((*shape, num_rows), dtype)
                rows = RowMoments(none_yet, none_yet, none_yet - jnp.inf)
            unchecked = zero * jnp.nan if algorithm.mala is None else zero
            step_size = zero + jax.vmap(algorithm.step_size, axis_size=spec.num_chains)(tuned)
            loss = jnp.full((*shape, spec.num_draws), jnp.nan, dtype)
            return tuned, step_size, zero, unchecked, rows, loss

        of_lanes, _ = self._set_up(numbers)
        tuned, step_size, zero, unchecked, rows, loss = of_lanes(of_lane, carry.learned)
        none = jnp.zeros((), jnp.uint32)
        none_of_lane = jnp.zeros(numbers.seed.shape, jnp.uint32)
        return Sampling(
            step=none,
            draw=none,
            num_steps=none_of_lane,
            num_draws=none_of_lane,
            state=carry.state,
            tuned=tuned,
            step_size=step_size,
            totals=Totals(zero, unchecked, jnp.zeros(zero.shape, jnp.uint32), carry.num_gradients),
            rows=rows,
            alive=carry.alive,
            loss=loss,
        )

    def advance(self, numbers: Numbers, carry: Sampling, upto: UInt[Array, ""]) -> Sampling:
        """Burn-in and draws up to transition `upto`; a draw is recorded after every `thin` transitions."""
        of_lanes, keys = self._set_up(numbers)
        spec, dtype = self._spec, carry.loss.dtype
        thin, skipped, check_every = numbers.bounds

        def transition(index, chains):
            def of_lane(algorithm: Algorithm, model: Model, keys: Keys, tuned, *chains):
                def one(key: Keys, tuned, state, totals: Totals):
                    state, info = algorithm.step(jax.random.fold_in(key.step, index), state, tuned)
                    counted = index >= skipped
                    return state, totals._replace(
                        acceptance=totals.acceptance + jnp.where(counted, info.acceptance, 0).astype(dtype),
                        num_divergent=totals.num_divergent + (counted & info.is_divergent).astype(jnp.uint32),
                        num_gradients=totals.num_gradients + jnp.asarray(info.num_gradients).astype(jnp.uint32),
                    )

                return jax.vmap(one)(keys, tuned, *chains)

            return of_lanes(of_lane, keys, carry.tuned, *chains)

        def record(draw, state):
            """The loss of every chain, the check of its step size, and the losses of its rows."""

            def of_lane(algorithm: Algorithm, model: Model, keys: Keys, tuned, state):
                def one(key: Keys, state, tuned):
                    key_record, key_check = jax.random.split(jax.random.fold_in(key.draw, draw))
                    w = algorithm.position(state)
                    accepted = jnp.zeros((), dtype)
                    if algorithm.mala is not None:
                        accepted = jax.lax.cond(
                            draw % check_every == 0,
                            lambda: algorithm.mala(key_check, w, tuned),
                            lambda: jnp.zeros((), dtype),
                        )
                    rows = model.row_losses(w) if spec.singular_fluctuation else ()
                    return algorithm.record(key_record, w).astype(dtype), accepted, rows

                return jax.vmap(one)(keys, state, tuned)

            return of_lanes(of_lane, keys, carry.tuned, state)

        def segment(now: Sampling) -> Sampling:
            look = _next_look(now.step)
            end_of_draw = skipped + (now.draw + np.uint32(1)) * thin
            stop = jnp.minimum(jnp.minimum(look, end_of_draw), upto)
            state, totals = jax.lax.fori_loop(now.step, stop, transition, (now.state, now.totals))
            is_draw = stop == end_of_draw
            draw = now.draw + is_draw.astype(jnp.uint32)
            alive = _still_alive(of_lanes, now.alive, state, is_draw | (stop == look))
            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(record, now.draw, state))
            loss, accepted, rows = jax.lax.cond(is_draw, record, lambda *_: nothing, now.draw, state)
            alive = alive & (jnp.isfinite(loss) | ~is_draw)
            recorded = jnp.where(is_draw & alive, loss, jnp.nan)
            totals = totals._replace(mala_acceptance=totals.mala_acceptance + accepted)
            moments = now.rows
            if moments is not None:
                added = _add_rows(moments, rows, now.draw)
                moments = jax.tree.map(lambda new, old: jnp.where(is_draw, new, old), added, moments)
            num_steps = jnp.broadcast_to(stop, now.num_steps.shape)
            num_draws = jnp.broadcast_to(draw, now.num_draws.shape)
            counted = (num_steps, num_draws, totals, moments)
            before = (now.num_steps, now.num_draws, now.totals, now.rows)
            num_steps, num_draws, totals, moments = _where_alive(now.alive, counted, before)
            return now._replace(
                step=stop,
                draw=draw,
                num_steps=num_steps,
                num_draws=num_draws,
                state=state,
                totals=totals,
                rows=moments,
                alive=alive,
                # Between two draws this is a place that the next one fills.
                loss=jax.lax.dynamic_update_slice(
                    now.loss, recorded[..., None], (np.uint32(0), np.uint32(0), now.draw)
                ),
            )

        return jax.lax.while_loop(lambda now: (now.step < upto) & jnp.any(now.alive), segment, carry)

    def _set_up(self, numbers: Numbers) -> tuple[Callable[..., Any], Keys]:
        """A function that calls another for every lane, with its algorithm and model before what it is given; and the
        keys of all chains of all lanes."""
        lanes = Lanes(self._target, self._spec.slice_rows, numbers)

        def of_lanes(function: Callable[..., Any], *args: Any) -> Any:
            def of_lane(model: Model, arguments: dict[str, Array], *args: Any) -> Any:
                return function(self._sampler.build(model, self._spec, arguments), model, *args)

            return lanes.map(of_lane, *args)

        def keys_of_lane(seed: Array, identity: Array) -> Keys:
            key = base_key(seed, identity, CHAIN_STREAM)
            return jax.vmap(partial(_keys_of, key))(jnp.arange(self._spec.num_chains, dtype=jnp.uint32))

        return of_lanes, jax.vmap(keys_of_lane)(numbers.seed, numbers.identity)


def _keys_of(key: Key[Array, ""], chain: Array) -> Keys:
    # To split a key takes XLA several times as long to compile.
    of_chain = jax.random.fold_in(key, chain)
    return Keys(*(jax.random.fold_in(of_chain, number) for number in range(len(Keys._fields))))


def _next_look(step: Array) -> Array:
    return (step // np.uint32(LOOK_EVERY) + np.uint32(1)) * np.uint32(LOOK_EVERY)


def _finite_chains(algorithm: Algorithm, state: Any) -> Bool[Array, " c"]:
    return jax.vmap(finite)(jax.vmap(algorithm.position)(state))


def _still_alive(of_lanes: Callable[..., Any], alive: Bool[Array, "l c"], state: Any, looked: Array) -> Array:
    """Only at places that the numbers of transitions set: a chunk's border must not decide when a run ends."""
    return alive & (of_lanes(lambda algorithm, model, state: _finite_chains(algorithm, state), state) | ~looked)


def _where_alive(alive: Bool[Array, "l c"], new: Any, old: Any) -> Any:
    """`new` for the lanes that had a living chain, `old` for the others: a run by itself would have ended."""
    lane = jnp.any(alive, axis=1)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(lane.reshape(lane.shape + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


def _add_rows(rows: RowMoments, losses: Float[Array, "l c rows"], index: Array) -> RowMoments:
    """Welford's update with draw `index`."""
    difference = losses - rows.mean
    mean = rows.mean + difference / (index + np.uint32(1)).astype(losses.dtype)
    return RowMoments(
        mean, rows.variance + difference * (losses - mean), jnp.logaddexp(rows.log_mean_likelihood, -losses)
    )
