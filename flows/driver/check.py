"""`--check`: one small pack on each site, whose ranks say what the site gives them, and a verdict on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
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
from lambda_hat.checkout import ROOT
from lambda_hat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.planning.preflight import COLUMNS, judge, read_reports, table
from lambda_hat.store.heartbeat import Heartbeat
from lambda_hat.store.layout import write_json_atomic
from lambda_hat.store.study_records import StudyLog

PROGRAM = ROOT / "mpi" / "check_pack.py"
LIMIT_SECONDS = 120
NEEDS = ("blackjax", "equinox", "h5netcdf", "jax", "mpi4py", "numpy", "omegaconf", "optax")
"""Packages that a rank imports."""


@dataclass(frozen=True)
class _CheckPack:
    site_name: str
    folder: Path
    told: dict[str, Any]
    future: Future
    """Of its exit status."""


def check_sites(request: Request, dry: bool) -> int:
    """Run a check pack wherever packs of the study would run, print what its ranks report, and judge it.

    dry: only show its launch line. Returns the exit status.
    """
    screen = Screen()
    if dry:
        for site in request.sites.values():
            screen.say(launch_on(site, [sys.executable, str(PROGRAM), "CHECK.json"]))
        screen.say("dry run: nothing was started")
        return EXIT_OK
    runs = request.plan("all", look_only=True).runs
    request.prepare()
    stop = Stop()
    with stop.on_signals():
        try:
            packs = _check_packs(request, screen, stop)
        except Stopped:
            screen.say("stopped: nothing is left running, and the site was not judged")
            return EXIT_INTERRUPTED
    verdicts = [_judge(request, screen, pack, [run for run in runs if run.site == pack.site_name]) for pack in packs]
    return EXIT_OK if all(verdicts) else EXIT_FAILED


def _judge(request: Request, screen: Screen, pack: _CheckPack, runs: Sequence[PlannedRun]) -> bool:
    """Print what the ranks of a pack report, and the verdict on its site. Returns whether the site will do."""
    site, folder, future = request.sites[pack.site_name], pack.folder, pack.future
    output = (folder / "stdout.log").read_text(errors="replace") if (folder / "stdout.log").is_file() else ""
    reports = read_reports(folder, output)
    if reports:
        show_reports(screen, reports)
    walltime = site.walltime_seconds if isinstance(site, BatchSite) else None
    if request.stop_at is not None:
        walltime = request.stop_at - time.time()
    longest = longest_run(request.study, runs) if runs else None
    wrong = judge(reports, pack.told, walltime_seconds=walltime, longest_run_seconds=longest)
    failure = future.exception()
    if failure is not None:
        wrong.append(f"the pack was lost: {type(failure).__name__}: {failure}")
    elif future.result() != 0:
        wrong.append(f"the launch ended with status {future.result()}{log_tail(folder / 'stderr.log')}")
    for sentence in wrong:
        screen.say(f"wrong: {sentence}")
    verdict = f"verdict{request.on(pack.site_name)}: "
    screen.say(f"{verdict}{'this site will not do' if wrong else 'ok, packs can run here'} (reports in {folder})")
    return not wrong


def _check_packs(request: Request, screen: Screen, stop: Stop) -> list[_CheckPack]:
    """Run the packs to their ends.

    What an earlier check or study left is ended first. Raises Stopped, once what it started has ended.
    """
    packs_dir = request.store.packs_dir
    end_leftovers(packs_dir, screen.say, stop)
    with (
        Heartbeat(packs_dir) as heartbeat,
        start_workers(request, heartbeat, True, screen.say, StudyLog().append) as workers,
    ):
        workers.show_on(StudyProgress(screen.console, targets=0, packs=len(request.sites), runs=0))
        packs = []
        for number, name in enumerate(request.sites):
            pack_id = f"check_{workers.name}" + (f"-{number}" if number else "")
            folder = request.store.pack_dir(pack_id)
            told: dict[str, Any] = {"pack_id": pack_id, **world_of(request, name), "needs": list(NEEDS)}
            told["expected_nodes"] = request.sites[name].pack_nodes
            write_json_atomic(folder / "check.json", told)
            where = name or request.study.settings.site
            screen.say(f"checking site {where}: one pack of {told['expected_ranks']} ranks")
            command = [sys.executable, str(PROGRAM), str(folder / "check.json")]
            environment = process_environment(heartbeat)
            future = launch(request, name, command, folder, environment, limit_seconds=LIMIT_SECONDS)
            packs.append(_CheckPack(name, folder, told, future))
        while not all(pack.future.done() for pack in packs):
            stop.check()
            workers.look()
            time.sleep(POLL)
    return packs


def show_reports(screen: Screen, reports: list[dict]) -> None:
    """Print a row per rank."""
    view = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for column in COLUMNS:
        view.add_column(column, overflow="fold")
    for row in table(reports):
        view.add_row(*row)
    screen.console.print(view)
