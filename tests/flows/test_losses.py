"""Studies that lose ranks, and targets that are damaged."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import pandas as pd
import pytest

from tests.flows.studies import PATIENCE

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]


@pytest.mark.parametrize(("retries", "status", "counts"), [(0, 75, "pending"), (1, 0, "24 finished")])
def test_a_killed_rank_loses_only_what_was_not_finished(short, retries, status, counts):
    driver = short.start("--pack=24", "--ranks=1", f"--retries={retries}")
    short.wait_until(lambda: len(short.analyses()) >= 3, driver)
    (start,) = short.events("start")
    os.kill(start["pid"], signal.SIGKILL)
    finished = short.analyses()
    assert driver.wait(PATIENCE) == status, short.said()
    said = short.said()
    assert counts in said
    assert "lost: exit status" in said
    assert f"{next(short.store.glob('packs/pack_*-0-0000'))}/stdout.log ends with:" in said
    assert ("1 dead rank)" in said) == (retries == 1)
    assert {path: short.analyses()[path] for path in finished} == finished
    # The run that was in flight, if any was, is a suspect until it finishes.
    assert len(list(short.store.rglob("deaths.json"))) <= 1 - retries


KILLERS = """
import ctypes
import os
import signal

import jax.numpy as jnp
import numpy as np


def by_kill():
    os.kill(os.getpid(), signal.SIGKILL)


def by_segfault():
    ctypes.string_at(0)


def harmless():
    pass


def regression(width, how):
    def loss(params, batch):
        # What a loss does while it is traced happens once for each run: in ranks only, so that the target gets built.
        if "PMI_RANK" in os.environ:
            globals()[how]()
        return 0.5 * jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)

    x = np.random.default_rng(0).normal(size=(100, width))
    return loss, {"w": np.ones(width)}, {"x": x, "y": x.sum(axis=1)}
"""


@pytest.mark.parametrize(("how", "sure"), [("by_segfault", True), ("by_kill", False)])
def test_a_run_that_kills_its_rank_twice_is_set_aside_and_its_neighbours_finish(make, tmp_path, how, sure):
    (tmp_path / "mine.py").write_text(KILLERS)
    names = ["harmless"] * 5
    names.insert(2, how)
    kwargs = [{"width": 2 + index, "how": name} for index, name in enumerate(names)]
    targets = [{"target": {"factory": "mine:regression", "kwargs": each}} for each in kwargs]
    study = make(targets=targets, seeds=1, thin=2000)
    said = study.run("--ranks=4", status=1)
    (path,) = study.store.rglob("error.json")
    error = json.loads(path.read_text())
    assert error["type"] == "RankDied"
    deaths = error["deaths"]
    # The first time it was sure only where the launcher or the interpreter said whose fault it was.
    assert [death["sure"] for death in deaths] == [sure, True]
    packs = sorted(study.store.glob("packs/pack_*"))
    assert [death["pack_id"] for death in deaths] == [pack.name for pack in packs[:2]]
    for death in deaths:
        assert death["log"] in error["message"]
    # The killer dies twice. Where others were suspected, some may have waited behind it, which takes a third pack.
    assert len(packs) == 2 if sure else len(packs) in (2, 3)
    # A rank that falls with its neighbour between a result and its event has told nobody; the table knows the result.
    computed = study.times_computed()
    assert set(computed.values()) == {1} and 2 <= len(computed) <= 5
    table = pd.read_parquet(tmp_path / "results" / "llc_runs.parquet")
    assert Counter(table["status"]) == {"finished": 5, "failed": 1}
    assert "2 dead ranks); quarantined: 1 run" in said or "1 dead rank); quarantined: 1 run" in said
    assert "RankDied: the rank that sampled this run died 2 times" in said
    assert [folder.parent for folder in study.store.rglob("deaths.json")] == [path.parent]
    # Left alone without --rerun failed, and then tried with a clean record.
    assert "everything is cached" not in study.run("--ranks=4", status=1)
    assert len(list(study.store.glob("packs/pack_*"))) == len(packs)
    source = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(source.replace("globals()[how]()", "pass"))
    assert "6 finished" in study.run("--ranks=4", "--rerun=failed")
    assert not list(study.store.rglob("deaths.json"))


def test_a_damaged_target_is_built_again(short):
    short.run("--ranks=1", "samplers.0.sweep.seed=[0]")
    damaged, *_ = sorted(short.store.glob("targets/*/params.npz"))
    content = damaged.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    # Its size tells at once, its content where a rank reads it.
    for number, (seeds, bad, told) in enumerate(
        [("[0, 1]", b"something else", "set aside: "), ("[0, 1, 2]", flipped, "tried again: 1 run (1 damaged target)")],
        start=1,
    ):
        damaged.write_bytes(bad)
        said = short.run("--ranks=1", f"samplers.0.sweep.seed={seeds}")
        assert f"{2 + 2 * number} finished" in said
        assert damaged.read_bytes() == content
        assert len(list(short.store.glob("damaged/**/params.npz.*"))) == number
        assert told in said
