"""Kill anything, at any time, damage any file: the study ends with the bits of an undisturbed one, and nothing is lost.

At least KILL_POINTS signals that reached a process, at moments drawn over the whole life of studies that are started
again and again; LAMBDA_HAT_SEED gives another choice of them.
"""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import SOAK
from tests.faults.faults import FAULTS, Fault, damage_one
from tests.faults.study import PATIENCE, Process, Study

KILL_POINTS = int(os.environ.get("LAMBDA_HAT_KILL_POINTS", 250 if SOAK else 40))
SEED = os.environ.get("LAMBDA_HAT_SEED", "0")
PER_STUDY = 20
"""Kill points of one study, after which it is left alone."""
EARLIEST, LATEST = 0.1, 5.0
"""Seconds from when what a fault is about is seen until it happens."""
IN_A_ROW = 0.4
"""How often one thing follows the other within a second."""
DISK = "24m"
PACK, DRIVERS_PACK = "of a killed pack", "of a pack whose driver was killed and started again"

pytestmark = [pytest.mark.mpi, pytest.mark.parsl, pytest.mark.slow]


class Tally:
    """What was done, and what came of it."""

    def __init__(self) -> None:
        self.hits: Counter[str] = Counter()
        self.kills = self.studies = self.starts = self.lost = self.twice = 0
        self.resumptions: dict[str, list[float]] = {PACK: [], DRIVERS_PACK: []}

    def lines(self) -> Iterator[str]:
        yield f"seed {SEED}: {self.kills} kill points in {self.studies} studies, {self.starts} starts of a driver"
        yield from (f"    {count:4d}  {name}" for name, count in sorted(self.hits.items(), key=lambda hit: -hit[1]))
        yield f"runs lost: {self.lost}; runs computed twice: {self.twice}"
        for what, seconds in self.resumptions.items():
            longest = f"{max(seconds):.1f} s at most, of {len(seconds)} kills" if seconds else "none"
            yield f"resumption {what}: {longest} that nothing else befell"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Study:
    """What it has compiled is there for the disturbed ones."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = Study(folder, folder / "cache")
    assert study.run() == 0, study.drivers[-1].said()
    study.assert_whole()
    assert len(study.computed_twice()) == study.lost == 0
    study.assert_nothing_left()
    return study


class Disturbance:
    """One study, and all that happens to it."""

    def __init__(self, study: Study, rng: random.Random, tally: Tally):
        self.study, self.rng, self.tally = study, rng, tally
        self._moments: list[tuple[float, str | None, str]] = []
        """When something happened, which pack it ended, and whose killed: a key of `Tally.resumptions`."""
        self._heard: set[Path] = set()

    def run(self, points: int) -> None:
        """Disturb it that often, and let it end."""
        goal = self.tally.kills + points
        self.study.start()
        while self.tally.kills < goal and not self._over():
            soon = self.rng.random() < IN_A_ROW
            possible = [fault for fault in FAULTS if not soon or (fault.is_kill and self.study.processes(*fault.needs))]
            if not possible:
                continue
            (fault,) = self.rng.choices(possible, [fault.weight for fault in possible])
            delay = EARLIEST * ((1.0 if soon else LATEST) / EARLIEST) ** self.rng.random()
            if self._wait(lambda fault=fault: bool(self.study.processes(*fault.needs)), 20.0):
                self._wait(lambda: False, delay)
                self._let_happen(fault)
        deadline = time.monotonic() + PATIENCE
        while not self._over():
            assert time.monotonic() < deadline, [driver.last_words() for driver in self.study.running]
            time.sleep(0.2)
        for _ in range(self.rng.randrange(4)):
            self.tally.hits["damaged file, at rest"] += damage_one(self.study, self.rng)
        self.study.run_to_the_end()

    def _let_happen(self, fault: Fault) -> None:
        study = self.study
        study.note()
        before, happened = study.processes(), time.time()
        if not fault.act(study, self.rng):
            return
        print(f"{time.strftime('%H:%M:%S')} {fault.name}")
        self.tally.hits[fault.name] += 1
        self.tally.kills += fault.is_kill
        self._moments.append((happened, *_pack_hit(fault, before)))

    def _wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Wait until `holds()`, no driver runs, or time is up; whether it holds."""
        deadline = time.monotonic() + seconds
        while not (held := holds()) and self.study.running and time.monotonic() < deadline:
            time.sleep(0.05)
        return held

    def _over(self) -> bool:
        """Whether a driver has ended with everything finished; where all have ended otherwise, another is started."""
        study = self.study
        for driver in study.drivers:
            if driver.process.poll() is not None and driver.log not in self._heard:
                driver.assert_spoke_plainly()
                self._heard.add(driver.log)
        if study.running:
            return False
        if study.drivers[-1].process.returncode == 0:
            return True
        if self.rng.random() < 0.3:
            self.tally.hits["damaged file, at rest"] += damage_one(study, self.rng)
        failed = study.drivers[-1].process.returncode == 1
        print(f"{time.strftime('%H:%M:%S')} started again after {study.drivers[-1].process.returncode}")
        study.start(*["--rerun=failed"] * failed)
        return False

    def judge(self, undisturbed: Study) -> None:
        """The end is that of the undisturbed study, and nothing else is left."""
        study, tally = self.study, self.tally
        tally.studies += 1
        tally.starts += len(study.drivers)
        twice = study.computed_twice()
        tally.lost += study.lost
        tally.twice += len(twice)
        self._measure()
        assert study.lost == 0 and twice == []
        study.assert_equals(undisturbed)
        study.assert_whole()
        study.assert_nothing_left()

    def _measure(self) -> None:
        """Seconds from the kill of a pack to the first run of a later one, where nothing else happened meanwhile."""
        starts = sorted(self.study.run_starts())
        for (moment, pack, whose), then in zip(self._moments, [*self._moments[1:], (float("inf"),)], strict=True):
            following = next((at for at, where in starts if at > moment and where != pack), None)
            if whose and following is not None and following < then[0]:
                self.tally.resumptions[whose].append(following - moment)


def _pack_hit(fault: Fault, before: list[Process]) -> tuple[str | None, str]:
    """The pack that a kill ends, and what for."""
    pack = next((process.pack_id for process in before if process.kind == "rank"), None)
    if pack is None or not fault.name.startswith("kill -9"):
        return None, ""
    return pack, DRIVERS_PACK if "driver" in fault.needs else PACK


@pytest.fixture
def make(tmp_path) -> Iterator[Callable[[str, Path], Study]]:
    """A study whose store lies on a small file system of its own, where mounts are allowed."""
    mounted: list[Path] = []

    def make_study(name: str, cache: Path) -> Study:
        study = Study(tmp_path / name, cache)
        options = ["-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(study.store.root)]
        if subprocess.run(["mount", *options], capture_output=True).returncode == 0:
            mounted.append(study.store.root)
        return study

    yield make_study
    for root in mounted:
        subprocess.run(["umount", "-l", str(root)], check=True)


def test_whatever_happens_nothing_is_lost_and_no_bit_changes(undisturbed, make, capsys):
    tally = Tally()
    try:
        while tally.kills < KILL_POINTS:
            name = f"study {tally.studies:03d}"
            study = make(name, undisturbed.folder / "cache")
            disturbance = Disturbance(study, random.Random(f"{SEED}/{tally.studies}"), tally)
            try:
                disturbance.run(min(PER_STUDY, KILL_POINTS - tally.kills))
                disturbance.judge(undisturbed)
            finally:
                study.end()
    finally:
        with capsys.disabled():
            print("", *tally.lines(), sep="\n")
