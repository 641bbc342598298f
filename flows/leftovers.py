"""What drivers that were killed have left: jobs in a scheduler's queue, and ranks that still compute."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from flows.scheduler import SCHEDULERS
from flows.stopping import Stop, processes_under
from lambda_hat.errors import LambdaHatError
from lambda_hat.lease import dead_leases, mark_ended

DRAIN_SECONDS = 6.0
"""For what a dead driver left on this machine to end; what is still there then is left to the runs' claims."""


def end_leftovers(packs_dir: Path, say: Callable[[str], None], stop: Stop) -> int:
    """Cancel the jobs of drivers that died, and let what they left drain; returns how many there were.

    Raises StoreUnwritable.
    """
    dead = dead_leases(packs_dir)
    for lease in dead:
        cancelled, trouble = 0, []
        for job in lease.jobs:
            scheduler = SCHEDULERS.get(str(job.get("scheduler")))
            if scheduler is None:
                continue
            try:
                cancelled += scheduler.cancel(str(job["job_id"]), str(job["name"]))
            except (LambdaHatError, KeyError) as error:
                trouble.append(f"{job.get('job_id')}: {error}")
        jobs = f", and {cancelled} of its jobs cancelled" if cancelled else ""
        say(f"an earlier driver was killed on {lease.host}; what it left running has been told to stop{jobs}")
        if trouble:
            say(f"jobs of it that could not be cancelled: {'; '.join(trouble)}")
        mark_ended(lease.path)
    deadline = time.monotonic() + DRAIN_SECONDS
    while any(processes_under(lease.path) for lease in dead) and time.monotonic() < deadline:
        stop.check()
        time.sleep(0.2)
    return len(dead)
