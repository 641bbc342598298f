"""L1: what is measured. Builds targets, writes them into the store, and reads them back."""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import shlex
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from lambda_hat.config import BuildConfig, MlpBuild
from lambda_hat.errors import BuildFailed, ConfigError, CorruptArtifact, LambdaHatError, TargetNotBuilt
from lambda_hat.files import DAMAGED_NPZ
from lambda_hat.integrity import META_FORMAT, config_digest, is_target_name
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.programs import call
from lambda_hat.store import publish_target, read_record
from lambda_hat.targets.base import SLICE_ROWS, Loss, Made, Target
from lambda_hat.targets.truth import true_llc, true_llc_t

__all__ = [
    "Loss",
    "Target",
    "build_checkpoints",
    "build_target",
    "load_target",
    "save_target",
    "true_llc",
    "true_llc_t",
]

_MODULES = {
    "quadratic": "analytic",
    "monomial": "analytic",
    "monomial_sum": "analytic",
    "radial": "analytic",
    "line_and_point": "analytic",
    "tanh": "tanh",
    "dln": "linear",
    "mlp": "mlp",
    "custom": "custom",
}
"""The module of every kind of target."""


def _module(kind: str) -> ModuleType:
    # On first use: a rank should not wait for the optimisers of targets that it does not have.
    return importlib.import_module(f"{__name__}.{_MODULES[kind]}")


def build_target(cfg: BuildConfig, programs: Path | None = None) -> tuple[Target, dict[str, Any]]:
    """Build the target that `cfg` describes, in float64, from its configuration alone.

    The second value is JSON-able: how training ended (`train_loss`, `grad_norm`, ...), `warnings` as sentences, and
    `seconds`. programs: the folder through which compiled programs are exchanged; None: there is none.
    Raises BuildFailed where training or the data go wrong.
    """
    if isinstance(cfg, MlpBuild) and cfg.checkpoints is not None:
        built = {checkpoint.step: made for checkpoint, *made in build_checkpoints(cfg, programs)}
        if cfg.step is None:
            raise ConfigError(f"step: missing, with checkpoints a target is one of the steps {list(built)}")
        return tuple(built[cfg.step])
    started = time.perf_counter()
    with jax.enable_x64(True):
        made = _module(cfg.kind).make(cfg, programs)
        target = _target(cfg, made, programs)
    return target, {"warnings": [], **made.info, "seconds": time.perf_counter() - started}


def build_checkpoints(cfg: MlpBuild, programs: Path | None = None) -> list[tuple[MlpBuild, Target, dict[str, Any]]]:
    """Train once, and return every checkpoint's configuration, target and information, in the order of their steps.

    They share the arrays of their data. programs: as of `build_target`. Raises BuildFailed as `build_target` does.
    """
    started = time.perf_counter()
    with jax.enable_x64(True):
        made = _module(cfg.kind).make_checkpoints(cfg, programs)
        points = [replace(cfg, step=step) for step in cfg.checkpoint_steps]
        targets = [_target(point, at, programs) for point, at in zip(points, made, strict=True)]
    seconds = time.perf_counter() - started
    return [
        (point, target, {**at.info, "seconds": seconds})
        for point, target, at in zip(points, targets, made, strict=True)
    ]


def _target(cfg: BuildConfig, made: Made, programs: Path | None) -> Target:
    if made.target is not None:
        return made.target
    loss = _module(cfg.kind).make_loss(cfg)
    population = cfg.num_data == 0
    at_w_star = float(call(_loss_at, (loss, population), programs, made.w_star, made.data))
    if not math.isfinite(at_w_star):
        raise BuildFailed(
            f"the loss at w_star is {at_w_star:g}, expected a finite number; check the scales in the configuration"
        )
    llc, multiplicity = true_llc(cfg) or (None, None)
    return Target(loss, made.w_star, made.data, population, cfg.n, at_w_star, llc, multiplicity)


def _loss_at(loss: Loss, population: bool, params: dict[str, jax.Array], data: dict[str, jax.Array]) -> jax.Array:
    return loss(params, data) if population else loss.full(params, data, SLICE_ROWS)


def save_target(
    directory: Path, target: Target, cfg: BuildConfig, info: dict[str, Any], data_of: str | None = None
) -> None:
    """Publish a target in `directory`: params.npz, data.npz and config.yaml, then meta.json, which says it is whole.

    data_of: the folder beside `directory` that already holds the same data.
    """
    meta = {
        "kind": cfg.kind,
        "n": target.n,
        "dim": target.dim,
        "num_data": target.num_data,
        "population": target.population,
        "loss_at_w_star": target.loss_at_w_star,
        "true_llc": target.true_llc,
        "true_multiplicity": target.true_multiplicity,
        "build": info,
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
    arrays = {"params.npz": _npz_bytes(target.w_star), "data.npz": _npz_bytes(target.data)}
    publish_target(directory, cfg, meta, arrays, data_of)


def load_target(directory: Path) -> Target:
    """Read a target that `save_target` has published.

    Raises TargetNotBuilt where meta.json is missing, CorruptArtifact where a file is missing or was changed.
    """
    directory = Path(directory)
    if not (directory / "meta.json").is_file():
        raise TargetNotBuilt(
            f"{directory}: not built, meta.json is missing; put its configuration into config.yaml there and run "
            f"{_build_command(directory)}"
        )
    try:
        meta = read_record(directory / "meta.json")
    except CorruptArtifact as error:
        raise _corrupt(directory, "meta.json", str(error).removeprefix(f"{directory / 'meta.json'}: ")) from None
    if meta.get("format") != META_FORMAT:
        raise _corrupt(directory, "meta.json", f"its format is {meta.get('format')!r}, expected {META_FORMAT}")
    if not isinstance(meta.get("kind"), str) or meta["kind"] not in _MODULES:
        raise _corrupt(
            directory, "meta.json", f"its kind is {meta.get('kind')!r:.80}, which this version does not know"
        )
    try:
        return Target(
            loss=_module(meta["kind"]).make_loss(_read_config(directory, meta)),
            w_star=_read_npz(directory, "params.npz", meta),
            data=_read_npz(_data_folder(directory, meta), "data.npz", meta),
            population=meta["population"],
            n=meta["n"],
            loss_at_w_star=meta["loss_at_w_star"],
            true_llc=meta["true_llc"],
            true_multiplicity=meta["true_multiplicity"],
        )
    except KeyError as error:
        raise _corrupt(directory, "meta.json", f"it has no entry {error}") from None


def _read_config(directory: Path, meta: dict[str, Any]) -> BuildConfig:
    """The configuration, which decides the loss as the arrays do."""
    try:
        cfg = load_build_config(directory / "config.yaml")
    except LambdaHatError as error:
        raise _corrupt(directory, "config.yaml", str(error).removeprefix(f"{directory / 'config.yaml'}: ")) from None
    if config_digest(cfg) != meta["config"]:
        raise _corrupt(directory, "config.yaml", "it was edited, or is another target's")
    return cfg


def _data_folder(directory: Path, meta: dict[str, Any]) -> Path:
    if meta["data_of"] is None:
        return directory
    if not is_target_name(meta["data_of"]):
        raise _corrupt(directory, "meta.json", f"its data lie with {meta['data_of']!r}, which is no target")
    return directory.parent / meta["data_of"]


def _npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An npz file; equal arrays give equal bytes (numpy writes no times)."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _read_npz(directory: Path, name: str, meta: dict[str, Any]) -> dict[str, np.ndarray]:
    try:
        content = (directory / name).read_bytes()
    except FileNotFoundError:
        raise _corrupt(directory, name, "it is missing") from None
    except OSError as error:
        raise _corrupt(directory, name, f"cannot be read: {error.strerror or error}") from error
    files = meta["files"]
    if not isinstance(files, dict) or not isinstance(files[name], dict):
        raise _corrupt(directory, "meta.json", f"it does not vouch for {name}")
    digest, expected = hashlib.sha256(content).hexdigest(), files[name]["sha256"]
    if digest != expected:
        raise _corrupt(directory, name, f"its sha256 is {digest}, expected {expected}")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGED_NPZ as error:
        raise _corrupt(directory, name, f"not an npz file ({error})") from None


def _corrupt(directory: Path, name: str, reason: str) -> CorruptArtifact:
    meta = shlex.quote(str(directory / "meta.json"))
    return CorruptArtifact(
        f"{directory / name}: not the file that the build wrote: {reason}; "
        f"build it again: rm {meta} && {_build_command(directory)}"
    )


def _build_command(directory: Path) -> str:
    config, quoted = shlex.quote(str(directory / "config.yaml")), shlex.quote(str(directory))
    return f"lambda-hat-build-target --config-yaml {config} --target-dir {quoted}"
