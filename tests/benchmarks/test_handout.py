"""The benchmark of the hand-out, in short."""

from __future__ import annotations

import pytest

from benchmarks import handout
from tests.benchmarks.running import run


def test_the_time_until_a_sleeper_is_awake():
    sleeper = handout.BareSleeper()
    assert handout.until_awake(sleeper, [0.5]) == []
    sleeper.awake = [1.0, 2.0, 4.0]
    assert handout.until_awake(sleeper, [0.5, 2.5, 1.0, 5.0]) == [0.5, 1.5, 0.0]


@pytest.mark.mpi
def test_a_short_look(tmp_path):
    done = run("handout", "--quick", "--out", "out here", cwd=tmp_path)
    text = (tmp_path / "out here" / "handout.md").read_text()
    assert text.startswith(done.stdout.rstrip())
    assert "2 ranks, rank 0 being inside one XLA call" in text
    assert text.count("claim to answer") == 3
    assert (tmp_path / "out here" / "handout.png").read_bytes()[:4] == b"\x89PNG"
