"""Jobs in worker processes of one core each. No jax: the workers bind their core before it is imported."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import defaultdict, deque
from collections.abc import Hashable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol

from lambda_hat.errors import LambdaHatError
from lambda_hat.programs.cores import bind_process


class Job(Protocol):
    """One run of a suite; travels to a worker by pickle."""

    @property
    def program(self) -> Hashable:
        """Equal for jobs that share compiled programs."""
        ...

    @property
    def work(self) -> float:
        """What it takes, compared with other jobs."""
        ...

    def run(self) -> dict[str, Any]:
        """Its result, JSON-able but for NaN."""
        ...


def run_jobs(jobs: Sequence[Job], num_processes: int) -> Iterator[dict[str, Any]]:
    """Run every job, in at most so many processes, and yield each result as it comes.

    Jobs of one program follow each other in one process, because compiling costs more than sampling.
    Raises LambdaHatError where a process dies, and what a job raises.
    """
    # The largest first: the last ones to be taken even out what the processes have to do.
    waiting = deque(sorted(groups(jobs), key=lambda group: sum(job.work for job in group), reverse=True))
    # A worker starts as `python -c`, which would look for all modules in the current folder first.
    os.environ["PYTHONSAFEPATH"] = "1"
    context = multiprocessing.get_context("spawn")
    # Of one process each: a larger pool would deal out the jobs of a program to all of its processes.
    pools = [ProcessPoolExecutor(1, context, _start) for _ in range(min(num_processes, len(waiting)))]
    running: dict[Future[dict[str, Any]], ProcessPoolExecutor] = {}
    others, workers = set(multiprocessing.active_children()), set()
    try:
        while waiting or running:
            for pool in pools:
                if waiting and pool not in running.values():
                    running |= {pool.submit(job.run): pool for job in waiting.popleft()}
                    workers |= set(multiprocessing.active_children()) - others
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                pool = running.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    pool.shutdown()  # Only then is the status there.
                    status = next((worker.exitcode for worker in workers if worker.exitcode), 0)
                    raise LambdaHatError(f"a worker process ended with status {status}; see above")
                yield future.result()
    finally:
        for worker in workers:
            worker.terminate()
        for pool in pools:
            pool.shutdown()


def groups(jobs: Sequence[Job]) -> list[list[Job]]:
    """What shares a program."""
    found: dict[Hashable, list[Job]] = defaultdict(list)
    for job in jobs:
        found[job.program].append(job)
    return list(found.values())


def _start() -> None:
    # Ctrl-C is the parent's to answer.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    bind_process(1)


def default_processes() -> int:
    """One per core that this process may use."""
    return len(os.sched_getaffinity(0))
