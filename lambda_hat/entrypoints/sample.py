"""`lambda-hat-sample`: sample one run of one target."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from lambda_hat.entrypoints.build_target import make_folder
from lambda_hat.errors import ConfigError, StoreError, TargetNotBuilt, run_command
from lambda_hat.id_utils import Run
from lambda_hat.omegaconf_support import load_sample_config
from lambda_hat.programs.cores import bind_process
from lambda_hat.store import claims, run_files
from lambda_hat.store.drain import Drain, earliest_deadline
from lambda_hat.store.files import undone_on_error
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, Heartbeat, drain_when_lost
from lambda_hat.store.umask import keep_umask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `lambda-hat sample`."""
    parser.add_argument("--config-yaml", type=Path, required=True, metavar="F", help="the run's configuration")
    parser.add_argument("--target-id", metavar="ID", help="refuse to sample another target")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="D", help="where the run's files go")
    parser.add_argument(
        "--target-dir", type=Path, metavar="T", help="the built target; default: the folder that holds --run-dir"
    )


def run(args: argparse.Namespace) -> int:
    """Sample into `--run-dir`. Returns 0, also if the run is already finished there."""
    keep_umask(os.environ)
    asked = Run.of(load_sample_config(args.config_yaml))
    run_id = asked.run_id
    if args.target_id and args.target_id != asked.target_id:
        raise ConfigError(
            f"--target-id {args.target_id}: {args.config_yaml} is a run of {asked.target_id or 'no target'}"
        )
    run_dir = args.run_dir.absolute()
    target_dir = args.target_dir.absolute() if args.target_dir else run_dir.parent
    if run_files.has(run_dir / "analysis.json"):
        print(f"{run_id} is already finished in {run_dir}")
        return 0
    if not (target_dir / "meta.json").is_file():
        raise TargetNotBuilt(
            f"{target_dir}: no built target there (meta.json is missing); build it with lambda-hat-build-target "
            "--config-yaml F --target-dir D, or name its folder with --target-dir"
        )
    make_folder(run_dir)
    drain = Drain(earliest_deadline(None, os.environ))
    drain.on_signals()
    lease = os.environ.get(HEARTBEAT_VARIABLE)
    drain_when_lost(lease, drain, run_id)
    bind_process(asked.cfg.runtime.cores_per_rank)
    with contextlib.ExitStack() as stack:
        # Without a driver, this process writes a heartbeat of its own.
        lease_path = Path(lease) if lease else _own_lease(run_dir, stack)
        claim = claims.take(run_dir, lease_path)
        if claim is None:
            raise StoreError(f"{run_dir}: another process samples this run: {_who(claims.holder(run_dir))}")
        with undone_on_error(claim.release):
            analysis = _sample(run_dir, target_dir, asked, drain)
        claim.finished()
    print(f"{run_id}: {describe(analysis)}; {run_dir}")
    return 0


def _sample(run_dir: Path, target_dir: Path, asked: Run, drain: Drain) -> dict:
    from lambda_hat.execute.failure_record import recording_failure
    from lambda_hat.execute.sampling import sample_into

    with recording_failure(run_dir):
        return sample_into(run_dir, target_dir, asked, drain=drain)


def _own_lease(run_dir: Path, stack: contextlib.ExitStack) -> Path:
    own = Heartbeat(run_dir)
    stack.callback(own.path.unlink, missing_ok=True)
    return stack.enter_context(own).path


def _who(record: dict | None) -> str:
    return f"process {record.get('pid')} on {record.get('host')}" if record else "it has just ended"


def describe(analysis: dict) -> str:
    """Describe an estimate in one line."""
    mean, error = analysis["llc_mean"], analysis["llc_std_error"]
    estimate = "no estimate" if mean is None else f"llc = {mean:.4g} +- {error:.2g}"
    exact = analysis["true_llc_t"]
    known = "" if exact is None else f", exact lambda_t = {exact:.4g}"
    return f"{estimate}{known}, verdict {analysis['verdict']}: {analysis['verdict_sentence']}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command with the words `argv`. Default: those of this process."""
    parser = argparse.ArgumentParser(prog="lambda-hat-sample", description=__doc__)
    add_arguments(parser)
    run_command(lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    main()
