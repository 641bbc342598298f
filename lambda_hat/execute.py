"""One target built, or one run sampled, and published in the store."""

from __future__ import annotations

import functools
import io
import os
import platform
import socket
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.cores import xla_cores
from lambda_hat.diagnostics import Summary, summarize
from lambda_hat.drain import Drain
from lambda_hat.errors import CorruptArtifact, LambdaHatError
from lambda_hat.id_utils import checkpoint_ids, random_identity, target_id_for, trajectory_id
from lambda_hat.memory import memory_of_node
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.posterior import Posterior
from lambda_hat.samplers import Draws, Lane, lane_key, make_lane, measured_width, sample_lanes
from lambda_hat.samplers.chunks import Chunks, read_checkpoint
from lambda_hat.store import programs_folder, publish_run, write_config, write_json_atomic
from lambda_hat.targets import Target, build_checkpoints, build_target, load_target, save_target, true_llc_t

CHECKPOINT = "checkpoint.npz"


def build_into(directory: Path, cfg: BuildConfig) -> tuple[Target, list[str]]:
    """Build the target of `cfg` and publish it in `directory`; an `error.json` of an earlier try is removed.

    A checkpoint of a training, in its folder of a store, brings all of its siblings with it: they are trained once, and
    share the data that lie with the last one. Where that fails, it has failed for all of them.
    The second value are sentences of warning, a `w_star` that is no minimum for one.
    Raises BuildFailed where training or the data go wrong.
    """
    if trajectory_id(cfg) is not None and directory.name == target_id_for(cfg):
        return _build_all_checkpoints(directory, cfg)
    target, info = build_target(cfg, programs_folder(directory))
    save_target(directory, target, cfg, info)
    (directory / "error.json").unlink(missing_ok=True)
    return target, info["warnings"]


def _build_all_checkpoints(directory: Path, cfg: BuildConfig) -> tuple[Target, list[str]]:
    folders = {target_id: directory.parent / target_id for target_id in checkpoint_ids(cfg)}
    with ExitStack() as stack:
        for folder in folders.values():
            if folder != directory:
                stack.enter_context(recording_failure(folder))
        built = dict(zip(folders, build_checkpoints(cfg, programs_folder(directory)), strict=True))
        last = list(folders)[-1]
        # The one that the others refer to for their data comes first, the one that was asked for comes last.
        for target_id in sorted(folders, key=lambda t: (t != last, folders[t] == directory)):
            point, target, info = built[target_id]
            save_target(folders[target_id], target, point, info, data_of=None if target_id == last else last)
            (folders[target_id] / "error.json").unlink(missing_ok=True)
    _, target, info = built[directory.name]
    return target, info["warnings"]


class Prepared(NamedTuple):
    """A run that is about to be sampled."""

    run_dir: Path
    cfg: SampleConfig
    build: BuildConfig
    lane: Lane

    @property
    def checkpoint(self) -> Path:
        """Where its state is kept while it is not finished."""
        return self.run_dir / CHECKPOINT


def prepare(run_dir: Path, target_dir: Path, cfg: SampleConfig) -> Prepared:
    """Load the target of a run. Raises TargetNotBuilt, CorruptArtifact, ConfigError."""
    whole, build = _load(target_dir)
    return Prepared(run_dir, cfg, build, make_lane(_restricted(whole, cfg), cfg, random_identity(cfg)))


def companions(prepared: Prepared) -> Hashable:
    """Equal for runs that can be sampled together: of one program, and where they were interrupted in the same place.

    Raises CorruptArtifact where the checkpoint is damaged.
    """
    kept = read_checkpoint(prepared.checkpoint)
    return lane_key(prepared.lane), None if kept is None else kept[:2]


def width_for(runs: Sequence[Prepared], ranks_on_node: int = 1) -> int:
    """How many of some companions are best sampled at a time, measured."""
    return measured_width([run.lane for run in runs], memory_of_rank(ranks_on_node), programs_folder(runs[0].run_dir))


def sample_into(
    run_dir: Path,
    target_dir: Path,
    cfg: SampleConfig,
    context: dict[str, Any] | None = None,
    drain: Drain | None = None,
    ranks_on_node: int = 1,
    set_aside: Callable[[Path, str], object] | None = None,
) -> dict:
    """Sample one run, publish `config.yaml`, `trace.nc` and, last, `analysis.json` in `run_dir`; return the analysis.

    It goes on from `checkpoint.npz` where an earlier try has left one; a damaged one is given to `set_aside(path,
    reason)`, and the run begins anew. context: kept with the analysis (rank, pack_id, ...), and decides nothing.
    ranks_on_node: how many processes share the memory.
    Raises Paused, after the state has been kept, where `drain` asks for it; TargetNotBuilt, CorruptArtifact of the
    target, TooLarge, StoreUnwritable, or what the sampler raises.
    """
    prepared = prepare(run_dir, target_dir, cfg)
    try:
        return next(sample_together([prepared], context, drain, ranks_on_node))
    except CorruptArtifact as damage:
        (set_aside or _beside)(prepared.checkpoint, str(damage))
        return next(sample_together([prepared], context, drain, ranks_on_node))


def sample_together(
    runs: Sequence[Prepared],
    context: dict[str, Any] | None = None,
    drain: Drain | None = None,
    ranks_on_node: int = 1,
    width: int = 1,
) -> Iterator[dict]:
    """As `sample_into`, of runs that are `companions`, side by side as lanes of one program; each analysis once its run
    is published.

    width: lanes that the program has at least; those that are left over compute the last run once more, so that groups
    of nearly the same size share the program. What lanes spend together each of them gets an equal share of. Raises
    CorruptArtifact also where a checkpoint is damaged.
    """
    started = time.time()
    configs = [write_config(run.run_dir, run.cfg) for run in runs]
    width = max(width, len(runs))
    chunks = Chunks(
        *(run.checkpoint for run in runs),
        lanes=width,
        every=runs[0].cfg.runtime.checkpoint_every,
        drain=drain,
        memory=memory_of_rank(ranks_on_node),
        programs=programs_folder(runs[0].run_dir),
    )
    chunks.load()
    lanes = [run.lane for run in runs]
    lanes += [lanes[-1]] * (width - len(runs))
    for run, config, draws in zip(runs, configs, sample_lanes(lanes, chunks), strict=False):
        target, posterior = run.lane.target, run.lane.posterior
        summary = summarize(draws, target.loss_at_w_star, posterior.n_beta)
        trace = _trace_bytes(draws, target.loss_at_w_star, posterior.n_beta)
        analysis = _analysis(run.cfg, run.build, target, posterior, draws, summary)
        analysis |= where_am_i() | (context or {})
        analysis |= {"lanes": len(runs), "started": started, "seconds_total": (time.time() - started) / len(runs)}
        publish_run(run.run_dir, run.cfg, config, trace, analysis)
        yield analysis


def _beside(path: Path, reason: str) -> None:
    """Set a file aside where there is no store to do it."""
    path.replace(path.with_name(f"{path.name}.damaged"))


def memory_of_rank(ranks_on_node: int) -> int | None:
    """Bytes that a run may take: the device's, else this rank's share of the node's."""
    import jax

    device = jax.devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return memory_of_node() // ranks_on_node


class Estimate(NamedTuple):
    """One run's result. `target` is what moved: the restriction of the whole where the run asks for one."""

    target: Target
    posterior: Posterior
    draws: Draws
    summary: Summary


def estimate(target: Target, cfg: SampleConfig) -> Estimate:
    """Sample `target` as `cfg` says, and summarise the draws.

    Raises ConfigError where `cfg.restrict` matches nothing, or the sampler cannot take the target.
    """
    lane = make_lane(_restricted(target, cfg), cfg, random_identity(cfg))
    draws = sample_lanes([lane], Chunks(programs=programs_folder()))[0]
    summary = summarize(draws, lane.target.loss_at_w_star, lane.posterior.n_beta)
    return Estimate(lane.target, lane.posterior, draws, summary)


def _restricted(target: Target, cfg: SampleConfig) -> Target:
    return target if cfg.restrict is None else target.restricted(cfg.restrict)


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
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
    }


def visible_devices() -> list[tuple[str, str]]:
    """Backend (cpu, gpu, ...) and kind of every device that jax sees, the default one first.

    Raises RuntimeError or AssertionError, jax's own, where no backend that `JAX_PLATFORMS` names can be started.
    """
    import jax

    return [(jax.default_backend(), device.device_kind) for device in jax.devices()]


def probe() -> dict[str, Any]:
    """Compile and run something small, and say where and how fast: for a site's preflight.

    `result` equals `expected` on every device that computes rightly: the sums are whole numbers that float32, and the
    shorter factors of a GPU's matrix product, hold exactly.
    """
    import jax
    import jax.numpy as jnp

    begun = time.monotonic()
    matrix = np.arange(256).reshape(16, 16) % 5 - 2
    result = jax.jit(lambda x: jnp.sum((x @ x.T) ** 2))(matrix.astype(np.float32))
    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "device_kind": device.device_kind,
        "device_memory": (device.memory_stats() or {}).get("bytes_limit"),
        "result": float(result),
        "expected": float(np.sum((matrix @ matrix.T) ** 2)),
        "seconds_compute": time.monotonic() - begun,
    }


@functools.lru_cache(maxsize=4)
def _load(target_dir: Path) -> tuple[Target, BuildConfig]:
    # Runs of one target follow each other on a rank; the store never changes a target that is built.
    return load_target(target_dir), load_build_config(target_dir / "config.yaml")


def _analysis(
    cfg: SampleConfig, build: BuildConfig, target: Target, posterior: Posterior, draws: Draws, summary: Summary
) -> dict[str, Any]:
    whole = not target.held
    llc_t = true_llc_t(build, posterior.n_beta, posterior.gamma) if whole else None
    reference = llc_t if llc_t is not None else target.true_llc
    return {
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
        "num_gradients": draws.num_gradients,
        "fge": draws.fge,
        "seconds_compile": draws.seconds_compile,
        "seconds_sample": draws.seconds_sample,
        "programs_compiled": draws.programs_compiled,
        "programs_loaded": draws.programs_loaded,
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
