"""Trained networks, whose exact answer is not known. A long run of NUTS in a low-rank metric is their judge.

`lambda-hat validate --suite noisy --judge` trains them, judges them, and writes `judged.json`. The file also keeps the
judged point, because training on another machine may end in another minimum.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from lambda_hat.config import MlpBuild, NutsConfig
from lambda_hat.errors import ConfigError
from lambda_hat.store.layout import write_json_atomic

JUDGED = Path(__file__).with_name("judged.json")
"""The records of all judged networks."""
COMMAND = "lambda-hat validate --suite noisy --judge"
"""The command that makes them."""


def judge_config(label: str) -> NutsConfig:
    """The run that judges one network, long enough for a standard error below one per cent."""
    return NutsConfig(
        target_id=label,
        metric="low_rank",
        target_acceptance=0.99,
        num_chains=4,
        num_draws=2500,
        num_burnin=1500,
        thin=1,
    )


def run_judge(builds: Mapping[str, MlpBuild], path: Path = JUDGED) -> Iterator[tuple[str, dict[str, Any]]]:
    """Train and judge networks one after the other; write each record into `path`, then yield its label and itself."""
    from lambda_hat.execute.sampling import estimate
    from lambda_hat.targets import build_target

    for label, build in builds.items():
        target, info = build_target(build)
        cfg = judge_config(label)
        found = estimate(target, cfg)
        summary = found.summary
        record = {
            "command": f"{COMMAND} --only '{label}'",
            "llc": summary.llc_mean,
            "std_error": summary.llc_std_error,
            "temperature": summary.temperature,
            "temperature_std_error": summary.temperature_std_error,
            "rhat": summary.rhat_max,
            "ess": summary.ess_mean,
            "verdict": summary.verdict,
            "num_divergent": found.draws.num_divergent,
            "num_gradients": found.draws.num_gradients,
            "chains": cfg.num_chains,
            "draws": cfg.num_draws,
            "n_beta": found.posterior.n_beta,
            "gamma": found.posterior.gamma,
            "grad_norm": info["grad_norm"],
            "w_star": {path: array.tolist() for path, array in target.w_star.items()},
        }
        write_json_atomic(path, (_read(path) if path.exists() else {}) | {label: record})
        yield label, record


def record_of(label: str) -> dict[str, Any]:
    """The record of a network in `judged.json`.

    Raises:
        ConfigError: if the network was never judged.
    """
    records = _read(JUDGED) if JUDGED.exists() else {}
    if label not in records:
        raise ConfigError(f"{label}: {JUDGED.name} has no judgement of it; make it with {COMMAND} --only {label!r}")
    return records[label]


def judgement(label: str, n_beta: float, gamma: float) -> tuple[float, float]:
    """The judged value of a network, and its standard error.

    Raises:
        ConfigError: if the network was never judged, or was judged for another posterior.
    """
    record = record_of(label)
    if not (math.isclose(record["n_beta"], n_beta) and math.isclose(record["gamma"], gamma)):
        raise ConfigError(
            f"{label}: it was judged at n_beta = {record['n_beta']:g} and gamma = {record['gamma']:g}, got {n_beta:g} "
            f"and {gamma:g}; judge it anew with {COMMAND}"
        )
    return record["llc"], record["std_error"]


def network(label: str, build: MlpBuild) -> Any:
    """The target (lambda_hat.targets.Target) of a network at its judged point. Nothing is trained."""
    import jax

    from lambda_hat.targets import Target, mlp
    from lambda_hat.targets.base import SLICE_ROWS, to_numpy

    w_star = {path: np.array(values) for path, values in record_of(label)["w_star"].items()}
    loss = mlp.make_loss(build)
    with jax.enable_x64(True):
        key = jax.random.fold_in(jax.random.key(build.seed), mlp.DATA_STREAM)
        data = to_numpy(mlp.draw_data(key, build.data, mlp.teacher(build)))
        at_w_star = float(loss.full(cast(Any, w_star), cast(Any, data), SLICE_ROWS))
    return Target(loss, w_star, data, False, build.n, at_w_star, None, None)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())
