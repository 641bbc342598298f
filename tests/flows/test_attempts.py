"""When a driver tries again, what it waits for, and when it gives up; packs and Parsl are stood in for."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from flows.driver import attempts
from flows.driver.attempts import Attempts, Tally
from flows.driver.bad_nodes import BadNodes
from flows.driver.options import parse_options
from flows.driver.request import Request
from flows.driver.screen import Screen
from flows.driver.stopping import OutOfTime, Stop, Stopped
from flows.driver.workers import Workers
from flows.sites.executors import PACKS, TASKS
from lambda_hat.errors import LaunchError, StoreUnwritable
from lambda_hat.id_utils import Run
from lambda_hat.store.heartbeat import Heartbeat, heartbeat_state
from lambda_hat.store.layout import write_json_atomic
from lambda_hat.store.study_records import StudyLog
from lambda_hat.workflow_config import with_runs

OVERRIDES = {"num_draws": 100, "num_burnin": 50, "num_chains": 2, "step_size": 1e-4}


def failed(request, run):
    """Let a run be done with, as far as planning goes."""
    write_json_atomic(request.store.run_dir(run.target_id, run.run_id) / "error.json", {"type": "T", "message": "m"})


class Executor:
    """What a driver asks of an executor of Parsl's."""

    bad_state_is_set = False

    def __init__(self, label: str):
        self.label = label


@pytest.fixture(autouse=True)
def no_long_wait(monkeypatch):
    monkeypatch.setattr(attempts, "WORKERS_SECONDS", 0.3)


@pytest.fixture(autouse=True)
def no_parsl(monkeypatch):
    """A scene puts its own workers here."""
    monkeypatch.setattr(attempts, "start_workers", None)


class Scene:
    """A study of three runs whose rounds are what `rounds` say, one function of the round each."""

    def __init__(self, folder: Path, *rounds, retries: int = 1, ends_in: float | None = None):
        sampler = {"name": "sgld", "overrides": OVERRIDES, "sweep": {"seed": [0, 1, 2]}}
        (folder / "study.yaml").write_text(
            yaml.safe_dump({"targets": [{"target": "quadratic"}], "samplers": [sampler]})
        )
        words = ["--experiments", str(folder / "study.yaml"), "--store", str(folder / "runs")]
        words += ["--retries", str(retries), "--ranks", "1"]
        request = Request.from_options(parse_options("", words, packed=True), packed=True)
        request.make_folders()
        stop_at = None if ends_in is None else time.time() + ends_in
        self.request = replace(request, stop_at=stop_at, give_up_at=stop_at and stop_at + 60)
        attempts.start_workers = self.workers
        self.rounds, self.packed, self.said = list(rounds), [], []
        self.leases: list[Path] = []
        """One for every start of workers."""
        screen, self.stop = Screen(), Stop()
        screen.say = self.said.append
        self.further = []
        """Studies to go on with."""
        next_study = lambda: self.further.pop() if self.further else None  # noqa: E731
        self.attempts = Attempts(self.request, self.submit, screen, self.stop, StudyLog(), next_study)

    @contextlib.contextmanager
    def workers(self, request, lease, builds, say, log_event):
        self.lease = lease
        self.leases.append(lease.path)
        self.executor = Executor(TASKS if builds else PACKS)
        yield Workers(lease, "20260101-000000-abcd", None, [self.executor])
        lease.withdraw()

    def submit(self, round_):
        self.packed.append([run.run_id for run in round_.plan.runs])
        future: Future = Future()
        future.set_result(0)
        round_.on_done(future, lambda _: self.rounds.pop(0)(round_))

    def run(self, **more):
        self.attempts.run(replace(self.request.plan(None), **more))

    @property
    def sizes(self) -> list[int]:
        return [len(runs) for runs in self.packed]


def nothing(round_):
    round_.outcome.causes["rank"] += 1


def one_more(round_):
    round_.outcome.causes["block"] += 1
    failed(round_.request, round_.plan.runs[0])


def a_checkpoint_more(round_):
    round_.outcome.advanced = True
    round_.outcome.causes["drain"] += 1


def all_of_them(round_):
    for run in round_.plan.runs:
        failed(round_.request, run)


@pytest.mark.parametrize(
    ("retries", "rounds", "sizes"),
    [
        (0, [nothing], [3]),
        (1, [nothing, nothing], [3, 3]),
        (2, [nothing, nothing, nothing], [3, 3, 3]),
        (1, [nothing, one_more, nothing, one_more, nothing, nothing], [3, 3, 2, 2, 1, 1]),
        (1, [a_checkpoint_more, a_checkpoint_more, a_checkpoint_more, nothing, nothing], [3] * 5),
        (1, [all_of_them], [3]),
        (0, [one_more], [3]),
    ],
)
def test_retries_count_tries_in_a_row_that_get_nothing_done(tmp_path, retries, rounds, sizes):
    scene = Scene(tmp_path, *rounds, retries=retries)
    scene.run()
    assert scene.sizes == sizes
    assert scene.rounds == []
    assert scene.attempts.tally.runs == sum(sizes[1:])


@pytest.mark.parametrize("late", [False, True])
def test_workers_that_have_died_are_started_anew(tmp_path, late):
    def lose_workers(round_):
        round_.outcome.causes["block"] += 1
        die = threading.Timer(0.1 if late else 0, setattr, (scene.executor, "bad_state_is_set", True))
        die.start()
        die.join() if not late else None

    scene = Scene(tmp_path, lose_workers, one_more, lose_workers, all_of_them)
    scene.run()
    assert scene.sizes == [3, 3, 2, 2]
    assert len(set(scene.leases)) == 3
    assert [heartbeat_state(path) for path in scene.leases[:2]] == ["ending", "ending"]


def test_workers_for_packs_alone_give_way_to_others_where_a_target_has_to_be_built_again(tmp_path):
    scene = Scene(tmp_path, one_more, one_more, all_of_them)
    scene.run(builds=[])
    assert scene.sizes == [3, 2, 1]
    assert len(set(scene.leases)) == 2


def test_workers_that_die_again_and_again_are_given_up(tmp_path):
    def lose_workers(round_):
        scene.executor.bad_state_is_set = True

    scene = Scene(tmp_path, lose_workers, lose_workers)
    scene.run()
    assert scene.sizes == [3, 3] and len(set(scene.leases)) == 2


def test_where_nothing_is_left_the_same_workers_go_on_with_the_next_study(tmp_path):
    scene = Scene(tmp_path, one_more, all_of_them, all_of_them)
    study = scene.request.study
    another = Run.of(replace(study.runs[0].cfg, seed=7))
    scene.further = [with_runs(study, [another]), replace(scene.request.study)]
    scene.run()
    assert scene.sizes == [3, 2, 1], "all of the second study is done"
    assert len(scene.leases) == 1


def test_what_was_tried_again_is_counted_by_cause(tmp_path):
    def quarantine(round_):
        round_.outcome.quarantined += 1
        all_of_them(round_)

    scene = Scene(tmp_path, nothing, one_more, quarantine)
    scene.run()
    line = "tried again: 5 runs (1 lost block, 1 dead rank); quarantined: 1 run"
    assert scene.attempts.tally.line() == line


def test_nothing_to_tell_is_nothing_told():
    assert Tally().line() is None
    assert Tally(damaged=1).line() == "set aside: 1 damaged file"
    assert Tally(runs=1, causes=Counter(time=2, rebuilt=1)).line() == (
        "tried again: 1 run (2 packs out of time, 1 damaged target)"
    )


def test_a_store_that_cannot_be_written_is_told_and_not_tried_again(tmp_path):
    def full(round_):
        round_.outcome.store_error = "/store/x: No space left on device"

    scene = Scene(tmp_path, full, retries=5)
    with pytest.raises(StoreUnwritable, match="No space left"):
        scene.run()
    assert scene.sizes == [3]
    assert heartbeat_state(scene.lease.path) == "ending"


def test_packs_that_refuse_to_start_are_not_tried_again(tmp_path):
    scene = Scene(tmp_path, lambda round_: round_.outcome.refusals.append("no GPU"), retries=5)
    with pytest.raises(LaunchError, match="no pack could be started: no GPU"):
        scene.run()


def test_packs_that_refuse_are_tried_again_without_their_bad_nodes(tmp_path):
    def refuse(round_):
        round_.outcome.refusals.append("no GPU")
        round_.nodes.did_not_start({"n2.cluster": "no GPU"}, 2)
        round_.tell_of_nodes(round_.nodes.judge())

    told = lambda: json.loads(scene.lease.path.read_bytes())["left_out"]  # noqa: E731
    scene = Scene(tmp_path, refuse, lambda round_: (seen.append(told()), all_of_them(round_)))
    seen = []
    scene.attempts._nodes = BadNodes(["n1", "n2"])
    scene.run()
    assert (scene.sizes, seen) == ([3, 3], [["n2"]])
    assert scene.attempts.tally.line() == "tried again: 3 runs; left out: node n2"


def test_a_defect_that_shows_on_one_node_after_the_other_is_given_up(tmp_path):
    def die(round_):
        number = len(scene.packed)
        for pack in "pq":
            round_.nodes.died(f"{pack}{number}", [f"n{number}"], [])
        round_.tell_of_nodes(round_.nodes.judge())
        nothing(round_)

    scene = Scene(tmp_path, *[die] * 4, retries=1)
    scene.attempts._nodes = BadNodes()
    scene.run()
    assert scene.sizes == [3] * 4 and scene.attempts.tally.nodes == []


def test_workers_that_are_started_anew_know_the_bad_nodes(tmp_path):
    def lose_workers(round_):
        for pack in "pq":
            round_.nodes.died(pack, ["n1"], [])
        round_.tell_of_nodes(round_.nodes.judge())
        scene.executor.bad_state_is_set = True

    def look(round_):
        seen.append(json.loads(scene.lease.path.read_bytes())["left_out"])
        all_of_them(round_)

    scene, seen = Scene(tmp_path, lose_workers, look), []
    scene.attempts._nodes = BadNodes()
    scene.run()
    assert len(set(scene.leases)) == 2 and seen == [["n1"]]


def test_bad_nodes_are_used_again_where_a_block_has_no_others(tmp_path):
    def no_good_node(round_):
        round_.outcome.causes["block"] += 1
        round_.outcome.no_good_node += 1

    def die(round_):
        for pack in "pq":
            round_.nodes.died(pack, ["n1"], [])
        round_.tell_of_nodes(round_.nodes.judge())
        one_more(round_)

    scene = Scene(tmp_path, die, no_good_node, all_of_them)
    scene.attempts._nodes = BadNodes()
    scene.run()
    assert "node n1 is used again: there is no other" in scene.said
    assert json.loads(scene.lease.path.read_bytes())["left_out"] == []
    assert scene.attempts.tally.nodes == []


def test_no_round_is_begun_without_time(tmp_path):
    scene = Scene(tmp_path, one_more, retries=5, ends_in=0.05)
    scene.rounds = [lambda round_: (time.sleep(0.1), one_more(round_))]
    with pytest.raises(OutOfTime):
        scene.run()
    assert scene.sizes == [3]


def test_runs_that_are_left_for_want_of_time_are_not_packed_again_in_the_same_allocation(tmp_path):
    def too_short(round_):
        round_.outcome.out_of_time = True
        round_.outcome.causes["time"] += 1
        one_more(round_)
        del round_.outcome.causes["block"]

    scene = Scene(tmp_path, too_short, retries=5, ends_in=1000)
    with pytest.raises(OutOfTime):
        scene.run()


def test_out_of_time_with_nothing_left_is_the_end(tmp_path):
    scene = Scene(tmp_path, lambda round_: (time.sleep(0.1), all_of_them(round_)), ends_in=0.05)
    scene.run()


def other_driver(scene, stack, runs):
    lease = stack.enter_context(Heartbeat(scene.request.store.packs_dir))
    entries = [{"target_id": run.target_id, "run_id": run.run_id} for run in runs]
    pack = scene.request.store.pack_dir(f"pack_20260101-000000-{lease.path.stem[-4:]}-0-0000")
    write_json_atomic(pack / "pack.json", {"lease": str(lease.path), "runs": entries})
    return lease


def test_runs_of_another_driver_are_waited_for_and_taken_over_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "ELSEWHERE_SECONDS", 0.3)
    scene = Scene(tmp_path, all_of_them, retries=0)
    first, *others = scene.request.plan(None).runs
    with contextlib.ExitStack() as stack:
        lease = other_driver(scene, stack, [first, *others])

        def end_soon():
            while not scene.said:
                time.sleep(0.05)
            failed(scene.request, first)
            time.sleep(0.5)
            lease.withdraw()

        thread = threading.Thread(target=end_soon)
        thread.start()
        scene.run()
        thread.join()
    host = json.loads(lease.path.read_bytes())["host"]
    assert scene.said[0] == (
        f"3 runs are being sampled by another driver (process {os.getpid()} on {host}): waiting for them"
    )
    assert scene.packed == [[run.run_id for run in others]]


def test_only_what_nobody_else_has_in_hand_is_sampled_first(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "ELSEWHERE_SECONDS", 0.1)
    scene = Scene(tmp_path, retries=0)
    runs = scene.request.plan(None).runs
    with contextlib.ExitStack() as stack:
        lease = other_driver(scene, stack, runs[:2])
        scene.rounds = [lambda round_: (all_of_them(round_), lease.withdraw()), all_of_them]
        scene.run()
    assert scene.sizes == [1, 2]


@pytest.mark.parametrize("how", ["signal", "time"])
def test_waiting_for_others_ends_with_a_signal_or_with_the_time(tmp_path, how):
    scene = Scene(tmp_path, ends_in=0.5 if how == "time" else None)
    with contextlib.ExitStack() as stack:
        other_driver(scene, stack, scene.request.plan(None).runs)
        stack.enter_context(scene.stop.on_signals())
        if how == "signal":
            threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        began = time.monotonic()
        with pytest.raises(OutOfTime if how == "time" else Stopped):
            scene.run()
    assert time.monotonic() - began < 10


def test_a_stop_marks_the_lease_ended_before_anything_else(tmp_path, capsys):
    def stop(round_):
        os.kill(os.getpid(), signal.SIGINT)
        lease = round_.workers.heartbeat.path
        round_.on_done(Future(), lambda _: None, running=lambda: heartbeat_state(lease) == "live")

    scene = Scene(tmp_path, stop)
    with scene.stop.on_signals(), pytest.raises(Stopped):
        scene.run()
    assert heartbeat_state(scene.lease.path) == "ending"
    assert "stopping: runs are checkpointed; Ctrl-C again stops at once" in capsys.readouterr().out
