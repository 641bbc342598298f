"""Which nodes are left out, and which nodes a pack then takes."""

from __future__ import annotations

import os
import threading
import time
from types import SimpleNamespace

import pytest

from flows.driver.bad_nodes import BadNodes
from flows.sites import good_nodes
from flows.sites.beside import Beside, Place
from flows.sites.good_nodes import NO_GOOD_NODE, NoGoodNode, choose, nodes_in_block
from flows.sites.providers import packs_provider
from flows.sites.site_schemas import load_site
from lambda_hat.store.heartbeat import HEARTBEAT_VARIABLE, Heartbeat

A, B, C, D = (("tgt_1", f"run_{name}") for name in "abcd")


def nodes(*deaths, began="", known=None):
    """What a driver knows after these deaths, each a node with the runs in flight."""
    found = BadNodes(known)
    found.saw(SimpleNamespace(ranks=[SimpleNamespace(host=f"{name}.cluster", ready=1.0) for name in began.split()]))
    for number, (node, *runs) in enumerate(deaths):
        found.died(f"p{number}", [node], runs)
    found.judge()
    return found


@pytest.mark.parametrize(
    ("deaths", "bad"),
    [
        ([("n1", A)], []),
        ([("n1", A), ("n1", B)], ["n1"]),
        ([("n1",), ("n1",)], ["n1"]),
        # Where the run dies on another node too, it is its own fault.
        ([("n1", A), ("n1", A)], ["n1"]),
        ([("n1", A), ("n1", A), ("n2", A)], []),
        ([("n1", A), ("n2", A), ("n1", B), ("n2", B)], []),
        # A study that crashes on every node.
        ([("n1", A), ("n2", B), ("n1", C), ("n2", D)], []),
        ([("n1", A), ("n2", B), ("n3", C), ("n1", D)], []),
        ([("n1", A), ("n2", A), ("n1", B), ("n2", B), ("n2", C), ("n2", C)], []),
        # Two bad nodes among four.
        ([("n1", A), ("n1", B), ("n2", C), ("n1", D), ("n2",)], ["n1", "n2"]),
    ],
)
def test_deaths_on_one_node_point_to_it_and_deaths_on_two_to_the_runs(deaths, bad):
    assert list(nodes(*deaths).left_out) == bad


@pytest.mark.parametrize(
    ("known", "bad"), [(None, ["n1"]), ([], []), (["localhost"], []), (["n1"], []), (["n1", "n2"], ["n1"])]
)
def test_a_node_is_left_out_only_where_there_are_others(known, bad):
    assert list(nodes(("n1.cluster", A), ("n1.cluster", B), known=known).left_out) == bad
    found = nodes(known=known)
    found.did_not_start({"n1": "no GPU"}, 2)
    found.judge()
    assert list(found.left_out) == bad


def test_nodes_are_used_again_where_the_scheduler_gives_no_others():
    found = nodes(("n1", A), ("n1", B))
    assert found.forgive() == ["node n1 is used again: there is no other"]
    found.died("p3", ["n1"], [C])
    assert found.judge() == []


def test_a_death_somewhere_on_several_nodes_blames_none():
    known = nodes()
    for pack in "pq":
        known.died(pack, ["n1", "n2"], [A, B])
    assert known.judge() == []


@pytest.mark.parametrize(
    ("began", "size", "failed", "bad"),
    [
        # The first launch, over all nodes of the block.
        ("", 8, ["n5"], ["n5"]),
        ("", 2, ["n2"], ["n2"]),
        # No ssh to any other node, or no GPU on any node: it is the site.
        ("", 8, ["n2", "n3", "n4", "n5", "n6", "n7", "n8"], []),
        ("", 2, ["n1", "n2"], []),
        ("", 1, ["n1"], []),
        ("n1", 1, ["n1"], []),
        ("n2", 1, ["n1"], ["n1"]),
    ],
)
def test_nodes_on_which_ranks_cannot_start_are_left_out_where_most_do(began, size, failed, bad):
    known = nodes(began=began)
    known.did_not_start({f"{node}.cluster": f"ssh: no route to {node}" for node in failed}, size)
    assert known.judge() == [f"node {node} is left out from now on: ssh: no route to {node}" for node in bad]


def test_a_defect_of_the_site_that_shows_on_one_node_after_the_other_brings_all_back():
    known, said = nodes(), []
    for number in range(1, 4):
        known.did_not_start({f"n{number}": "no GPU"}, 4)
        said.append([sentence.partition(":")[0] for sentence in known.judge()])
    out, back = "is left out from now on", "is used again"
    assert said == [[f"node n1 {out}"], [f"node n2 {out}"], [f"node n1 {back}", f"node n2 {back}"]]


FOUR = ["n1", "n2", "n3", "n4"]


@pytest.mark.parametrize(
    ("free", "bad", "wanted", "chosen"),
    [
        (FOUR, "", 2, ("n1", "n2")),
        (FOUR, "n1", 2, ("n2", "n3")),
        (["n3", "n4"], "n3", 2, ("n4",)),
        # The other nodes are other packs', and will be free.
        (["n3"], "", 2, ()),
        (["n1"], "n1", 1, ()),
        ([], "n1", 2, ()),
        (FOUR, "n2", 4, ("n1", "n3", "n4")),
    ],
)
def test_a_pack_gets_fewer_nodes_only_because_of_bad_ones(free, bad, wanted, chosen):
    assert choose(FOUR, free, bad.split(), wanted) == chosen


def test_no_pack_goes_to_bad_nodes_alone():
    with pytest.raises(NoGoodNode, match="no good node is left: n1, n2 failed"):
        choose(["n1", "n2"], ["n1", "n2"], {"n1", "n2"}, 1)


@pytest.fixture
def block(tmp_path):
    """A block of three nodes: its environment, what a driver adds, and the driver's heartbeat."""
    (tmp_path / "nodes").write_text("n1\nn2\nn3\n")
    environ = {"PBS_NODEFILE": str(tmp_path / "nodes"), "LAMBDA_HAT_TMPDIR": str(tmp_path)}
    with Heartbeat(tmp_path / "packs") as heartbeat:
        yield environ, {HEARTBEAT_VARIABLE: str(heartbeat.path)}, heartbeat


def test_packs_of_a_block_take_other_nodes_for_those_that_are_left_out(block, monkeypatch):
    monkeypatch.setattr(good_nodes, "LOOK_SECONDS", 0.05)
    environ, env, heartbeat = block
    heartbeat.leave_out(["n2"])
    with nodes_in_block(["n2"], environ, env) as first, nodes_in_block(["n3"], environ, env) as second:
        assert (first, second) == (("n1",), ("n3",))
        third, freed = [], threading.Event()

        def wait() -> None:
            with nodes_in_block(["n1"], environ, env) as taken:
                third.append((taken, freed.is_set()))

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.3)
        freed.set()
    thread.join(10)
    assert third[0][1]


def test_a_block_without_a_good_node_is_told_to_end(block, tmp_path):
    environ, env, heartbeat = block
    heartbeat.leave_out(["n1", "n2", "n3"])
    with pytest.raises(NoGoodNode), nodes_in_block(["n2"], environ, env):
        pytest.fail("it has no nodes")
    assert (tmp_path / NO_GOOD_NODE).exists()


def test_packs_beside_the_driver_take_other_nodes_for_those_that_are_left_out():
    executor = Beside("packs", [Place((node,), os.environ) for node in ("n1", "n2")])
    executor.start()
    executor.leave_out(["n1"])
    seen = []
    futures = [executor.submit(lambda place: seen.append(place.nodes), {}) for _ in range(4)]
    for future in futures:
        future.result(timeout=10)
    assert seen == 4 * [("n2",)]
    # One that waits for a node does not keep the driver.
    held, end = threading.Event(), threading.Event()
    executor.submit(lambda place: (held.set(), end.wait(10)), {})
    held.wait(10)
    waiting = executor.submit(lambda place: None, {})
    threading.Timer(0.3, end.set).start()
    executor.shutdown()
    assert waiting.result(timeout=10) == 75


def test_new_blocks_of_slurm_are_asked_for_without_them(tmp_path, monkeypatch):
    (tmp_path / "sbatch").write_text(
        "#!/bin/sh\ngrep exclude= $1 >> given\ngrep -q exclude=n9 $1 && exit 1\necho Submitted batch job 7\n"
    )
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    provider = packs_provider(load_site("slurm", ["ranks_per_node=1"]))
    provider.script_dir = str(tmp_path)
    # Where it refuses, there are no others.
    for provider.left_out in ([], ["n2", "n3"], ["n9"], []):
        assert provider.submit("true", 1) == "7"
    assert (tmp_path / "given").read_text() == "#SBATCH --exclude=n2,n3\n#SBATCH --exclude=n9\n"
