"""A driver's sign of life: renewed, withdrawn, gone stale, or left by a dead driver."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys

from lambda_hat import lease as lease_module
from lambda_hat.lease import Lease, clear_dead_leases, watch_lease


def test_a_renewed_lease_keeps_its_watchers(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "PERIOD", 0.05)
    lost: queue.Queue[str] = queue.Queue()
    with Lease(tmp_path) as lease:
        watch_lease(lease.path, lost.put, stale_after=2.0, period=0.02)
        try:
            reason = lost.get(timeout=4.0)
        except queue.Empty:
            reason = None
        assert reason is None
    assert lost.get(timeout=5) == "its driver has ended"
    assert not lease.path.exists()


def test_a_lease_without_renewal_goes_stale(tmp_path):
    path = tmp_path / "driver_x.lease"
    path.write_text("1")
    lost: queue.Queue[str] = queue.Queue()
    watch_lease(path, lost.put, stale_after=0.2, period=0.02)
    assert "no sign of life" in lost.get(timeout=5)


def test_a_process_ends_when_its_lease_is_withdrawn(tmp_path, repo_env):
    code = (
        "import sys, time; from lambda_hat.lease import exit_when_lost; exit_when_lost(sys.argv[1], 'task');"
        "print('ready', flush=True); time.sleep(60)"
    )
    with Lease(tmp_path) as lease:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(lease.path)], stdout=subprocess.PIPE, text=True, env=repo_env
        )
        assert child.stdout.readline() == "ready\n"
    said, _ = child.communicate(timeout=10)
    assert child.returncode == 1
    assert said.startswith("task: its driver has ended; stopping.")


def test_only_leases_of_dead_drivers_of_this_host_are_cleared(tmp_path):
    def leave(name, **record):
        (tmp_path / f"driver_{name}.lease").write_text(json.dumps(record))

    here = socket.gethostname()
    leave("dead", host=here, pid=2**22 + 1, started="1")
    leave("reused", host=here, pid=os.getpid(), started="not when this process started")
    leave("elsewhere", host="another-host", pid=2**22 + 1, started="1")
    with Lease(tmp_path) as alive:
        assert clear_dead_leases(tmp_path) == 2
        names = {p.name for p in tmp_path.iterdir()}
        assert names == {alive.path.name, "driver_elsewhere.lease"}
