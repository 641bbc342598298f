"""Claims: one owner at a time, whatever is killed, and whoever looks."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time

import pytest

from lambda_hat.errors import StoreError, StoreUnwritable
from lambda_hat.store import claims
from lambda_hat.store.claims import UNREADABLE_KEPT, WITHOUT_HEARTBEAT_KEPT, holder, take
from lambda_hat.store.heartbeat import GRACE, STALE_AFTER, heartbeat_state
from lambda_hat.store.process_identity import whoami


@pytest.fixture
def store(tmp_path):
    (tmp_path / "packs").mkdir()
    return tmp_path


@pytest.fixture
def run_dir(store):
    return store / "targets" / "tgt_1" / "run_1"


def elsewhere(run_dir, generation=1, age=0.0, **record):
    """A claim as a process on another host made it `age` seconds ago."""
    run_dir.mkdir(parents=True, exist_ok=True)
    path = run_dir / f"claim-{generation}"
    content = {**whoami(), "host": "far", "place": "far/1/2", "lease": None, "state": "held", "pack_id": "pack_0"}
    path.write_text(json.dumps(content | record))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def lease_of(store, age=0.0, state="running"):
    path = store / "packs" / "driver_far.lease"
    path.write_text(json.dumps({**whoami(), "place": "far/1/2", "state": state}))
    then = time.time() - age
    os.utime(path, (then, then))
    return str(path)


def test_a_claim_is_exclusive_until_it_is_released(run_dir):
    claim = take(run_dir, None, rank=3, pack_id="pack_1")
    assert (claim.generation, claim.run_dir) == (1, run_dir)
    assert take(run_dir, None) is None
    found = holder(run_dir)
    assert (found["rank"], found["pack_id"], found["pid"], found["state"]) == (3, "pack_1", os.getpid(), "held")
    claim.release()
    assert holder(run_dir) is None
    again = take(run_dir, None)
    assert again.generation == 2
    again.finished()
    assert list(run_dir.iterdir()) == []
    assert holder(run_dir) is None
    assert holder(run_dir.parent / "absent") is None


CONTENDER = """
import os, random, sys, time
from pathlib import Path
from lambda_hat.store.claims import take
run_dir, seconds, seed = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
dice, took = random.Random(seed), 0
until = time.monotonic() + seconds
while time.monotonic() < until:
    claim = take(run_dir, None, rank=seed)
    if claim is None:
        time.sleep(dice.random() * .002)
        continue
    witness = os.open(run_dir / "witness", os.O_CREAT | os.O_EXCL)
    took += 1
    time.sleep(dice.random() * .002)
    os.close(witness)
    os.unlink(run_dir / "witness")
    claim.release()
print(took)
"""


def test_many_processes_and_never_two_owners(run_dir, repo_env):
    argv = [sys.executable, "-c", CONTENDER, str(run_dir), "3"]
    contenders = [
        subprocess.Popen([*argv, str(seed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=repo_env)
        for seed in range(6)
    ]
    ended = [(*contender.communicate(timeout=60), contender.returncode) for contender in contenders]
    assert all(code == 0 for _, _, code in ended), ended
    took = [int(out) for out, _, _ in ended]
    assert sum(took) > 50 and sum(count > 0 for count in took) > 1
    names = {path.name for path in run_dir.iterdir()}
    assert names == {f"claim-{k}" for k in range(1, sum(took) + 1)}


FINISHER = """
import sys, time
from pathlib import Path
from lambda_hat.store.claims import take
run_dirs = [Path(sys.argv[1]) / f"run_{k}" for k in range(60)]
mine = []
for run_dir in run_dirs:
    claim = take(run_dir, None)
    if claim is None:
        continue
    if not (run_dir / "analysis.json").exists():
        # A copy that is there already would be a run computed twice.
        (run_dir / "analysis.json").open("x").close()
        mine.append(run_dir.name)
    claim.finished()
print(len(mine))
"""


def test_runs_that_finish_while_others_claim_are_computed_once(tmp_path, repo_env):
    argv = [sys.executable, "-c", FINISHER, str(tmp_path)]
    racers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=repo_env) for _ in range(6)]
    done = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(done) == 60
    left = {path.name for run_dir in tmp_path.iterdir() for path in run_dir.iterdir()}
    assert left == {"analysis.json"}


def test_a_killed_owner_is_followed(run_dir, repo_env):
    code = (
        "import sys, time; from pathlib import Path; from lambda_hat.store.claims import take;"
        "take(Path(sys.argv[1]), None, rank=1); print('held', flush=True); time.sleep(60)"
    )
    for generation in (1, 2):
        owner = subprocess.Popen(
            [sys.executable, "-c", code, str(run_dir)], stdout=subprocess.PIPE, text=True, env=repo_env
        )
        with owner:
            assert owner.stdout.readline() == "held\n"
            assert take(run_dir, None) is None
            assert holder(run_dir)["pid"] == owner.pid
            owner.kill()
        assert holder(run_dir) is None
        assert (run_dir / f"claim-{generation}").exists()
    part = run_dir / ".trace.nc.0123.part"
    part.write_bytes(b"half")
    claim = take(run_dir, None)
    assert claim.generation == 3
    assert part.exists(), "it may be an owner's that was taken for dead, and is new"
    claim.finished()
    assert list(run_dir.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"lease": 3}', b"\xff\xfe\x00", b"[" * 10**5])
def test_a_claim_without_content_is_waited_for(run_dir, content):
    path = elsewhere(run_dir)
    path.write_bytes(content)
    assert holder(run_dir) is not None
    assert take(run_dir, None) is None
    then = time.time() - UNREADABLE_KEPT - 5
    os.utime(path, (then, then))
    assert holder(run_dir) is None
    assert take(run_dir, None).generation == 2


@pytest.mark.parametrize(
    ("age", "state", "held"),
    [
        (0, "running", True),
        (STALE_AFTER + 5, "running", True),
        (STALE_AFTER + GRACE + 5, "running", False),
        (1, "ended", True),
        (STALE_AFTER + GRACE + 5, "ended", False),
    ],
)
def test_an_owner_on_another_host_lives_until_its_lease_is_over(store, run_dir, age, state, held):
    elsewhere(run_dir, lease=lease_of(store, age, state))
    assert (holder(run_dir) is not None) is held
    assert (take(run_dir, None) is None) is held


def test_an_owner_whose_driver_died_here_may_still_drain_there(store, run_dir):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    lease = store / "packs" / "driver_1.lease"
    lease.write_text(json.dumps({**whoami(), "pid": process.pid, "state": "running"}))
    assert heartbeat_state(lease) == "dead"
    elsewhere(run_dir, lease=str(lease))
    assert take(run_dir, None) is None


def test_the_lease_is_found_where_the_store_has_another_path(store, run_dir):
    lease = lease_of(store).replace(str(store), "/mounted/elsewhere")
    elsewhere(run_dir, lease=lease)
    assert take(run_dir, None) is None


def test_an_owner_without_a_lease_on_another_host_has_an_hour(run_dir):
    elsewhere(run_dir, age=WITHOUT_HEARTBEAT_KEPT - 60)
    assert take(run_dir, None) is None
    elsewhere(run_dir, age=WITHOUT_HEARTBEAT_KEPT + 60)
    assert take(run_dir, None).generation == 2


def test_an_earlier_pack_of_ones_own_driver_is_over(store, run_dir):
    """Else a lost node would keep its runs as long as the driver lives."""
    lease = store / "packs" / "driver_far.lease"
    elsewhere(run_dir, lease=lease_of(store), pack_id="pack_0")
    assert take(run_dir, lease, pack_id="pack_0") is None
    assert holder(run_dir) is not None
    assert holder(run_dir, own_heartbeat=lease) is None
    assert take(run_dir, lease, pack_id="pack_1").generation == 2
    # A process that is seen to live holds its run all the same.
    assert take(run_dir, lease, pack_id="pack_2") is None
    assert holder(run_dir, own_heartbeat=lease)["pack_id"] == "pack_1"


def test_released_claims_of_others_are_gone_past(run_dir):
    elsewhere(run_dir, 1, state="released")
    elsewhere(run_dir, 2, state="released")
    assert holder(run_dir) is None
    assert take(run_dir, None).generation == 3


def test_a_number_that_was_freed_between_look_and_claim_is_not_kept(run_dir, monkeypatch):
    """Another process finishes the run just then: its claims go, and a third one starts again at 1."""
    elsewhere(run_dir, 1, state="released")
    create = claims._create

    def late(path, record):
        if path.name == "claim-2":
            monkeypatch.setattr(claims, "_create", create)
            (run_dir / "claim-1").unlink()
            elsewhere(run_dir, 1)
        return create(path, record)

    monkeypatch.setattr(claims, "_create", late)
    assert take(run_dir, None) is None
    assert [path.name for path in run_dir.iterdir()] == ["claim-1"]


def test_no_room_for_a_claim(run_dir, monkeypatch):
    run_dir.mkdir(parents=True)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(claims.os, "fdopen", full)
        with pytest.raises(StoreUnwritable, match=r"claim-1: cannot be written: No space left on device; finished"):
            take(run_dir, None)
    assert list(run_dir.iterdir()) == []
    claim = take(run_dir, None)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        claim.release()
    assert holder(run_dir) is None
    assert take(run_dir, None) is not None


def test_a_run_below_a_file_is_free(tmp_path):
    (tmp_path / "file").write_text("")
    assert holder(tmp_path / "file" / "targets" / "tgt_1" / "run_1") is None


def test_claims_that_cannot_be_looked_at_are_told(run_dir, monkeypatch):
    def refuse(path, *args, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    elsewhere(run_dir)
    monkeypatch.setattr(claims.Path, "read_bytes", refuse)
    assert holder(run_dir) == {}  # its content is unknown, and it is young
    monkeypatch.setattr(os, "lstat", refuse)
    for ask in (holder, lambda run_dir: take(run_dir, None)):
        with pytest.raises(StoreError, match=r"claim-1: cannot be read: Permission denied"):
            ask(run_dir)
