"""`--check`: one small pack that says what a site gives its ranks, and a verdict on it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

from rich.table import Table

from flows.progress import StudyProgress
from flows.rounds import POLL, log_tail
from flows.scheduler import require_scheduler
from flows.sites import BatchSite
from flows.study import Flow
from lambda_hat.errors import EXIT_FAILED, EXIT_OK
from lambda_hat.lease import LEASE_VARIABLE, Lease
from lambda_hat.preflight import COLUMNS, judge, read_reports, table
from lambda_hat.store import write_json_atomic
from mpi.launch import assume_launcher, find_launcher, launch_line

PROGRAM = Path(__file__).resolve().parents[1] / "mpi" / "check_pack.py"
LIMIT_SECONDS = 120
NEEDS = ("arviz_stats", "blackjax", "equinox", "h5netcdf", "jax", "mpi4py", "numpy", "omegaconf", "optax", "xarray")


def check_site(flow: Flow, dry: bool) -> int:
    """Run the check pack where a study's packs would run, print what its ranks report, and judge it."""
    site = flow.site
    if dry:
        launcher = assume_launcher(site.launcher) if isinstance(site, BatchSite) else find_launcher(site.launcher)
        command = [sys.executable, str(PROGRAM), "CHECK.json"]
        flow.say(shlex.join(launch_line(launcher, site.launch(site.nodes[: site.pack_nodes]), command, os.environ)))
        flow.say("dry run: nothing was started")
        return EXIT_OK
    if isinstance(site, BatchSite):
        require_scheduler(site.kind).check_server()
    runs = flow.plan("all", look_only=True).runs
    flow.make_folders()
    with Lease(flow.store.packs_dir) as lease, flow.workers(lease) as workers:
        from flows.apps import run_pack

        pack_id = f"check_{workers.name}"
        folder = flow.store.pack_dir(pack_id)
        check = {
            "pack_id": pack_id,
            "store_root": str(flow.store.root),
            "cores_per_rank": site.cores_per_rank,
            "expected_ranks": site.resources["num_ranks"],
            "expected_nodes": site.pack_nodes,
            "gpus_per_node": site.gpus_per_node,
            "ranks_per_gpu": site.ranks_per_gpu,
            "needs": list(NEEDS),
        }
        write_json_atomic(folder / "check.json", check)
        flow.say(f"checking site {flow.study.settings.site}: one pack of {site.resources['num_ranks']} ranks")
        workers.progress = StudyProgress(flow.console, targets=0, packs=1, runs=0)
        future = run_pack(
            [sys.executable, str(PROGRAM), str(folder / "check.json")],
            site.launcher,
            site.cores_per_rank,
            site.gpus_per_node,
            str(folder / "stdout.log"),
            str(folder / "stderr.log"),
            {LEASE_VARIABLE: str(workers.lease.path)},
            LIMIT_SECONDS,
            parsl_resource_specification=site.resources,
        )
        while not future.done():
            workers.look()
            time.sleep(POLL)
    output = (folder / "stdout.log").read_text(errors="replace") if (folder / "stdout.log").is_file() else ""
    reports = read_reports(folder, output)
    if reports:
        show_reports(flow, reports)
    walltime = site.walltime_seconds if isinstance(site, BatchSite) else None
    if flow.stop_at is not None:
        walltime = flow.stop_at - time.time()
    longest = flow.longest_run(runs) if runs else None
    wrong = judge(reports, check, walltime_seconds=walltime, longest_run_seconds=longest)
    failure = future.exception()
    if failure is not None:
        wrong.append(f"the pack was lost: {type(failure).__name__}: {failure}")
    elif future.result() != 0:
        wrong.append(f"the launch ended with status {future.result()}{log_tail(folder / 'stderr.log')}")
    for sentence in wrong:
        flow.say(f"wrong: {sentence}")
    flow.say(f"verdict: {'this site will not do' if wrong else 'ok, packs can run here'} (reports in {folder})")
    return EXIT_FAILED if wrong else EXIT_OK


def show_reports(flow: Flow, reports: list[dict]) -> None:
    """A row per rank."""
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in COLUMNS:
        view.add_column(column, overflow="fold")
    for row in table(reports):
        view.add_row(*row)
    flow.console.print(view)
