"""How rank 0 answers a driver that asks it to let go of runs."""

from __future__ import annotations

import time
from types import SimpleNamespace

from lambda_hat.store.drain import Drain
from lambda_hat.store.heartbeat import Heartbeat, drain_when_lost
from lambda_hat.store.layout import EventLog, read_events
from mpi.handout import Handout
from mpi.pack import items_of
from mpi.rank import Sharing


def answers(log, number):
    """The runs of the first `number` answers, once they are there."""
    deadline = time.monotonic() + 20
    while len(found := read_events(log)[0]) < number:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return [event["runs"] for event in found if event["event"] == "let_go"]


def test_each_question_is_answered_once_and_those_for_other_packs_are_not(tmp_path):
    names = [f"run_{letter}" for letter in "abcdef"]
    runs = [
        SimpleNamespace(key=("tgt_1", name), target_id="tgt_1", program="p", cost=9.0 - place)
        for place, name in enumerate(names)
    ]
    # Bundles of two runs, which stay together.
    pack = {"pack_id": "pack_x", "runs": runs, "lanes": 2, "builds": {}, "suspects": []}
    log = tmp_path / "rank-0000.jsonl"
    with EventLog(log) as events, Heartbeat(tmp_path) as heartbeat:
        sharing = Sharing(pack, 1, events)
        heartbeat.let_go("pack_x")
        drain_when_lost(heartbeat.path, Drain(), "rank 0", period=0.02, grace=3600, on_beat=sharing.hear)
        # It has no hand-out yet.
        time.sleep(0.3)
        assert read_events(log)[0] == []
        sharing.begin(Handout(items_of(pack, 1)))
        first, second = (["run_a", "run_d", "run_c", "run_f"], ["run_b", "run_e"])
        gone = [[["tgt_1", name] for name in names] for names in (first, second)]
        assert answers(log, 1) == gone[:1]
        heartbeat.let_go("pack_y")
        heartbeat.let_go("pack_x")
        assert answers(log, 2) == gone
        heartbeat.let_go("pack_x")
        assert answers(log, 3) == [*gone, []]
