"""`--check`: one small pack, whose ranks say what the site gives them, and a verdict on the site."""

from __future__ import annotations

import sys
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from rich.table import Table

from flows.driver.dry_run import launch_on
from flows.driver.leftovers import end_leftovers
from flows.driver.packs import launch, world_of
from flows.driver.pricing import longest_run
from flows.driver.reasons import log_tail
from flows.driver.request import Request
from flows.driver.rounds import POLL, process_environment
from flows.driver.screen import Screen, StudyProgress
from flows.driver.stopping import Stop, Stopped
from flows.driver.workers import start_workers
from flows.sites.site_schemas import BatchSite
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from lambda_hat.planning.preflight import COLUMNS, judge, read_reports, table
from lambda_hat.store.heartbeat import Heartbeat
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
    stop = Stop()
    with stop.on_signals():
        try:
            folder, check, future = _check_pack(request, screen, stop)
        except Stopped:
            screen.say("stopped: nothing is left running, and the site was not judged")
            return EXIT_INTERRUPTED
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


def _check_pack(request: Request, screen: Screen, stop: Stop) -> tuple[Path, dict[str, Any], Future]:
    """Run the pack to its end. Returns its folder, what it was told, and the future of its exit status.

    What an earlier check or study left is ended first. Raises Stopped, once what it started has ended.
    """
    site, packs_dir = request.site, request.store.packs_dir
    end_leftovers(packs_dir, screen.say, stop)
    with (
        Heartbeat(packs_dir) as heartbeat,
        start_workers(request, heartbeat, True, screen.say, StudyLog().append) as workers,
    ):
        pack_id = f"check_{workers.name}"
        folder = request.store.pack_dir(pack_id)
        world = world_of(request)
        check: dict[str, Any] = {"pack_id": pack_id, **world, "expected_nodes": site.pack_nodes, "needs": list(NEEDS)}
        write_json_atomic(folder / "check.json", check)
        screen.say(f"checking site {request.study.settings.site}: one pack of {world['expected_ranks']} ranks")
        workers.show_on(StudyProgress(screen.console, targets=0, packs=1, runs=0))
        command = [sys.executable, str(PROGRAM), str(folder / "check.json")]
        environment = process_environment(heartbeat)
        future = launch(site, command, folder, environment, limit_seconds=LIMIT_SECONDS)
        while not future.done():
            stop.check()
            workers.look()
            time.sleep(POLL)
    return folder, check, future


def show_reports(screen: Screen, reports: list[dict]) -> None:
    """Print a row per rank."""
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in COLUMNS:
        view.add_column(column, overflow="fold")
    for row in table(reports):
        view.add_row(*row)
    screen.console.print(view)
