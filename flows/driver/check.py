"""`--check`: one small pack, whose ranks say what the site gives them, and a verdict on the site."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.table import Table

from flows.driver.dry_run import launch_on
from flows.driver.packs import launch, world_of
from flows.driver.pricing import longest_run
from flows.driver.reasons import log_tail
from flows.driver.request import Request
from flows.driver.rounds import POLL
from flows.driver.screen import Screen, StudyProgress
from flows.driver.workers import start_workers
from flows.sites.site_schemas import BatchSite
from lambda_hat.errors import EXIT_FAILED, EXIT_OK
from lambda_hat.planning.preflight import COLUMNS, judge, read_reports, table
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, Heartbeat
from lambda_hat.store.layout import write_json_atomic
from lambda_hat.store.study_records import StudyLog

PROGRAM = Path(__file__).resolve().parents[2] / "mpi" / "check_pack.py"
LIMIT_SECONDS = 120
NEEDS = ("blackjax", "equinox", "h5netcdf", "jax", "mpi4py", "numpy", "omegaconf", "optax")
"""Packages that a rank imports."""


def check_site(request: Request, dry: bool) -> int:
    """Run a check pack where the packs of the study would run, print what its ranks report, and judge it.

    dry: only show its launch line. Returns the exit status.
    """
    site, screen = request.site, Screen()
    if dry:
        screen.say(launch_on(site, [sys.executable, str(PROGRAM), "CHECK.json"]))
        screen.say("dry run: nothing was started")
        return EXIT_OK
    runs = request.plan("all", look_only=True).runs
    request.prepare()
    with (
        Heartbeat(request.store.packs_dir) as heartbeat,
        start_workers(request, heartbeat, True, screen.say, StudyLog().append) as workers,
    ):
        pack_id = f"check_{workers.name}"
        folder = request.store.pack_dir(pack_id)
        world = world_of(request)
        check = {"pack_id": pack_id, **world, "expected_nodes": site.pack_nodes, "needs": list(NEEDS)}
        write_json_atomic(folder / "check.json", check)
        screen.say(f"checking site {request.study.settings.site}: one pack of {world['expected_ranks']} ranks")
        workers.show_on(StudyProgress(screen.console, targets=0, packs=1, runs=0))
        command = [sys.executable, str(PROGRAM), str(folder / "check.json")]
        environment = {HEARTBEAT_VARIABLE: str(heartbeat.path)}
        future = launch(site, command, folder, environment, limit_seconds=LIMIT_SECONDS)
        while not future.done():
            workers.look()
            time.sleep(POLL)
    output = (folder / "stdout.log").read_text(errors="replace") if (folder / "stdout.log").is_file() else ""
    reports = read_reports(folder, output)
    if reports:
        show_reports(screen, reports)
    walltime = site.walltime_seconds if isinstance(site, BatchSite) else None
    if request.stop_at is not None:
        walltime = request.stop_at - time.time()
    longest = longest_run(request.study, runs) if runs else None
    wrong = judge(reports, check, walltime_seconds=walltime, longest_run_seconds=longest)
    failure = future.exception()
    if failure is not None:
        wrong.append(f"the pack was lost: {type(failure).__name__}: {failure}")
    elif future.result() != 0:
        wrong.append(f"the launch ended with status {future.result()}{log_tail(folder / 'stderr.log')}")
    for sentence in wrong:
        screen.say(f"wrong: {sentence}")
    screen.say(f"verdict: {'this site will not do' if wrong else 'ok, packs can run here'} (reports in {folder})")
    return EXIT_FAILED if wrong else EXIT_OK


def show_reports(screen: Screen, reports: list[dict]) -> None:
    """Print a row per rank."""
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in COLUMNS:
        view.add_column(column, overflow="fold")
    for row in table(reports):
        view.add_row(*row)
    screen.console.print(view)
