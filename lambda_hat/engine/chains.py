"""The chains of runs as two programs: `begin`, and `advance`, which can stop after any transition.

Adaptation, burn-in and draws are one program, because the kernel is most of it. The bounds of its loops are arguments,
so the same executable makes every chunk: where a chunk ends changes no bit of the result.

Runs of one signature are lanes of one program. Its arrays have an axis of lanes before that of chains; a single run is
one lane. Lanes share the bounds of the loops and nothing else. A lane whose chains have all died stays as it is while
the others go on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt

from lambda_hat.config import SampleConfig
from lambda_hat.engine.algorithm import Algorithm, Learned, Sampler, Visit
from lambda_hat.engine.chain_groups import of_chains, update_chains
from lambda_hat.engine.chain_keys import Keys, keys_of
from lambda_hat.engine.model import Anchor, Model, finite
from lambda_hat.engine.states import Numbers, Running, Totals, Watched
from lambda_hat.engine.traced_lanes import Lanes, TargetSpec
from lambda_hat.engine.windows import Window
from lambda_hat.estimate.draws import RowMoments

LOOK_EVERY = 100
"""Transitions between two looks whether chains are still finite, at most. A run ends where none is. Arbitrary."""


Tree = TypeVar("Tree")
"""A pytree of arrays."""


class Chains:
    """The programs of one signature. Every number of a run is an argument of them.

    Args:
        sampler: The sampler.
        spec: The signature; its `num_draws` is the room for draws.
        target: What the programs take from the targets.
    """

    def __init__(self, sampler: Sampler, spec: SampleConfig, target: TargetSpec):
        self._sampler, self._spec, self._target = sampler, spec, target
        self._at_once = spec.chains_at_once

    def begin(self, numbers: Numbers) -> Running:
        """Put every chain at its start: `w_star`, with normal noise of standard deviation `jitter`."""
        spec = self._spec

        def anchor_of(model: Model, arguments: dict[str, Array]) -> Anchor:
            if self._sampler.controls(spec):
                return Anchor(*jax.value_and_grad(model.full_loss)(model.w_star))
            return Anchor(model.full_loss(model.w_star), jnp.zeros((0,), model.w_star.dtype))

        def of_lane(algorithm: Algorithm, model: Model, jitter: Float[Array, ""], keys: Keys):
            def one(key: Keys):
                w = model.w_star
                start = w + jitter * jax.random.normal(key.start, w.shape, w.dtype)
                return algorithm.init(key.init, start)

            state, learned, num_gradients = of_chains(one, self._at_once, keys)
            dtype, shape = model.w_star.dtype, (spec.num_chains,)
            counted = jnp.broadcast_to(num_gradients, shape).astype(jnp.uint32)
            zero = jnp.zeros(shape, dtype)
            rows = None
            if spec.singular_fluctuation:
                num_rows = jax.eval_shape(model.row_losses, model.w_star).shape[0]
                none_yet = jnp.zeros((*shape, num_rows), dtype)
                rows = RowMoments(none_yet, none_yet, none_yet - jnp.inf)
            unchecked = zero * jnp.nan if algorithm.mala is None else zero
            draws = jnp.full((*shape, 3, spec.num_draws), jnp.nan, dtype)
            at_w_star = model.observe(model.w_star)
            none_yet = {
                name: jnp.full((*shape, spec.num_draws, *x.shape), jnp.nan, x.dtype) for name, x in at_w_star.items()
            }
            alive = _finite_chains(algorithm, state)
            return state, learned, counted, alive, zero, unchecked, rows, draws, Watched(none_yet, at_w_star)

        anchor = Lanes(self._target, spec.slice_rows, numbers).map(anchor_of)
        of_lanes, keys = self._set_up(numbers, anchor)
        begun = of_lanes(of_lane, numbers.arguments["jitter"], keys)
        state, learned, counted, alive, zero, unchecked, rows, draws, watched = begun
        none_of_lane = jnp.zeros(numbers.keys.shape[:1], jnp.uint32)
        return Running(
            step=jnp.zeros((), jnp.uint32),
            draw=jnp.zeros((), jnp.uint32),
            num_steps=none_of_lane,
            num_draws=none_of_lane,
            anchor=anchor,
            state=state,
            learned=learned,
            step_size=zero,
            flat_heat=zero,
            totals=Totals(zero, unchecked, jnp.zeros(zero.shape, jnp.uint32), counted),
            rows=rows,
            alive=alive,
            draws=draws,
            visits=jnp.zeros((*zero.shape, len(Visit._fields)), zero.dtype),
            watched=watched,
        )

    def advance(self, numbers: Numbers, carry: Running, window: Window, upto: UInt[Array, ""]) -> Running:
        """Adapt, burn in and draw up to transition `upto`; a draw is recorded after every `thin` transitions.

        Args:
            numbers: The arguments of the runs.
            carry: The chains.
            window: The window of adaptation in which the transitions are.
            upto: Where to stop, no further than the window.
        """
        of_lanes, keys = self._set_up(numbers, carry.anchor)
        spec, dtype = self._spec, carry.draws.dtype
        thin, num_adapt, num_burnin, check_every = numbers.bounds
        metric = carry.learned.metric

        def tuned_of(index, rule):
            """What every chain's transition `index` takes."""

            def of_lane(algorithm: Algorithm, model: Model, rule, metric):
                return jax.vmap(partial(algorithm.tuned, index), axis_size=spec.num_chains)(rule, metric)

            return of_lanes(of_lane, rule, metric)

        def transition(adapting, index, chains):
            def of_lane(algorithm: Algorithm, model: Model, keys: Keys, metric, *chains):
                def one(key: Keys, metric, chain):
                    state, rule, kept, totals, visits = chain
                    key_step = jax.random.fold_in(key.step, index)
                    state, info, seen = algorithm.step(key_step, state, algorithm.tuned(index, rule, metric))
                    num_gradients = totals.num_gradients + jnp.asarray(info.num_gradients).astype(jnp.uint32)
                    totals = totals._replace(num_gradients=num_gradients)

                    def count(state, rule, kept, totals: Totals, visits):
                        counted = index >= num_burnin
                        # A running mean keeps the digits that a sum over many transitions would lose.
                        weight = 1 / jnp.maximum(index - num_burnin + np.uint32(1), np.uint32(1)).astype(dtype)
                        acceptance = totals.acceptance + (info.acceptance.astype(dtype) - totals.acceptance) * weight
                        totals = totals._replace(
                            acceptance=jnp.where(counted, acceptance, totals.acceptance),
                            num_divergent=totals.num_divergent + (counted & info.is_divergent).astype(jnp.uint32),
                        )
                        return state, rule, kept, totals, jnp.where(counted, visits + jnp.stack(info.visit), visits)

                    learns = algorithm.learn
                    if learns is None:
                        return count(state, rule, kept, totals, visits)

                    def learn(state, rule, kept, totals: Totals, visits):
                        state, rule, kept, more = learns(key_step, index, window.place(index), state, rule, kept, seen)
                        num_gradients = totals.num_gradients + jnp.asarray(more).astype(jnp.uint32)
                        return state, rule, kept, totals._replace(num_gradients=num_gradients), visits

                    return jax.lax.cond(adapting, learn, count, state, rule, kept, totals, visits)

                state, rule, *others = update_chains(one, self._at_once, (keys, metric), chains)
                if algorithm.pool is not None:
                    rule = jax.lax.cond(adapting, algorithm.pool, lambda rule: rule, rule)
                return state, rule, *others

            return of_lanes(of_lane, keys, metric, *chains)

        def record(draw, state, rule, visits, draws, alive, totals: Totals, moments: RowMoments | None):
            """Record the draw of every chain, the check of its step size, and the losses of its rows."""
            mean = visits / thin.astype(dtype)

            def of_lane(algorithm: Algorithm, model: Model, keys: Keys, metric, state, rule, mean):
                def one(key: Keys, metric, state, rule, mean):
                    key_record, key_check = jax.random.split(jax.random.fold_in(key.draw, draw))
                    w = algorithm.position(state)
                    accepted, mala = jnp.zeros((), dtype), algorithm.mala
                    if mala is not None:
                        tuned = algorithm.tuned(jnp.asarray(num_adapt), rule, metric)
                        accepted = jax.lax.cond(
                            draw % check_every == 0,
                            lambda: mala(key_check, w, tuned),
                            lambda: jnp.zeros((), dtype),
                        )
                    rows = model.row_losses(w) if spec.singular_fluctuation else ()
                    growth, distance, difference = mean
                    loss = difference if algorithm.record is None else algorithm.record(key_record, w).astype(dtype)
                    return jnp.stack([loss, growth, distance]), accepted, rows

                return of_chains(one, self._at_once, keys, metric, state, rule, mean)

            values, accepted, rows = of_lanes(of_lane, keys, metric, state, rule, mean)
            alive &= jnp.isfinite(values[..., 0])
            values = jnp.where(alive[..., None], values, jnp.nan)[..., None]
            zero = np.uint32(0)
            draws = jax.lax.dynamic_update_slice(draws, values, (zero, zero, zero, draw))
            totals = totals._replace(mala_acceptance=totals.mala_acceptance + accepted)
            moments = None if moments is None else _add_rows(moments, rows, draw)
            return jnp.zeros_like(visits), draws, alive, totals, moments

        def observe(state) -> dict[str, Array]:
            """The observables of every chain."""

            def of_lane(algorithm: Algorithm, model: Model, state):
                return of_chains(lambda state: model.observe(algorithm.position(state)), self._at_once, state)

            return of_lanes(of_lane, state)

        def segment(now: Running) -> Running:
            adapting = now.step < num_adapt
            look = _next_look(now.step)
            end_of_draw = num_burnin + (now.draw + np.uint32(1)) * thin
            stop = jnp.minimum(jnp.minimum(look, jnp.where(adapting, num_adapt, end_of_draw)), upto)
            chains = (now.state, now.learned.rule, now.learned.kept, now.totals, now.visits)
            chains = jax.lax.fori_loop(now.step, stop, partial(transition, adapting), chains)
            state, rule, kept, totals, visits = chains
            is_draw = stop == end_of_draw
            draw = now.draw + is_draw.astype(jnp.uint32)
            alive = _still_alive(of_lanes, now.alive, state, is_draw | (stop == look))
            before = (visits, now.draws, alive, totals, now.rows)
            visits, draws, alive, totals, moments = jax.lax.cond(
                is_draw, partial(record, now.draw, state, rule), lambda *before: before, *before
            )
            num_steps = jnp.broadcast_to(stop, now.num_steps.shape)
            num_draws = jnp.broadcast_to(draw, now.num_draws.shape)
            if len(now.alive) > 1:
                counted = (num_steps, num_draws, totals, moments)
                before = (now.num_steps, now.num_draws, now.totals, now.rows)
                num_steps, num_draws, totals, moments = _where_alive(now.alive, counted, before)

            watched = now.watched
            if watched.draws:
                # A branch of its own: what is watched must not change how the loss is computed, to the last bit.
                unseen = jax.tree.map(lambda x: jnp.full(x.shape, jnp.nan, x.dtype), jax.eval_shape(observe, state))
                seen = jax.lax.cond(is_draw, observe, lambda _: unseen, state)
                watched = watched._replace(draws=_put(watched.draws, seen, alive, now.draw))

            return now._replace(
                step=stop,
                draw=draw,
                num_steps=num_steps,
                num_draws=num_draws,
                state=state,
                learned=Learned(rule, metric, kept),
                totals=totals,
                rows=moments,
                alive=alive,
                draws=draws,
                visits=visits,
                watched=watched,
            )

        carry = jax.lax.while_loop(lambda now: (now.step < upto) & jnp.any(now.alive), segment, carry)

        def told(algorithm: Algorithm, model: Model, tuned):
            step_size = jax.vmap(algorithm.step_size)(tuned)
            none = jnp.zeros_like(step_size)
            return step_size, none if algorithm.flat_heat is None else jax.vmap(algorithm.flat_heat)(tuned)

        step_size, flat_heat = of_lanes(told, tuned_of(carry.step, carry.learned.rule))
        return carry._replace(step_size=step_size, flat_heat=flat_heat)

    def _set_up(self, numbers: Numbers, anchor: Anchor) -> tuple[Callable[..., PyTree], Keys]:
        """Prepare the lanes.

        Returns:
            A function that calls `function(algorithm, model, *args)` for every lane, and the keys of all chains, (l, c)
            each.
        """
        lanes = Lanes(self._target, self._spec.slice_rows, numbers)

        def of_lanes(function: Callable[..., Tree], *args: PyTree) -> Tree:
            def of_lane(model: Model, arguments: dict[str, Array], anchor: Anchor, *args: PyTree) -> Tree:
                model = replace(model, anchor=anchor)
                return function(self._sampler.build(model, self._spec, arguments), model, *args)

            return lanes.map(of_lane, anchor, *args)

        return of_lanes, keys_of(numbers.keys)


def _next_look(step: UInt[Array, ""]) -> UInt[Array, ""]:
    return (step // np.uint32(LOOK_EVERY) + np.uint32(1)) * np.uint32(LOOK_EVERY)


def _finite_chains(algorithm: Algorithm, state: PyTree) -> Bool[Array, " c"]:
    return jax.vmap(finite)(jax.vmap(algorithm.position)(state))


def _still_alive(
    of_lanes: Callable[..., PyTree], alive: Bool[Array, "l c"], state: PyTree, looked: Bool[Array, ""]
) -> Bool[Array, "l c"]:
    """Which chains are still alive, looked up where `looked` is true.

    Only the numbers of transitions decide where that is: the end of a chunk must not decide when a run ends.
    """

    def look(state: PyTree) -> Bool[Array, "l c"]:
        return of_lanes(lambda algorithm, model, state: _finite_chains(algorithm, state), state)

    return alive & jax.lax.cond(looked, look, lambda state: jnp.ones_like(alive), state)


def _where_alive(alive: Bool[Array, "l c"], new: Tree, old: Tree) -> Tree:
    """`new` for the lanes that had a living chain, `old` for the others.

    The program of a single lane ends where its last chain dies.
    """
    lane = jnp.any(alive, axis=1)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(lane.reshape(lane.shape + (1,) * (new.ndim - 1)), new, old)

    return jax.tree.map(choose, new, old)


def _put(
    draws: Mapping[str, Array | np.ndarray],
    values: Mapping[str, Array],
    alive: Bool[Array, "l c"],
    draw: UInt[Array, ""],
) -> dict[str, Array]:
    """Write the observables of a draw, (l, c, ...) each, into those of all draws, (l, c, d, ...); NaN for the dead."""

    def put(name: str) -> Array:
        value = values[name]
        here = alive.reshape(alive.shape + (1,) * (value.ndim - 2))
        value = jnp.where(here, value, jnp.full((), jnp.nan, value.dtype))
        zero = np.uint32(0)
        return jax.lax.dynamic_update_slice(
            draws[name], value[:, :, None], (zero, zero, draw, *[zero] * (value.ndim - 2))
        )

    return {name: put(name) for name in draws}


def _add_rows(rows: RowMoments, losses: Float[Array, "l c rows"], index: UInt[Array, ""]) -> RowMoments:
    """Add draw `index` to the moments by Welford's update."""
    difference = losses - rows.mean
    mean = rows.mean + difference / (index + np.uint32(1)).astype(losses.dtype)
    return RowMoments(
        mean, rows.variance + difference * (losses - mean), jnp.logaddexp(rows.log_mean_likelihood, -losses)
    )
