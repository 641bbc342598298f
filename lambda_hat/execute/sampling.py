"""Runs prepared, sampled alone or together, analysed, and published in the store."""

from __future__ import annotations

import functools
import io
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.engine.chunks import Chunks, Progress, read_checkpoint
from lambda_hat.engine.run import recorded_by
from lambda_hat.errors import CorruptArtifact
from lambda_hat.estimate.posterior import Posterior
from lambda_hat.estimate.verdict import Summary, summarize
from lambda_hat.execute.observed_file import findings, numbers, observed_bytes, require_disk, write_axes
from lambda_hat.execute.this_process import memory_of_rank, where_am_i
from lambda_hat.id_utils import Run
from lambda_hat.samplers import Draws, Lane, lane_key, make_lane, measured_width, sample_lanes
from lambda_hat.store.drain import Drain
from lambda_hat.store.layout import CHECKPOINT, programs_folder
from lambda_hat.store.publish import publish_run, write_config
from lambda_hat.targets import Target, load_target, true_llc_t
from lambda_hat.targets.observables import with_observables


class LoadedRun(NamedTuple):
    """A run with its target, before it is sampled."""

    run: Run
    run_dir: Path
    build: BuildConfig
    """The configuration of the target."""
    lane: Lane

    @property
    def checkpoint(self) -> Path:
        """The file that holds the state of the chains while the run is not finished."""
        return self.run_dir / CHECKPOINT


def load_run(run_dir: Path, target_dir: Path, run: Run) -> LoadedRun:
    """Load the target of a run.

    Raises:
        TargetNotBuilt: if the target has no `meta.json`.
        CorruptArtifact: if a file of the target is missing or was changed.
        ConfigError: if the sampler cannot take the target, or `run.cfg.restrict` matches nothing.
    """
    whole, build = _load(target_dir)
    return LoadedRun(run, run_dir, build, _lane(whole, run))


def companions(loaded: LoadedRun) -> Hashable:
    """A key that is equal for runs that can be sampled together.

    Such runs share a compiled program and, if they have checkpoints, were interrupted at the same step.

    Raises:
        CorruptArtifact: if the checkpoint is damaged.
    """
    kept = read_checkpoint(loaded.checkpoint)
    return lane_key(loaded.lane), None if kept is None else kept.step


def width_for(runs: Sequence[LoadedRun], ranks_on_node: int = 1) -> int:
    """The number of `companions` that are best sampled at a time, by measurement."""
    return measured_width(
        [loaded.lane for loaded in runs], memory_of_rank(ranks_on_node), programs_folder(runs[0].run_dir)
    )


def sample_into(
    run_dir: Path,
    target_dir: Path,
    run: Run,
    context: dict[str, Any] | None = None,
    drain: Drain | None = None,
    ranks_on_node: int = 1,
    set_aside: Callable[[Path, str], object] | None = None,
) -> dict:
    """Sample one run and publish it in `run_dir`: `config.yaml`, `trace.nc` and, last, `analysis.json`.

    Arrays that the run watches are in `observed.nc`.

    The run continues from `checkpoint.npz` if an earlier attempt left one. If that file is damaged, it is set aside and
    the run begins anew.

    Args:
        run_dir: the folder of the run.
        target_dir: the folder of its target.
        run: the run.
        context: further entries of the analysis (rank, pack_id, ...); they change no number.
        drain: tells when to stop early.
        ranks_on_node: how many processes share the memory of the node.
        set_aside: called with the path of a damaged checkpoint and the reason; default: rename it to `*.damaged`.

    Returns:
        The content of `analysis.json`.

    Raises:
        Paused: if `drain` asked to stop; the state is in the checkpoint.
        TargetNotBuilt: if the target has no `meta.json`.
        CorruptArtifact: if a file of the target is missing or was changed.
        TooLarge: if the run does not fit into the memory.
        StoreUnwritable: if a file cannot be written.
    """
    loaded = load_run(run_dir, target_dir, run)
    try:
        return next(sample_together([loaded], context, drain, ranks_on_node))
    except CorruptArtifact as damage:
        (set_aside or _beside)(loaded.checkpoint, str(damage))
        return next(sample_together([loaded], context, drain, ranks_on_node))


def sample_together(
    runs: Sequence[LoadedRun],
    context: dict[str, Any] | None = None,
    drain: Drain | None = None,
    ranks_on_node: int = 1,
    width: int = 1,
) -> Iterator[dict]:
    """Sample runs that are `companions` as lanes of one program; yield each analysis once its run is published.

    Each run is assigned an equal share of the time that the lanes take together.

    Args:
        runs: the loaded runs, equal in `companions`.
        context: as for `sample_into`.
        drain: as for `sample_into`.
        ranks_on_node: as for `sample_into`.
        width: the least number of lanes of the program; surplus lanes repeat the last run, so that groups of nearly the
            same size share one program.

    Raises:
        CorruptArtifact: if a checkpoint is damaged.
        Paused, TooLarge, StoreUnwritable: as `sample_into`.
    """
    started = time.time()
    configs = [write_config(loaded.run_dir, loaded.run.cfg) for loaded in runs]
    width = max(width, len(runs))
    first = runs[0].lane
    require_disk(runs[0].run_dir, first.cfg, recorded_by(first), len(runs))
    chunks = Chunks(
        *(loaded.checkpoint for loaded in runs),
        lanes=width,
        every=runs[0].run.cfg.runtime.checkpoint_every,
        drain=drain,
        memory=memory_of_rank(ranks_on_node),
        programs=programs_folder(runs[0].run_dir),
    )
    chunks.load()
    lanes = [loaded.lane for loaded in runs]
    lanes += [lanes[-1]] * (width - len(runs))
    for loaded, config, draws in zip(runs, configs, sample_lanes(lanes, chunks), strict=False):
        target, posterior = loaded.lane.target, loaded.lane.posterior
        summary = summarize(draws, target.loss_at_w_star, *posterior, target.dim)
        trace = _trace_bytes(draws, target.loss_at_w_star, posterior.n_beta)
        watched = observed_bytes(draws.observed)
        analysis = _analysis(loaded.run.cfg, loaded.build, target, posterior, draws, summary)
        analysis |= where_am_i() | (context or {})
        analysis |= {"lanes": len(runs), "started": started, "seconds_total": (time.time() - started) / len(runs)}
        publish_run(loaded.run_dir, loaded.run, config, trace, analysis, watched)
        yield analysis


def _beside(path: Path, reason: str) -> None:
    """Rename a damaged file, if the caller has no store that sets it aside."""
    path.replace(path.with_name(f"{path.name}.damaged"))


class Estimate(NamedTuple):
    """The result of one run."""

    target: Target
    """The target that was sampled: the restricted one if `cfg.restrict` is set."""
    posterior: Posterior
    draws: Draws
    summary: Summary


def estimate(target: Target, cfg: SampleConfig, progress: Progress | None = None) -> Estimate:
    """Sample `target` as `cfg` says, and summarise the draws. Nothing is written.

    Args:
        target: the target.
        cfg: the configuration of the run.
        progress: called about once a second with the phase, the transitions done in it, and how many it has.

    Raises:
        ConfigError: if the sampler cannot take the target, or `cfg.restrict` matches nothing.
    """
    lane = _lane(target, Run.of(cfg))
    # Rows that are kept add up quickly; what else a process may take is its owner's business.
    memory = memory_of_rank(1) if target.observed else None
    draws = sample_lanes([lane], Chunks(programs=programs_folder(), progress=progress, memory=memory))[0]
    summary = summarize(draws, lane.target.loss_at_w_star, *lane.posterior, lane.target.dim)
    return Estimate(lane.target, lane.posterior, draws, summary)


def _lane(whole: Target, run: Run) -> Lane:
    cfg = run.cfg
    watched = with_observables(whole, cfg.observe)
    return make_lane(watched if cfg.restrict is None else watched.restricted(cfg.restrict), cfg, run.identity)


# A rank samples the runs of one target one after the other, and a built target never changes.
_load = functools.lru_cache(maxsize=4)(load_target)


def _analysis(
    cfg: SampleConfig, build: BuildConfig, target: Target, posterior: Posterior, draws: Draws, summary: Summary
) -> dict[str, Any]:
    whole = not target.held
    llc_t = true_llc_t(build, posterior.n_beta, posterior.gamma) if whole else None
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
        "rel_error": _rel_error(summary.llc_mean, llc_t),
        "rel_error_llc": _rel_error(summary.llc_mean, target.true_llc),
        "step_size": draws.step_size.tolist(),
        "num_gradients": draws.num_gradients,
        "fge": draws.fge,
        "seconds_compile": draws.seconds_compile,
        "seconds_sample": draws.seconds_sample,
        "programs_compiled": draws.programs_compiled,
        "programs_loaded": draws.programs_loaded,
        "notes": list(draws.notes),
        **({"observed": findings(target, draws.observed, posterior.n_beta)} if draws.observed else {}),
    }


def _rel_error(llc: float, exact: float | None) -> float | None:
    """The relative error; None without an exact value, or with 0."""
    return (llc - exact) / exact if exact else None


def _trace_bytes(draws: Draws, loss_at_w_star: float, n_beta: float) -> bytes:
    """The losses as netCDF-4, in the groups that ArviZ reads."""
    import h5netcdf

    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        file.attrs["loss_at_w_star"] = loss_at_w_star
        file.attrs["n_beta"] = n_beta
        group = file.create_group("posterior")
        write_axes(group, *draws.loss.shape)
        loss = group.create_variable("loss", ("chain", "draw"), data=np.asarray(draws.loss, dtype=np.float64))
        loss.attrs["long_name"] = "mean loss L_n(w) at the recorded draws"
        for name, one in numbers(draws.observed).items():
            watched = group.create_variable(name, ("chain", "draw"), data=one.draws)
            watched.attrs["at_w_star"] = float(one.at_w_star)
    return buffer.getvalue()
