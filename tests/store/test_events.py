"""The fold over the event logs of ranks; what else is asked of it is in the tests of those who ask."""

from __future__ import annotations

import pytest

from lambda_hat.store.events import PackLog, lives_of
from lambda_hat.store.files import EventLog

A, B = ({"target_id": "tgt_1", "run_id": f"run_{name}"} for name in "ab")
KEY_A, KEY_B = (tuple(names.values()) for names in (A, B))
START = {"event": "start", "size": 1, "host": "n1", "pid": 7}
END = {"event": "end", "busy": 1.0, "seconds": 2.0}


def begin(names, lane=0):
    return {"event": "run_start", **names, "lane": lane}


def end(names, status="finished"):
    return {"event": "run_end", **names, "status": status, "seconds": 1.0}


@pytest.fixture
def write(tmp_path):
    """Appends events to the log of rank 5."""

    def write(*events):
        with EventLog(tmp_path / "rank-0005.jsonl") as log:
            for event in events:
                log.append(**event)

    return write


def test_a_pack_is_read_as_it_grows_and_no_more_once_it_is_over(tmp_path, write):
    pack = PackLog(tmp_path)
    assert (pack.read(), pack.begun, pack.over) == ([], False, False)
    write(START, begin(A))
    assert (pack.read(), pack.in_flight, pack.running) == ([], {5: [KEY_A]}, True)
    write(end(A), begin(B), end(B, "paused"), END)
    assert [(attempt.key, attempt.status) for attempt in pack.read()] == [(KEY_A, "finished"), (KEY_B, "paused")]
    assert (pack.over, pack.size, pack.in_flight, pack.ends[KEY_B].status) == (True, 1, {}, "paused")
    write(end(A, "late"))
    assert [attempt.status for attempt in pack.read()] == ["late"]
    write(end(A, "too late"))
    assert pack.read() == []


@pytest.mark.parametrize("more", [[END], [begin(B)], [START]], ids=["its end", "its next run", "its next process"])
def test_a_run_without_an_end_is_over_at_the_next_step_of_its_rank(tmp_path, write, more):
    write(START, begin(A), {"event": "width", "lanes": 2}, *more)
    pack = PackLog(tmp_path)
    pack.read()
    assert KEY_A not in pack.in_flight.get(5, []) and KEY_A not in pack.ends
    lives = lives_of(tmp_path / "rank-0005.jsonl")
    (attempt,) = (attempt for life in lives for attempt in life.attempts if attempt.key == KEY_A)
    assert attempt.status is None and attempt.begun <= attempt.until <= lives[-1].ended


def test_a_rank_whose_first_line_is_lost_has_its_number_and_its_host(tmp_path, write):
    write({"event": "ready", "host": "n1"}, begin(A), begin(B, lane=1), end(A))
    (life,) = lives_of(tmp_path / "rank-0005.jsonl")
    assert (life.rank, life.host, life.size) == (5, "n1", 0)
    assert [attempt.key for attempt in life.in_flight] == [KEY_B]
    assert [attempt.key for attempt in life.attempts[0].group] == [KEY_A, KEY_B]


def test_lines_that_the_disk_has_damaged_are_passed_over(tmp_path):
    log = tmp_path / "rank-0000.jsonl"
    log.write_text(
        '{"event": "run_end", "time": 1}\n{"event": "start", "time": 1}\n{"time": 1}\n{"event": "end", "time": []}\n'
        '{"event": "run_end", "time": 1, "target_id": "t", "run_id": "r", "status": "left", "seconds": "x"}\n'
        '{"event": "run_end", "time": 1, "target_id": [], "run_id": "r", "status": "left", "seconds": 1}\n'
        '{"event": "run_end", "target_id": "t", "run_id": "r", "status": "left", "seconds": 2}\n'
        '{"event": "run_end", "time": 1, "target_id": "t", "run_id": "r", "status": "left", "seconds": 1}\n'
    )
    found = PackLog(tmp_path)
    assert [(end.status, end.seconds) for end in found.read()] == [("left", 1)]
    assert not found.over and not found.in_flight


def test_the_runs_that_a_pack_lets_go_of_are_told_each_time(tmp_path):
    with EventLog(tmp_path / "rank-0000.jsonl") as log:
        log.append("start", rank=0, size=1, host="vm", pid=1)
        log.append("let_go", rank=0, runs=[["tgt_1", "run_a"], ["tgt_1", "run_b"]])
        log.append("let_go", rank=0, runs=["damaged"])
        log.append("let_go", rank=0, runs=[])
    found = PackLog(tmp_path)
    found.read()
    assert [life.let_go for life in found.ranks] == [[[("tgt_1", "run_a"), ("tgt_1", "run_b")], []]]
