"""Runs a sampler, from configurations to draws: lanes and chains side by side, in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, UInt

from lambda_hat.config import RuntimeConfig, SampleConfig
from lambda_hat.engine.algorithm import LOSS_COST, NUM_CHECKS, Learned, Sampler
from lambda_hat.engine.chain_keys import words_of_keys
from lambda_hat.engine.chains import Chains
from lambda_hat.engine.chunks import Chunks
from lambda_hat.engine.model import cast
from lambda_hat.engine.observing import notes_on, recorded, require_room
from lambda_hat.engine.states import Bounds, Numbers, Place, Running, Totals, Watched
from lambda_hat.engine.traced_lanes import TargetSpec
from lambda_hat.engine.windows import NO_WINDOW
from lambda_hat.errors import ConfigError
from lambda_hat.estimate.draws import Draws, Observation, RowMoments
from lambda_hat.estimate.posterior import Posterior
from lambda_hat.programs.compiling import result_of
from lambda_hat.targets.base import Target

COMMON_ARGUMENTS = ("jitter",)
"""Fields of every configuration that are arguments of the programs."""
BOUNDS = ("thin",)
"""Fields of every configuration that are arguments of the programs, with one value for all lanes."""
ADAPT, SAMPLE = "adapt", "sample"
"""Phases of a run, as its progress names them."""


class Lane(NamedTuple):
    """One run to sample."""

    target: Target
    cfg: SampleConfig
    """The sampler's configuration, in which every argument of the sampler has a value."""
    identity: int
    """A number below 2^32 that tells the run from others with the same seed."""
    posterior: Posterior


def signature(cfg: SampleConfig, arguments: tuple[str, ...]) -> SampleConfig:
    """`cfg` with its defaults in place of the arguments of the programs: equal signatures share compiled programs.

    Its `num_draws` is the room for draws, so that runs of somewhat different lengths share programs as well.

    Args:
        cfg: A run's configuration.
        arguments: `Sampler.arguments`.
    """
    posterior = ("beta", "n_beta", "gamma", "prior_radius", "restrict")
    neutral = ("target_id", "seed", *posterior, "observe", *BOUNDS, *COMMON_ARGUMENTS)
    defaults = {f.name: f.default for f in dataclasses.fields(cfg) if f.name in (*neutral, *arguments)}
    if getattr(cfg, "step_size", None) is not None:
        # Whether the step size is learned decides the program; its value does not.
        defaults["step_size"] = 1.0
    return dataclasses.replace(cfg, runtime=RuntimeConfig(), num_draws=room_for(cfg.num_draws), **defaults)


def room_for(num_draws: int) -> int:
    """The room for so many draws: the next power of two."""
    return 1 << (num_draws - 1).bit_length()


def check_every(cfg: SampleConfig) -> int:
    """Recorded draws from one Metropolis check to the next."""
    return -(-cfg.num_draws // NUM_CHECKS)


def target_spec(lanes: Sequence[Lane]) -> TargetSpec:
    """The part of a program that the targets of the lanes decide."""
    first = lanes[0].target
    observables = tuple((name, observed.what) for name, observed in first.observed.items())
    one_target = all(_same_place(lane.target, first) for lane in lanes)
    return TargetSpec(first.loss, first.population, one_target, observables)


def arguments_of(cfg: SampleConfig, names: tuple[str, ...]) -> dict[str, np.generic]:
    """The named fields of `cfg` as arguments of a program: integers as uint32, the rest in the run's precision."""
    scalar = np.dtype(cfg.precision).type
    values = {name: 0.0 if getattr(cfg, name) is None else getattr(cfg, name) for name in names}
    return {name: np.uint32(value) if isinstance(value, int) else scalar(value) for name, value in values.items()}


def numbers_of(sampler: Sampler, lanes: Sequence[Lane]) -> Numbers:
    """The arguments of the programs of some lanes, in their precision.

    Args:
        sampler: The sampler.
        lanes: Runs of equal `samplers.lane_key`.
    """
    cfg, names = lanes[0].cfg, (*COMMON_ARGUMENTS, *sampler.arguments)
    assert cfg.precision is not None and cfg.thin is not None and cfg.num_burnin is not None
    scalar = np.dtype(cfg.precision).type
    targets = [lanes[0].target] if target_spec(lanes).one_target else [lane.target for lane in lanes]
    places = [place_of(target, cfg.precision) for target in targets]
    return Numbers(
        keys=np.stack([words_of_keys(lane.cfg.seed, lane.identity, cfg.num_chains) for lane in lanes]),
        bounds=Bounds(*map(np.uint32, (cfg.thin, sampler.num_adapt(cfg), cfg.num_burnin, check_every(cfg)))),
        arguments=_stacked([arguments_of(lane.cfg, names) for lane in lanes]),
        posterior=_stacked([Posterior(*map(scalar, lane.posterior)) for lane in lanes]),
        place=places[0] if len(places) == 1 else _stacked(places),
    )


def recorded_by(lane: Lane) -> dict[str, jax.ShapeDtypeStruct]:
    """What the observables of a run record at every draw of a chain, by name."""
    assert lane.cfg.precision is not None
    return recorded(lane.target, lane.cfg.precision, lane.cfg.slice_rows)


def run(sampler: Sampler, lanes: Sequence[Lane], chunks: Chunks) -> list[Draws]:
    """Sample lanes side by side. Call this inside `jax.enable_x64(...)`.

    Args:
        sampler: The sampler.
        lanes: Runs of equal `samplers.lane_key`.
        chunks: As many lanes; it says where the state is saved, and when to stop.

    Returns:
        The draws of each lane.

    Raises:
        ConfigError: The loss is stochastic, and the sampler needs an exact one.
        TooLarge: The lanes need more memory than there is.
        Paused: The run has to stop before its end.
    """
    if lanes[0].target.loss.stochastic and not sampler.takes_noise:
        raise ConfigError(
            f"{sampler.name} needs a loss without randomness, and this one takes a key; take sgld, sghmc or sgnht"
        )
    cfg = lanes[0].cfg
    require_room(cfg, recorded_by(lanes[0]), len(lanes), room_for(cfg.num_draws), chunks.memory)
    end = _without_state(_sampled(sampler, lanes, chunks))
    return [_draws(sampler, lane, jax.tree.map(lambda x, i=i: x[i], end), chunks, i) for i, lane in enumerate(lanes)]


class End(NamedTuple):
    """The fields of `Running` that are read off the device at the end, of all lanes or of one."""

    num_steps: UInt[np.ndarray, "*l"]
    num_draws: UInt[np.ndarray, "*l"]
    step_size: Float[np.ndarray, "*l c"]
    flat_heat: Float[np.ndarray, "*l c"]
    totals: Totals
    rows: RowMoments | None
    alive: Bool[np.ndarray, "*l c"]
    draws: Float[np.ndarray, "*l c 3 d"]
    watched: Watched


def _draws(sampler: Sampler, lane: Lane, end: End, chunks: Chunks, index: int) -> Draws:
    cfg, target = lane.cfg, lane.target
    num_draws = int(end.num_draws)
    assert cfg.num_burnin is not None
    num_transitions = max(int(end.num_steps) - cfg.num_burnin, 0)
    loss, growth, distance = np.moveaxis(end.draws[..., : cfg.num_draws].astype(np.float64), -2, 0)
    checks = 0 if np.all(np.isnan(end.totals.mala_acceptance)) else -(-num_draws // check_every(cfg))
    num_gradients = int(end.totals.num_gradients.sum(dtype=np.int64))
    costs = sampler.costs(cfg, target)
    per_record = costs.per_record + LOSS_COST * cfg.singular_fluctuation
    notes = sampler.notes(cfg, target) + target.held_notes + target.notes + notes_on(cfg, recorded_by(lane))
    if num_draws < cfg.num_draws:
        notes += (f"ended after {num_draws} of {cfg.num_draws} draws: every chain had become non-finite",)
    return Draws(
        loss=loss + target.loss_at_w_star,
        growth=growth,
        distance=distance,
        acceptance=_known(end.totals.acceptance),
        mala_acceptance=_known(end.totals.mala_acceptance / max(checks, 1)),
        num_divergent=int(end.totals.num_divergent.sum()),
        chain_alive=end.alive,
        step_size=end.step_size.astype(np.float64),
        flat_heat=end.flat_heat.astype(np.float64),
        num_transitions=cfg.num_chains * num_transitions,
        num_gradients=num_gradients,
        fge=num_gradients * costs.per_gradient
        + (LOSS_COST if not sampler.controls(cfg) else 1)
        + cfg.num_chains * (num_draws * per_record + checks * costs.per_check),
        seconds_compile=chunks.facts[index]["seconds_compile"],
        seconds_sample=chunks.facts[index]["seconds_sample"],
        programs_compiled=int(chunks.facts[index]["programs_compiled"]),
        programs_loaded=int(chunks.facts[index]["programs_loaded"]),
        notes=notes,
        row_moments=_moments(end.rows, max(num_draws, 1)),
        weight_per_row=target.loss.weight_per_row(target.data),
        exact_losses=not sampler.estimates_losses(cfg, target),
        observed={name: _observation(end.watched, name, cfg.num_draws) for name in target.observed},
    )


def _observation(watched: Watched, name: str, num_draws: int) -> Observation:
    draws, at_w_star = np.asarray(watched.draws[name])[:, :num_draws], np.asarray(watched.at_w_star[name])
    if at_w_star.ndim:
        return Observation(draws, at_w_star)
    return Observation(draws.astype(np.float64), at_w_star.astype(np.float64))


class Programs:
    """The executables of lanes with equal `samplers.lane_key`, compiled when they are asked for."""

    def __init__(self, sampler: Sampler, lanes: Sequence[Lane], chunks: Chunks):
        cfg = lanes[0].cfg
        self._sampler, self._chunks, self._target = sampler, chunks, target_spec(lanes)
        self._spec = signature(cfg, sampler.arguments)
        self._chains = Chains(sampler, self._spec, self._target)
        self._cfgs, self._windows = [lane.cfg for lane in lanes], sampler.windows(cfg)
        self.numbers = jax.device_put(numbers_of(sampler, lanes))

    def get(self, name: str, *args: PyTree, donate: tuple[int, ...] = ()) -> Callable[..., Any]:
        """The program `name` of `Chains`, with `numbers` as its first argument.

        Args:
            name: A method of `Chains`.
            *args: Arrays, or shapes and dtypes, like the other arguments.
            donate: Positions of arguments whose memory the result may take over.
        """
        strict = self._sampler.strict and self._target.loss.strict
        static, make = self._identity(name)
        return partial(self._chunks.program(static, make, (self.numbers, *args), strict, donate), self.numbers)

    def result_of(self, name: str, *args: PyTree) -> PyTree:
        """Shapes and dtypes of what the program `name` returns for arguments like `args`."""
        static, make = self._identity(name)
        return result_of(static, make, (self.numbers, *args))

    def _identity(self, name: str) -> tuple[Hashable, Callable[[], Callable]]:
        """Everything that decides a program but its arguments, and what makes its function."""
        return (self._sampler.name, name, self._spec, self._target), partial(getattr, self._chains, name)

    def loop(self, carry: Running) -> Callable[[Running, np.uint32], Running]:
        """What advances the chains to a given transition, and takes over the memory of its first argument."""
        advance = self.get("advance", carry, NO_WINDOW, np.uint32(0), donate=(1,))

        def through_windows(carry: Running, upto: np.uint32) -> Running:
            step = int(carry.step)
            while step < upto:
                window, end = self._windows.at(step)
                stop = upto if end is None else min(np.uint32(end), upto)
                carry = advance(carry, window, stop)
                step = int(carry.step)
                if step < stop:
                    # Every chain has died.
                    break
                if step == end:
                    carry = self._chunks.timed(self._new_window)(carry)
            return carry

        return through_windows

    def _new_window(self, carry: Running) -> Running:
        """The chains after a window has ended."""
        seen: Learned = jax.device_get(carry.learned)
        lanes = [
            self._sampler.new_window(cfg, jax.tree.map(lambda x, lane=lane: x[lane], seen))
            for lane, cfg in enumerate(self._cfgs)
        ]
        return carry._replace(learned=jax.device_put(jax.tree.map(lambda *of_lanes: np.stack(of_lanes), *lanes)))


def _sampled(sampler: Sampler, lanes: Sequence[Lane], chunks: Chunks) -> Running:
    """The chains after their last transition, or after the last chain has died."""
    cfg, programs = lanes[0].cfg, Programs(sampler, lanes, chunks)
    num_adapt = sampler.num_adapt(cfg)

    def saved(step: int) -> Running:
        begun: Running = programs.result_of("begin")
        return begun if step < num_adapt else begun.without_window()

    carry = chunks.restore(saved)
    if carry is None:
        carry = programs.get("begin")()
    elif carry.learned.kept is None:
        kept = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), programs.result_of("begin").learned.kept)
        carry = carry._replace(learned=carry.learned._replace(kept=jax.device_put(kept)))
    advance = programs.loop(carry)

    def lives(carry: Running) -> bool:
        return bool(np.any(carry.alive))

    carry = chunks.drive(ADAPT, advance, carry, 0, num_adapt, lives)
    return chunks.drive(SAMPLE, advance, carry, num_adapt, cfg.num_steps, lives, Running.without_window)


def _without_state(carry: Running) -> End:
    """Everything but what only the next transition would need, read off the device."""
    return jax.device_get(End(**{name: getattr(carry, name) for name in End._fields}))


def arrays_of(target: Target) -> tuple[dict[str, np.ndarray], ...]:
    """The arrays of a target, in the order of `Place`, without those of its observables."""
    return target.w_star, target.held, target.data, target.starts


def place_of(target: Target, precision: str) -> Place:
    """The arrays of a target, in the precision of a run."""
    observed = {
        name: None if observed.data is None else cast(observed.data, precision)
        for name, observed in target.observed.items()
    }
    w_star, held, data, starts = (cast(arrays, precision) for arrays in arrays_of(target))
    return Place(w_star, held, data, starts, observed)


def _same_place(one: Target, other: Target) -> bool:
    """Whether two targets are of the same arrays, or parts of arrays, not of copies."""
    # The place of a part in memory also tells where it starts.
    pairs = [(one.w_star, other.w_star), (one.held, other.held), (one.data, other.data)]
    pairs += [(mine.data or {}, other.observed[name].data or {}) for name, mine in one.observed.items()]
    return one is other or all(
        mine.keys() == theirs.keys() and all(_same_memory(mine[name], theirs[name]) for name in mine)
        for mine, theirs in pairs
    )


def _same_memory(one: np.ndarray, other: np.ndarray) -> bool:
    return one is other or one.__array_interface__ == other.__array_interface__


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


def _moments(sums: RowMoments | None, count: int) -> RowMoments | None:
    if sums is None:
        return None
    return RowMoments(sums.mean, sums.variance / count, sums.log_mean_likelihood - np.log(count))


def _known(values: Float[Array | np.ndarray, " c"]) -> Float[np.ndarray, " c"] | None:
    return None if np.all(np.isnan(values)) else np.asarray(values, np.float64)
