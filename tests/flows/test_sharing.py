"""When a pack is asked to let go of runs, and what becomes of them; without Parsl, by futures of our own."""

from __future__ import annotations

import json
from concurrent.futures import Future
from types import SimpleNamespace

import pytest

from flows.driver import packs
from flows.driver.packs import Pack
from flows.driver.sharing import LEAST_SECONDS, Sharing
from lambda_hat.store.heartbeat import Heartbeat
from tests.flows.test_packs import Scene

pytestmark = pytest.mark.parsl


class SomePack:
    """A pack with so many expected seconds of runs that have not begun."""

    def __init__(self, name: str, seconds: float, begun: bool = True):
        self.directory, self.seconds_left, self.takes_questions = SimpleNamespace(name=name), seconds, begun


class SomeRound:
    """A round of packs of one rank, with so many places for them."""

    def __init__(self, places: int, late: bool = False):
        self.asked, self.kept, self.submitted, self.going_on = [], None, [], True
        self.request = SimpleNamespace(site=SimpleNamespace(resources={"num_ranks": 1}), is_late=late)
        self.nodes = SimpleNamespace(left_out={})
        self.workers = SimpleNamespace(
            places=lambda: places,
            heartbeat=SimpleNamespace(let_go=self.asked.append),
            keep_blocks=lambda wanted: setattr(self, "kept", wanted),
        )
        self.progress = SimpleNamespace(more=lambda what: None, event=lambda sentence: None)
        self.sharing = Sharing(self, self.submitted.append)

    def look(self, *packs: SomePack) -> list[str]:
        for pack in packs:
            self.sharing.add(pack)
        for _ in range(3):
            self.sharing.look()
        return self.asked


MUCH = 5 * LEAST_SECONDS


def test_the_pack_with_most_left_is_asked_once_where_a_place_has_no_pack():
    round_ = SomeRound(4)
    most = SomePack("b", 2 * MUCH)
    assert round_.look(SomePack("a", MUCH), most, SomePack("c", MUCH)) == ["b"]
    assert round_.kept is True
    round_.sharing.answered(most, ["some", "runs"])
    assert round_.submitted == [["some", "runs"]]
    most.seconds_left = 0.0
    assert round_.look() == ["b", "a"]


@pytest.mark.parametrize(
    ("round_", "pack"),
    [
        (SomeRound(1), SomePack("all places have a pack", MUCH)),
        (SomeRound(2), SomePack("another pack would not be worth its start", LEAST_SECONDS)),
        (SomeRound(2), SomePack("it waits in a queue", MUCH, begun=False)),
        (SomeRound(2, late=True), SomePack("the time is up", MUCH)),
    ],
    ids=lambda value: value.directory.name if isinstance(value, SomePack) else "",
)
def test_no_pack_is_asked_in_vain(round_, pack):
    assert round_.look(pack) == []
    # A block that waits may come in time.
    assert round_.kept is (pack.seconds_left == MUCH)


def test_a_bad_node_is_no_place():
    round_ = SomeRound(2)
    round_.nodes.left_out = {"n1": "why"}
    assert round_.look(SomePack("a", MUCH)) == []


def test_a_pack_that_has_nothing_to_let_go_of_is_asked_no_more():
    round_, pack = SomeRound(2), SomePack("a", MUCH)
    round_.look(pack)
    round_.sharing.answered(pack, [])
    assert round_.look() == ["a"] and round_.submitted == [] and round_.kept is False


def test_after_a_stop_nothing_is_submitted():
    round_, pack = SomeRound(2), SomePack("a", MUCH)
    round_.look(pack)
    round_.going_on = False
    round_.sharing.answered(pack, ["some", "runs"])
    assert round_.submitted == []


@pytest.fixture
def lease(tmp_path):
    with Heartbeat(tmp_path / "runs" / "packs") as held:
        yield held


def test_what_a_pack_lets_go_of_is_a_pack_of_its_own(tmp_path, lease, monkeypatch, capsys):
    launched = []
    monkeypatch.setattr(packs, "launch", lambda *words, **options: launched.append(Future()) or launched[-1])
    scene = Scene(tmp_path, lease)
    found = Sharing(scene.round, lambda runs: packs.submit_pack(scene.round, runs, found))
    scene.pack = pack = Pack(scene.round, "pack_x", scene.runs, found)
    found.add(pack)
    let_go = {"event": "let_go", "runs": [list(scene.keys[1]), list(scene.keys[3])]}
    scene.events(0, scene.start(0), *scene.run(0, "finished"), let_go, *scene.run(2, "finished"), {"event": "end"})
    scene.events(1, scene.start(1), {"event": "end"})
    scene.end(0)
    said = capsys.readouterr().out
    assert "pack_x: 2 runs go to nodes that have no work" in said
    assert "pack_x: 2 of 2 runs finished" in said and "left for later" not in said
    assert not +scene.outcome.causes
    assert len(launched) == 1
    record = json.loads((scene.round.pack_dirs[0] / "pack.json").read_text())
    assert [(run["target_id"], run["run_id"]) for run in record["runs"]] == [scene.keys[1], scene.keys[3]]
    assert scene.round.progress.totals["packs"] == 2
    # The answer comes with the news of the pack once, whoever reads it.
    pack.look()
    assert len(launched) == 1


def test_a_pack_that_dies_after_its_answer_loses_only_what_it_kept(tmp_path, lease, monkeypatch, capsys):
    monkeypatch.setattr(packs, "launch", lambda *words, **options: Future())
    scene = Scene(tmp_path, lease)
    found = Sharing(scene.round, lambda runs: packs.submit_pack(scene.round, runs, found))
    scene.pack = Pack(scene.round, "pack_x", scene.runs, found)
    found.add(scene.pack)
    begun = {"event": "run_start", **scene.names(0)}
    scene.events(0, scene.start(0), begun, {"event": "let_go", "runs": [list(scene.keys[1])]})
    scene.end(9)
    assert "pack_x: 0 of 3 runs finished, 3 lost: exit status 9" in capsys.readouterr().out
    assert len(scene.round.pack_dirs) == 1
