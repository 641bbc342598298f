"""Names of programs: runs of one name are expected to share compiled code."""

from __future__ import annotations

import hashlib

from lambda_hat.config import BuildConfig, CustomBuild, SampleConfig
from lambda_hat.id_utils import canonical_json, identity_payload

NOT_PROGRAM = ("target_id", "seed", "beta", "n_beta", "gamma", "prior_radius", "step_size", "runtime")
"""Keys that every program takes as arguments. Some samplers' programs take more keys so; runs that differ in those get
different names, though they could share a program."""


class ProgramNames:
    """Makes names, and remembers the parts that many runs share."""

    def __init__(self) -> None:
        self._specs: dict[tuple[int, float | None], str] = {}
        self._names: dict[tuple[str, str], str] = {}

    def __call__(self, setting: int, cfg: SampleConfig, kind: str, target: str) -> str:
        """The name of the program of a run.

        Args:
            setting: The index of the sampler entry that `cfg` was made from.
            cfg: The configuration of the run.
            kind: The kind of its target.
            target: What `of_target` says of its target.
        """
        # Of the fields that decide a program, only this one depends on the target too.
        key = setting, getattr(cfg, "target_acceptance", None)
        if key not in self._specs:
            spec = {name: value for name, value in identity_payload(cfg).items() if name not in NOT_PROGRAM}
            spec["learns"] = getattr(cfg, "step_size", 0.0) is None
            self._specs[key] = canonical_json(spec)
        spec = self._specs[key]
        if (spec, target) not in self._names:
            digest = hashlib.sha1(f"[{spec},{target}]".encode()).hexdigest()[:8]
            self._names[spec, target] = f"{cfg.name}-{kind}-{digest}"
        return self._names[spec, target]


def of_target(build: BuildConfig) -> str:
    """The part of a name that a target decides."""
    whose = identity_payload(build)["target"] if isinstance(build, CustomBuild) else None
    return canonical_json([build.kind, build.dim, build.num_data, whose])[1:-1]
