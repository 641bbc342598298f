"""Whose fault it was that a rank died, and what becomes of runs that kill."""

from __future__ import annotations

import json

import pytest

from flows.driver.bad_nodes import BadNodes
from flows.driver.deaths import blame, forget, is_suspect, record_deaths, suspects_among, who_died
from lambda_hat.report.results import error_line
from lambda_hat.store.events import PackLog
from lambda_hat.store.layout import EventLog, Store, deaths_of

A, B, C, D = (("tgt_1", f"run_{name}") for name in "abcd")
FOUR = {0: [A], 1: [B], 2: [C], 3: [D]}


@pytest.mark.parametrize(
    ("in_flight", "dead", "blamed"),
    [
        (FOUR, {2}, {C: (2, True)}),
        (FOUR, {1, 2}, {B: (1, False), C: (2, False)}),
        (FOUR, set(), {key: (rank, False) for rank, (key,) in FOUR.items()}),
        ({3: [D]}, set(), {D: (3, True)}),
        ({3: [D]}, {0}, {}),
        # Lanes of one program die together.
        ({0: [A], 3: [C, D]}, {3}, {C: (3, False), D: (3, False)}),
        ({3: [C, D]}, set(), {C: (3, False), D: (3, False)}),
        ({}, {0}, {}),
        ({}, set(), {}),
    ],
)
def test_only_what_is_known_is_sure(in_flight, dead, blamed):
    assert blame(in_flight, dead) == blamed


def pack_log(store, pack_id, *, in_flight, finished=(), rank_log="", stderr="", host="vm"):
    """A pack of four ranks that ended badly."""
    directory = store.pack_dir(pack_id)
    for rank in range(4):
        with EventLog(directory / f"rank-{rank:04d}.jsonl") as log:
            log.append("start", rank=rank, size=4, host=host, pid=100 + rank)
            for target_id, run_id in finished if rank == 0 else ():
                names = {"rank": rank, "target_id": target_id, "run_id": run_id}
                log.append("run_start", **names)
                log.append("run_end", **names, status="finished", seconds=1.0, verdict="ok")
            for lane, (target_id, run_id) in enumerate(in_flight.get(rank, ())):
                log.append("run_start", rank=rank, target_id=target_id, run_id=run_id, lane=lane)
    (directory / "rank-0002.log").write_text(rank_log)
    (directory / "stderr.log").write_text(stderr)
    found = PackLog(directory)
    assert len(found.read()) == len(finished)
    assert found.in_flight == in_flight
    return found


def test_the_interpreters_last_words_and_an_uncaught_exception_name_a_rank(tmp_path):
    store = Store(tmp_path)
    crash = "Fatal Python error: Segmentation fault\n\nCurrent thread 0x1 (most recent call first):\n"
    assert who_died(pack_log(store, "p1", in_flight=FOUR, rank_log=crash), "auto") == {2}
    words = "rank 3 of 4 on vm: uncaught exception, ending every rank\nTraceback (most recent call last):\n"
    assert who_died(pack_log(store, "p2", in_flight=FOUR, stderr=words), "auto") == {3}
    assert who_died(pack_log(store, "p3", in_flight=FOUR), "auto") == set()


def test_a_killer_among_innocents_is_found_in_two_tries(tmp_path):
    store = Store(tmp_path)
    dead, condemned, _ = record_deaths(
        store, pack_log(store, "p1", in_flight=FOUR), "auto", "exit status 9", BadNodes()
    )
    assert (dead, condemned) == (set(), [])
    assert suspects_among(store, [A, C, ("tgt_1", "run_e")]) == ["tgt_1/run_a", "tgt_1/run_c"]
    # Suspects come one at a time: B finished, C was alone.
    second = pack_log(store, "p2", in_flight={1: [C]}, finished=[B])
    dead, condemned, _ = record_deaths(store, second, "auto", "exit status 9", BadNodes())
    assert condemned == [C]
    error = json.loads((store.run_dir(*C) / "error.json").read_text())
    assert (error["type"], error["pack_id"], error["rank"], error["host"]) == ("RankDied", "p2", 1, "vm")
    assert [(death["pack_id"], death["rank"], death["sure"]) for death in error["deaths"]] == [
        ("p1", 2, False),
        ("p2", 1, True),
    ]
    for death in error["deaths"]:
        assert death["log"] in error["message"] and "exit status 9" in error["message"]
    assert store.run_status(*C) == "failed"
    assert error_line(store.run_dir(*C) / "error.json").startswith("RankDied: the rank that sampled this run died 2")
    assert [store.run_status(*key) for key in (A, B, D)] == ["pending"] * 3


def test_doubtful_deaths_alone_condemn_nobody(tmp_path):
    store = Store(tmp_path)
    for pack in ("p1", "p2", "p3"):
        log = pack_log(store, pack, in_flight=FOUR)
        assert record_deaths(store, log, "auto", "exit status 9", BadNodes())[1] == []
    assert len(deaths_of(store.run_dir(*A))) == 3
    assert store.run_status(*A) == "pending"


def test_a_damaged_record_makes_a_suspect_and_stops_nothing(tmp_path):
    store = Store(tmp_path)
    run_dir = store.run_dir(*A)
    run_dir.mkdir(parents=True)
    (run_dir / "deaths.json").write_bytes(b'[{"sure": tr\xff')
    assert is_suspect(run_dir) and deaths_of(run_dir) == []
    record_deaths(store, pack_log(store, "p1", in_flight={0: [A]}), "auto", "exit status 9", BadNodes())
    assert [death["sure"] for death in deaths_of(run_dir)] == [True]
    forget(run_dir)
    assert not is_suspect(run_dir)
    forget(run_dir)


def test_a_run_that_died_twice_on_a_bad_node_is_tried_on_another_one(tmp_path):
    store, nodes = Store(tmp_path), BadNodes()

    def dies(pack_id, host):
        log = pack_log(store, pack_id, in_flight={0: [A]}, host=host)
        return record_deaths(store, log, "auto", "exit status 9", nodes)[1:]

    assert dies("p1", "n1.cluster") == ([], [])
    why = "2 launches died there (p1, p2)"
    assert dies("p2", "n1") == ([], [f"node n1 is left out from now on: {why}"])
    assert nodes.left_out == {"n1": why}
    # It dies there as well, so it was its own fault all the time.
    back = ["node n1 is used again: what failed there failed on other nodes as well"]
    assert dies("p3", "n2") == ([A], back)
    assert nodes.left_out == {}
