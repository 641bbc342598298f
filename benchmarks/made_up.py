"""A store whose files are those of real runs in names, formats and checks, with made-up numbers: for what only looks at
results, where sampling a thousand runs would take an hour."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import h5netcdf
import numpy as np
import yaml
from scipy.signal import lfilter

from lambda_hat.config import BuildConfig, SampleConfig
from lambda_hat.config.samplers import SgldConfig
from lambda_hat.estimate import convergence
from lambda_hat.estimate.posterior import posterior_for
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.store.layout import Store, write_json_atomic
from lambda_hat.store.publish import publish_run, publish_target, write_config
from lambda_hat.workflow_config import Study

BEGUN = 1.79e9
"""When the first pack begins, in seconds since the epoch."""
RANKS = 4
PACK = 64
SAMPLERS = [
    {"name": "hmc", "sweep": {"seed": [0, 1]}},
    {"name": "sgld", "sweep": {"step_size": [1e-6, 1e-5, 1e-4, 1e-3, 1e-2], "seed": [0, 1]}},
    {"name": "nuts", "sweep": {"gamma": [0.1, 1.0, 10.0]}},
]
"""Fifteen settings."""
CHECKPOINTS = {
    "model": "tiny",
    "data": "small",
    "checkpoints": {"every": 100},
    "overrides": {"training": {"steps": 500}},
}
CORRELATION = {"hmc": 0.2, "nuts": 0.1, "sgld": 0.95}
STEPS_PER_DRAW = {"hmc": 10, "nuts": 14, "sgld": 0.25}
"""Full gradients between two draws."""
MESSAGE = "non-finite gradient at the first step"


def write_study(
    folder: Path, dims: Sequence[int], samplers: Sequence[dict] = SAMPLERS, others: Sequence[dict] = (CHECKPOINTS,)
) -> Path:
    """An experiments file: quadratics of these dimensions and `others` times `samplers`."""
    quadratics = {"target": "quadratic", "overrides": {"target": {"rank": None}}, "sweep": {"target.dim": list(dims)}}
    content = {
        "store_root": str(folder / "runs"),
        "results_root": str(folder / "results"),
        "targets": [quadratics, *others],
        "samplers": list(samplers),
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def finish(study: Study, failed: int = 0, pending: int = 0, num_draws: int = 500) -> Store:
    """The store of a study that is over: its first `failed` runs failed, its last `pending` have not begun."""
    store = Store(study.settings.store_root)
    with _without_syncs():
        for target_id, build in study.targets.items():
            publish_target(store.target_dir(target_id), build, _meta(build), {"params.npz": b"w", "data.npz": b"d"})
        runs = study.runs[: len(study.runs) - pending]
        for number, run in enumerate(runs):
            context = _context(number)
            if number < failed:
                _fail(store, run, context)
            else:
                _finish(store, study, run, context, num_draws)
        for first in range(0, len(runs), PACK):
            _log(store, runs[first : first + PACK], first, failed)
    return store


@contextmanager
def _without_syncs() -> Iterator[None]:
    with mock.patch("os.fsync"):
        yield


def _meta(build: BuildConfig) -> dict[str, Any]:
    step = getattr(build, "step", None)
    # A custom target has neither before it is built.
    n, dim = 1000 if build.n is None else build.n, 4 if build.dim is None else build.dim
    known = dim / 2 if build.kind == "quadratic" else None
    loss = 0.0 if step is None else float(0.5 * np.exp(-step / 150) + 0.01)
    return {"n": n, "dim": dim, "loss_at_w_star": loss, "true_llc": known, "true_multiplicity": None}


def _context(number: int) -> dict[str, Any]:
    rank = number % RANKS
    return {"rank": rank, "pack_id": f"pack_{number // PACK:04d}", "host": f"node{rank // 2:02d}", "pid": 100 + rank}


def _fail(store: Store, run: PlannedRun, context: dict[str, Any]) -> None:
    error = {
        "type": "FloatingPointError",
        "message": MESSAGE,
        "expected": False,
        "traceback": "Traceback ...",
        **context,
    }
    directory = store.run_dir(run.target_id, run.run_id)
    write_config(directory, run.cfg)
    write_json_atomic(directory / "error.json", error)


def _finish(store: Store, study: Study, run: PlannedRun, context: dict[str, Any], num_draws: int) -> None:
    build = study.targets[run.target_id]
    meta = _meta(build)
    posterior = posterior_for(run.cfg, meta["n"], meta["dim"])
    step = getattr(build, "step", None)
    if step is None:
        # λ_t of a quadratic of full rank with curvatures of 1.
        truth = meta["dim"] / 2 * posterior.n_beta / (posterior.n_beta + posterior.gamma)
    else:
        truth = 2 + step / 150
    llc = _draws(run, truth, num_draws)
    exact = truth if meta["true_llc"] is not None else None
    analysis = _analysis(run.cfg, llc, exact)
    analysis |= meta | context | _temperature(llc, meta["dim"])
    if meta["true_llc"] is not None:
        analysis["rel_error_llc"] = analysis["llc_mean"] / meta["true_llc"] - 1
    analysis |= {"beta": posterior.n_beta / meta["n"], "gamma": posterior.gamma, "n_beta": posterior.n_beta}
    directory = store.run_dir(run.target_id, run.run_id)
    trace = _trace(llc / posterior.n_beta + meta["loss_at_w_star"], meta["loss_at_w_star"], posterior.n_beta)
    publish_run(directory, run, write_config(directory, run.cfg), trace, analysis)


def _draws(run: PlannedRun, truth: float, num_draws: int) -> np.ndarray:
    """Draws (chain, draw) about the truth; SGLD's are biased by its step, and its chains disagree where it is small."""
    rng = np.random.default_rng(int(run.run_id[-8:], 16))
    memory = CORRELATION[run.cfg.name]
    noise = rng.normal(size=(run.cfg.num_chains, num_draws + 200)) * np.sqrt(truth * (1 - memory**2))
    llc = truth + np.asarray(lfilter([1], [1, -memory], noise, axis=1))[:, 200:]
    if isinstance(run.cfg, SgldConfig):
        step_size = _step_size(run.cfg)
        llc = llc * (1 + 30 * step_size) + (step_size < 1e-5) * rng.normal(size=(len(llc), 1)) * truth / 4
    return llc


def _step_size(cfg: SgldConfig) -> float:
    assert cfg.step_size is not None
    return cfg.step_size


def _analysis(cfg: SampleConfig, llc: np.ndarray, exact: float | None) -> dict[str, Any]:
    mean, rhat, ess = float(llc.mean()), convergence.rhat(llc), convergence.ess_mean(llc)
    error = float(llc.std() / np.sqrt(ess))
    verdict, sentence = "ok", f"the chains agree and the standard error is {error / mean:.1%} of the estimate."
    if rhat > 1.05:
        verdict, sentence = "unmixed", f"the chains disagree (R-hat {rhat:.3f}, above 1.05). Draw longer."
    elif isinstance(cfg, SgldConfig) and _step_size(cfg) >= 1e-2:
        verdict, sentence = "drifting", "the halves of the chains differ. Use more burn-in."
    fge = STEPS_PER_DRAW[cfg.name] * llc.size
    return {
        "sampler": cfg.name, "llc_mean": mean, "llc_std_error": error, "llc_per_chain": llc.mean(axis=1).tolist(),
        "rhat_max": rhat, "ess_bulk_min": convergence.ess_bulk(llc),
        "ess_tail_min": convergence.ess_tail(llc), "ess_mean": ess,
        "acceptance": None if cfg.name == "sgld" else 0.8, "mala_acceptance": None, "num_divergent": 0,
        "loss_mean": 0.01, "verdict": verdict, "verdict_sentence": sentence, "true_llc_t": exact,
        "rel_error": None if exact is None else (mean - exact) / exact,
        "step_size": [0.1] * len(llc), "num_gradients": int(fge), "fge": float(fge), "programs_compiled": 0,
        "programs_loaded": 1, "seconds_compile": 0.2, "seconds_sample": fge / 5000, "seconds_total": fge / 5000 + 0.4,
        "notes": [], "cores": 1, "backend": "cpu", "device": "cpu", "lanes": 1, "started": BEGUN,
        "versions": {"python": "3.11.7", "jax": "0.10.1", "numpy": "2.4.6"},
    }  # fmt: skip


def _temperature(llc: np.ndarray, dim: int) -> dict[str, float]:
    """As of chains in a quadratic basin of `dim` parameters, spread as far as their mean says."""
    growth, localisation = 2 * float(llc.mean()), 0.05
    return {
        "temperature": (growth + localisation) / dim, "temperature_std_error": 0.02, "growth": growth,
        "localisation": localisation, "distance": 0.2, "degree": 2.0, "llc_variance": float(np.var(llc)),
    }  # fmt: skip


def _trace(losses: np.ndarray, loss_at_w_star: float, n_beta: float) -> bytes:
    buffer = io.BytesIO()
    with h5netcdf.File(buffer, "w") as file:
        file.attrs["loss_at_w_star"] = loss_at_w_star
        file.attrs["n_beta"] = n_beta
        group = file.create_group("posterior")
        group.dimensions = dict(zip(("chain", "draw"), losses.shape, strict=True))
        for axis, size in group.dimensions.items():
            group.create_variable(axis, (axis,), data=np.arange(len(size), dtype=np.int64))
        group.create_variable("loss", ("chain", "draw"), data=losses)
    return buffer.getvalue()


def _log(store: Store, runs: Sequence[PlannedRun], first: int, failed: int) -> None:
    """The event logs of a pack whose ranks take the runs in turn."""
    directory = store.pack_dir(_context(first)["pack_id"])
    directory.mkdir(parents=True, exist_ok=True)
    begun = BEGUN + first / PACK * 45
    for rank in range(min(RANKS, len(runs))):
        now, busy = begun + 0.1 * rank, 0.0
        events: list[dict[str, Any]] = [{"time": now, "event": "start", "rank": rank, "size": RANKS, **_context(rank)}]
        now += 1.3
        events.append({"time": now, "event": "ready", "seconds": 1.3})
        for number in range(first + rank, first + len(runs), RANKS):
            run = runs[number - first]
            names = {"rank": rank, "target_id": run.target_id, "run_id": run.run_id}
            seconds = STEPS_PER_DRAW[run.cfg.name] / 5 + 0.4
            events.append({"time": now, "event": "run_start", **names, "lane": 0})
            status = "failed" if number < failed else "finished"
            events.append({"time": now + seconds, "event": "run_end", **names, "status": status, "seconds": seconds})
            now, busy = now + seconds + 0.05, busy + seconds
        events.append({"time": now, "event": "end", "rank": rank, "busy": busy, "seconds": now - begun})
        lines = "".join(f"{json.dumps(event)}\n" for event in events)
        (directory / f"rank-{rank:04d}.jsonl").write_text(lines)
        (directory / f"rank-{rank:04d}.log").write_text(f"rank {rank} of {RANKS}\n{MESSAGE}\n")
