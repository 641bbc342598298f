"""The same grid unpacked: one app, and one process, per run.

For clusters that don't mind many small jobs, and the baseline that packing is measured against.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from flows.driver.dry_run import target_lines
from flows.driver.options import parse_options
from flows.driver.plan import Plan
from flows.driver.pricing import pack_seconds, price_of
from flows.driver.reasons import explain, is_lost_block, log_tail
from flows.driver.request import Request
from flows.driver.rounds import Round
from flows.driver.run_study import run_study
from lambda_hat.errors import EXIT_UNFINISHED, run_command
from lambda_hat.planning.packing import PlannedRun


def main(argv: list[str] | None = None) -> int:
    """Do what the words of the command say. Returns the exit status."""
    args = parse_options(__doc__ or "", argv, packed=False)
    return run_study(Request.from_options(args, packed=False, one_site=True), submit_runs, show_runs, dry=args.dry_run)


def submit_runs(round_: Round) -> None:
    """Submit the builds, then a process per run. It starts when the build of its target has ended."""
    round_.submit_builds()
    for run in round_.plan.runs:
        directory = round_.request.store.run_dir(*run.key)
        round_.processes.configure(directory, run.cfg)
        words = ["--target-id", run.target_id, "--run-dir", str(directory)]
        inputs = round_.settled({run.target_id})
        future = round_.processes.start("lambda_hat.entrypoints.sample", words, directory, "sample", inputs)
        round_.on_done(future, partial(run_ended, round_, run, directory))


def run_ended(round_: Round, run: PlannedRun, directory: Path, future: Future) -> None:
    """Say how a run has ended with its process, and why if it is not finished."""
    outcome = round_.outcome
    status = round_.request.store.run_status(*run.key)
    if status == "finished":
        outcome.advanced = True
        round_.run_ended(run, "finished", failed=False)
    elif future.exception() is None and future.result() == EXIT_UNFINISHED:
        # It was paused with a checkpoint, or not begun.
        outcome.causes["time"] += 1
        outcome.out_of_time = True
        round_.run_goes_on(run, f"goes on later{log_tail(directory / 'sample.err')}")
    else:
        reason = explain(future, directory / "error.json", directory / "sample.err")
        outcome.causes["block" if is_lost_block(future.exception()) else "launch"] += status == "pending"
        round_.run_ended(run, reason, failed=True)


def show_runs(request: Request, plan: Plan) -> Iterator[str]:
    """A line per target and per run."""
    yield from target_lines(request, plan)
    for run in plan.runs:
        yield f"run {run.target_id}/{run.run_id}, about {price_of(request, pack_seconds(request, [run]))}"
    yield "dry run: nothing was started"


if __name__ == "__main__":
    run_command(main)
