"""The same grid unpacked: one app, and one process, per run. For clusters that don't mind many small jobs, and the
baseline that packing is measured against."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports ends the command as it ends any other, with no traceback; `run_command` listens again.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

REPO_ROOT = Path(__file__).resolve().parents[1]
if str(REPO_ROOT) not in sys.path:
    sys.path.insert(0, str(REPO_ROOT))

from flows.plan import Plan  # noqa: E402
from flows.rounds import Round, explain, is_lost_block, log_tail, module_command  # noqa: E402
from flows.study import Flow, parse_options  # noqa: E402
from lambda_hat.errors import EXIT_UNFINISHED, run_command  # noqa: E402
from lambda_hat.store import write_config  # noqa: E402
from lambda_hat.workflow_config import PlannedRun  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    args = parse_options(__doc__ or "", argv, packed=False)
    flow = Flow.from_options(args, packed=False)
    return flow.run(submit, show_dry_run, args.dry_run)


def submit(flow: Flow, round_: Round) -> None:
    """Submit the builds, then one app per run; each starts when its target has settled."""
    from flows.apps import run_task

    round_.submit_builds()
    for run in round_.plan.runs:
        directory = flow.store.run_dir(run.target_id, run.run_id)
        write_config(directory, flow.on_site(run.cfg))
        argv = module_command("lambda_hat.entrypoints.sample", directory)
        argv += ["--target-id", run.target_id, "--run-dir", str(directory)]
        argv, env = flow.place(argv, round_.environment)
        future = run_task(
            argv,
            str(directory / "sample.log"),
            str(directory / "sample.err"),
            env,
            inputs=round_.settled({run.target_id}),
        )
        round_.on_done(future, run_ended(round_, run, directory))


def run_ended(round_: Round, run: PlannedRun, directory: Path) -> Callable[[Future], None]:
    """What to say when a run's process is over."""

    def then(future: Future) -> None:
        outcome = round_.outcome
        status = round_.flow.store.run_status(run.target_id, run.run_id)
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

    return then


def show_dry_run(flow: Flow, plan: Plan) -> None:
    """Print every target and run; nothing is submitted."""
    for target_id, cfg in flow.study.targets.items():
        state = "build" if target_id in plan.builds else flow.store.target_status(target_id)
        flow.say(f"target {target_id}  {state:<7} {cfg.label}")
    for run in plan.runs:
        flow.say(f"run {run.target_id}/{run.run_id}, about {flow.price(flow.pack_seconds([run]))}")
    flow.say("dry run: nothing was started")


if __name__ == "__main__":
    run_command(main)
