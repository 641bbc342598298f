"""Targets: build one from its configuration, write it into the store, and read it back."""

from __future__ import annotations

import hashlib
import importlib
import io
import math
import shlex
import time
import zipfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np

from lambda_hat.config import BUILD_SCHEMAS, BuildConfig, CustomBuild, MlpBuild
from lambda_hat.errors import BuildFailed, ConfigError, CorruptArtifact, LambdaHatError, TargetNotBuilt
from lambda_hat.id_utils import config_digest
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.programs.compiling import call
from lambda_hat.store.checksums import META_FORMAT, is_target_name
from lambda_hat.store.files import DAMAGED_NPZ
from lambda_hat.store.layout import read_record
from lambda_hat.store.publish import publish_target
from lambda_hat.targets.base import SLICE_ROWS, Loss, Made, Target
from lambda_hat.targets.measure import measure
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
    "dln": "linear",
}
"""The module of a kind of target that does not lie in the module of its own name."""


def _module(kind: str) -> ModuleType:
    # Imported on first use: a rank need not wait for the optimisers of targets that it does not have.
    return importlib.import_module(f"{__name__}.{_MODULES.get(kind, kind)}")


def build_target(cfg: BuildConfig, programs: Path | None = None) -> tuple[Target, dict[str, Any]]:
    """Build the target that `cfg` describes, in float64. The result depends on the configuration alone.

    Args:
        cfg: the configuration of the target.
        programs: the folder through which processes exchange compiled programs; None: there is none.

    Returns:
        The target, and JSON-able information: how training ended (`train_loss`, `grad_norm`, ...), `warnings` as
        sentences, `seconds`, and the cost of the gradient of a custom loss (`measured`).

    Raises:
        BuildFailed: if training or the data go wrong.
        ConfigError: if the configuration lists checkpoints and does not say which `step` the target is.
    """
    if isinstance(cfg, MlpBuild) and cfg.checkpoints is not None:
        built = {checkpoint.step: (target, info) for checkpoint, target, info in build_checkpoints(cfg, programs)}
        if cfg.step is None:
            raise ConfigError(f"step: missing, with checkpoints a target is one of the steps {list(built)}")
        return built[cfg.step]
    started = time.perf_counter()
    with jax.enable_x64(True):
        made = _module(cfg.kind).make(cfg, programs)
        target = _target(cfg, made, programs)
    # For every other kind the cost of a gradient follows from the configuration.
    measured = {"measured": measure(target)} if isinstance(cfg, CustomBuild) else {}
    return target, {"warnings": [], **made.info, **measured, "seconds": time.perf_counter() - started}


def build_checkpoints(cfg: MlpBuild, programs: Path | None = None) -> list[tuple[MlpBuild, Target, dict[str, Any]]]:
    """Train once, and return the configuration, target and information of every checkpoint, in the order of steps.

    The targets share the arrays of their data. Arguments and exceptions are those of `build_target`.
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
    assert cfg.n is not None
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
    """Publish a target in `directory`: params.npz, data.npz, config.yaml and, last, meta.json with their checksums.

    Args:
        directory: the folder of the target.
        target: the target.
        cfg: its configuration.
        info: the information that `build_target` returned with it.
        data_of: the name of a folder beside `directory` that already holds the same data; None: write them here.
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
        "held": list(target.held),
        "notes": list(target.notes),
        "held_notes": list(target.held_notes),
        "measured": info.get("measured"),
        "build": {key: value for key, value in info.items() if key != "measured"},
        "versions": {"jax": jax.__version__, "numpy": np.__version__},
    }
    params = target.w_star | target.held
    arrays = {"params.npz": _npz_bytes(params), "data.npz": _npz_bytes(target.data)}
    publish_target(directory, cfg, meta, arrays, data_of)


def load_target(directory: Path) -> tuple[Target, BuildConfig]:
    """Read a target that `save_target` has published, and its configuration.

    Raises:
        TargetNotBuilt: if meta.json is missing.
        CorruptArtifact: if another file is missing, or a file was changed.
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
    if not isinstance(meta.get("kind"), str) or meta["kind"] not in BUILD_SCHEMAS:
        raise _corrupt(
            directory, "meta.json", f"its kind is {meta.get('kind')!r:.80}, which this version does not know"
        )
    try:
        cfg = _read_config(directory, meta)
        w_star = _read_npz(directory, "params.npz", meta)
        # Targets of an older store list the state of a network of torch by itself.
        held = {path: w_star.pop(path) for key in ("held", "state") for path in meta.get(key, ())}
        target = Target(
            loss=_module(meta["kind"]).make_loss(cfg),
            w_star=w_star,
            data=_read_npz(_data_folder(directory, meta), "data.npz", meta),
            population=meta["population"],
            n=meta["n"],
            loss_at_w_star=meta["loss_at_w_star"],
            true_llc=meta["true_llc"],
            true_multiplicity=meta["true_multiplicity"],
            held=held,
            notes=tuple(meta.get("notes", ())),
            held_notes=tuple(meta.get("held_notes", ())),
        )
        return target, cfg
    except KeyError as error:
        raise _corrupt(directory, "meta.json", f"it has no entry {error}") from None


def _read_config(directory: Path, meta: dict[str, Any]) -> BuildConfig:
    """The configuration, checked against meta.json because it determines the loss."""
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
    """The content of an npz file. Equal arrays give equal bytes, because there are no times in it.

    The bytes are those of `np.savez`, which takes no arrays of the names "file" and "allow_pickle".
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array))
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
