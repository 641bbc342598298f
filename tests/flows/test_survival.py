"""Studies that something happens to: drivers, ranks and targets that are lost, signals, deadlines, a second driver."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import yaml

from lambda_hat.store import read_events

ROOT = Path(__file__).resolve().parents[2]
PACKED = [sys.executable, str(ROOT / "flows" / "packed.py")]
SGLD = {"num_draws": 100, "num_burnin": 50, "num_chains": 2, "step_size": 1e-4}
PATIENCE = 400

pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]


class Study:
    """A study in a folder of its own, and the drivers that were started for it."""

    def __init__(self, folder: Path, *, targets: list, seeds: int, thin: int):
        sampler = {
            "name": "sgld",
            "overrides": {**SGLD, "thin": thin, "runtime": {"checkpoint_every": 2}},
            "sweep": {"seed": list(range(seeds))},
        }
        (folder / "study.yaml").write_text(yaml.safe_dump({"targets": targets, "samplers": [sampler]}))
        self.folder, self.store = folder, folder / "runs"
        self.drivers: list[subprocess.Popen] = []

    def start(self, *words: str, program: Path = Path(PACKED[1]), log: str = "said") -> subprocess.Popen:
        """A driver in a process group of its own, as a shell starts it in a terminal."""
        command = [PACKED[0], str(program), "--experiments", "study.yaml", *words]
        with (self.folder / log).open("wb") as out:
            self.drivers.append(
                subprocess.Popen(
                    command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                    start_new_session=True, env={**os.environ, "PYTHONPATH": ""},
                )
            )  # fmt: skip
        return self.drivers[-1]

    def run(self, *words: str, status: int = 0) -> str:
        """A driver to its end; what it said."""
        assert self.start(*words).wait(PATIENCE) == status, self.said()
        return self.said()

    def said(self, log: str = "said") -> str:
        return (self.folder / log).read_text()

    def analyses(self) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted(self.store.rglob("analysis.json"))}

    def wait_until(self, holds, driver: subprocess.Popen) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, self.said()
            assert driver.poll() is None, self.said()
            time.sleep(0.05)

    def events(self, kind: str) -> list[dict]:
        logs = sorted(self.store.glob("packs/pack_*/rank-*.jsonl"))
        return [event for log in logs for event in read_events(log)[0] if event["event"] == kind]

    def times_computed(self) -> Counter:
        """How often each run was sampled to its end."""
        ends = [event for event in self.events("run_end") if event["status"] == "finished" and not event.get("cached")]
        return Counter(f"{event['target_id']}/{event['run_id']}" for event in ends)

    def assert_finished_once(self, runs: int) -> None:
        computed = self.times_computed()
        assert (len(computed), set(computed.values())) == (runs, {1}), computed
        table = pd.read_parquet(self.folder / "results" / "llc_runs.parquet")
        assert (len(table), set(table["status"])) == (runs, {"finished"})

    def assert_nothing_runs_within(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := _processes_of(str(self.folder)):
            assert time.monotonic() < deadline, left
            time.sleep(0.25)


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**settings) -> Study:
        made.append(Study(tmp_path, **settings))
        return made[-1]

    yield make
    for study in made:
        for driver in study.drivers:
            if driver.poll() is None:
                driver.kill()
            driver.wait()
        study.assert_nothing_runs_within(60)


@pytest.fixture
def short(make) -> Study:
    """Fifty runs of a third of a second."""
    return make(targets=[{"target": "quadratic"}, {"target": "monomial"}], seeds=25, thin=2000)


@pytest.fixture
def long(make) -> Study:
    """Four runs of some ten seconds, of many chunks each."""
    return make(targets=[{"target": "quadratic"}], seeds=4, thin=50000)


def _processes_of(folder):
    """Command lines of processes that name `folder`, or run in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = os.readlink(entry / "cwd")
        except OSError:
            continue
        if folder in line or where.startswith(folder):
            found.append(line)
    return found


# --------------------------------------------------------------------------------------------------------------
# The driver is told to stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_once_is_to_checkpoint_report_and_go_on_later(long, number):
    driver = long.start("--ranks=2")
    long.wait_until(lambda: len(long.events("run_start")) >= 2, driver)
    time.sleep(6)
    began = time.monotonic()
    # A terminal sends Ctrl-C to the whole group, a scheduler TERM to the driver.
    (os.killpg if number == signal.SIGINT else os.kill)(driver.pid, number)
    assert driver.wait(60) == 130, long.said()
    assert time.monotonic() - began < 25
    said = long.said()
    assert "stopping: runs are checkpointed; Ctrl-C again stops at once" in said
    assert re.search(r"\d paused with a checkpoint", said)
    assert re.search(r"^runs .* pending$", said, flags=re.M)
    assert "some runs are unfinished: run the same command again to continue" in said
    assert "Traceback" not in said
    long.assert_nothing_runs_within(10)
    assert list(long.store.rglob("checkpoint.npz"))
    assert "4 finished" in long.run("--ranks=2")
    long.assert_finished_once(4)


def test_twice_is_at_once(long):
    driver = long.start("--ranks=2")
    long.wait_until(lambda: len(long.events("run_start")) >= 2, driver)
    os.kill(driver.pid, signal.SIGINT)
    long.wait_until(lambda: "stopping: runs are checkpointed" in long.said(), driver)
    began = time.monotonic()
    os.kill(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 130, long.said()
    assert time.monotonic() - began < 10
    assert long.said().splitlines()[-1] == "interrupted; run the same command again to continue"
    long.assert_nothing_runs_within(10)


def test_the_unpacked_flow_stops_and_goes_on_as_well(make):
    study = make(targets=[{"target": "quadratic"}], seeds=2, thin=60000)
    program = ROOT / "flows" / "parsl_llc.py"
    driver = study.start(program=program)
    study.wait_until(lambda: len(list(study.store.glob("targets/*/*/checkpoint.npz"))) == 2, driver)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 130, study.said()
    assert "Traceback" not in study.said()
    assert re.search(r"^runs .* pending$", study.said(), flags=re.M)
    study.assert_nothing_runs_within(10)
    for log in study.store.glob("targets/*/*/sample.err"):
        assert "stopped before its end: its driver has ended; what is sampled is kept" in log.read_text()
    assert study.start(program=program).wait(PATIENCE) == 0, study.said()


# --------------------------------------------------------------------------------------------------------------
# The driver dies, or there are two


def test_a_killed_driver_leaves_nothing_behind_and_its_study_goes_on(short):
    driver = short.start("--pack=10", "--ranks=1")
    short.wait_until(lambda: len(short.analyses()) >= 3, driver)
    driver.kill()
    driver.wait()
    assert len(short.analyses()) < 50
    short.assert_nothing_runs_within(60)
    finished = short.analyses()
    said = short.run("--pack=10", "--ranks=1")
    assert "50 finished" in said
    assert "an earlier driver was killed on" in said
    assert {path: short.analyses()[path] for path in finished} == finished
    short.assert_finished_once(50)


def test_a_driver_started_at_once_after_one_was_killed_samples_nothing_twice(long):
    driver = long.start("--ranks=2")
    long.wait_until(lambda: len(long.events("run_start")) >= 2, driver)
    time.sleep(6)
    driver.kill()
    driver.wait()
    said = long.run("--ranks=2")
    assert "an earlier driver was killed on" in said
    long.assert_finished_once(4)
    assert list(long.store.rglob("checkpoint.npz")) == []


def test_two_drivers_on_one_store(short):
    first = short.start("--pack=10", "--ranks=1", "--results=one", log="said-one")
    second = short.start("--pack=10", "--ranks=1", log="said-two")
    assert first.wait(PATIENCE) == 0, short.said("said-one")
    assert second.wait(PATIENCE) == 0, short.said("said-two")
    assert "50 finished" in short.said("said-one") and "50 finished" in short.said("said-two")
    short.assert_finished_once(50)


def test_a_driver_waits_for_what_another_one_samples(short):
    first = short.start("--pack=10", "--ranks=1", "--results=one", log="said-one")
    short.wait_until(lambda: len(short.analyses()) >= 3, first)
    second = short.start("--pack=10", "--ranks=1", log="said-two")
    assert first.wait(PATIENCE) == 0, short.said("said-one")
    assert second.wait(PATIENCE) == 0, short.said("said-two")
    told = rf"\d+ runs are being sampled by another driver \(process {first.pid} on \S+\): waiting for them"
    assert re.search(told, short.said("said-two"))
    assert not re.search(r"packs", short.said("said-two").partition("waiting for them")[2].partition("targets ")[0])
    short.assert_finished_once(50)


# --------------------------------------------------------------------------------------------------------------
# Time runs out


def test_a_deadline_pauses_everything(make):
    study = make(targets=[{"target": "quadratic"}], seeds=4, thin=400_000)
    began = time.monotonic()
    said = study.run("--ranks=2", "--deadline=+00:01:20", status=75)
    assert time.monotonic() - began < 110
    assert "the allocation ends soon: stopped; what is finished is kept" in said
    assert re.search(r"\d paused with a checkpoint, \d left for later \(the allocation's time is up\)", said)
    assert "Traceback" not in said
    assert len(list(study.store.rglob("checkpoint.npz"))) == 2
    assert not list(study.store.rglob("error.json"))


# --------------------------------------------------------------------------------------------------------------
# Ranks die, targets are damaged


@pytest.mark.parametrize(("retries", "status", "counts"), [(0, 75, "pending"), (1, 0, "50 finished")])
def test_a_killed_rank_loses_only_what_was_not_finished(short, retries, status, counts):
    driver = short.start("--pack=50", "--ranks=1", f"--retries={retries}")
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
    names = ["harmless"] * 7
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
    computed = study.times_computed()
    assert (len(computed), set(computed.values())) == (7, {1})
    table = pd.read_parquet(tmp_path / "results" / "llc_runs.parquet")
    assert Counter(table["status"]) == {"finished": 7, "failed": 1}
    assert "2 dead ranks); quarantined: 1 run" in said or "1 dead rank); quarantined: 1 run" in said
    assert "RankDied: the rank that sampled this run died 2 times" in said
    assert [folder.parent for folder in study.store.rglob("deaths.json")] == [path.parent]
    # Left alone without --rerun failed, and then tried with a clean record.
    assert "everything is cached" not in study.run("--ranks=4", status=1)
    assert len(list(study.store.glob("packs/pack_*"))) == len(packs)
    source = (tmp_path / "mine.py").read_text()
    (tmp_path / "mine.py").write_text(source.replace("globals()[how]()", "pass"))
    assert "8 finished" in study.run("--ranks=4", "--rerun=failed")
    assert not list(study.store.rglob("deaths.json"))


@pytest.mark.parametrize("same_size", [False, True])
def test_a_damaged_target_is_built_again(short, same_size):
    short.run("--ranks=1", "samplers.0.sweep.seed=[0]")
    damaged, *_ = sorted(short.store.glob("targets/*/params.npz"))
    content = damaged.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    damaged.write_bytes(flipped if same_size else b"something else")
    said = short.run("--ranks=1", "samplers.0.sweep.seed=[0, 1]")
    assert "4 finished" in said
    assert damaged.read_bytes() == content
    assert list(short.store.glob("damaged/**/params.npz.*"))
    # Its size tells at once, its content where a rank reads it.
    assert ("tried again: 1 run (1 damaged target)" if same_size else "set aside: ") in said
