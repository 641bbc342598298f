"""A target built and published in the store."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from lambda_hat.config import BuildConfig, MlpBuild
from lambda_hat.execute.failure_record import recording_failure
from lambda_hat.id_utils import checkpoint_ids, target_id_for
from lambda_hat.store.layout import programs_folder
from lambda_hat.targets import Target, build_checkpoints, build_target, save_target


def build_into(directory: Path, cfg: BuildConfig) -> tuple[Target, list[str]]:
    """Build the target of `cfg`, publish it in `directory`, and remove the `error.json` of an earlier attempt.

    A target that is one checkpoint of a training is built together with all other checkpoints of it, if `directory` is
    its folder in a store. They are trained once, and share the data files of the last one. If the training fails, the
    failure is recorded for all of them.

    Args:
        directory: the folder of the target.
        cfg: the configuration of the target.

    Returns:
        The target, and sentences of warning, for instance about a `w_star` that is no minimum.

    Raises:
        BuildFailed: if training or the data go wrong.
    """
    if isinstance(cfg, MlpBuild) and cfg.step is not None and directory.name == target_id_for(cfg):
        return _build_all_checkpoints(directory, cfg)
    target, info = build_target(cfg, programs_folder(directory))
    save_target(directory, target, cfg, info)
    (directory / "error.json").unlink(missing_ok=True)
    return target, info["warnings"]


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
