"""What killed drivers have left behind: jobs in a scheduler's queue, and ranks that still compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.driver.stopping import Stop, processes_under
from flows.sites.scheduler import SCHEDULERS
from lambda_hat.errors import LambdaHatError
from lambda_hat.store.events import PackLog
from lambda_hat.store.heartbeat import dead_heartbeats, heartbeat_over, heartbeats_with_jobs, mark_ended

DRAIN_SECONDS = 10.0
"""Time for ranks of a dead driver to write checkpoints and end: a rank looks at its lease every few seconds. The runs'
claims guard against ranks that take longer."""


def end_leftovers(packs_dir: Path, say: Callable[[str], None], stop: Stop) -> int:
    """Cancel the jobs of drivers that died, and let their ranks drain. Returns the number of such drivers.

    A running job is cancelled after its ranks have drained, for a scheduler may leave them no time for it. Jobs that a
    driver could not cancel at its end, because its scheduler gave no answer, are cancelled as well.
    Raises StoreUnwritable, and Stopped.
    """
    dead, ended = dead_heartbeats(packs_dir), heartbeats_with_jobs(packs_dir)
    draining = [lease for lease in dead if not heartbeat_over(lease.path)]
    for lease in dead:
        mark_ended(lease.path)
    cancelled, trouble = 0, []
    for lease in dead:
        cancelled += _cancel(lease.jobs, waiting=True)[0]
    deadline = time.monotonic() + DRAIN_SECONDS
    while any(_at_work(packs_dir, lease.path) for lease in draining) and time.monotonic() < deadline:
        stop.check()
        time.sleep(0.2)
    older = 0
    for lease in [*dead, *ended]:
        more, left = _cancel(lease.jobs, waiting=False)
        cancelled, older = (cancelled, older + more) if lease in ended else (cancelled + more, older)
        trouble += left.values()
        mark_ended(lease.path, [job for job in lease.jobs if str(job.get("job_id")) in left])
    jobs = f", and {cancelled} of its jobs cancelled" if cancelled else ""
    for host in sorted({lease.host for lease in dead}):
        say(f"an earlier driver was killed on {host}; what it left running has been told to stop{jobs}")
    if older:
        say(f"{older} jobs that an earlier driver could not cancel have been cancelled")
    for sentence in dict.fromkeys(trouble):
        say(f"a job of it could not be cancelled: {sentence}")
    return len(dead)


def _cancel(jobs: list[dict[str, Any]], waiting: bool) -> tuple[int, dict[str, str]]:
    """Cancel the jobs that wait, or all. Returns how many there were, and by its id what went wrong with a job."""
    cancelled, trouble = 0, {}
    for job in jobs:
        scheduler = SCHEDULERS.get(str(job.get("scheduler")))
        if scheduler is None or not {"job_id", "name"} <= job.keys():
            continue
        try:
            cancelled += scheduler.cancel(str(job["job_id"]), str(job["name"]), only_waiting=waiting)
        except LambdaHatError as error:
            trouble[str(job["job_id"])] = f"{job['job_id']}: {error}"
    return cancelled, trouble


def _at_work(packs_dir: Path, lease: Path) -> bool:
    """Whether a driver has processes on this machine, or packs whose ranks have not said that they are done."""
    if processes_under(lease):
        return True
    for directory in packs_dir.glob(f"pack_*-{lease.stem[-4:]}-*"):
        log = PackLog(directory)
        log.read()
        if log.begun and not log.over:
            return True
    return False
