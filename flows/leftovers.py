"""What drivers that were killed have left: jobs in a scheduler's queue, and ranks that still compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flows.scheduler import SCHEDULERS
from flows.stopping import Stop, processes_under
from lambda_hat.errors import LambdaHatError
from lambda_hat.follow import PackLog
from lambda_hat.lease import DeadLease, dead_leases, lease_over, mark_ended

DRAIN_SECONDS = 10.0
"""For what a dead driver left to write its checkpoints and end: a rank looks at its lease every few seconds. What is
still there then is left to the runs' claims."""


def end_leftovers(packs_dir: Path, say: Callable[[str], None], stop: Stop) -> int:
    """Cancel the jobs of drivers that died, and let what they left drain; returns how many there were.

    A job that runs is cancelled once its ranks have drained, for a scheduler may leave them no time to.
    Raises StoreUnwritable, and Stopped.
    """
    dead = dead_leases(packs_dir)
    draining = [lease for lease in dead if not lease_over(lease.path)]
    for lease in dead:
        mark_ended(lease.path)
    cancelled, trouble = _cancel(dead, waiting=True)
    deadline = time.monotonic() + DRAIN_SECONDS
    while any(_at_work(packs_dir, lease.path) for lease in draining) and time.monotonic() < deadline:
        stop.check()
        time.sleep(0.2)
    more, trouble_more = _cancel(dead, waiting=False)
    jobs = f", and {cancelled + more} of its jobs cancelled" if cancelled + more else ""
    for host in sorted({lease.host for lease in dead}):
        say(f"an earlier driver was killed on {host}; what it left running has been told to stop{jobs}")
    for sentence in dict.fromkeys([*trouble, *trouble_more]):
        say(f"a job of it could not be cancelled: {sentence}")
    return len(dead)


def _cancel(dead: list[DeadLease], waiting: bool) -> tuple[int, list[str]]:
    """Cancel the jobs that wait, or all; how many there were, and what went wrong."""
    cancelled, trouble = 0, []
    for job in (job for lease in dead for job in lease.jobs):
        scheduler = SCHEDULERS.get(str(job.get("scheduler")))
        if scheduler is None or not {"job_id", "name"} <= job.keys():
            continue
        try:
            cancelled += scheduler.cancel(str(job["job_id"]), str(job["name"]), only_waiting=waiting)
        except LambdaHatError as error:
            trouble.append(f"{job['job_id']}: {error}")
    return cancelled, trouble


def _at_work(packs_dir: Path, lease: Path) -> bool:
    """Whether processes of a driver are still there, on this machine or by what its packs' ranks have written."""
    if processes_under(lease):
        return True
    for directory in packs_dir.glob(f"pack_*-{lease.stem[-4:]}-*"):
        log = PackLog(directory)
        for _ in log.read():
            pass
        if log.begun and not log.over:
            return True
    return False
