"""A driver's sign of life: renewed, withdrawn, gone stale, or left by a dead driver."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time

import pytest

from lambda_hat.store import heartbeat as lease_module
from lambda_hat.store import process_identity
from lambda_hat.store.drain import Drain
from lambda_hat.store.heartbeat import (
    GRACE,
    KEPT,
    STALE_AFTER,
    DeadHeartbeat,
    Heartbeat,
    dead_heartbeats,
    drain_when_lost,
    heartbeat_over,
    heartbeat_state,
    heartbeats_with_jobs,
    live_heartbeats,
    mark_ended,
    tidy_heartbeats,
    watch_heartbeat,
)
from lambda_hat.store.process_identity import whoami


def leave(directory, name, age=0.0, **record):
    """A lease as a driver on another host left it `age` seconds ago; None for no such key."""
    path = directory / f"driver_{name}.lease"
    content = {**whoami(), "place": "another-host/1/2", "count": 3, "state": "running", "jobs": []} | record
    path.write_text(json.dumps(content))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def gone() -> dict:
    """What `whoami` said in a process that has ended."""
    code = "import json; from lambda_hat.store.process_identity import whoami; print(json.dumps(whoami()))"
    return json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))


def test_a_renewed_lease_keeps_its_watchers(tmp_path, monkeypatch):
    monkeypatch.setattr(lease_module, "PERIOD", 0.05)
    lost: queue.Queue[str] = queue.Queue()
    with Heartbeat(tmp_path) as lease:
        watch_heartbeat(lease.path, lost.put, stale_after=2.0, period=0.02)
        try:
            reason = lost.get(timeout=4.0)
        except queue.Empty:
            reason = None
        assert reason is None
    assert lost.get(timeout=5) == "its driver has ended"
    assert json.loads(lease.path.read_bytes())["state"] == "ended"


def test_a_lease_that_is_removed_has_ended(tmp_path):
    lost: queue.Queue[str] = queue.Queue()
    watch_heartbeat(tmp_path / "driver_x.lease", lost.put, period=0.02)
    assert lost.get(timeout=5) == "its driver has ended"


def test_a_lease_without_renewal_goes_stale(tmp_path):
    path = tmp_path / "driver_x.lease"
    path.write_text("1")
    lost: queue.Queue[str] = queue.Queue()
    watch_heartbeat(path, lost.put, stale_after=0.2, period=0.02)
    assert "no sign of life" in lost.get(timeout=5)


def test_a_process_ends_when_its_lease_is_withdrawn(tmp_path, repo_env):
    code = (
        "import sys, time; from lambda_hat.store.heartbeat import exit_when_lost; exit_when_lost(sys.argv[1], 'task');"
        "print('ready', flush=True); time.sleep(60)"
    )
    with Heartbeat(tmp_path) as lease:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(lease.path)], stdout=subprocess.PIPE, text=True, env=repo_env
        )
        assert child.stdout.readline() == "ready\n"
    said, _ = child.communicate(timeout=10)
    assert child.returncode == 1
    assert said.startswith("task: its driver has ended; stopping.")


def test_a_lost_lease_requests_the_drain(tmp_path):
    drain = Drain()
    with Heartbeat(tmp_path) as lease:
        drain_when_lost(lease.path, drain, "rank 0", period=0.02, grace=3600)
        time.sleep(0.2)
        assert drain.reason is None
    until = time.monotonic() + 5
    while drain.reason is None and time.monotonic() < until:
        time.sleep(0.02)
    assert drain.reason == "its driver has ended"


def test_a_process_that_does_not_drain_is_ended(tmp_path, repo_env):
    code = (
        "import sys, time; from lambda_hat.store.drain import Drain;"
        "from lambda_hat.store.heartbeat import drain_when_lost;"
        "drain_when_lost(sys.argv[1], Drain(), 'rank 1', period=.05, grace=.5); time.sleep(60)"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "none.lease")], capture_output=True, text=True, env=repo_env
    )
    assert (done.returncode, time.monotonic() - begun < 30) == (1, True)
    assert done.stdout.startswith("rank 1: its driver has ended, and what was under way did not come to an end in 0 s;")


def test_ranks_look_often_enough_to_end_within_the_grace(tmp_path, monkeypatch):
    watched, left = {}, []
    drain = Drain()

    def watch(path, on_lost, stale_after=STALE_AFTER, period=1.0, on_beat=None):
        watched["period"] = period
        on_lost("why")

    monkeypatch.setattr(lease_module, "watch_heartbeat", watch)
    monkeypatch.setattr(lease_module, "_leave", lambda *words: left.append(words))
    monkeypatch.setattr(time, "sleep", lambda seconds: watched.setdefault("grace", seconds))
    drain_when_lost(tmp_path / "x.lease", drain, "rank 1", period=60)
    # A renewal may be seen a period late, and its absence another one.
    assert STALE_AFTER + 2 * watched["period"] + watched["grace"] < STALE_AFTER + GRACE
    assert watched["grace"] >= 10, "a chunk, its checkpoint and a compilation need time"
    assert (drain.reason, len(left)) == ("why", 1)


def test_states_of_a_driver_on_this_host(tmp_path):
    with Heartbeat(tmp_path) as lease:
        assert heartbeat_state(lease.path) == "live"
        assert live_heartbeats(tmp_path) == [lease.path]
        os.utime(lease.path, (0, 0))
        assert heartbeat_state(lease.path) == "live", "its process is there, whatever the clock says"
    assert heartbeat_state(lease.path) == "ending"
    assert heartbeat_state(leave(tmp_path, "dead", **gone())) == "dead"
    reused = {**whoami(), "started": "not when this process started"}
    assert heartbeat_state(leave(tmp_path, "reused", **reused)) == "dead"
    assert heartbeat_state(tmp_path / "driver_none.lease") == "dead"


def test_a_process_of_another_user_may_be_hidden(tmp_path, monkeypatch):
    """/proc mounted with hidepid shows nothing of it, yet the system knows it."""
    path = leave(tmp_path, "theirs", **whoami())
    monkeypatch.setattr(process_identity, "_start_ticks", lambda pid: None)
    known = {os.getpid()}

    def kill(pid, number):
        raise PermissionError(1, "not yours") if pid in known else ProcessLookupError(3, "no such process")

    monkeypatch.setattr(os, "kill", kill)
    assert heartbeat_state(path) == "live"
    known.clear()
    assert heartbeat_state(path) == "dead"


@pytest.mark.parametrize("pid", [None, "1", 0, -1, 2**80, True])
def test_a_process_number_that_is_none(tmp_path, pid):
    assert heartbeat_state(leave(tmp_path, "x", **{**whoami(), "pid": pid})) == "dead"


@pytest.mark.parametrize(
    ("age", "state", "expected", "over"),
    [
        (0, "running", "live", False),
        (STALE_AFTER - 5, "running", "live", False),
        (STALE_AFTER + 5, "running", "ending", False),
        (STALE_AFTER + GRACE + 5, "running", "dead", True),
        (0, "ended", "ending", False),
        (STALE_AFTER + GRACE + 5, "ended", "dead", True),
    ],
)
def test_states_of_a_driver_on_another_host(tmp_path, age, state, expected, over):
    path = leave(tmp_path, "far", age=age, state=state)
    assert (heartbeat_state(path), heartbeat_over(path)) == (expected, over)


def test_a_driver_that_died_here_may_have_ranks_elsewhere_that_drain(tmp_path):
    path = leave(tmp_path, "dead", age=1, **gone())
    assert (heartbeat_state(path), heartbeat_over(path)) == ("dead", False)
    assert heartbeat_over(tmp_path / "driver_none.lease")


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\x00", b"null", b"[" * 10**5])
def test_a_damaged_lease_is_judged_by_its_age(tmp_path, content):
    path = tmp_path / "driver_x.lease"
    path.write_bytes(content)
    assert heartbeat_state(path) == "live"
    os.utime(path, (0, 0))
    assert (heartbeat_state(path), heartbeat_over(path)) == ("dead", True)
    assert dead_heartbeats(tmp_path) == []
    assert tidy_heartbeats(tmp_path) == 1


def test_age_is_by_the_clock_of_the_file_system(tmp_path, monkeypatch):
    path = leave(tmp_path, "far", age=0)
    # This host's clock runs an hour fast; files still get the server's time.
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    assert heartbeat_state(path) == "live"


def test_jobs_of_dead_drivers_are_told_until_they_are_marked_ended(tmp_path):
    jobs = [{"scheduler": "slurm", "job_id": "17", "name": "block"}]
    with Heartbeat(tmp_path) as lease:
        lease.note_jobs(jobs)
        assert json.loads(lease.path.read_bytes())["jobs"] == jobs
        died = [leave(tmp_path, "a", jobs=jobs, **gone()), leave(tmp_path, "b", age=100, jobs=jobs)]
        leave(tmp_path, "ended", age=100, state="ended")
        leave(tmp_path, "far", jobs=jobs)
        assert dead_heartbeats(tmp_path) == [DeadHeartbeat(path, whoami()["host"], jobs) for path in died]
        for path in died:
            mark_ended(path)
        assert dead_heartbeats(tmp_path) == []
        assert json.loads(died[0].read_bytes())["jobs"] == jobs
    mark_ended(tmp_path / "driver_none.lease")


def test_jobs_that_a_driver_could_not_cancel_are_told_until_they_are(tmp_path):
    jobs = [{"scheduler": "pbs", "job_id": str(number), "name": "block"} for number in (17, 18)]
    with Heartbeat(tmp_path) as lease:
        lease.note_jobs(jobs)
        lease.withdraw()
        assert heartbeats_with_jobs(tmp_path) == [], "its driver may cancel them yet"
        assert json.loads(lease.path.read_bytes())["left"] == jobs
        lease.note_left([])
    killed = leave(tmp_path, "killed", state="ended", left=jobs, **gone())
    assert heartbeats_with_jobs(tmp_path) == [DeadHeartbeat(killed, whoami()["host"], jobs)]
    os.utime(killed, (time.time() - KEPT - 100,) * 2)
    assert tidy_heartbeats(tmp_path) == 0
    mark_ended(killed, jobs[1:])
    assert heartbeats_with_jobs(tmp_path)[0].jobs == jobs[1:]
    mark_ended(killed, [])
    assert heartbeats_with_jobs(tmp_path) == dead_heartbeats(tmp_path) == []


def test_blocks_are_given_back_by_the_number_of_their_job(tmp_path):
    with Heartbeat(tmp_path) as lease:
        lease.note_jobs([{"job_id": "17.head.example.org"}])
        assert '"end 17"' not in lease.path.read_text()
        lease.give_back(["17.head.example.org"])
        assert '"end 17"' in lease.path.read_text()


def test_old_leases_are_tidied_unless_jobs_wait_to_be_cancelled(tmp_path):
    leave(tmp_path, "ended", age=KEPT + 100, state="ended", jobs=[{"job_id": "1"}])
    kept = {
        leave(tmp_path, "recent", age=KEPT - 100, state="ended"),
        leave(tmp_path, "jobs", age=KEPT + 100, jobs=[{"job_id": "1"}]),
    }
    part = tmp_path / ".driver_x.lease.0123.part"
    part.write_text("{")
    os.utime(part, (0, 0))
    assert tidy_heartbeats(tmp_path) == 1
    assert set(tmp_path.iterdir()) == kept
    assert tidy_heartbeats(tmp_path / "absent") == 0


def test_a_full_disk_neither_stops_a_driver_nor_hides_its_end(tmp_path, monkeypatch):
    with Heartbeat(tmp_path) as lease:

        def full(*args):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        lease.note_jobs([{"job_id": "1"}])
    assert not lease.path.exists()


def test_where_a_file_lies_in_place_of_the_folder_there_are_no_leases(tmp_path):
    (tmp_path / "packs").write_text("")
    assert live_heartbeats(tmp_path / "packs") == dead_heartbeats(tmp_path / "packs") == []
    assert tidy_heartbeats(tmp_path / "packs" / "deeper") == 0
