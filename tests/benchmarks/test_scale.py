"""The simulation of packs: by hand, and in short."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import scale
from mpi.handout import Item
from tests.benchmarks.running import run

COSTS = scale.Costs(start=3.0, end=1.0, answer=0.0, latency=0.5, compile=4.0, load=0.25, publish=0.125)
FREE = scale.Costs(start=0.0, end=0.0, answer=0.0, latency=0.0, compile=0.0, load=0.0, publish=0.0)


def test_one_pack_by_hand():
    """Two ranks compile the same program at once, and the first one is free for the third run."""
    compiled = {}
    items = [Item("0", cost=9.0, program="p"), Item("1", cost=2.0, program="p"), Item("2", cost=1.0, program="p")]
    # Claim at 3, answer at 3.5, compiled at 7.5, published at 16.625.
    assert scale.simulate_pack(items, [9.0, 2.0, 1.0], 2, 0.0, compiled, COSTS) == 16.625 + 1.0
    assert compiled == {"p": 7.5}
    # A pack that starts later takes the program from the cache.
    assert scale.simulate_pack(items[:1], [9.0], 2, 100.0, compiled, COSTS) == 103.5 + 0.25 + 9.125 + 1.0


def test_claims_are_answered_one_after_the_other():
    costs = scale.Costs(start=0.0, end=0.0, answer=2.0, latency=0.0, compile=0.0, load=0.0, publish=0.0)
    items = [Item(str(number)) for number in range(3)]
    assert scale.simulate_pack(items, [1.0] * 3, 3, 0.0, {}, costs) == 6.0 + 1.0


def test_packs_run_beside_and_after_each_other():
    packs = [[Item("0")], [Item("1")], [Item("2")]]
    outcome = scale.simulate(packs, np.array([4.0, 1.0, 2.0]), 1, 2, FREE)
    assert outcome == (4.0, 7 / 8, 4.0, 3)


@pytest.mark.parametrize("order", scale.ORDERS)
def test_every_run_of_a_drawn_study_is_in_one_pack_and_the_bound_is_one(order):
    packs = scale.packs_of(500, 40, order)
    assert sorted(int(item.key) for pack in packs for item in pack) == list(range(500))
    seconds = scale.draw_study(500).seconds
    assert seconds.mean() == pytest.approx(1.0)
    outcome = scale.simulate(packs, seconds, 4, 16, scale.Costs())
    assert outcome.makespan >= outcome.bound
    assert 0 < outcome.busy < 1


def test_a_short_look(tmp_path):
    done = run("scale", "--quick", "--out", "out here", cwd=tmp_path)
    text = (tmp_path / "out here" / "scale.md").read_text()
    assert text.startswith(done.stdout.rstrip())
    assert text.count("| longest first, costs exact |") == 2
    assert (tmp_path / "out here" / "scale.png").read_bytes()[:4] == b"\x89PNG"
