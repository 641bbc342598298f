"""`lambda-hat-sample`: sample one run of one target."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from lambda_hat.cores import bind_process
from lambda_hat.entrypoints.build_target import make_folder
from lambda_hat.errors import ConfigError, TargetNotBuilt, run_command
from lambda_hat.id_utils import run_id_for
from lambda_hat.lease import LEASE_VARIABLE, exit_when_lost
from lambda_hat.omegaconf_support import load_sample_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config-yaml", type=Path, required=True, metavar="F", help="the run's configuration")
    parser.add_argument("--target-id", metavar="ID", help="refuse to sample another target")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="D", help="where the run's files go")
    parser.add_argument(
        "--target-dir", type=Path, metavar="T", help="the built target; default: the folder that holds --run-dir"
    )


def run(args: argparse.Namespace) -> int:
    """Sample into `--run-dir`; 0 also where the run is already finished there."""
    cfg = load_sample_config(args.config_yaml)
    if args.target_id and args.target_id != cfg.target_id:
        raise ConfigError(
            f"--target-id {args.target_id}: {args.config_yaml} is a run of {cfg.target_id or 'no target'}"
        )
    run_id = run_id_for(cfg)
    run_dir = args.run_dir.absolute()
    target_dir = args.target_dir.absolute() if args.target_dir else run_dir.parent
    if (run_dir / "analysis.json").is_file():
        print(f"{run_id} is already finished in {run_dir}")
        return 0
    if not (target_dir / "meta.json").is_file():
        raise TargetNotBuilt(
            f"{target_dir}: no built target there (meta.json is missing); build it with lambda-hat-build-target "
            "--config-yaml F --target-dir D, or name its folder with --target-dir"
        )
    make_folder(run_dir)
    exit_when_lost(os.environ.get(LEASE_VARIABLE), run_id)
    bind_process(cfg.runtime.cores_per_rank)
    from lambda_hat.execute import recording_failure, sample_into

    with recording_failure(run_dir):
        analysis = sample_into(run_dir, target_dir, cfg)
    print(f"{run_id}: {describe(analysis)}; {run_dir}")
    return 0


def describe(analysis: dict) -> str:
    """An estimate in one line."""
    mean, error = analysis["llc_mean"], analysis["llc_std_error"]
    estimate = "no estimate" if mean is None else f"llc = {mean:.4g} +- {error:.2g}"
    exact = analysis["true_llc_t"]
    known = "" if exact is None else f", exact lambda_t = {exact:.4g}"
    return f"{estimate}{known}, verdict {analysis['verdict']}: {analysis['verdict_sentence']}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="lambda-hat-sample", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    run_command(lambda: run(args))


if __name__ == "__main__":
    main()
