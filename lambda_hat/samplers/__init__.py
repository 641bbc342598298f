"""Samplers of the localised posterior; `sample` runs the one that a configuration names."""

from __future__ import annotations

import importlib
from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from lambda_hat.config import SampleConfig
from lambda_hat.config.defaults import Facts, resolved
from lambda_hat.engine.algorithm import LENGTHS, Sampler
from lambda_hat.engine.chunks import Chunks
from lambda_hat.engine.run import Lane, arrays_of, recorded_by, run, signature
from lambda_hat.engine.width import best_width
from lambda_hat.errors import ConfigError
from lambda_hat.estimate.draws import Draws
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.store.layout import programs_folder
from lambda_hat.targets.base import Target

__all__ = ["Draws", "Lane", "lane_key", "make_lane", "measured_width", "sample", "sample_lanes", "sampler_of"]

_widths: dict[Hashable, int] = {}
"""Widths that this process has measured, by lane key and number of lanes."""


def sampler_of(cfg: SampleConfig) -> Sampler:
    """The sampler that `cfg` names, for example `lambda_hat.samplers.sgld.SGLD` for sgld."""
    # blackjax takes nearly as long to import as jax, and SGLD needs none of it.
    module = importlib.import_module(f"{__name__}.{cfg.name}")
    return getattr(module, cfg.name.upper())


def make_lane(target: Target, cfg: SampleConfig, identity: int) -> Lane:
    """Prepare one run: its posterior, and values for all of the sampler's settings.

    Args:
        target: What to sample.
        cfg: The configuration.
        identity: A number below 2^32 that tells the run from others with the same seed.

    Raises:
        ConfigError: The sampler cannot sample this target.
    """
    if target.dim < cfg.min_dim:
        raise ConfigError(
            f"{cfg.name} needs at least {cfg.min_dim} moving parameters, and this target has {target.dim}"
        )
    if cfg.singular_fluctuation and target.no_likelihood is not None:
        raise ConfigError(f"singular_fluctuation: this target has none: {target.no_likelihood}; leave it out")
    posterior = posterior_for(cfg, target.n, target.dim)
    potential = posterior.n_beta * target.loss_at_w_star
    facts = Facts(target.dim, target.num_data, target.loss.stochastic, potential)
    lane = Lane(target, resolved(cfg, facts), identity, posterior)
    # An observable that cannot be traced is refused here, before anything is compiled.
    recorded_by(lane)
    return lane


def lane_key(lane: Lane) -> Hashable:
    """Runs of equal keys can be lanes of one program: they agree in sampler, loss, shapes, dtypes and transitions."""
    target, cfg = lane.target, lane.cfg
    spec = replace(signature(cfg, sampler_of(cfg).arguments), **{name: getattr(cfg, name) for name in LENGTHS})
    arrays = tuple(
        (name, array.shape, np.dtype(array.dtype).str)
        for part in arrays_of(target)
        for name, array in sorted(part.items())
    )
    observed = tuple(
        (name, what, data and tuple((key, array.shape, array.dtype.str) for key, array in sorted(data.items())))
        for name, (what, data) in target.observed.items()
    )
    return (cfg.name, spec, target.loss, target.population, arrays, observed)


def sample(target: Target, cfg: SampleConfig, identity: int = 0, chunks: Chunks | None = None) -> Draws:
    """Sample the localised posterior of `target` at its `w_star`, in the precision of `cfg`.

    A chain that becomes non-finite is marked in the result (`chain_alive`), and raises nothing.

    Args:
        target: What to sample.
        cfg: The sampler and its settings.
        identity: A number below 2^32 that tells this run from others with the same seed. Together with `cfg.seed` it
            decides every random number of the run.
        chunks: Where the run saves its state, and when it stops; by default nowhere, and never.

    Returns:
        The losses in nats, (num_chains, num_draws), and what was observed beside them.

    Raises:
        ConfigError: The sampler cannot sample this target.
        TooLarge: The run needs more memory than there is.
        Paused: `chunks` asked the run to stop before its end.
    """
    return sample_lanes([make_lane(target, cfg, identity)], chunks or Chunks(programs=programs_folder()))[0]


def sample_lanes(lanes: Sequence[Lane], chunks: Chunks) -> list[Draws]:
    """Sample runs of equal `lane_key` side by side in one program; otherwise as `sample`.

    A single lane gives the bits of `sample`. Several lanes give them up to rounding: XLA may sum in another order, and
    a chaotic chain then takes another path, by the same law.

    Args:
        lanes: The runs.
        chunks: As many lanes.
    """
    cfg = lanes[0].cfg
    with jax.enable_x64(cfg.precision == "float64"):
        return run(sampler_of(cfg), lanes, chunks)


def measured_width(lanes: Sequence[Lane], memory: int | None = None, programs: Path | None = None) -> int:
    """Measure how many of some lanes are best sampled side by side.

    Args:
        lanes: Runs of equal `lane_key`.
        memory: Bytes that their program may take; None: not known.
        programs: The folder through which compiled programs are exchanged; None: there is none.
    """
    cfg = lanes[0].cfg
    key = (lane_key(lanes[0]), len(lanes))
    if key not in _widths:
        with jax.enable_x64(cfg.precision == "float64"):
            _widths[key] = best_width(sampler_of(cfg), lanes, memory, programs)
    return _widths[key]
