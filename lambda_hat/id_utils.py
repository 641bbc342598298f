"""Content hashes: what a target or a run is called follows from its configuration alone."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, replace
from typing import Any

from lambda_hat.config import BuildConfig, CustomBuild, SampleConfig

NOT_IDENTITY = ("runtime", "store")
"""Sections that say where and how something is computed, never what."""
_encoded = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def canonical_json(payload: Any) -> str:
    """JSON with sorted keys and no white space; non-finite numbers are refused (ValueError)."""
    return _encoded(payload)


def identity_payload(cfg: BuildConfig | SampleConfig) -> dict[str, Any]:
    """The part of a configuration that decides its numbers."""
    # A run's configuration is flat but for its sections, and a study has a hundred thousand of them to name.
    content = vars(cfg) if isinstance(cfg, SampleConfig) else asdict(cfg)
    payload = {key: value for key, value in content.items() if key not in NOT_IDENTITY}
    if isinstance(cfg, CustomBuild):
        # The file's content is in it, by its hash.
        del payload["target"]["checkpoint"]
    return payload


def target_id_for(cfg: BuildConfig) -> str:
    """`tgt_` and 12 hex digits of sha256 over the canonical JSON of the configuration."""
    return "tgt_" + hashlib.sha256(canonical_json(identity_payload(cfg)).encode()).hexdigest()[:12]


def trajectory_id(cfg: BuildConfig) -> str | None:
    """What the checkpoints of one training have in common; None for a target that is no checkpoint."""
    if getattr(cfg, "step", None) is None:
        return None
    return target_id_for(replace(cfg, step=None))


def checkpoint_ids(cfg: BuildConfig) -> dict[str, BuildConfig]:
    """All checkpoints of the training that `cfg` is one of, by target id, in the order of their steps."""
    checkpoints = [replace(cfg, step=step) for step in cfg.checkpoint_steps]
    return {target_id_for(checkpoint): checkpoint for checkpoint in checkpoints}


def run_id_for(cfg: SampleConfig) -> str:
    """`run_<sampler>_` and 8 hex digits of sha1 over the canonical JSON of the configuration."""
    digest = hashlib.sha1(canonical_json(identity_payload(cfg)).encode()).hexdigest()
    return f"run_{cfg.name}_{digest[:8]}"


def random_identity(cfg: SampleConfig) -> int:
    """31 bits that set a run's random numbers apart from those of any other run with the same seed."""
    return int(hashlib.sha1(canonical_json(identity_payload(cfg)).encode()).hexdigest()[8:16], 16) >> 1
