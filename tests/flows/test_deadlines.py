"""When packs have to stop."""

from __future__ import annotations

import subprocess
import time

import pytest

from flows.sites.deadlines import (
    block_end_line,
    deadline_in_allocation,
    drain_period,
    margin,
    parse_deadline,
    scheduler_deadline,
)
from lambda_hat.errors import ConfigError


@pytest.mark.parametrize(("seconds", "kept"), [(5, 10), (100, 10), (300, 30), (600, 60), (86400, 60)])
def test_a_tenth_is_kept_back_within_bounds(seconds, kept):
    assert margin(seconds) == kept


@pytest.mark.parametrize(("walltime", "seconds"), [(3600, 3480), (60, 40), (15, 1)])
def test_a_block_takes_nothing_new_near_its_end(walltime, seconds):
    assert drain_period(walltime) == seconds


def test_times_that_a_person_types():
    now = 1_764_000_000.5
    assert parse_deadline("1764000100", now) == 1_764_000_100
    assert parse_deadline(" +01:00:00 ", now) == now + 3600
    assert parse_deadline("+90", now) == now + 90
    assert parse_deadline("2026-11-25T18:00", now) == time.mktime((2026, 11, 25, 18, 0, 0, 0, 0, -1))
    assert parse_deadline("2026-11-25T18:00+00:00", now) == 1_795_629_600


@pytest.mark.parametrize("text", ["noon", "+noon", "nan", "inf", "2026-13-01", "", "1e400", "+0"])
def test_a_time_that_is_none(text):
    with pytest.raises(ConfigError, match=r"--deadline: got .*expected a time such as"):
        parse_deadline(text, 0.0)


def test_a_time_that_is_over():
    with pytest.raises(ConfigError, match="which is 5 s ago"):
        parse_deadline("95", 100.0)


def test_the_earliest_clock_counts():
    assert deadline_in_allocation(None, {}) is None
    assert deadline_in_allocation(7.0, {}) == 7.0
    assert deadline_in_allocation(7.0, {"LAMBDA_HAT_DEADLINE": "5.5"}) == 5.5
    block = {"LAMBDA_HAT_BLOCK_END": "1000", "LAMBDA_HAT_BLOCK_SECONDS": "200"}
    assert deadline_in_allocation(None, block) == 980
    assert deadline_in_allocation(990.0, block | {"LAMBDA_HAT_DEADLINE": "985"}) == 980
    with pytest.raises(ConfigError, match="LAMBDA_HAT_DEADLINE='noon', expected seconds since the epoch"):
        deadline_in_allocation(990.0, block | {"LAMBDA_HAT_DEADLINE": "noon"})
    job = {"SLURM_JOB_END_TIME": "5000", "SLURM_JOB_START_TIME": "4700"}
    assert deadline_in_allocation(None, job) == scheduler_deadline(job) == 4970
    assert scheduler_deadline({"SLURM_JOB_END_TIME": "5000"}) == 4940


def test_a_block_knows_its_end():
    code = f'{block_end_line(3600)}\necho "$LAMBDA_HAT_BLOCK_SECONDS $LAMBDA_HAT_BLOCK_END"'
    before = time.time()
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, timeout=60)
    seconds, end = map(int, done.stdout.split())
    assert seconds == 3600
    assert before - 1 <= end - 3600 <= time.time() + 1
