"""The main job: build the targets of a study, sample its runs in MPI packs, write one table of estimates."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C during the imports ends the command as it ends any other, with no traceback; `run_command` listens again.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

REPO_ROOT = Path(__file__).resolve().parents[1]
if str(REPO_ROOT) not in sys.path:
    sys.path.insert(0, str(REPO_ROOT))

from flows.check import check_site  # noqa: E402
from flows.jobs import SCRIPT_VARIABLE, Job, submit_next  # noqa: E402
from flows.journal import record_of  # noqa: E402
from flows.packs import PROGRAM, submit_packs  # noqa: E402
from flows.plan import Plan  # noqa: E402
from flows.scheduler import require_scheduler  # noqa: E402
from flows.sites import BatchSite  # noqa: E402
from flows.study import Flow, parse_options  # noqa: E402
from lambda_hat.errors import EXIT_OK, ConfigError, LambdaHatError, run_command  # noqa: E402
from lambda_hat.store import write_bytes_atomic  # noqa: E402
from lambda_hat.studies import write_study  # noqa: E402
from mpi.launch import assume_launcher, find_launcher, launch_line  # noqa: E402


def main(argv: list[str] | None = None) -> int:
    args = parse_options(__doc__ or "", argv, packed=True)
    check_options(args)
    if args.submit is not None and args.site is None:
        args.site = args.submit
    flow = Flow.from_options(args, packed=True)
    if args.submit is not None:
        return submit_job(flow, args)
    if not isinstance(flow.site, BatchSite) or flow.site.mpi == "bundled":
        find_launcher(flow.site.launcher)
    flow.site.resources  # noqa: B018 - raises where the site does not say how many ranks a node has
    if args.check:
        return check_site(flow, args.dry_run)
    if args.chain:
        flow.on_out_of_time = lambda: follow_up(flow)
    return flow.run(submit_packs, show_dry_run, args.dry_run)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that mean nothing together."""
    if args.submit is None:
        for option in ("nodes", "walltime"):
            if getattr(args, option) is not None:
                raise ConfigError(
                    f"--{option}: goes with --submit; from a login node write site.nodes_per_block=N and "
                    "site.walltime=HH:MM:SS"
                )
        if args.chain and args.deadline is None:
            raise ConfigError("--chain: goes with --submit")
    elif args.deadline is not None:
        raise ConfigError("--deadline: goes without --submit; the job's walltime says when it ends")
    elif args.check:
        raise ConfigError("--check: goes without --submit; inside the job it is --site allocation --check")
    if args.chain is not None and args.chain < 0:
        raise ConfigError(f"--chain: got {args.chain}, expected an integer of at least 0")


def submit_job(flow: Flow, args: argparse.Namespace) -> int:
    """Show, and without --dry-run submit, the job that runs this study inside itself."""
    site = flow.site
    if not isinstance(site, BatchSite) or site.kind != args.submit:
        raise ConfigError(f"--site {args.site}: a {site.kind} site, but --submit {args.submit} needs one of that kind")
    job = Job(site, flow.store, inner_words(flow, args), flow.rerun, args.chain or 0)
    path = job.script_path()
    script = job.render(path)
    plan = flow.plan(flow.rerun, look_only=True)
    flow.show_plan(plan)
    print(script, end="")
    if args.dry_run:
        flow.say("dry run: nothing was submitted")
        return EXIT_OK
    scheduler = require_scheduler(site.kind)
    if not plan.runs:
        flow.say("nothing is left to sample: no job was submitted")
        return EXIT_OK
    flow.make_folders()
    write_bytes_atomic(path, script.encode())
    try:
        job_id = scheduler.submit(path)
    except LambdaHatError:
        path.unlink()
        raise
    job = {"scheduler": scheduler.title, "job_id": job_id, "watch": scheduler.watch_command(job_id)}
    write_study(flow.store.root, record_of(flow, plan, job)).close()
    flow.say(f"submitted job {job_id}; its log will be {path.with_suffix('')}.{job_id}.log")
    flow.say(f"to look at it: {scheduler.watch_command(job_id)}")
    return EXIT_OK


def inner_words(flow: Flow, args: argparse.Namespace) -> list[str]:
    """The words of this command that the job's own command repeats, with absolute paths."""
    words = ["--experiments", str(args.experiments.absolute()), "--store", str(flow.store.root)]
    words += ["--results", str(flow.results_root)]
    for option in ("pack", "lanes", "retries"):
        if getattr(args, option) is not None:
            words += [f"--{option}", str(getattr(args, option))]
    words += ["--quiet"] if args.quiet else []
    return [*words, *(word for word in args.words if not word.startswith("site."))]


def follow_up(flow: Flow) -> None:
    """Submit the next job of the chain that this one belongs to."""
    script = os.environ.get(SCRIPT_VARIABLE)
    if script is None:
        flow.say(
            f"--chain: {SCRIPT_VARIABLE} is not set, so nothing was submitted; --submit writes a script that sets it"
        )
        return
    try:
        following, job_id = submit_next(Path(script))
    except LambdaHatError as error:
        flow.say(f"the next job of the chain was not submitted: {error}")
        return
    flow.say(f"submitted job {job_id} to go on: {following}")
    flow.journal.append("next_job", job_id=job_id)


def show_dry_run(flow: Flow, plan: Plan) -> None:
    """Print every target, pack and launch line; nothing is submitted."""
    site = flow.site
    launcher = assume_launcher(site.launcher) if isinstance(site, BatchSite) else find_launcher(site.launcher)
    for target_id, cfg in flow.study.targets.items():
        state = "build" if target_id in plan.builds else flow.store.target_status(target_id)
        flow.say(f"target {target_id}  {state:<7} {cfg.label}")
    for index, runs in enumerate(plan.packs(flow.study.settings.pack)):
        targets = len({run.target_id for run in runs})
        flow.say(
            f"pack {index}: {len(runs)} runs of {targets} targets, about {flow.price(flow.pack_seconds(runs))} on "
            f"{site.resources['num_ranks']} ranks"
        )
        launch = site.launch(site.nodes[: site.pack_nodes])
        flow.say(f"    {shlex.join(launch_line(launcher, launch, [*PROGRAM, 'PACK.json'], os.environ))}")
    flow.say("dry run: nothing was started")


if __name__ == "__main__":
    run_command(main)
