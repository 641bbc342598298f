"""The record that a driver keeps of its study, and what becomes of it where it cannot be written or read."""

from __future__ import annotations

import contextlib
import json
import os

import pytest

from lambda_hat.checkout import SCRIPTS
from lambda_hat.errors import StoreError
from lambda_hat.store.files import read_events
from lambda_hat.store.process_identity import whoami
from lambda_hat.store.study_records import (
    BLOCKED,
    ELSEWHERE,
    FAILED,
    TO_SAMPLE,
    Planned,
    StudyRecord,
    in_order,
    new_name,
    read_study,
    shown,
    study_names,
    write_study,
)

A, B = "tgt_aaaaaaaaaaaa", "tgt_bbbbbbbbbbbb"
RUNS = [
    Planned(B, "run_hmc_00000001", 2.5, TO_SAMPLE),
    Planned(A, "run_hmc_00000002", 2.5, TO_SAMPLE),
    Planned(B, "run_hmc_00000003", 2.5, TO_SAMPLE),
    Planned(A, "run_hmc_00000004", 0.5, ELSEWHERE),
    Planned(A, "run_hmc_00000005", 0.5, FAILED),
    Planned(A, "run_hmc_00000006", 0.5, BLOCKED),
]


def record(**more) -> StudyRecord:
    fields = {
        "name": new_name(), "command": ["/opt/python", "flows/packed.py", "--pack", "8"], "directory": "/home/me/a b",
        "store": "/home/me/a b/runs", "driver": whoami(), "started": 1.8e9, "site": "slurm", "packed": True, "ranks": 8,
        "cached_targets": 1, "cached_runs": 7, "targets": {A: "quadratic d=4", B: "dln 2-1-2"}, "builds": [B],
        "runs": in_order(RUNS),
    }  # fmt: skip
    return StudyRecord(**{**fields, **more})


def test_a_record_comes_back_as_it_was_written(tmp_path):
    submitted = {"scheduler": "PBS", "job_id": "12.pbs", "watch": "qstat -f 12.pbs"}
    for more in ({}, {"ranks": None, "job_script": "/x/job.pbs"}, {"submitted": submitted, "packed": False}):
        written = record(**more)
        write_study(tmp_path, written).close()
        found = read_study(tmp_path, written.name)
        assert found == written
        assert abs(found.written - (tmp_path / "studies" / f"{written.name}.json").stat().st_mtime) < 1e-3


def test_places_of_runs_are_the_same_for_the_one_who_writes_and_the_one_who_reads(tmp_path):
    places = [run.run_id[-1] for run in in_order(RUNS)]
    assert places == ["1", "3", "2", "5", "6", "4"]
    written = record()
    write_study(tmp_path, written).close()
    assert [run.run_id[-1] for run in read_study(tmp_path, written.name).runs] == places


def test_names_are_listed_newest_first_and_nothing_else_is(tmp_path):
    names = ["20261126-031502-abcd", "20261126-031503-0000", "20250101-000000-ffff"]
    for name in names:
        write_study(tmp_path, record(name=name)).close()
    (tmp_path / "studies" / "notes.json").write_text("{}")
    (tmp_path / "studies" / f".{names[0]}.json.part").write_text("{}")
    assert study_names(tmp_path) == [names[1], names[0], names[2]]
    assert study_names(tmp_path / "nowhere") == []


@pytest.mark.parametrize("in_the_way", ["studies", "record", "log"])
def test_a_study_goes_on_where_nothing_can_be_written_down(tmp_path, in_the_way):
    made = record()
    if in_the_way == "studies":
        (tmp_path / "studies").write_text("a file")
    else:
        (tmp_path / "studies" / f"{made.name}.{'json' if in_the_way == 'record' else 'jsonl'}").mkdir(parents=True)
    log = write_study(tmp_path, made)
    log.append("round", name="x")
    log.close()
    assert not list(tmp_path.rglob("*.part"))


CUT_SHORT = AttributeError("a clean-up that a Ctrl-C cut short")
CUT_SHORT.__context__ = KeyboardInterrupt()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, {"status": 75}),
        (StoreError("no store"), {"status": 2, "reason": "no store"}),
        (KeyboardInterrupt(), {"status": 130}),
        (CUT_SHORT, {"status": 130}),
        (ZeroDivisionError("x"), {"status": 1, "reason": "ZeroDivisionError: x"}),
    ],
)
def test_the_log_says_how_the_driver_ended(tmp_path, error, told):
    made = record()
    with contextlib.suppress(BaseException), write_study(tmp_path, made) as log:
        log.exit_status = 75
        log.pack("pack_x", [RUNS[2].key, RUNS[0].key, ("tgt_other", "run_other")])
        if error is not None:
            raise error
    pack, end = read_events(tmp_path / "studies" / f"{made.name}.jsonl")[0]
    assert pack["runs"] == [1, 0]
    assert {key: value for key, value in end.items() if key != "time"} == {"event": "end", **told}


def test_nobody_else_may_write_a_record_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        made = record()
        write_study(tmp_path, made).close()
    finally:
        os.umask(before)
    assert (tmp_path / "studies" / f"{made.name}.json").stat().st_mode & 0o777 == 0o644


def test_a_record_that_tells_nonsense_is_none_or_leads_nowhere_else(tmp_path):
    made = record()
    write_study(tmp_path, made).close()
    path = tmp_path / "studies" / f"{made.name}.json"
    content = json.loads(path.read_text())
    nonsense = [
        None,
        7,
        True,
        "x",
        [],
        [[1]],
        {"tgt_/../x": "x"},
        {"to_sample": {"..": [["run_a", 1]]}},
        {"to_sample": 1},
    ]
    read = {}
    for key in content:
        for number, value in enumerate(nonsense):
            path.write_text(json.dumps({**content, key: value}))
            read[key, number] = read_study(tmp_path, made.name)
    assert read["started", 1].started == 7.0
    for found in filter(None, read.values()):
        assert all(target_id.startswith("tgt_") and "/" not in target_id for target_id, *_ in found.runs)
        assert not any("/" in target_id for target_id in found.targets)
        assert len(found.command) > 1
    wrong = ("format", "command", "driver", "packed", "cached_runs")
    assert not any(read[key, number] for key in wrong for number in (0, 3, 4))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b"\xff"])
def test_a_damaged_record_is_none(tmp_path, content):
    made = record()
    write_study(tmp_path, made).close()
    (tmp_path / "studies" / f"{made.name}.json").write_bytes(content)
    assert read_study(tmp_path, made.name) is None


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["--pack", "8"], ["--pack", "8"]),
        (["--rerun", "all", "x=1"], ["x=1"]),
        (["--rerun=failed", "--pack=8"], ["--pack=8"]),
        (["--rerun"], []),
    ],
)
def test_a_command_is_given_again_with_another_rerun(words, kept):
    made = record(command=["/opt/python", "my flows/packed.py", *words])
    assert made.again() == ["/opt/python", "my flows/packed.py", *kept]
    assert made.again("failed") == ["/opt/python", "my flows/packed.py", "--rerun", "failed", *kept]
    assert shown(made.again()) == " ".join(["python 'my flows/packed.py'", *kept])
    assert shown(["/opt/python", str(SCRIPTS["tune"]), *kept]) == " ".join(["lambda-hat tune", *kept])
