"""The files of what a run watched: numbers in `trace.nc`, arrays in `observed.nc`."""

from __future__ import annotations

import io
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lambda_hat.config import SampleConfig
from lambda_hat.engine.observing import factors
from lambda_hat.errors import TooLarge
from lambda_hat.estimate.draws import Observation
from lambda_hat.estimate.observed import expectation, refined_llc
from lambda_hat.planning.observed_size import in_words
from lambda_hat.targets.base import Target
from lambda_hat.targets.observables import MeanLoss

CHUNK_BYTES = 2**20
"""Size of a piece of the file, which holds all draws of a chain for some rows."""


def numbers(observed: Mapping[str, Observation]) -> dict[str, Observation]:
    """The observables of one number per draw."""
    return {name: one for name, one in observed.items() if not one.at_w_star.ndim}


def arrays(observed: Mapping[str, Observation]) -> dict[str, Observation]:
    """The observables of an array per draw."""
    return {name: one for name, one in observed.items() if one.at_w_star.ndim}


def write_axes(group: Any, num_chains: int, num_draws: int) -> None:
    """The axes of a group of draws, as ArviZ reads them."""
    group.dimensions = {"chain": num_chains, "draw": num_draws}
    for axis, size in (("chain", num_chains), ("draw", num_draws)):
        group.create_variable(axis, (axis,), data=np.arange(size, dtype=np.int64))


def observed_bytes(observed: Mapping[str, Observation]) -> memoryview | None:
    """The arrays as netCDF-4 in float32, with their values at `w_star`; None if there are none.

    The variable `name` has the axes (chain, draw, name_0, ...), `name_at_w_star` the last of them.
    """
    import h5netcdf

    kept = arrays(observed)
    if not kept:
        return None
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        group = file.create_group("posterior")
        write_axes(group, *next(iter(kept.values())).draws.shape[:2])
        for name, one in kept.items():
            axes = tuple(f"{name}_{axis}" for axis in range(one.at_w_star.ndim))
            for axis, size in zip(axes, one.at_w_star.shape, strict=True):
                group.dimensions[axis] = size
            draws = one.draws.astype(np.float32, copy=False)
            group.create_variable(name, ("chain", "draw", *axes), data=draws, chunks=_chunks(draws.shape))
            group.create_variable(f"{name}_at_w_star", axes, data=one.at_w_star.astype(np.float32))
    return buffer.getbuffer()


def require_disk(directory: Path, cfg: SampleConfig, shapes: Mapping[str, jax.ShapeDtypeStruct], runs: int) -> None:
    """Refuse arrays whose file the disk has no room for.

    Args:
        directory: The folder of a run.
        cfg: Its configuration.
        shapes: What `engine.observing.recorded` says.
        runs: Runs that end together.

    Raises:
        TooLarge: There is too little room.
    """
    sizes = {name: 4 * cfg.num_chains * cfg.num_draws * math.prod(x.shape) for name, x in shapes.items() if x.shape}
    needed = runs * sum(sizes.values())
    if not needed:
        return
    free = shutil.disk_usage(directory).free
    if needed > free:
        name = max(sizes, key=lambda name: sizes[name])
        raise TooLarge(
            f"observable {name}: {factors(cfg, shapes[name])}, and {directory} has room for {in_words(free)}, where "
            f"{in_words(needed)} would be written; lower its rows, num_draws or num_chains, or watch the mean"
        )


def _chunks(shape: tuple[int, ...]) -> tuple[int, ...] | None:
    if not math.prod(shape):
        return None
    _, draws, rows, *rest = shape
    per_row = 4 * draws * math.prod(rest)
    return (1, draws, min(rows, max(1, CHUNK_BYTES // per_row)), *rest)


def findings(target: Target, observed: Mapping[str, Observation], n_beta: float) -> dict[str, dict[str, Any]]:
    """What `analysis.json` says of every observable, by name."""
    return {name: _finding(target, name, one, n_beta) for name, one in observed.items()}


def _finding(target: Target, name: str, one: Observation, n_beta: float) -> dict[str, Any]:
    if one.at_w_star.ndim:
        return {"shape": list(one.at_w_star.shape)}
    at_w_star = float(one.at_w_star)
    mean = expectation(one.draws)
    found = {"mean": mean.value, "std_error": mean.std_error, "at_w_star": at_w_star}
    if isinstance(target.observed[name].what, MeanLoss):
        refined = refined_llc(one.draws, at_w_star, n_beta)
        found |= {"llc": refined.value, "llc_std_error": refined.std_error}
    return found
