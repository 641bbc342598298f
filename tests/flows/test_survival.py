"""Drivers that are stopped or killed, whose time runs out, and two of them at once."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from tests.flows.studies import PATIENCE, ROOT

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]

# --------------------------------------------------------------------------------------------------------------
# The driver is told to stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_is_to_checkpoint_report_and_go_on_later(long, number):
    driver = long.start("--ranks=2")
    long.wait_until(lambda: len(list(long.store.rglob("checkpoint.npz"))) == 2, driver)
    began = time.monotonic()
    # A terminal sends Ctrl-C to the whole group, a scheduler TERM to the driver.
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    assert driver.wait(60) == 130, long.said()
    assert time.monotonic() - began < 25
    said = long.said()
    assert "stopping: runs are checkpointed; Ctrl-C again stops at once" in said
    assert re.search(r"\d paused with a checkpoint", said)
    assert re.search(r"^runs .* pending$", said, flags=re.M)
    assert "some runs are unfinished: run the same command again to continue" in said
    assert "no time for the page of the study; lambda-hat report --store=runs --results=results makes it" in said
    assert "Traceback" not in said
    long.assert_nothing_runs_within(10)
    assert list(long.store.rglob("checkpoint.npz"))
    assert "4 finished" in long.run("--ranks=2")
    long.assert_finished_once(4)


def test_twice_is_at_once(long):
    driver = long.start("--ranks=2")
    long.wait_until(lambda: len(long.events("run_start")) >= 2, driver)
    os.kill(driver.pid, signal.SIGINT)
    long.wait_until(lambda: "stopping: runs are checkpointed" in long.said(), driver)
    began = time.monotonic()
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 130, long.said()
    assert time.monotonic() - began < 10
    assert long.said().splitlines()[-1] == "interrupted; run the same command again to continue"
    long.assert_nothing_runs_within(10)


def test_the_unpacked_flow_stops_and_goes_on_as_well(make):
    study = make(targets=[{"target": "quadratic"}], seeds=2, thin=60000)
    program = ROOT / "flows" / "parsl_llc.py"
    driver = study.start(program=program)
    study.wait_until(lambda: len(list(study.store.glob("targets/*/*/checkpoint.npz"))) == 2, driver)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 130, study.said()
    assert "Traceback" not in study.said()
    assert re.search(r"^runs .* pending$", study.said(), flags=re.M)
    study.assert_nothing_runs_within(10)
    for log in study.store.glob("targets/*/*/sample.err"):
        assert "stopped before its end: its driver has ended; what is sampled is kept" in log.read_text()
    assert study.start(program=program).wait(PATIENCE) == 0, study.said()


# --------------------------------------------------------------------------------------------------------------
# The driver dies, or there are two


def test_a_killed_driver_leaves_nothing_behind_and_its_study_goes_on(short):
    driver = short.start("--pack=8", "--ranks=1")
    short.wait_until(lambda: len(short.analyses()) >= 3, driver)
    driver.kill()
    driver.wait()
    assert len(short.analyses()) < 24
    short.assert_nothing_runs_within(60)
    finished = short.analyses()
    said = short.run("--pack=8", "--ranks=1")
    assert "24 finished" in said
    assert "an earlier driver was killed on" in said
    assert {path: short.analyses()[path] for path in finished} == finished
    short.assert_finished_once(24)


def test_a_driver_started_at_once_after_one_was_killed_samples_nothing_twice(long):
    driver = long.start("--ranks=2")
    long.wait_until(lambda: len(list(long.store.rglob("checkpoint.npz"))) == 2, driver)
    driver.kill()
    driver.wait()
    said = long.run("--ranks=2")
    assert "an earlier driver was killed on" in said
    long.assert_finished_once(4)
    assert list(long.store.rglob("checkpoint.npz")) == []


def test_two_drivers_on_one_store(short):
    first = short.start("--pack=12", "--ranks=1", "--results=one", log="said-one")
    second = short.start("--pack=12", "--ranks=1", log="said-two")
    assert first.wait(PATIENCE) == 0, short.said("said-one")
    assert second.wait(PATIENCE) == 0, short.said("said-two")
    assert "24 finished" in short.said("said-one") and "24 finished" in short.said("said-two")
    short.assert_finished_once(24)


def test_a_driver_waits_for_what_another_one_samples(short):
    first = short.start("--pack=12", "--ranks=1", "--results=one", log="said-one")
    short.wait_until(lambda: len(short.analyses()) >= 3, first)
    second = short.start("--pack=12", "--ranks=1", log="said-two")
    assert first.wait(PATIENCE) == 0, short.said("said-one")
    assert second.wait(PATIENCE) == 0, short.said("said-two")
    told = rf"\d+ runs are being sampled by another driver \(process {first.pid} on \S+\): waiting for them"
    assert re.search(told, short.said("said-two"))
    assert not re.search(r"packs", short.said("said-two").partition("waiting for them")[2].partition("targets ")[0])
    short.assert_finished_once(24)


# --------------------------------------------------------------------------------------------------------------
# Time runs out


def test_a_deadline_pauses_everything(make):
    study = make(targets=[{"target": "quadratic"}], seeds=4, thin=400_000)
    began = time.monotonic()
    said = study.run("--ranks=2", "--deadline=+00:01:00", status=75)
    assert time.monotonic() - began < 90
    assert "the allocation ends soon: stopped; what is finished is kept" in said
    assert re.search(r"\d paused with a checkpoint, \d left for later \(the allocation's time is up\)", said)
    assert "Traceback" not in said
    assert len(list(study.store.rglob("checkpoint.npz"))) == 2
    assert not list(study.store.rglob("error.json"))
