"""What the event logs of ranks say, whole and torn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lambda_hat.report.timeline import SESSION_GAP, busy_seconds, draw_timeline, read_lives, sessions_of, spans_of
from lambda_hat.store.events import RankLife

KEY = {"target_id": "tgt_1", "run_id": "run_sgld_1"}
OTHER = {"target_id": "tgt_1", "run_id": "run_hmc_2"}
START = {"event": "start", "time": 100.0, "rank": 3, "host": "node", "size": 4, "pid": 7}


@pytest.fixture
def lives(tmp_path):
    """The ranks of a pack whose one log has these events."""

    def lives(*events, runs=(("tgt_1", "run_sgld_1"), ("tgt_1", "run_hmc_2"))):
        pack = tmp_path / "pack_1"
        pack.mkdir(exist_ok=True)
        lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
        (pack / "rank-0003.jsonl").write_text("\n".join(lines) + "\n")
        return read_lives([pack], set(runs))

    return lives


def spans(life):
    return [(span.begun, span.ended, span.what, span.status) for span in spans_of(life)]


def test_a_life_with_a_build_and_lanes(lives):
    (life,) = lives(
        START,
        {"event": "ready", "time": 101.0},
        {"event": "build_start", "time": 101.0, "target_id": "tgt_1"},
        {"event": "build_end", "time": 103.0, "target_id": "tgt_1", "status": "finished", "seconds": 2.0},
        {"event": "run_start", "time": 103.0, **KEY, "lane": 0},
        {"event": "run_start", "time": 103.0, **OTHER, "lane": 1},
        {"event": "run_end", "time": 109.0, **KEY, "status": "finished", "seconds": 6.0},
        {"event": "run_end", "time": 110.0, **OTHER, "status": "failed", "seconds": 7.0},
        {"event": "end", "time": 112.0, "busy": 9.0, "seconds": 12.0},
    )
    assert (life.host, life.rank, life.log.parent.name, life.begun, life.ended, busy_seconds(life)) == (
        "node", 3, "pack_1", 100.0, 112.0, 9.0,
    )  # fmt: skip
    assert spans(life) == [
        (100.0, 101.0, "start-up", "finished"),
        (101.0, 103.0, "build of a target", "finished"),
        (103.0, 109.0, "sgld", "finished"),
        (103.0, 110.0, "hmc", "failed"),
    ]


def test_a_rank_that_died_was_busy_as_long_as_it_is_known_to_have_lived(lives):
    (life,) = lives(
        START,
        {"event": "run_start", "time": 101.0, **KEY},
        {"event": "run_end", "time": 105.0, **KEY, "status": "finished", "seconds": 4.0},
        {"event": "run_start", "time": 105.0, **OTHER},
        {"event": "width", "time": 108.0},
        '{"event": "run_e',
    )
    assert spans(life)[-1] == (105.0, 108.0, "hmc", "unfinished")
    assert busy_seconds(life) == 7.0


def test_lines_that_the_disk_has_damaged_are_passed_over(lives):
    (life,) = lives(
        "\0\0\0",
        "[]",
        {"event": "run_end", "time": None, **KEY},
        {"event": "run_start", "time": 1e300, **KEY},
        {"event": "run_end", "time": 50.0, **KEY},
        {"event": "run_start", "time": 60.0, **KEY},
        {"event": "run_end", "time": 61.0, "target_id": [], "run_id": {}, "status": "finished", "seconds": 1.0},
    )
    assert (life.host, life.rank) == ("?", 3)
    assert spans(life) == [(60.0, 61.0, "sgld", "unfinished")]


def test_packs_of_other_studies_are_left_out(lives):
    events = [START, {"event": "run_start", "time": 101.0, **KEY}]
    assert len(lives(*events)) == 1
    assert lives(*events, runs=[("tgt_2", "run_sgld_1")]) == []


def test_time_begins_anew_after_a_pause(lives):
    def life(begun, ended):
        return RankLife(Path("pack/rank-0000.jsonl"), 0, begun, ended)

    first, second = life(0.0, 10.0), life(5.0, 40.0)
    third = life(40.0 + SESSION_GAP + 1, 300.0)
    assert sessions_of([third, first, second]) == [[first, second], [third]]
    assert draw_timeline([]) is None
    assert draw_timeline([first, second, third]).png.startswith(b"\x89PNG")
