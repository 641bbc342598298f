"""Samplers of the localised posterior: `sample` runs the one that a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from lambda_hat.config import SampleConfig, StochasticGradientConfig
from lambda_hat.errors import ConfigError
from lambda_hat.posterior import posterior_for
from lambda_hat.samplers.base import Draws, Sampler
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.samplers.run import Lane, run, signature
from lambda_hat.samplers.stochastic import run_with_pilot
from lambda_hat.samplers.width import best_width
from lambda_hat.store import programs_folder
from lambda_hat.targets.base import Target

__all__ = ["Draws", "Lane", "lane_key", "make_lane", "measured_width", "sample", "sample_lanes", "sampler_of"]

SMALL_STEP = 1e-10
"""At which no chain leaves its place."""
_widths: dict[Hashable, int] = {}
"""What was measured in this process."""


def sampler_of(cfg: SampleConfig) -> Sampler:
    """The sampler that `cfg` names: `lambda_hat.samplers.sgld.SGLD` for sgld."""
    # blackjax takes nearly as long to import as jax, and SGLD needs none of it.
    module = importlib.import_module(f"{__name__}.{cfg.name}")
    return getattr(module, cfg.name.upper())


def make_lane(target: Target, cfg: SampleConfig, identity: int) -> Lane:
    """One run to sample. Raises ConfigError where the sampler cannot take the target."""
    if target.dim < cfg.min_dim:
        raise ConfigError(
            f"{cfg.name} needs at least {cfg.min_dim} moving parameters, and this target has {target.dim}"
        )
    return Lane(target, sampler_of(cfg).prepared(cfg), identity, posterior_for(cfg, target.n, target.dim))


def lane_key(lane: Lane) -> Hashable:
    """Runs of equal keys can be lanes of one program: same sampler, loss, shapes, dtypes and numbers of transitions."""
    target, cfg = lane.target, lane.cfg
    lengths = {"num_draws": cfg.num_draws, "num_burnin": cfg.num_burnin, "thin": cfg.thin}
    spec = replace(signature(cfg, sampler_of(cfg).arguments), **lengths)
    pilot = None
    if isinstance(cfg, StochasticGradientConfig) and cfg.step_size is None:
        pilot = cfg.pilot_steps
    arrays = tuple(
        (name, array.shape, np.dtype(array.dtype).str)
        for part in (target.w_star, target.held, target.data)
        for name, array in sorted(part.items())
    )
    return (cfg.name, spec, pilot, target.loss, target.population, arrays)


def sample(target: Target, cfg: SampleConfig, identity: int = 0, chunks: Chunks | None = None) -> Draws:
    """Sample the localised posterior of `target` at its `w_star` as `cfg` says.

    identity: a number below 2^32 that tells this run from others with the same seed; with `cfg.seed` it makes every
    random number of the run. Trouble of single chains is in the result (`chain_alive`), never an exception.
    Everything is traced and run in the precision of `cfg`. chunks: where the run keeps its state, and whether it is to
    stop; where it does, Paused is raised.
    """
    return sample_lanes([make_lane(target, cfg, identity)], chunks or Chunks(programs=programs_folder()))[0]


def sample_lanes(lanes: Sequence[Lane], chunks: Chunks) -> list[Draws]:
    """As `sample`, of runs of equal `lane_key` side by side in one program. `chunks` has as many lanes.

    A single lane gives the bits of `sample`. Several give them up to rounding: XLA may sum in another order, and a
    chaotic chain then goes its own way, by the same law.
    """
    cfg = lanes[0].cfg
    runner = run_with_pilot if isinstance(cfg, StochasticGradientConfig) else run
    with jax.enable_x64(cfg.precision == "float64"):
        return runner(sampler_of(cfg), lanes, chunks)


def measured_width(lanes: Sequence[Lane], memory: int | None = None, programs: Path | None = None) -> int:
    """How many of `lanes`, of equal `lane_key`, are best sampled at a time, by a short measurement of their program
    and by the `memory` in bytes that it may take. programs: as of `Chunks`."""
    cfg = lanes[0].cfg
    if isinstance(cfg, StochasticGradientConfig) and cfg.step_size is None:
        # The pilot would choose it; its value changes no time.
        lanes = [lane._replace(cfg=replace(lane.cfg, step_size=SMALL_STEP)) for lane in lanes]
    key = (lane_key(lanes[0]), len(lanes))
    if key not in _widths:
        with jax.enable_x64(cfg.precision == "float64"):
            _widths[key] = best_width(sampler_of(cfg), lanes, memory, programs)
    return _widths[key]
