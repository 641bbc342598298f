"""Ids of targets and runs: hashes of their configurations, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from lambda_hat.config import BuildConfig, CustomBuild, MlpBuild, SampleConfig

NOT_IDENTITY = ("runtime", "store")
"""Sections that change no number, and so belong to no id."""
_encoded = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(payload: Any) -> str:
    """JSON with sorted keys and without white space.

    Raises:
        ValueError: `payload` holds a non-finite number.
    """
    return _encoded(payload)


def identity_payload(cfg: BuildConfig | SampleConfig) -> dict[str, Any]:
    """The part of a configuration that decides its numbers."""
    # Apart from `runtime` a run's configuration is flat, and `asdict` is slow for the 100,000 runs of a large study.
    content = vars(cfg) if isinstance(cfg, SampleConfig) else asdict(cfg)
    payload = {key: value for key, value in content.items() if key not in NOT_IDENTITY}
    if isinstance(cfg, CustomBuild):
        # The hash of the file's content stays.
        del payload["target"]["checkpoint"]
    return payload


def target_id_for(cfg: BuildConfig) -> str:
    """`tgt_` and 12 hex digits of sha256 over the canonical JSON of the configuration."""
    return "tgt_" + hashlib.sha256(canonical_json(identity_payload(cfg)).encode()).hexdigest()[:12]


def trajectory_id(cfg: BuildConfig) -> str | None:
    """One id for all checkpoints of a training; None for a target that is not a checkpoint."""
    if not isinstance(cfg, MlpBuild) or cfg.step is None:
        return None
    return target_id_for(replace(cfg, step=None))


def checkpoint_ids(cfg: MlpBuild) -> dict[str, MlpBuild]:
    """All checkpoints of the training that `cfg` belongs to, by target id, in the order of their steps."""
    checkpoints = [replace(cfg, step=step) for step in cfg.checkpoint_steps]
    return {target_id_for(checkpoint): checkpoint for checkpoint in checkpoints}


def run_id_for(cfg: SampleConfig) -> str:
    """`run_<sampler>_` and 8 hex digits of sha1 over the canonical JSON of the configuration."""
    digest = hashlib.sha1(canonical_json(identity_payload(cfg)).encode()).hexdigest()
    return f"run_{cfg.name}_{digest[:8]}"


def random_identity(cfg: SampleConfig) -> int:
    """31 bits by which a run's random numbers differ from those of other runs with the same seed."""
    return int(hashlib.sha1(canonical_json(identity_payload(cfg)).encode()).hexdigest()[8:16], 16) >> 1
