"""The driver: what happens to a study from its plan to its exit status, in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from flows.driver.ahead import Ahead
from flows.driver.attempts import Attempts
from flows.driver.ending import finish
from flows.driver.plan import Plan
from flows.driver.pricing import plan_sentences
from flows.driver.request import Request
from flows.driver.rounds import Round
from flows.driver.screen import Screen
from flows.driver.stopping import OutOfTime, Stop, Stopped, early_end
from lambda_hat.errors import EXIT_INTERRUPTED, EXIT_OK
from lambda_hat.store.study_records import StudyLog, write_study


def run_study(
    request: Request,
    submit: Callable[[Round], None],
    dry_run: Callable[[Request, Plan], Iterable[str]],
    *,
    dry: bool,
    on_out_of_time: Callable[[Screen, StudyLog], None] | None = None,
) -> int:
    """Sample a study until nothing is left or the retries are used up, and report it. Returns the exit status.

    submit: submits the builds of a round and what samples its runs. dry_run: the lines that show a plan; with `dry`
    they are all that happens. on_out_of_time: called where the allocation ends with runs left.
    Raises LambdaHatError.
    """
    started, screen, stop = time.monotonic(), Screen(), Stop()
    if not dry:
        request.check_folders()
    plan = request.plan(request.rerun, look_only=dry)
    if dry or not request.quiet:
        screen.say_all(plan_sentences(request, plan))
    if dry:
        screen.say_all(dry_run(request, plan))
        return EXIT_OK
    request.prepare()
    with write_study(request.store.root, request.record(plan)) as log, Ahead(request) as ahead:
        attempts, end = Attempts(request, submit, screen, stop, log, on_last_runs=ahead.begin), None
        if plan.runs or plan.elsewhere:
            with stop.on_signals():
                end = early_end(lambda: attempts.run(plan), screen.say)
                if isinstance(end, OutOfTime) and on_out_of_time is not None and request.plan(None).runs:
                    on_out_of_time(screen, log)
        has_time = end is None and not request.is_late
        status = finish(request, screen, started, attempts.tally, attempts.pack_dirs, ahead, page=has_time)
        log.exit_status = EXIT_INTERRUPTED if isinstance(end, Stopped) else status
    return log.exit_status
