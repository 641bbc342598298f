"""A target built and published in the store."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from lambda_hat.config import BuildConfig, MlpBuild
from lambda_hat.errors import BuildFailed
from lambda_hat.execute.failure_record import recording_failure
from lambda_hat.id_utils import checkpoint_ids, target_id_for
from lambda_hat.store.layout import programs_folder
from lambda_hat.targets import Target, build_checkpoints, build_target, save_target


def build_into(
    directory: Path, cfg: BuildConfig, others: Mapping[str, BuildConfig] | None = None
) -> tuple[Target, list[str]]:
    """Build the target of `cfg`, publish it in `directory`, and remove the `error.json` of an earlier attempt.

    A target that is one checkpoint of a training is built together with all other checkpoints of it, if `directory` is
    its folder in a store. They are trained once, and share the data files of the last one. If the training fails, the
    failure is recorded for all of them.

    Args:
        directory: the folder of the target.
        cfg: the configuration of the target.
        others: further checkpoints of the trajectory of a custom target, by target id. They are built as well, beside
            `directory`: the factory is called once, and equal data are kept once. Each fails for itself.

    Returns:
        The target, and sentences of warning, for instance about a `w_star` that is no minimum.

    Raises:
        BuildFailed: if training or the data go wrong.
    """
    if isinstance(cfg, MlpBuild) and cfg.step is not None and directory.name == target_id_for(cfg):
        return _build_all_checkpoints(directory, cfg)
    if others:
        return _build_trajectory(directory, cfg, others)
    target, info = build_target(cfg, programs_folder(directory))
    save_target(directory, target, cfg, info)
    (directory / "error.json").unlink(missing_ok=True)
    return target, info["warnings"]


def _build_trajectory(directory: Path, cfg: BuildConfig, others: Mapping[str, BuildConfig]) -> tuple[Target, list[str]]:
    programs, failures, first = programs_folder(directory), {}, None
    built: dict[str, tuple[Target, list[str]]] = {}
    for target_id, build in {directory.name: cfg, **others}.items():
        folder = directory.parent / target_id
        try:
            with recording_failure(folder):
                target, info = build_target(build, programs)
                same = first is not None and _equal(target.data, built[first][0].data)
                save_target(folder, target, build, info, data_of=first if same else None)
        except BuildFailed as error:
            failures[target_id] = error
            continue
        (folder / "error.json").unlink(missing_ok=True)
        first = first or target_id
        built[target_id] = target, info["warnings"]
    if directory.name in failures:
        raise failures[directory.name]
    return built[directory.name]


def _equal(data: Mapping[str, np.ndarray], others: Mapping[str, np.ndarray]) -> bool:
    return data.keys() == others.keys() and all(np.array_equal(data[name], others[name]) for name in data)


def _build_all_checkpoints(directory: Path, cfg: MlpBuild) -> tuple[Target, list[str]]:
    folders = {target_id: directory.parent / target_id for target_id in checkpoint_ids(cfg)}
    with ExitStack() as stack:
        for folder in folders.values():
            if folder != directory:
                stack.enter_context(recording_failure(folder))
        built = dict(zip(folders, build_checkpoints(cfg, programs_folder(directory)), strict=True))
        last = list(folders)[-1]
        # First the checkpoint whose data files the others refer to; the requested one last.
        for target_id in sorted(folders, key=lambda t: (t != last, folders[t] == directory)):
            point, target, info = built[target_id]
            save_target(folders[target_id], target, point, info, data_of=None if target_id == last else last)
            (folders[target_id] / "error.json").unlink(missing_ok=True)
    _, target, info = built[directory.name]
    return target, info["warnings"]
