"""One target built, or one run sampled, and published in the store."""

from __future__ import annotations

import functools
import io
import os
import platform
import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.cores import xla_cores
from lambda_hat.diagnostics import Summary, summarize
from lambda_hat.errors import LambdaHatError
from lambda_hat.id_utils import random_identity
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.posterior import Posterior, posterior_for
from lambda_hat.samplers import Draws, sample
from lambda_hat.store import write_bytes_atomic, write_config, write_json_atomic
from lambda_hat.targets import Target, build_target, load_target, save_target, true_llc_t

ANALYSIS_FORMAT = 1


def build_into(directory: Path, cfg: BuildConfig) -> tuple[Target, list[str]]:
    """Build the target of `cfg` and publish it in `directory`; an `error.json` of an earlier try is removed.

    The second value are sentences of warning, a `w_star` that is no minimum for one.
    Raises BuildFailed where training or the data go wrong.
    """
    target, info = build_target(cfg)
    save_target(directory, target, cfg, info)
    (directory / "error.json").unlink(missing_ok=True)
    return target, info["warnings"]


def sample_into(run_dir: Path, target_dir: Path, cfg: SampleConfig, context: dict[str, Any] | None = None) -> dict:
    """Sample one run, publish `config.yaml`, `trace.nc` and, last, `analysis.json` in `run_dir`; return the analysis.

    `context` (rank, pack_id, ...) is kept with the analysis and decides nothing.
    Raises TargetNotBuilt, CorruptArtifact, or what the sampler raises.
    """
    started = time.time()
    target, build = _load(target_dir)
    write_config(run_dir, cfg)
    posterior = posterior_for(cfg, target.n, target.dim)
    draws = sample(target, cfg, random_identity(cfg))
    summary = summarize(draws, target.loss_at_w_star, posterior.n_beta)
    analysis = _analysis(cfg, build, target, posterior, draws, summary)
    analysis |= where_am_i() | (context or {}) | {"started": started, "seconds_total": time.time() - started}
    write_bytes_atomic(run_dir / "trace.nc", _trace_bytes(draws, target.loss_at_w_star, posterior.n_beta))
    write_json_atomic(run_dir / "analysis.json", analysis)
    (run_dir / "error.json").unlink(missing_ok=True)
    return analysis


@contextmanager
def recording_failure(directory: Path, context: dict[str, Any] | None = None) -> Iterator[None]:
    """Record whatever the block raises in `directory/error.json`, and pass it on."""
    try:
        yield
    except Exception as error:
        record_failure(directory, error, context)
        raise


def record_failure(directory: Path, error: BaseException, context: dict[str, Any] | None = None) -> None:
    """Write `error.json`: what was raised, its traceback, where (rank, host), and when."""
    write_json_atomic(
        directory / "error.json",
        {
            "type": type(error).__name__,
            "message": str(error),
            "expected": isinstance(error, LambdaHatError),
            "traceback": "".join(traceback.format_exception(error)),
            "time": time.time(),
            **where_am_i(),
            **(context or {}),
        },
    )


def where_am_i() -> dict[str, Any]:
    """Host, process and versions, as every record of a computation carries them."""
    import jax

    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "cores": xla_cores(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
    }


@functools.lru_cache(maxsize=4)
def _load(target_dir: Path) -> tuple[Target, BuildConfig]:
    # Runs of one target follow each other on a rank; the store never changes a target that is built.
    return load_target(target_dir), load_build_config(target_dir / "config.yaml")


def _analysis(
    cfg: SampleConfig, build: BuildConfig, target: Target, posterior: Posterior, draws: Draws, summary: Summary
) -> dict[str, Any]:
    llc_t = true_llc_t(build, posterior.n_beta, posterior.gamma)
    reference = llc_t if llc_t is not None else target.true_llc
    return {
        "format": ANALYSIS_FORMAT,
        "target_id": cfg.target_id,
        "sampler": cfg.name,
        **asdict(summary),
        "loss_at_w_star": target.loss_at_w_star,
        "n": target.n,
        "dim": target.dim,
        "beta": posterior.n_beta / target.n,
        "gamma": posterior.gamma,
        "n_beta": posterior.n_beta,
        "true_llc": target.true_llc,
        "true_multiplicity": target.true_multiplicity,
        "true_llc_t": llc_t,
        "rel_error": (summary.llc_mean - reference) / reference if reference else None,
        "step_size": draws.step_size.tolist(),
        "fge": draws.fge,
        "seconds_compile": draws.seconds_compile,
        "seconds_sample": draws.seconds_sample,
        "cache_hit": draws.cache_hit,
        "notes": list(draws.notes),
    }


def _trace_bytes(draws: Draws, loss_at_w_star: float, n_beta: float) -> bytes:
    """netCDF-4 with the groups that `arviz.from_netcdf` reads."""
    import h5netcdf

    buffer = io.BytesIO()
    num_chains, num_draws = draws.loss.shape
    with h5netcdf.File(buffer, "w") as file:
        file.attrs["loss_at_w_star"] = loss_at_w_star
        file.attrs["n_beta"] = n_beta
        group = file.create_group("posterior")
        group.dimensions = {"chain": num_chains, "draw": num_draws}
        for axis, size in (("chain", num_chains), ("draw", num_draws)):
            group.create_variable(axis, (axis,), data=np.arange(size, dtype=np.int64))
        loss = group.create_variable("loss", ("chain", "draw"), data=np.asarray(draws.loss, dtype=np.float64))
        loss.attrs["long_name"] = "mean loss L_n(w) at the recorded draws"
    return buffer.getvalue()
