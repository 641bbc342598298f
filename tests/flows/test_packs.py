"""How a pack's end is judged, from what its ranks wrote and what Parsl says; without Parsl, by futures of our own."""

from __future__ import annotations

import json
import time
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from parsl.executors.high_throughput.errors import ManagerLost

from flows.driver import packs, rounds
from flows.driver.bad_nodes import BadNodes
from flows.driver.options import parse_options
from flows.driver.packs import Pack
from flows.driver.request import Request
from flows.driver.rounds import Round
from flows.driver.screen import Screen
from flows.driver.stopping import OutOfTime, Stop, Stopped
from flows.driver.workers import Workers
from lambda_hat.store.drain import OUT_OF_TIME
from lambda_hat.store.heartbeat import Heartbeat
from lambda_hat.store.layout import EventLog
from lambda_hat.store.study_records import StudyLog

pytestmark = pytest.mark.parsl


class Scene:
    """A round with one pack of four runs on two ranks, all of whose targets are there."""

    def __init__(self, folder: Path, lease: Heartbeat, **changes):
        overrides = {"num_draws": 100, "num_burnin": 50, "num_chains": 2, "step_size": 1e-4}
        study = {
            "targets": [{"target": "quadratic"}],
            "samplers": [{"name": "sgld", "overrides": overrides, "sweep": {"seed": [0, 1, 2, 3]}}],
        }
        (folder / "study.yaml").write_text(yaml.safe_dump(study))
        words = ["--experiments", str(folder / "study.yaml"), "--store", str(folder / "runs"), "--ranks", "2"]
        words += changes.pop("words", ())
        self.request = replace(Request.from_options(parse_options("", words, packed=True), packed=True), **changes)
        self.store, self.stop = self.request.store, Stop()
        plan = self.request.plan(None, lease.path)
        self.runs = plan.runs
        self.keys = [(run.target_id, run.run_id) for run in plan.runs]
        workers = Workers(lease, "20260101-000000-abcd", None, [])
        self.round = Round(self.request, plan, workers, 0, console=Screen().console, stop=self.stop, log=StudyLog())
        self.pack = Pack(self.round, "pack_x", plan.runs)
        self.directory = self.pack.directory
        self.directory.mkdir(parents=True)
        self.outcome = self.round.outcome

    def events(self, rank: int, *events: dict) -> None:
        with EventLog(self.directory / f"rank-{rank:04d}.jsonl") as log:
            for event in events:
                log.append(**event, rank=rank)

    def start(self, rank: int) -> dict:
        return {"event": "start", "size": 2, "host": "vm", "pid": 100 + rank}

    def names(self, index: int) -> dict:
        return dict(zip(("target_id", "run_id"), self.keys[index], strict=True))

    def run(self, index: int, status: str, **more) -> list[dict]:
        end = {"event": "run_end", **self.names(index), "status": status, "seconds": 1.0, **more}
        if status == "finished":
            run_dir = self.store.run_dir(*self.keys[index])
            run_dir.mkdir(parents=True, exist_ok=True)
            (run_dir / "analysis.json").write_text("{}")
        return [{"event": "run_start", **self.names(index)}, end]

    def end(self, status: int | BaseException) -> None:
        future: Future = Future()
        future.set_exception(status) if isinstance(status, BaseException) else future.set_result(status)
        self.pack.ended(future)


@pytest.fixture
def lease(tmp_path):
    with Heartbeat(tmp_path / "runs" / "packs") as held:
        yield held


@pytest.fixture
def scene(tmp_path, lease):
    return Scene(tmp_path, lease)


def test_a_pack_out_of_time_lists_what_it_leaves_and_counts_no_failure(scene, capsys):
    drain = {"event": "drain", "reason": OUT_OF_TIME}
    scene.events(0, scene.start(0), *scene.run(0, "finished", verdict="ok"), drain, {"event": "end"})
    paused = scene.run(1, "paused", reason=OUT_OF_TIME, advanced=True)
    too_early = scene.run(2, "paused", reason=OUT_OF_TIME, advanced=False)
    scene.events(1, scene.start(1), *paused, *too_early, drain, {"event": "end"})
    scene.end(0)
    said = capsys.readouterr().out
    assert "pack_x: 1 of 4 runs finished, 1 paused with a checkpoint, 2 left for later (the allocation's" in said
    assert scene.outcome.causes == {"time": 1}
    assert scene.outcome.out_of_time and scene.outcome.advanced
    assert scene.round.progress.failed == {"targets": 0, "packs": 0, "runs": 0}
    assert scene.round.progress.done["runs"] == 1


def test_a_pack_that_was_not_launched_for_want_of_time(scene, capsys):
    scene.end(75)
    assert "0 of 4 runs finished, 4 left for later" in capsys.readouterr().out
    assert scene.outcome.causes == {"time": 1} and not scene.outcome.advanced


def test_runs_that_were_not_handed_out_did_not_fit_into_the_time(scene, capsys):
    for rank in (0, 1):
        scene.events(rank, scene.start(rank), *scene.run(rank, "finished"), {"event": "end"})
    scene.end(0)
    assert "2 of 4 runs finished, 2 left for later (the allocation's" in capsys.readouterr().out
    assert scene.outcome.causes == {"time": 1} and scene.outcome.out_of_time


def test_a_full_store_is_told_apart(scene):
    why = "/store/x: No space left on device"
    left = scene.run(0, "left", reason=why, store_error=True)
    scene.events(0, scene.start(0), *left, {"event": "drain", "reason": why}, {"event": "end"})
    scene.end(0)
    assert scene.outcome.store_error == why
    assert not scene.outcome.advanced and not scene.outcome.out_of_time


def test_what_another_process_samples_is_not_lost(scene, capsys):
    elsewhere = [event for i in range(4) for event in scene.run(i, "elsewhere", reason="another process samples it")]
    scene.events(0, scene.start(0), *elsewhere, {"event": "end"})
    scene.end(0)
    assert "0 of 4 runs finished, 4 sampled elsewhere" in capsys.readouterr().out
    assert not +scene.outcome.causes
    assert scene.round.progress.failed["runs"] == 0


def test_a_lost_block_is_the_death_of_no_rank(scene):
    scene.events(0, scene.start(0), {"event": "run_start", **scene.names(0)})
    scene.end(ManagerLost(b"m", "n1"))
    assert scene.outcome.causes == {"block": 1}
    assert not list(scene.store.root.rglob("deaths.json"))


def test_blocks_without_a_good_node_are_told_and_not_returned_without_end(scene, capsys):
    scene.round.nodes = nodes = BadNodes()
    for pack in "pq":
        nodes.died(pack, ["n1"], [])
    scene.round.tell_of_nodes(nodes.judge())
    (scene.directory / "stderr.log").write_text(
        "not started: no good node is left: n1 failed; their block is given back\n"
    )
    told = "4 left for later (not started: no good node is left: n1 failed; their block is given back)"
    for number in range(1, packs.MOST_RETURNED + 1):
        assert list(nodes.left_out) == ["n1"]
        scene.end(ManagerLost(b"m", "n1"))
        assert told in capsys.readouterr().out
        assert scene.outcome.causes == {"block": number}
    assert nodes.left_out == {}


@pytest.mark.parametrize("status", [-9, 124, RuntimeError("worker lost")])
def test_a_launch_that_was_lost_blames_no_run(scene, status):
    scene.events(0, scene.start(0), {"event": "run_start", **scene.names(0)})
    scene.end(status)
    assert scene.outcome.causes == {"launch": 1}
    assert not list(scene.store.root.rglob("deaths.json"))


def test_a_rank_that_dies_while_it_drains_blames_no_run(scene):
    drain = {"event": "drain", "reason": "SIGTERM came"}
    scene.events(0, scene.start(0), {"event": "run_start", **scene.names(0)}, drain)
    scene.end(9)
    assert scene.outcome.causes == {"drain": 1}
    assert not list(scene.store.root.rglob("deaths.json"))


def test_a_dead_rank_makes_suspects_of_the_next_pack_until_they_finish(scene, capsys):
    scene.events(0, scene.start(0), {"event": "run_start", **scene.names(0)})
    scene.events(1, scene.start(1), *scene.run(1, "finished"), {"event": "run_start", **scene.names(2)})
    scene.end(9)
    assert scene.outcome.causes == {"rank": 1} and scene.outcome.quarantined == 0
    assert "3 lost: exit status 9" in capsys.readouterr().out
    following = Pack(scene.round, "pack_y", scene.runs)
    suspects = {f"{target}/{run}" for target, run in (scene.keys[0], scene.keys[2])}
    assert set(following.record()["suspects"]) == suspects
    assert following.record()["lease"] == str(scene.round.workers.heartbeat.path)
    following.directory.mkdir()
    scene.pack, scene.directory = following, following.directory
    one = {"event": "run_start", **scene.names(0)}
    scene.events(0, scene.start(0), *scene.run(2, "finished"), one)
    scene.end(9)
    assert scene.outcome.quarantined == 1
    assert "its rank died twice: set aside" in capsys.readouterr().out
    assert not (scene.store.run_dir(*scene.keys[2]) / "deaths.json").exists()
    plan = scene.request.plan(None, scene.round.workers.heartbeat.path)
    assert [(run.target_id, run.run_id) for run in plan.failed_runs] == [scene.keys[0]]


def waiting_pack(scene):
    future: Future = Future()
    scene.round.on_done(future, scene.pack.ended, running=scene.pack.is_running, overdue=scene.pack.overdue)
    return future


def test_a_future_that_never_resolves_is_settled_from_the_store(scene, monkeypatch, capsys):
    monkeypatch.setattr(packs, "UNRESOLVED_SECONDS", 0.3)
    for rank in (0, 1):
        both = scene.run(2 * rank, "finished") + scene.run(2 * rank + 1, "finished")
        scene.events(rank, scene.start(rank), *both, {"event": "end"})
    scene.round.watch(scene.pack.look)
    waiting_pack(scene)
    began = time.monotonic()
    scene.round.wait()
    assert 0.3 <= time.monotonic() - began < 5
    assert "pack_x: 4 of 4 runs finished" in capsys.readouterr().out
    assert scene.outcome.causes == {"unresolved": 1} and scene.outcome.advanced


def test_a_future_that_never_resolves_after_its_deadline(tmp_path, lease, monkeypatch, capsys):
    scene = Scene(tmp_path, lease, stop_at=time.time() - 1)
    monkeypatch.setattr(packs, "UNRESOLVED_SECONDS", 1.5)
    scene.events(0, scene.start(0), {"event": "run_start", **scene.names(0)})
    scene.round.watch(scene.pack.look)
    waiting_pack(scene)
    scene.round.wait()
    assert "0 of 4 runs finished, 4 lost (Parsl has not told of its end; its deadline was" in capsys.readouterr().out


def test_a_pack_that_waits_is_not_overdue(scene, monkeypatch):
    monkeypatch.setattr(packs, "UNRESOLVED_SECONDS", 0.0)
    waiting_pack(scene)
    with pytest.raises(OutOfTime):
        scene.round.wait(give_up_at=time.time() + 0.5)


def test_winding_down_waits_for_packs_at_work_and_not_for_those_in_a_queue(scene, monkeypatch):
    monkeypatch.setattr(rounds, "LAST_TASKS_SECONDS", 0.3)
    at_work = waiting_pack(scene)
    scene.events(0, scene.start(0))
    scene.round.on_done(Future(), lambda future: pytest.fail("it never ends"))
    scene.stop._signals = 1
    with pytest.raises(Stopped):
        scene.round.wait()
    began = time.monotonic()
    scene.round.wind_down(1.0)
    assert time.monotonic() - began >= 1.0
    at_work.set_result(0)
    began = time.monotonic()
    scene.round.wind_down(5.0)
    assert time.monotonic() - began < 2.0


def test_the_deadline_reaches_the_pack_and_its_processes(tmp_path, lease):
    scene = Scene(tmp_path, lease, words=["--deadline", "+01:00:00"])
    record = json.loads(json.dumps(scene.pack.record()))
    assert 3530 < record["deadline"] - time.time() <= 3540
    assert float(scene.round.environment["LAMBDA_HAT_DEADLINE"]) == record["deadline"]
    assert scene.request.give_up_at == record["deadline"] + 30


@pytest.mark.parametrize("words, told", [([], None), (["compile_cache=false"], "off")])
def test_a_study_without_cache_says_so_to_the_pack_and_its_processes(tmp_path, lease, words, told):
    scene = Scene(tmp_path, lease, words=words)
    assert scene.pack.record()["compile_cache"] is (told is None)
    assert scene.round.environment.get("LAMBDA_HAT_CACHE") == told
