"""Runs, and ids of targets and runs: hashes of their configurations, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from lambda_hat.config import HOW_AT, NOT_IN_ID_AT, BuildConfig, CustomBuild, MlpBuild, SampleConfig

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
    payload = {
        key: value
        for key, value in content.items()
        if key not in NOT_IDENTITY and (key not in NOT_IN_ID_AT or value != NOT_IN_ID_AT[key])
    }
    if isinstance(cfg, SampleConfig) and cfg.observe is not None:
        payload["observe"] = {name: asdict(what) for name, what in cfg.observe.items()}
    if isinstance(cfg, CustomBuild):
        # The hash of the content stays.
        target = payload["target"]
        del target["checkpoint"]
        # Targets without them keep the ids that they had before these keys were there.
        for key in ("torch", "step", "trajectory"):
            if target[key] is None:
                del target[key]
    return payload


def _content(cfg: BuildConfig | SampleConfig) -> bytes:
    return canonical_json(identity_payload(cfg)).encode()


def config_digest(cfg: BuildConfig | SampleConfig) -> str:
    """The sha256 of everything in a configuration that decides the numbers of a run or target.

    An id is made of the same, but is so short that two configurations may share it by chance.
    """
    return hashlib.sha256(_content(cfg)).hexdigest()


def target_id_for(cfg: BuildConfig) -> str:
    """`tgt_` and 12 hex digits of sha256 over the canonical JSON of the configuration."""
    return f"tgt_{config_digest(cfg)[:12]}"


def trajectory_id(cfg: BuildConfig) -> str | None:
    """One id for all checkpoints of a training; None for a target that is not one of its steps."""
    if isinstance(cfg, CustomBuild) and cfg.step is not None:
        return target_id_for(replace(cfg, target=replace(cfg.target, checkpoint_sha256=None, step=None)))
    if isinstance(cfg, MlpBuild) and cfg.step is not None:
        return target_id_for(replace(cfg, step=None))
    return None


def checkpoint_ids(cfg: MlpBuild) -> dict[str, MlpBuild]:
    """All checkpoints of the training that `cfg` belongs to, by target id, in the order of their steps."""
    checkpoints = [replace(cfg, step=step) for step in cfg.checkpoint_steps]
    return {target_id_for(checkpoint): checkpoint for checkpoint in checkpoints}


@dataclass(frozen=True)
class Run:
    """One sampler setting on one target. A process makes it once, when it reads the configuration, and hands it on."""

    target_id: str
    run_id: str
    cfg: SampleConfig
    digest: str
    """The `config_digest` of `cfg`."""
    identity: int
    """31 bits by which the run's random numbers differ from those of other runs with the same seed."""

    @classmethod
    def of(cls, cfg: SampleConfig, **more: Any) -> Self:
        """The run of a configuration.

        Its id is `run_<sampler>_` and 8 hex digits of sha1 over the canonical JSON of `cfg`. Its random numbers are
        those of the same run with the keys of `HOW_AT` at their defaults.

        Args:
            cfg: The configuration.
            more: Values of the fields that a subclass adds.
        """
        content = _content(cfg)
        sha1 = hashlib.sha1(content).hexdigest()
        ids = cfg.target_id, f"run_{cfg.name}_{sha1[:8]}"
        numbers, plain = sha1, {key: value for key, value in HOW_AT.items() if getattr(cfg, key, value) != value}
        if plain:
            numbers = hashlib.sha1(_content(replace(cfg, **plain))).hexdigest()
        return cls(*ids, cfg, hashlib.sha256(content).hexdigest(), int(numbers[8:16], 16) >> 1, **more)

    @property
    def key(self) -> tuple[str, str]:
        """The ids of target and run."""
        return self.target_id, self.run_id
