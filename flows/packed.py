"""The main job: build the targets of a study, sample its runs in MPI packs, write one table of estimates."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parents[1]
if str(REPO_ROOT) not in sys.path:
    sys.path.insert(0, str(REPO_ROOT))

from dataclasses import asdict  # noqa: E402

from flows.plan import Plan  # noqa: E402
from flows.study import Flow, Round, explain, log_tail, parse_options  # noqa: E402
from lambda_hat.errors import run_command  # noqa: E402
from lambda_hat.store import read_events, write_json_atomic  # noqa: E402
from lambda_hat.workflow_config import PlannedRun  # noqa: E402
from mpi.launch import find_mpiexec, launch_line  # noqa: E402

PROGRAM = [sys.executable, str(REPO_ROOT / "mpi" / "run_pack.py")]
PACK_FORMAT = 1


def main(argv: list[str] | None = None) -> int:
    args = parse_options(__doc__ or "", argv, packed=True)
    flow = Flow.from_options(args, packed=True)
    find_mpiexec(flow.site.mpi)
    return flow.run(submit, show_dry_run, args.dry_run)


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
            str(pack_file),
            PROGRAM,
            site.flavour,
            site.mpi,
            str(directory / "stdout.log"),
            str(directory / "stderr.log"),
            round_.environment,
            inputs=round_.settled({run.target_id for run in runs}),
            parsl_resource_specification=site.resources,
        )
        follow = follow_pack(round_, directory, runs)
        round_.watch(follow)
        round_.on_done(future, pack_ended(round_, directory, runs, follow))


def pack_record(flow: Flow, pack_id: str, runs: list[PlannedRun]) -> dict:
    """What `mpi/run_pack.py` reads."""
    return {
        "format": PACK_FORMAT,
        "pack_id": pack_id,
        "store_root": str(flow.store.root),
        "cores_per_rank": flow.site.cores_per_rank,
        "expected_ranks": flow.site.resources["num_ranks"],
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


def follow_pack(round_: Round, directory: Path, runs: list[PlannedRun]) -> Callable[[], None]:
    """A function that reads what the ranks have written since it was last called."""
    offsets: dict[Path, int] = {}
    planned = {(run.target_id, run.run_id): run for run in runs}

    def look() -> None:
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

    return look


def pack_ended(
    round_: Round, directory: Path, runs: list[PlannedRun], follow: Callable[[], None]
) -> Callable[[Future], None]:
    """What to say when a pack is over: how many of its runs are there, and why any are not."""

    def then(future: Future) -> None:
        follow()
        store = round_.flow.store
        states = [store.run_status(run.target_id, run.run_id) for run in runs]
        blocked = sum(store.target_status(run.target_id) == "failed" for run in runs)
        sentence = f"{directory.name}: {states.count('finished')} of {len(runs)} runs finished"
        lost = states.count("pending") - blocked
        if future.exception() is None and future.result() == 0 and lost <= 0:
            round_.progress.finished("packs", sentence)
            return
        reason = explain(future, directory / "error.json", directory / "stderr.log")
        if not (directory / "stderr.log").is_file() or not (directory / "stderr.log").stat().st_size:
            reason += log_tail(directory / "stdout.log")
        round_.progress.finished("packs", f"{sentence}, {lost} lost: {reason}", failed=True)

    return then


def show_dry_run(flow: Flow, plan: Plan) -> None:
    """Print every target, pack and launch line; nothing is submitted."""
    site = flow.site
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
        nodes = ["localhost"] if site.kind == "local" else ["NODE"] * site.nodes_per_pack
        line = launch_line(site.flavour, nodes, site.ranks, [*PROGRAM, "PACK.json"], find_mpiexec(site.mpi).mpiexec)
        flow.say(f"    {shlex.join(line)}")
    flow.say("dry run: nothing was started")


if __name__ == "__main__":
    run_command(main)
