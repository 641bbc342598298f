"""`lambda-hat-build-target`: build one target from its configuration."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from lambda_hat.config import BuildConfig
from lambda_hat.config.checkpoint_file import with_checkpoint_hash
from lambda_hat.errors import ConfigError, StoreError, run_command
from lambda_hat.id_utils import target_id_for
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.programs.cores import bind_process
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, exit_when_lost
from lambda_hat.store.layout import Store
from lambda_hat.store.umask import keep_umask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat build-target`."""
    parser.add_argument("--config-yaml", type=Path, required=True, metavar="F", help="the target's configuration")
    parser.add_argument("--target-id", metavar="ID", help="refuse to build anything else")
    parser.add_argument(
        "--target-dir", type=Path, metavar="D", help="where to build; default: its folder in the configured store"
    )
    parser.add_argument(
        "--other",
        action="append",
        default=[],
        metavar="ID",
        help="build this one too, another checkpoint of the trajectory, from its config.yaml beside --target-dir",
    )


def run(args: argparse.Namespace) -> int:
    """Build into `--target-dir`. Returns 0, also if the target is already there."""
    keep_umask(os.environ)
    cfg = with_checkpoint_hash(load_build_config(args.config_yaml), str(args.config_yaml))
    target_id = target_id_for(cfg)
    if args.target_id and args.target_id != target_id:
        raise ConfigError(f"--target-id {args.target_id}: {args.config_yaml} describes {target_id}")
    store = Store(cfg.store.root)
    directory = args.target_dir.absolute() if args.target_dir else store.target_dir(target_id)
    if (directory / "meta.json").is_file():
        print(f"{target_id} is already built in {directory}")
        return 0
    make_folder(directory)
    exit_when_lost(os.environ.get(HEARTBEAT_VARIABLE), target_id)
    bind_process(cfg.runtime.cores_per_rank)
    from lambda_hat.execute.build import build_into
    from lambda_hat.execute.failure_record import recording_failure

    started = time.monotonic()
    with recording_failure(directory):
        target, warnings = build_into(directory, cfg, _others(args.other, directory.parent))
    exact = "" if target.true_llc is None else f", lambda = {target.true_llc:g}"
    print(
        f"built {target_id} ({cfg.label}) in {time.monotonic() - started:.1f} s: dim = {target.dim}, n = {target.n}, "
        f"L_n(w_star) = {target.loss_at_w_star:.6g}{exact}; {directory}"
    )
    for warning in warnings:
        print(f"warning: {warning}")
    return 0


def _others(target_ids: Sequence[str], folder: Path) -> dict[str, BuildConfig]:
    """The configurations of those targets that are not built yet, by id."""
    missing = [target_id for target_id in target_ids if not (folder / target_id / "meta.json").is_file()]
    return {target_id: load_build_config(folder / target_id / "config.yaml") for target_id in missing}


def make_folder(directory: Path) -> None:
    """Make `directory` and its parents. Raises StoreError if that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{directory}: cannot be made: {error.strerror or error}") from None


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the words `argv`. Default: those of this process."""
    parser = argparse.ArgumentParser(prog="lambda-hat-build-target", description=__doc__)
    add_arguments(parser)
    run_command(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
