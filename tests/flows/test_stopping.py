"""Signals to a driver, and the processes that are its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from flows.driver.stopping import Stop, Stopped, kill_under, processes_under


def test_once_is_remembered_and_twice_is_at_once():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    stop = Stop()
    with stop.on_signals():
        stop.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        with pytest.raises(Stopped):
            stop.check()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_three_times_ends_the_process():
    code = """
import os, signal
from flows.driver.stopping import Stop
with Stop().on_signals():
    os.kill(os.getpid(), signal.SIGINT)
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGTERM)
    print("still there")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "")


def test_only_what_was_started_under_the_lease_is_killed(tmp_path):
    lease = tmp_path / "driver_1.lease"
    started = []
    try:
        for name in (lease, tmp_path / "driver_11.lease"):
            env = {**os.environ, "LAMBDA_HAT_LEASE": str(name)}
            started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=env))
        ours, others = started
        deadline = time.monotonic() + 30
        # Between fork and exec a child has its parent's environment.
        while processes_under(lease) != [ours.pid] and time.monotonic() < deadline:
            time.sleep(0.05)
        assert processes_under(lease) == [ours.pid]
        kill_under(lease)
        assert ours.wait(10) == -signal.SIGKILL
        assert others.poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()
