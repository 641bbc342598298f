"""Jobs in worker processes: who gets which, when results come, and what ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from dataclasses import dataclass

import pytest

from lambda_hat.errors import LambdaHatError
from lambda_hat.programs.cores import xla_cores
from lambda_hat.validate.runner import run_jobs


@dataclass(frozen=True)
class Job:
    program: str
    work: float
    seconds: float = 0.0

    def run(self):
        if self.program == "mistaken":
            raise ValueError("no such row")
        time.sleep(self.seconds)
        ignores = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        return {"program": self.program, "work": self.work, "pid": os.getpid(), "cores": xla_cores(),
                "ignores": ignores, "has_jax": "jax" in sys.modules}  # fmt: skip


def test_jobs_of_a_program_follow_each_other_in_a_process_of_one_core():
    jobs = [Job(program, work) for work in (1.0, 2.0, 4.0) for program in "abc"]
    results = list(run_jobs(jobs, 2))
    assert sorted((r["program"], r["work"]) for r in results) == sorted((job.program, job.work) for job in jobs)
    homes = {program: {r["pid"] for r in results if r["program"] == program} for program in "abc"}
    assert all(len(pids) == 1 for pids in homes.values())
    assert len(set.union(*homes.values())) <= 2 and os.getpid() not in set.union(*homes.values())
    assert all((r["cores"], r["ignores"], r["has_jax"]) == (1, True, False) for r in results)
    assert multiprocessing.active_children() == []


def test_the_program_with_the_most_work_comes_first():
    jobs = [Job("short", 1.0), Job("long", 2.0), Job("many", 1.5), Job("many", 1.0)]
    assert [r["program"] for r in run_jobs(jobs, 1)] == ["many", "many", "long", "short"]


def test_a_result_comes_before_the_next_job_has_ended_and_leaving_ends_the_rest():
    results = run_jobs([Job("a", 1.0), Job("a", 1.0, seconds=600.0)], 2)
    assert next(results)["program"] == "a"
    assert len(multiprocessing.active_children()) == 1
    results.close()
    assert multiprocessing.active_children() == []


def test_what_a_job_raises_comes_with_its_traceback():
    with pytest.raises(ValueError, match="no such row") as raised:
        list(run_jobs([Job("mistaken", 1.0)], 1))
    assert 'raise ValueError("no such row")' in str(raised.value.__cause__)


def test_a_killed_process_ends_the_others():
    results = run_jobs([Job("a", 2.0), Job("a", 2.0, seconds=600.0), Job("b", 1.0, seconds=600.0)], 2)
    os.kill(next(results)["pid"], signal.SIGKILL)
    with pytest.raises(LambdaHatError, match="a worker process ended with status -9; see above"):
        next(results)
    assert multiprocessing.active_children() == []
