import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lambda_hat.store.drain import Drain
from mpi.dispatch import ANSWER, CLAIM, DRAIN, World, dispatch, start_mpi
from mpi.handout import Item
from mpi.launch import Launch, launch_line
from mpi.launchers import LauncherChoice, find_launcher

ROOT = Path(__file__).resolve().parents[2]


class ThreadComm:
    """A communicator whose ranks are threads; what is sent arrives at once, in order."""

    def __init__(self, rank, boxes):
        self.rank, self.boxes = rank, boxes

    def send(self, message, dest, tag):
        self.boxes[dest, tag].put(message)

    def iprobe(self, source=None, tag=None):
        return not self.boxes[self.rank, tag].empty()

    def recv(self, source=None, tag=None):
        return self.boxes[self.rank, tag].get_nowait()


def run_in_threads(size, items, do, drains=None, on_begin=lambda handout: None):
    """`dispatch` on `size` ranks that are threads; what each returned. Only rank 0 knows the items."""
    # All boxes exist before a thread looks: two threads that missed one in a defaultdict would each make their own.
    boxes = {(rank, tag): queue.Queue() for rank in range(size) for tag in (CLAIM, ANSWER, DRAIN)}
    results = {}

    def rank_main(rank):
        world = World(rank, size, ThreadComm(rank, boxes) if size > 1 else None)
        drain = None if drains is None else drains[rank]
        results[rank] = dispatch(world, items if rank == 0 else [], lambda key: do(rank, key), drain, on_begin)

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive(), "a rank hangs"
    return results


@st.composite
def item_lists(draw):
    """Builds, and runs that need one of them, or nothing."""
    builds = [f"build{i}" for i in range(draw(st.integers(0, 4)))]
    runs = draw(st.lists(st.tuples(st.sampled_from([None, *builds]), st.floats(0, 9), st.sampled_from("abc"))))
    return [*(Item(build) for build in builds), *(Item(f"run{i}", *run) for i, run in enumerate(runs))]


@settings(max_examples=40, deadline=None)
@given(items=item_lists(), size=st.integers(1, 4), slow=st.sets(st.integers(0, 15)))
def test_every_item_once_after_its_need_and_all_ranks_agree(items, size, slow):
    log, lock = [], threading.Lock()
    index = {item.key: i for i, item in enumerate(items)}

    def do(rank, key):
        with lock:
            log.append(("start", key))
        time.sleep(0.004 if index[key] in slow else 0.0)
        with lock:
            log.append(("end", key))
        return ["failed" if key.endswith("1") else "finished"]

    results = run_in_threads(size, items, do)
    starts = [key for what, key in log if what == "start"]
    assert sorted(starts) == sorted(item.key for item in items)
    for item in items:
        if item.needs is not None:
            assert log.index(("end", item.needs)) < log.index(("start", item.key))
    expected = Counter("failed" if item.key.endswith("1") else "finished" for item in items)
    assert all(result == expected for result in results.values())
    assert set(results) == set(range(size))


def test_alone_the_order_is_the_given_one():
    items = [Item("long"), Item("middle"), Item("short", needs="long")]
    done = []
    dispatch(World(0, 1, None), items, lambda key: done.append(key) or ["finished"])
    assert done == ["long", "middle", "short"]


def test_a_drain_of_rank_0_reaches_every_rank_within_its_item():
    drains = [Drain() for _ in range(4)]
    heard = {}
    others_at_work = threading.Event()

    def do(rank, key):
        if rank == 0:
            assert others_at_work.wait(20)
            drains[0].request("SIGTERM came")
            return ["paused"]
        others_at_work.set()
        deadline = time.monotonic() + 20
        while drains[rank].reason is None and time.monotonic() < deadline:
            time.sleep(0.01)
        heard[rank] = drains[rank].reason
        return ["paused"]

    results = run_in_threads(4, [Item(f"run{i}") for i in range(20)], do, drains)
    assert len(heard) >= 1 and set(heard.values()) == {"SIGTERM came"}
    under_way = results[0]["paused"]
    assert 1 <= under_way <= 4
    assert all(result == Counter(paused=under_way, left=20 - under_way) for result in results.values())


def test_what_drains_before_it_starts_does_nothing():
    drains = [Drain() for _ in range(3)]
    for drain in drains:
        drain.request("no time")
    results = run_in_threads(3, [Item("build"), Item("run", needs="build")], lambda rank, key: "finished", drains)
    assert results == {rank: Counter(left=2) for rank in range(3)}


def test_nothing_to_do_ends_at_once():
    assert run_in_threads(3, [], lambda rank, key: "finished") == {0: {}, 1: {}, 2: {}}


def test_without_mpi4py_a_process_is_alone(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    assert start_mpi(None) == start_mpi(1) == World(0, 1, None)


HEAD = """
import hashlib, json, os, sys, threading, time
from mpi.dispatch import dispatch, install_abort_hooks, start_mpi
from mpi.handout import Item
world = start_mpi(4)
install_abort_hooks(world)
"""

SHARED_OUT = """
def do(key):
    if world.rank == 0:
        begun = time.monotonic()
        while time.monotonic() - begun < 1.0:
            hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)  # computes without the interpreter's lock, as XLA does
    else:
        time.sleep(0.01)
    with open(os.path.join(sys.argv[1], f"{world.rank}"), "a") as log:
        log.write(key + "\\n")
    return ["finished"]

items = [Item("build"), *(Item(f"run{i}", needs="build" if i % 2 else None) for i in range(40))]
outcomes = dispatch(world, items if world.rank == 0 else [], do)
with open(os.path.join(sys.argv[1], f"end{world.rank}"), "w") as log:
    log.write(json.dumps([outcomes["finished"], world.size]))
"""

RAISES = """
def do(key):
    if key == "bad":
        raise RuntimeError("a rank " + "breaks")
    time.sleep(0.01 if key == "good" else 60)
    return ["finished"]
dispatch(world, [Item("good"), Item("bad"), Item("slow1"), Item("slow2"), Item("slow3")], do)
"""

RAISES_IN_THREAD = """
def broken():
    raise RuntimeError("a rank " + "breaks")
if world.rank == {rank}:
    threading.Thread(target=broken, name="helper").start()
dispatch(world, [Item(f"slow{{i}}") for i in range(4)], lambda key: time.sleep(60))
"""


def mpirun(program: Path, *words: str, ranks: int = 4, timeout: float = 60.0) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    launch = Launch(("localhost",), ranks)
    line = launch_line(find_launcher(LauncherChoice()), launch, [sys.executable, str(program), *words], env)
    return subprocess.run(line, capture_output=True, text=True, timeout=timeout, env=env)


@pytest.mark.mpi
def test_four_real_ranks_share_out_while_rank_0_computes(tmp_path):
    program = tmp_path / "share out.py"
    program.write_text(HEAD + SHARED_OUT)
    done = mpirun(program, str(tmp_path))
    assert done.returncode == 0, done.stderr
    keys = {rank: (tmp_path / str(rank)).read_text().split() for rank in range(4) if (tmp_path / str(rank)).exists()}
    assert sorted(key for done_there in keys.values() for key in done_there) == sorted(
        ["build", *(f"run{i}" for i in range(40))]
    )
    # Were claims answered only when rank 0 is not computing, the others would get three items per second.
    assert len(keys.get(0, [])) <= 5
    for rank in range(4):
        assert json.loads((tmp_path / f"end{rank}").read_text()) == [41, 4]


DRAINS = """
import signal
from lambda_hat.store.drain import Drain
drain = Drain()
drain.on_signals()
def do(key):
    while drain.reason is None:
        time.sleep(0.05)
    return ["paused"]
if world.rank == 0:
    threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
outcomes = dispatch(world, [Item(f"run{i}") for i in range(9)], do, drain)
# One write: the launcher may put what another rank says between two.
sys.stdout.write(f"{world.rank} {drain.reason} {dict(sorted(outcomes.items()))}\\n")
"""


@pytest.mark.mpi
def test_a_signal_to_one_rank_drains_all_and_the_job_ends_well(tmp_path):
    program = tmp_path / "drains.py"
    program.write_text(HEAD + DRAINS)
    done = mpirun(program)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"{rank} SIGTERM came {{'left': 5, 'paused': 4}}" for rank in range(4)]


@pytest.mark.mpi
@pytest.mark.parametrize(
    "body, told",
    [
        (RAISES, ["rank ", "of 4 on", "RuntimeError: a rank breaks", "Traceback"]),
        (RAISES_IN_THREAD.format(rank=0), ["rank 0 of 4 on", "thread helper", "RuntimeError: a rank breaks"]),
        (RAISES_IN_THREAD.format(rank=2), ["rank 2 of 4 on", "thread helper", "RuntimeError: a rank breaks"]),
    ],
    ids=["main", "thread-of-rank-0", "thread-of-rank-2"],
)
def test_an_uncaught_exception_ends_every_rank_at_once(tmp_path, body, told):
    program = tmp_path / "raises.py"
    program.write_text(HEAD + body)
    begun = time.monotonic()
    done = mpirun(program)
    assert time.monotonic() - begun < 30
    assert done.returncode == 1
    for words in told:
        assert words in done.stderr


@pytest.mark.parametrize("size", [1, 2, 4])
def test_what_is_let_go_of_while_ranks_work_is_done_by_none_of_them(size):
    done, gone, handouts, one_at_a_time = [], [], [], threading.Lock()
    items = [Item(f"run{i}", cost=100.0 - i) for i in range(100)]

    def do(rank, key):
        time.sleep(0.001)
        # While runs are let go of, no other rank ends one: how many wait then does not hang on the machine.
        with one_at_a_time:
            done.append(key)
            if len(done) % 20 == 10:
                gone.extend(handouts[0].let_go())
        return ["finished"]

    results = run_in_threads(size, items, do, on_begin=handouts.append)
    assert sorted([*done, *gone]) == sorted(item.key for item in items)
    assert len(gone) >= 45
    assert results[0] == Counter(finished=len(done))
