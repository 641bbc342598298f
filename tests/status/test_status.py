"""How a study stands, told from stores that were made by hand."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import time
from collections import Counter

import pytest
from rich.console import Console

from lambda_hat.errors import StoreError
from lambda_hat.status import Studies, StudyFollower, newest_record
from lambda_hat.status.study_view import in_place, views
from lambda_hat.store import claims
from lambda_hat.store.heartbeat import Heartbeat
from lambda_hat.store.layout import Store, write_json_atomic
from lambda_hat.store.process_identity import whoami
from lambda_hat.store.publish import write_config
from lambda_hat.store.study_records import BLOCKED, ELSEWHERE, FAILED, TO_SAMPLE, Planned, read_study
from tests.hand_made import OTHER_HOST, HandMade, gone


@pytest.fixture
def made(tmp_path) -> HandMade:
    """Two targets with four runs each, planned by this process."""
    return HandMade(tmp_path / "runs")


def look(made: HandMade):
    """The one study of a store."""
    (status,) = Studies(made.store).look()
    return status


def test_every_run_is_counted_once(made):
    made.build(0, 1)
    first, second = made.pack(0, 1, 2, 3), made.pack(4, 5)
    made.rank(first, 0, made.start(0), made.end(0, "finished"), made.start(2))
    made.rank(first, 1, made.start(1), made.end(1, "failed", reason="ValueError: no"))
    status = look(made)
    assert (status.finished, status.failed, status.blocked, status.total) == (1, 1, 0, 8)
    (running,) = status.running
    assert (running.key, running.rank, running.host, running.expected) == (made.keys[2], 0, "node7", 10.0)
    assert status.waiting == {"in a pack that has not started": 2, "in no pack yet": 2, "in a pack that is running": 1}
    assert status.packs == {"": {"over": 0, "running": 1, "waiting": 1}}
    assert (status.ranks_at_work, status.ranks) == (1, 2)
    assert status.targets == {"built": 2, "failed": 0, "missing": 0}
    assert [(failure.key, failure.reason) for failure in status.failures] == [(made.keys[1], "ValueError: no")]
    assert status.driver.state == "alive"
    assert second.name != first.name


def test_what_was_there_before_is_counted_by_the_record(tmp_path):
    made = HandMade(tmp_path / "runs", cached_runs=5, cached_targets=3)
    status = look(made)
    assert (status.total, status.finished, status.targets) == (13, 5, {"built": 3, "failed": 0, "missing": 2})


def test_a_follower_reads_what_is_new(made):
    made.build(0, 1)
    studies = Studies(made.store)
    assert studies.look()[0].finished == 0
    pack = made.pack(0, 1)
    made.rank(pack, 0, made.start(0))
    assert [run.key for run in studies.look()[0].running] == [made.keys[0]]
    made.rank(pack, 0, made.end(0, "finished"), made.start(1))
    (status,) = studies.look()
    assert (status.finished, [run.key for run in status.running]) == (1, [made.keys[1]])
    made.say("end", status=75)
    (status,) = studies.look()
    assert (status.driver.state, status.driver.status, status.running) == ("ended", 75, [])
    assert status.waiting == {"in no pack yet": 6, "left by a pack that ended": 1}


# --------------------------------------------------------------------------------------------------------------
# Why runs wait


def test_runs_wait_for_their_targets_and_those_for_the_scheduler(made):
    made.build(0)
    made.pack(*range(8))
    made.say("job", job_id="1.pbs", state="submitted", scheduler="PBS", nodes=1, walltime="01:00:00", **TASKS)
    made.say("job", job_id="1.pbs", state="QUEUED (Not Running: no cores)")
    made.say("job", job_id="2.pbs", state="submitted", scheduler="PBS", nodes=2, walltime="02:00:00", **PACKS)
    status = look(made)
    label = made.builds[1].label
    assert status.waiting == {
        f"waits for target {made.targets[1]} ({label}): no allocation yet: PBS says QUEUED (Not Running: no cores)": 4,
        "no allocation yet: PBS has the job": 4,
    }
    made.say("job", job_id="2.pbs", state="HELD (by operator)")
    (made.store.target_dir(made.targets[1])).mkdir()
    (made.store.target_dir(made.targets[1]) / "build.log").write_text("")
    assert look(made).waiting == {
        f"waits for target {made.targets[1]} ({label}), being built": 4,
        "no allocation yet: PBS says HELD (by operator)": 4,
    }
    assert [(job.job_id, job.label, job.nodes, job.state) for job in look(made).jobs] == [
        ("1.pbs", "tasks", 1, "QUEUED (Not Running: no cores)"),
        ("2.pbs", "packs", 2, "HELD (by operator)"),
    ]
    made.say("job", job_id="2.pbs", state="RUNNING (node7/0)")
    assert "in a pack that has not started" in look(made).waiting
    made.say("job", job_id="1.pbs", state="ended")
    assert [job.job_id for job in look(made).jobs] == ["2.pbs"]


TASKS, PACKS = {"for": "tasks"}, {"for": "packs"}


def test_a_target_that_failed_blocks_its_runs_until_it_is_tried_again(made):
    made.build(0)
    made.pack(*range(8))
    error = made.store.target_dir(made.targets[1]) / "error.json"
    write_json_atomic(error, {"type": "BuildFailed", "message": "no"})
    assert (look(made).blocked, look(made).targets["failed"]) == (4, 1)
    assert look(made).failures == [((made.targets[1], ""), "BuildFailed: no")]
    # An error that was there before this plan is what this plan tries again.
    os.utime(error, (1e9, 1e9))
    assert (look(made).blocked, look(made).targets["missing"]) == (0, 1)
    made.build(1)
    error.unlink()
    assert (look(made).blocked, look(made).targets["built"]) == (0, 2)


def test_a_run_that_was_paused_goes_on_in_another_pack(made):
    made.build(0, 1)
    first = made.pack(0, 1, 2)
    paused = {"reason": "its time is up", "advanced": True}
    made.rank(
        first, 0, made.start(0), made.end(0, "paused", **paused), {"event": "end", "busy": 1, "seconds": 1}, size=1
    )
    made.say("pack_end", pack_id=first.name, sentence="0 of 3 runs finished")
    made.run_dir(0).mkdir()
    (made.run_dir(0) / "checkpoint.npz").write_bytes(b"state")
    status = look(made)
    assert status.waiting == {
        "in no pack yet": 5, "left by a pack that ended": 2, "left by a pack that ended, with a checkpoint": 1
    }  # fmt: skip
    assert status.packs == {"": {"over": 1, "running": 0, "waiting": 0}}
    second = made.pack(0, 1, 2)
    made.rank(second, 0, made.start(0), size=1)
    status = look(made)
    assert [run.key for run in status.running] == [made.keys[0]]
    assert status.waiting == {"in no pack yet": 5, "in a pack that is running": 2}


def test_what_an_earlier_plan_said_of_the_others(tmp_path):
    made = HandMade(tmp_path / "runs", num_targets=1)
    made.fail(1, message="as before")
    groups = [ELSEWHERE, FAILED, BLOCKED, TO_SAMPLE]
    runs = [Planned(*key, 1.0, group) for key, group in zip(made.keys, groups, strict=True)]
    made.write_record(name="20261126-031503-abcd", runs=sorted(runs, key=lambda run: run.group != TO_SAMPLE))
    made.build(0)
    status = look(made)
    assert (status.failed, status.blocked) == (1, 1)
    assert status.failures[0].reason == "ValueError: as before (rank 1 on node7)"
    assert status.waiting == {"sampled by another driver": 1, "in no pack yet": 1}
    made.finish(0)
    assert look(made).finished == 1


# --------------------------------------------------------------------------------------------------------------
# What no event tells


def test_a_run_whose_rank_was_killed_between_its_result_and_its_event_is_finished(made):
    made.build(0, 1)
    pack = made.pack(0, 1, 2)
    made.rank(pack, 0, made.start(0))
    made.rank(pack, 1, made.start(1))
    made.finish(0)
    made.fail(1, type="RankDied", message="twice")
    made.say("pack_end", pack_id=pack.name, sentence="lost")
    status = look(made)
    assert (status.finished, status.failed, status.running) == (1, 1, [])
    assert status.failures[0].reason == "RankDied: twice (rank 1 on node7)"


def test_results_that_are_wanted_anew_are_not_those_of_this_study(made):
    made.build(0, 1)
    for place, act in ((0, made.finish), (1, made.fail)):
        act(place)
        for path in made.run_dir(place).iterdir():
            os.utime(path, (1e9, 1e9))
    status = look(made)
    assert (status.finished, status.failed, status.waiting) == (0, 0, {"in no pack yet": 8})


def test_single_processes_are_seen_by_their_claims(tmp_path):
    made = HandMade(tmp_path / "runs", packed=False)
    made.build(0, 1)
    for place in range(4):
        write_config(made.run_dir(place), made.configs[place])
    made.finish(0)
    with Heartbeat(made.store.packs_dir) as lease:
        made.say("lease", lease=lease.path.name)
        claim = claims.take(made.run_dir(1), lease.path)
        claims.take(made.run_dir(2), lease.path).release()
        status = look(made)
        assert [(run.key, run.rank) for run in status.running] == [(made.keys[1], None)]
        assert (status.finished, status.waiting) == (1, {"taken by no process yet": 6})
        assert status.runs_per_minute > 0
        claim.release()


# --------------------------------------------------------------------------------------------------------------
# The driver


@pytest.mark.parametrize(
    ("lease", "state"),
    [
        (None, "alive"),
        ({"age": 3}, "alive"),
        ({"age": 30}, "silent"),
        ({"age": 60}, "died"),
        ({"age": 5, "state": "ended"}, "alive"),
        ({"age": 300, "state": "ended"}, "died"),
    ],
)
def test_a_driver_on_another_host_is_judged_by_its_lease(tmp_path, lease, state):
    made = HandMade(tmp_path / "runs", driver=OTHER_HOST)
    if lease is not None:
        made.lease(**lease)
    assert look(made).driver.state == state
    assert look(made).driver.over == (state == "died")


def test_a_driver_that_never_had_a_lease_is_dead_after_a_while(tmp_path):
    made = HandMade(tmp_path / "runs", driver=OTHER_HOST)
    os.utime(made.store.root / "studies" / f"{made.record.name}.json", (time.time() - 300,) * 2)
    assert look(made).driver.state == "died"


def test_what_a_dead_driver_left_drains_for_a_while(tmp_path):
    made = HandMade(tmp_path / "runs", driver=gone())
    made.build(0, 1)
    lease = made.lease(age=5)
    made.rank(made.pack(0, 1), 0, made.start(0))
    status = look(made)
    assert (status.driver.state, len(status.running), status.ranks_at_work) == ("died", 1, 1)
    os.utime(lease, (time.time() - 60,) * 2)
    status = look(made)
    assert (status.driver.state, status.running, status.ranks_at_work) == ("died", [], 0)
    assert status.waiting == {"in no pack yet": 6, "left by a pack that ended": 2}


def test_a_job_that_is_to_be_the_driver(tmp_path):
    job = {"scheduler": "PBS", "job_id": "12.pbs", "watch": "qstat -f 12.pbs"}
    made = HandMade(tmp_path / "runs", driver=gone(), submitted=job)
    made.build(0, 1)
    status = look(made)
    assert (status.driver.state, status.waiting) == ("submitted", {"job 12.pbs has not begun": 8})
    made.write_record(name="20261126-031600-abcd", job_script="/jobs/job.pbs")
    assert look(made).record.job_script == "/jobs/job.pbs"
    assert newest_record(made.store).name == "20261126-031600-abcd"
    assert newest_record(made.store, runnable=True).submitted == job


def shown(made) -> str:
    parts = in_place(views(made.store, [look(made)]))
    console = Console(width=200, file=io.StringIO())
    console.print(parts)
    return console.file.getvalue()


def test_a_study_inside_a_job_shows_the_job_and_the_command_that_submitted_it(tmp_path):
    job = {"scheduler": "PBS", "job_id": "12.pbs", "watch": "qstat -f 12.pbs", "end": "qdel 12.pbs"}
    outer = [sys.executable, "flows/packed.py", "--submit", "pbs", "--nodes", "2"]
    made = HandMade(tmp_path / "runs", driver=gone(), submitted=job, command=outer)
    assert "has not begun; qstat -f 12.pbs; to end it: qdel 12.pbs" in shown(made)
    # Another study of the same store.
    made.write_record(name="20261126-031550-abcd", command=[sys.executable, "flows/packed.py", "--site", "local"])
    inside = {key: job[key] for key in ("scheduler", "job_id", "end")}
    inner = [sys.executable, "/far/flows/packed.py", "--experiments", "/far/study.yaml", "--site", "allocation"]
    made.driver = whoami()
    record = made.write_record(
        name="20261126-031600-abcd", job_script="/jobs/job.pbs", job=inside, driver=made.driver, command=inner
    )
    assert read_study(made.store.root, record.name).job == inside
    text = shown(made)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "submitted by python flows/packed.py --submit pbs --nodes 2" in lines
    assert "job 12.pbs of PBS; to end it: qdel 12.pbs" in lines
    made.say("end", status=75)
    assert "to end it" not in shown(made)


def test_nodes_that_are_left_out_are_shown_until_they_are_used_again(tmp_path):
    made = HandMade(tmp_path / "runs")
    made.say("nodes", left_out={"n2": "2 launches died there (p1, p2)"})
    made.say("round", name="r", builds=0, runs=0)
    made.say("nodes", left_out="damaged")
    assert "node n2 is left out: 2 launches died there (p1, p2)" in shown(made)
    made.say("nodes", left_out={})
    assert "left out" not in shown(made)


def test_the_studies_that_run_are_shown_else_the_newest(tmp_path):
    made = HandMade(tmp_path / "runs", driver=OTHER_HOST)
    lease = made.lease()
    made.driver = gone()
    newer = made.write_record(name="20261126-031503-abcd")
    assert [status.record.name for status in Studies(made.store).look()] == [made.record.name]
    os.utime(lease, (time.time() - 60,) * 2)
    assert [status.record.name for status in Studies(made.store).look()] == [newer.name]


def test_a_store_in_which_no_driver_was_started(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "packs").mkdir()
    with pytest.raises(StoreError, match=r"no study was started here; start one with lambda-hat run"):
        Studies(Store(tmp_path)).look()


def test_a_pack_that_was_started_without_a_driver(made):
    made.build(0)
    pack = made.pack(*range(8))
    shutil.rmtree(made.store.root / "studies")
    content = json.loads((pack / "pack.json").read_text())
    runs = [{**run, "cost": 10.0} for run in content["runs"]]
    write_json_atomic(pack / "pack.json", {**content, "runs": runs, "builds": [{"target_id": made.targets[1]}]})
    with Heartbeat(made.store.packs_dir):
        made.rank(pack, 0, made.start(0), made.end(0, "finished"), made.start(1))
        made.rank(pack, 1, {"event": "build_start", "target_id": made.targets[1]})
        status = look(made)
        assert (status.driver.state, status.driver.over) == ("none", False)
        assert (status.finished, len(status.running), status.ranks_at_work) == (1, 1, 2)
        assert status.targets == {"built": 1, "failed": 0, "missing": 1}
    assert look(made).driver.over and look(made).running == []


# --------------------------------------------------------------------------------------------------------------
# How fast


def test_time_left_follows_the_expected_seconds_that_were_done(made):
    made.build(0, 1)
    pack = made.pack(*range(8))
    now = time.time()
    # Two ranks have sampled four runs of 10 expected seconds in a minute; four are left, two of them half done.
    with (pack / "rank-0000.jsonl").open("w") as log:

        def say(moment, event, **fields):
            log.write(json.dumps({"time": now + moment, "event": event, "rank": 0, **fields}) + "\n")

        say(-61, "start", size=1, host="node7", pid=1)
        for place in range(4):
            say(-60 + 15 * place, "run_start", **made.names(place), lane=0)
            say(-45 + 15 * place, "run_end", **made.names(place), status="finished", seconds=15.0)
        say(-5, "run_start", **made.names(4), lane=0)
    status = look(made)
    assert status.runs_per_minute == pytest.approx(4.0, rel=0.05)
    assert status.seconds_left == pytest.approx((4 * 10 - 5) / (40 / 60), rel=0.05)
    made.say("end", status=130)
    assert look(made).seconds_left is None


def test_a_look_opens_no_run_and_lists_no_folder_twice(tmp_path):
    made = HandMade(tmp_path / "runs", num_runs=10)
    made.build(0, 1)
    with Heartbeat(made.store.packs_dir) as lease:
        made.say("lease", lease=lease.path.name)
        for begin in (0, 10):
            pack = made.pack(*range(begin, begin + 10))
            ends = [
                event for place in range(begin, begin + 8) for event in (made.start(place), made.end(place, "finished"))
            ]
            made.rank(pack, 0, *ends, made.start(begin + 8))
        for place in (*range(8), *range(10, 18)):
            made.finish(place)
        opened: list[str] = []
        listed: list[str] = []
        on = True

        def note(event, args):
            if on and event == "open" and str(args[0]).startswith(str(made.store.targets_dir)):
                opened.append(args[0])
            elif on and event in ("os.listdir", "os.scandir"):
                listed.append(str(args[0]))

        sys.addaudithook(note)
        status = look(made)
        on = False
    assert (status.finished, len(status.running)) == (16, 2)
    assert opened == []
    inside = [name for name in listed if name.startswith(str(made.store.root))]
    assert max(Counter(inside).values()) == 1
    assert not any("/run_" in name for name in inside)


# --------------------------------------------------------------------------------------------------------------
# Whatever the disk did


def test_damaged_lines_and_folders_are_passed_over(made):
    made.build(0, 1)
    pack = made.pack(0, 1)
    made.rank(pack, 0, made.start(0), made.end(0, "finished"))
    log = made.store.root / "studies" / f"{made.record.name}.jsonl"
    nonsense = [
        {"event": "pack"}, {"event": "pack", "pack_id": 3, "runs": [0]},
        {"event": "pack", "pack_id": "pack_x", "runs": [99]}, {"event": "pack", "pack_id": "../..", "runs": [0]},
        {"event": "lease", "lease": None}, {"event": "note"}, {"event": "pack_end", "pack_id": "none"},
        {"event": "job"}, {"event": "job", "job_id": 1, "state": 2, "time": "x"},
        {"event": "end", "status": "x"}, {"event": 1}, [],
    ]  # fmt: skip
    with log.open("ab") as file:
        file.write(b"\xff{\n" + b"".join(json.dumps(line).encode() + b"\n" for line in nonsense))
    with (pack / "rank-0000.jsonl").open("ab") as file:
        file.write(b'{"event": "run_end"}\n{"event": "run_start", "rank": 0, "time": "x"}\n{"event"')
    assert look(made).finished == 1
    shutil.rmtree(made.store.packs_dir)
    shutil.rmtree(made.store.targets_dir)
    assert look(made).total == 8
    log.unlink()
    assert look(made).waiting
    assert StudyFollower(made.store, read_study(made.store.root, made.record.name)).look().finished == 0
