"""The main job: build the targets of a study, sample its runs in MPI packs, write one table of estimates."""

from __future__ import annotations

import argparse
import glob
import os
import shlex
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
if str(REPO_ROOT) not in sys.path:
    sys.path.insert(0, str(REPO_ROOT))

from dataclasses import asdict  # noqa: E402

from flows.check import check_site  # noqa: E402
from flows.jobs import SCRIPT_VARIABLE, Job, submit_next  # noqa: E402
from flows.plan import Plan, make_plan  # noqa: E402
from flows.rounds import Round, explain, log_tail  # noqa: E402
from flows.scheduler import require_scheduler  # noqa: E402
from flows.sites import BatchSite  # noqa: E402
from flows.study import Flow, parse_options  # noqa: E402
from lambda_hat.errors import EXIT_OK, EXIT_USAGE, ConfigError, LambdaHatError, run_command  # noqa: E402
from lambda_hat.store import read_events, write_bytes_atomic, write_json_atomic  # noqa: E402
from lambda_hat.workflow_config import PlannedRun  # noqa: E402
from mpi.launch import assume_launcher, find_launcher, launch_line  # noqa: E402

PROGRAM = [sys.executable, str(REPO_ROOT / "mpi" / "run_pack.py")]
PACK_FORMAT = 1
LOOK_SECONDS = {"local": 0.2, "shared": 2.0}
"""How often a pack's logs are read. A parallel filesystem should not feel it; packs that wait are looked at less."""


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
    return flow.run(submit, show_dry_run, args.dry_run)


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
    plan = make_plan(flow.store, flow.study, flow.rerun)
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
    flow.say(f"submitted job {job_id}; its log will be {path.with_suffix('')}.{job_id}.log")
    flow.say(f"to look at it: {scheduler.watch_command(job_id)}")
    return EXIT_OK


def inner_words(flow: Flow, args: argparse.Namespace) -> list[str]:
    """The words of this command that the job's own command repeats, with absolute paths."""
    words = ["--experiments", str(args.experiments.absolute()), "--store", str(flow.store.root)]
    words += ["--results", str(flow.results_root)]
    for option in ("pack", "retries"):
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


def submit(flow: Flow, round_: Round) -> None:
    """Submit the builds, then a pack per group of runs; each starts when its own targets have settled."""
    from flows.apps import run_pack

    round_.submit_builds()
    site = flow.site
    for index, runs in enumerate(round_.plan.packs(flow.study.settings.pack)):
        pack_id = f"pack_{round_.name}-{index:04d}"
        directory = flow.store.pack_dir(pack_id)
        pack_file = directory / "pack.json"
        write_json_atomic(pack_file, pack_record(flow, pack_id, runs))
        round_.pack_dirs.append(directory)
        future = run_pack(
            [*PROGRAM, str(pack_file)],
            site.launcher,
            site.cores_per_rank,
            site.gpus_per_node,
            str(directory / "stdout.log"),
            str(directory / "stderr.log"),
            round_.environment,
            sign_of_life=f"{glob.escape(str(directory))}/rank-*.jsonl",
            inputs=round_.settled({run.target_id for run in runs}),
            parsl_resource_specification=site.resources,
        )
        follow = follow_pack(round_, directory, runs)
        round_.watch(follow, LOOK_SECONDS["local" if site.kind == "local" else "shared"])
        round_.on_done(future, pack_ended(round_, directory, runs, follow))


def pack_record(flow: Flow, pack_id: str, runs: list[PlannedRun]) -> dict:
    """What `mpi/run_pack.py` reads."""
    return {
        "format": PACK_FORMAT,
        "pack_id": pack_id,
        "store_root": str(flow.store.root),
        "cores_per_rank": flow.site.cores_per_rank,
        "expected_ranks": flow.site.resources["num_ranks"],
        "gpus_per_node": flow.site.gpus_per_node,
        "ranks_per_gpu": flow.site.ranks_per_gpu,
        "builds": [],
        "runs": [
            {
                "target_id": run.target_id,
                "run_id": run.run_id,
                "config": asdict(run.cfg),
                "cost": run.cost,
                "program": run.program,
            }
            for run in runs
        ],
    }


def follow_pack(round_: Round, directory: Path, runs: list[PlannedRun]) -> Callable[[], bool]:
    """A function that reads what the ranks have written since its last call, and returns whether there is anything."""
    offsets: dict[Path, int] = {}
    planned = {(run.target_id, run.run_id): run for run in runs}

    def look() -> bool:
        for log in sorted(directory.glob("rank-*.jsonl")):
            events, offsets[log] = read_events(log, offsets.get(log, 0))
            for event in events:
                if event["event"] != "run_end":
                    continue
                run = planned.pop((event["target_id"], event["run_id"]), None)
                if run is not None:
                    words = [str(event[key]) for key in ("status", "reason", "verdict") if key in event]
                    sentence = f"{': '.join(words)} in {event['seconds']:.1f} s on rank {event['rank']}"
                    round_.run_ended(run, sentence, failed=event["status"] != "finished")
        return bool(offsets)

    return look


def pack_ended(
    round_: Round, directory: Path, runs: list[PlannedRun], follow: Callable[[], bool]
) -> Callable[[Future], None]:
    """What to say when a pack is over: how many of its runs are there, and why any are not."""

    def then(future: Future) -> None:
        follow()
        round_.unwatch(follow)
        store = round_.flow.store
        states = [store.run_status(run.target_id, run.run_id) for run in runs]
        blocked = sum(store.target_status(run.target_id) == "failed" for run in runs)
        sentence = f"{directory.name}: {states.count('finished')} of {len(runs)} runs finished"
        lost = states.count("pending") - blocked
        if future.exception() is None and future.result() == 0 and lost <= 0:
            round_.progress.finished("packs", sentence)
            return
        if future.exception() is None and future.result() == EXIT_USAGE:
            round_.refusals.append(last_line(directory / "stderr.log").removeprefix("error: "))
        if is_lost_block(future.exception()):
            round_.progress.finished("packs", f"{sentence}, {lost_with_block(round_, directory, lost)}", failed=True)
            return
        reason = explain(future, directory / "error.json", directory / "stderr.log")
        if not (directory / "stderr.log").is_file() or not (directory / "stderr.log").stat().st_size:
            reason += log_tail(directory / "stdout.log")
        round_.progress.finished("packs", f"{sentence}, {lost} lost: {reason}", failed=True)

    return then


def is_lost_block(failure: BaseException | None) -> bool:
    """Whether a pack failed because the nodes that it ran on are gone."""
    from parsl.executors.high_throughput.errors import ManagerLost

    return isinstance(failure, ManagerLost)


def lost_with_block(round_: Round, directory: Path, lost: int) -> str:
    """What became of the runs of a pack whose block is gone, and where to read why."""
    jobs = round_.blocks.lost("packs") if round_.blocks is not None else {}
    which = f"job {', '.join(jobs)} ended: " if jobs else ""
    then = "they are packed again" if round_.flow.study.settings.retries else "the same command samples them"
    logs = [directory, *jobs.values()]
    sentence = (
        f"{lost} lost with their block ({which}cancelled, out of time, or a node failed); {then}, what is finished is "
        f"kept; logs: {' and '.join(map(str, logs))}"
    )
    return sentence + "".join(map(log_tail, jobs.values()))


def last_line(log: Path) -> str:
    """The last line of a log that a person wants to read: of an error, where there is one."""
    lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or [f"see {log}"])[-1]


def show_dry_run(flow: Flow, plan: Plan) -> None:
    """Print every target, pack and launch line; nothing is submitted."""
    site = flow.site
    launcher = assume_launcher(site.launcher) if isinstance(site, BatchSite) else find_launcher(site.launcher)
    for target_id, cfg in flow.study.targets.items():
        state = "build" if target_id in plan.builds else flow.store.target_status(target_id)
        flow.say(f"target {target_id}  {state:<7} {cfg.label}")
    for index, runs in enumerate(plan.packs(flow.study.settings.pack)):
        targets = len({run.target_id for run in runs})
        seconds = sum(run.cost for run in runs)
        flow.say(
            f"pack {index}: {len(runs)} runs of {targets} targets, about {seconds:.0f} core-seconds on "
            f"{site.resources['num_ranks']} ranks"
        )
        launch = site.launch(site.nodes[: site.pack_nodes])
        flow.say(f"    {shlex.join(launch_line(launcher, launch, [*PROGRAM, 'PACK.json'], os.environ))}")
    flow.say("dry run: nothing was started")


if __name__ == "__main__":
    run_command(main)
