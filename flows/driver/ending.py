"""The end of a study: its table, its pictures, its page, the summary on the screen, and the exit status."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.driver.ahead import Ahead
from flows.driver.attempts import Tally
from flows.driver.reasons import log_tail
from flows.driver.request import Request
from flows.driver.screen import Screen
from lambda_hat.errors import EXIT_FAILED, EXIT_OK, EXIT_UNFINISHED, StoreError, guarded
from lambda_hat.planning.calibration import update_costs
from lambda_hat.store.process_logs import log_of
from lambda_hat.store.study_records import shown

if TYPE_CHECKING:
    from lambda_hat.report.study_report import FiguresOfRuns

MOST_FAILURES = 20
"""Failures that are told on the screen; the table has them all."""


def finish(
    request: Request, screen: Screen, begun: float, tally: Tally, pack_dirs: Sequence[Path], ahead: Ahead, *, page: bool
) -> int:
    """Write the table and the pictures, print the summary and the failures. Returns the exit status of the plan.

    begun: the monotonic time at which the driver began, in seconds. ahead: what has been done of the report already.
    page: whether there is time for the page. Raises StoreError.
    """
    # pandas, pyarrow and matplotlib take longer to import than a small study to plan.
    from lambda_hat.report.closing import print_summary, rank_usage
    from lambda_hat.report.results import collect, write_table

    of_runs = ahead.end()
    study, store, results_root = request.study, request.store, request.results_root
    table = collect(store, study.runs, study.targets)
    # What the next study is expected to cost is worth less than this one's table.
    with contextlib.suppress(StoreError):
        update_costs(store, table, study.runs, study.targets)
    try:
        where = {"table": write_table(table, results_root)}
        if request.report:
            where |= _draw(request, screen, table, of_runs, page)
    except OSError as error:
        raise StoreError(f"{results_root}: cannot be written: {error.strerror or error}") from None
    where["store"] = store.root
    usage = rank_usage(pack_dirs)
    print_summary(table, screen.console, seconds=time.monotonic() - begun, usage=usage, where=where, tries=tally.line())
    rows = table.to_pylist()
    _say_failures(request, screen, rows)
    if request.report and not page:
        screen.say(f"no time for the page of the study; {_report_command(request)} makes it")
    statuses = {row["status"] for row in rows}
    if "pending" in statuses:
        screen.say("some runs are unfinished: run the same command again to continue")
        return EXIT_UNFINISHED
    return EXIT_FAILED if statuses & {"failed", "blocked"} else EXIT_OK


def _draw(request: Request, screen: Screen, table: Any, of_runs: FiguresOfRuns, page: bool) -> dict[str, Path]:
    """Write the pictures, and the page where there is time for it. Returns their paths. Raises OSError."""
    from lambda_hat.report.study_report import draw_pictures, write_pictures, write_report

    def no_page(error: Exception) -> dict[str, Path]:
        by_hand = _report_command(request)
        screen.say(f"no report: {type(error).__name__}: {error}; {by_hand} tries again, and shows more")
        return {}

    def make_page() -> dict[str, Path]:
        return {"report": write_report(request.store, table, request.results_root, pictures, of_runs).page}

    pictures = draw_pictures(table)
    where = write_pictures(pictures, request.results_root)
    # The page is the work of another command: no defect of it takes away the study's exit status.
    return where | (guarded(make_page, no_page) if page else {})


def _report_command(request: Request) -> str:
    words = [f"--store={os.path.relpath(request.store.root)}", f"--results={os.path.relpath(request.results_root)}"]
    return shlex.join(["lambda-hat", "report", *words])


def _say_failures(request: Request, screen: Screen, rows: Sequence[dict]) -> None:
    trouble = [row for row in rows if row["status"] in ("failed", "blocked")]
    told: set[str] = set()
    for row in trouble[:MOST_FAILURES]:
        blocked = row["status"] == "blocked"
        directory = request.store.target_dir(row["target_id"]) if blocked else Path(row["run_dir"])
        screen.say(f"{row['status']}: {row['target_id']}/{row['run_id']}: {row['reason']}")
        screen.say(f"    see {directory / 'error.json'}")
        log = log_of(request.store, directory)
        tail = log_tail(log)
        # Logs of one defect end alike but for their path.
        if tail and (end := tail.replace(str(log), "")) not in told:
            told.add(end)
            screen.say(tail.lstrip("\n"))
    if len(trouble) > MOST_FAILURES:
        screen.say(f"... and {len(trouble) - MOST_FAILURES} more; the table has every reason")
    if trouble:
        words = [word for word in sys.argv[1:] if word != "--dry-run"]
        command = shown([sys.executable, sys.argv[0], *words, "--rerun", "failed"])
        screen.say(f"to run just these again: {command}")
