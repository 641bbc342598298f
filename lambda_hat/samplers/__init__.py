"""Samplers of the localised posterior: `sample` runs the one that a configuration names."""

from __future__ import annotations

import importlib

import jax

from lambda_hat.config import SampleConfig
from lambda_hat.errors import ConfigError
from lambda_hat.posterior import posterior_for
from lambda_hat.samplers.base import Draws
from lambda_hat.samplers.chunks import Chunks
from lambda_hat.targets.base import Target

__all__ = ["Draws", "sample"]


def sample(target: Target, cfg: SampleConfig, identity: int = 0, chunks: Chunks | None = None) -> Draws:
    """Sample the localised posterior of `target` at its `w_star` as `cfg` says.

    identity: a number below 2^32 that tells this run from others with the same seed; with `cfg.seed` it makes every
    random number of the run. Trouble of single chains is in the result (`chain_alive`), never an exception.
    Everything is traced and run in the precision of `cfg`. chunks: where the run keeps its state, and whether it is to
    stop; where it does, Paused is raised.
    """
    if target.dim < cfg.min_dim:
        raise ConfigError(
            f"{cfg.name} needs at least {cfg.min_dim} moving parameters, and this target has {target.dim}"
        )
    # Each sampler is a module of its name. blackjax takes nearly as long to import as jax, and SGLD needs none of it.
    module = importlib.import_module(f"{__name__}.{cfg.name}")
    with jax.enable_x64(cfg.precision == "float64"):
        return module.sample(target, cfg, identity, posterior_for(cfg, target.n, target.dim), chunks or Chunks())
