"""A study that is disturbed while it runs, its processes, and what it must have come to in the end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lambda_hat.entrypoints.verify import Verification
from lambda_hat.store import run_files
from lambda_hat.store.layout import Store, read_events

PACKED = Path(__file__).resolve().parents[2] / "flows" / "packed.py"
SGLD = {"num_chains": 2, "num_burnin": 50, "step_size": 1e-4}
LONG = {"num_draws": 800, "thin": 2000, "runtime": {"checkpoint_every": 1}}
STUDY = {
    "targets": [{"target": "quadratic", "overrides": {"target": {"dim": 4, "rank": 3}}}, {"target": "monomial"}],
    "samplers": [
        {"name": "sgld", "overrides": {**SGLD, "num_draws": 50}, "sweep": {"seed": [0, 1, 2, 3]}},
        {"name": "sgld", "overrides": {**SGLD, **LONG}},
    ],
}
RUNS = 10
"""Two of them take some seconds, of several chunks."""
OWN = (
    "programs_compiled",
    "programs_loaded",
    "seconds_compile",
    "seconds_sample",
    "seconds_total",
    "rank",
    "host",
    "pack_id",
    "run_dir",
)
"""Columns of when and where, which no two studies have in common."""
PATIENCE = 600.0
MARK = "LAMBDA_HAT_FAULTS"
"""Every process of a study inherits this variable."""
KINDS = {
    "rank": "mpi/run_pack.py",
    "launcher": "mpiexec -",
    "proxy": "hydra_pmi_proxy",
    "build": "lambda_hat.entrypoints.build_target",
    "driver": "flows/packed.py",
}


@dataclass(frozen=True)
class Process:
    """One process of a study."""

    pid: int
    kind: str
    pack_id: str | None

    def signal(self, number: int) -> bool:
        """Whether it was still there to get the signal."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


class Study:
    """The study in a folder of its own; its store is `folder/runs`."""

    def __init__(self, folder: Path, cache: Path):
        self.folder, self.store, self.results = folder, Store(folder / "runs"), folder / "results"
        self.temporary = folder / "tmp"
        self.store.root.mkdir(parents=True)
        self.temporary.mkdir()
        (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
        self.environment = {
            "PYTHONFAULTHANDLER": "1",
            **os.environ,
            "PYTHONPATH": "",
            "TMPDIR": str(self.temporary),
            MARK: str(folder),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        self.drivers: list[Driver] = []
        self.computed: dict[tuple[str, str], set[str]] = {}
        """Every run, and the packs whose ranks sampled it to its end."""
        self.excused: Counter[tuple[str, str]] = Counter()
        """Runs whose published files, or whose claim, were damaged on purpose: they may be sampled once more."""
        self.damaged_targets: set[str] = set()
        """Targets whose files were damaged on purpose."""
        self.unreadable: set[Path] = set()
        """Event logs that were damaged on purpose, and are read no more."""
        self.shared_memory: set[str] = set()

    # ----------------------------------------------------------------------------------------------------------
    # Drivers

    def start(self, *words: str) -> Driver:
        """One more driver, in a process group of its own, as a terminal has it."""
        self.drivers.append(Driver(self, len(self.drivers), words))
        return self.drivers[-1]

    @property
    def running(self) -> list[Driver]:
        """Drivers that run."""
        return [driver for driver in self.drivers if driver.process.poll() is None]

    def run(self, *words: str) -> int:
        """A driver to its end; its exit status."""
        driver = self.start(*words)
        driver.process.wait(PATIENCE)
        driver.assert_spoke_plainly()
        return driver.process.returncode

    def run_to_the_end(self) -> None:
        """The same command, as often as a user would give it: again while something is left, with --rerun failed where
        runs were set aside, and after `lambda-hat verify`, since whole-looking files may have been damaged."""
        verify(self.store)
        statuses: list[int] = []
        while not statuses or statuses[-1] != 0:
            assert len(statuses) < 6, (statuses, self.drivers[-1].said())
            # 1 also says that a file was damaged while something was writing it, which another start mends.
            again = ["--rerun=failed"] if statuses[-1:] == [1] else []
            statuses.append(self.run(*again))

    def end(self) -> None:
        """Kill what is left, where a test has failed."""
        for process in self.processes():
            process.signal(signal.SIGKILL)
        for driver in self.drivers:
            driver.process.wait()

    # ----------------------------------------------------------------------------------------------------------
    # Processes

    def processes(self, *kinds: str) -> list[Process]:
        """The processes of this study, of these kinds where any is given."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                pack = re.search(r"/packs/(pack_[\w-]+)/pack.json", line)
                kind = _kind(line)
                if line and (not kinds or kind in kinds) and self._is_ours(entry, line):
                    found.append(Process(int(entry.name), kind, pack[1] if pack else None))
        return found

    def _is_ours(self, entry: Path, line: str) -> bool:
        """Raises OSError where it has ended."""
        if str(self.folder) in line or os.readlink(entry / "cwd").startswith(str(self.folder)):
            return True
        return f"{MARK}={self.folder}".encode() in (entry / "environ").read_bytes().split(b"\0")

    def note(self) -> None:
        """Remember what the logs tell now, and what shared memory is in use, before something may be lost."""
        known = {f"{t}/{r}" for t in self.store.target_ids() for r in self.store.run_ids(t)}
        begun: set[Any] = set()
        for log in self.store.packs_dir.glob("pack_*/rank-*.jsonl"):
            if log in self.unreadable:
                continue
            for event in read_events(log)[0]:
                begun |= {event.get("pid")} if event["event"] == "start" else set()
                key = (event.get("target_id"), event.get("run_id"))
                done = event["event"] == "run_end" and event.get("status") == "finished" and not event.get("cached")
                if done and "/".join(map(str, key)) in known:
                    self.computed.setdefault(key, set()).add(log.parent.name)
        # Before that the others may still have to find its name.
        for process in self.processes("rank"):
            if process.pid not in begun:
                continue
            try:
                maps = Path(f"/proc/{process.pid}/maps").read_text()
            except OSError:
                continue
            self.shared_memory |= set(re.findall(r"(/dev/shm/\S+)$", maps, flags=re.M))

    def run_starts(self) -> Iterator[tuple[float, str]]:
        """When runs were begun, and in which pack."""
        for log in self.store.packs_dir.glob("pack_*/rank-*.jsonl"):
            for event in read_events(log)[0]:
                if event["event"] == "run_start" and isinstance(event.get("time"), float):
                    yield event["time"], log.parent.name

    # ----------------------------------------------------------------------------------------------------------
    # What must hold in the end

    @property
    def lost(self) -> int:
        """Runs that the table has no estimate of."""
        return RUNS - pq.read_table(self.results / "llc_runs.parquet").column("status").to_pylist().count("finished")

    def computed_twice(self) -> list[str]:
        """Runs that were sampled to their end more often than what was damaged on purpose explains."""
        self.note()
        packs = {key: sorted(packs) for key, packs in self.computed.items()}
        return [f"{key}: {found}" for key, found in packs.items() if len(found) > 1 + self.excused[key]]

    def assert_equals(self, undisturbed: Study) -> None:
        """Table and traces are those of the other one, bit for bit."""
        mine, theirs = (_table(study) for study in (self, undisturbed))
        assert mine.num_rows == RUNS
        for name in mine.column_names:
            assert mine.column(name).equals(theirs.column(name)), (name, mine.column(name), theirs.column(name))
        traces, expected = (_traces(study) for study in (self, undisturbed))
        assert sorted(traces) == sorted(expected)
        assert [name for name, content in traces.items() if content != expected[name]] == []

    def assert_whole(self) -> None:
        """No file is half-written, and none is left of writing."""
        found = Verification(self.store)
        assert [str(damage) for damage in found.look()] == []
        # A target is built again where a run still needs it.
        built = found.counts["built"] == len(STUDY["targets"]) or self.damaged_targets
        assert built and found.counts["finished"] == RUNS, found.counts
        begun = self.drivers[-1].begun
        parts = [part for root in (self.store.root, self.results) for part in root.rglob(".*.part")]
        # Until a minute has gone by they could be a living writer's.
        assert [str(part) for part in parts if part.stat().st_mtime < begun - 60] == []
        for run_dir in _run_dirs(self):
            names = {name for name in run_files.names(run_dir) if not name.endswith(".part")}
            assert names - {run_files.DISCARDED} == {"config.yaml", "trace.nc", "analysis.json"}, run_dir

    def assert_nothing_left(self, seconds: float = 60.0) -> None:
        """No process, no shared memory."""
        deadline = time.monotonic() + seconds
        while left := self.processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.25)
        shared = [name for name in self.shared_memory if Path(name).exists()]
        assert shared == [], shared


class Driver:
    """One start of the command."""

    def __init__(self, study: Study, number: int, words: tuple[str, ...]):
        # Whoever runs the tests in the background of a script has let Ctrl-C be ignored.
        command = ["env", "--default-signal=INT", sys.executable, str(PACKED)]
        command += ["--experiments", "study.yaml", "--pack=5", "--ranks=2", *words]
        self.log, self.begun, self.killed = study.folder / f"said-{number}", time.time(), False
        # Through a pipe, as to a terminal: a limit on the size of files is none on what it can say.
        listening, speaking = os.pipe()
        self.process = subprocess.Popen(
            command, cwd=study.folder, stdin=subprocess.DEVNULL, stdout=speaking, stderr=speaking,
            start_new_session=True, env=study.environment,
        )  # fmt: skip
        os.close(speaking)
        streams = os.fdopen(listening, "rb", buffering=0), self.log.open("wb", buffering=0)
        self._listener = threading.Thread(target=_copy, args=streams, daemon=True)
        self._listener.start()

    def said(self) -> str:
        """What it has said so far; all of it, once it has ended."""
        if self.process.poll() is not None:
            # Ranks that outlive it for a while hold the pipe open as well.
            self._listener.join(timeout=2.0)
        return self.log.read_text(errors="replace")

    def last_words(self) -> str:
        """End one that hangs: what it has said, and where each of its threads was."""
        self.process.send_signal(signal.SIGABRT)
        self.process.wait()
        return self.said()

    def assert_spoke_plainly(self) -> None:
        """It has ended by itself, or of a signal, with sentences and no traceback of its own."""
        said, status = self.said(), self.process.returncode
        if status == -signal.SIGINT and PACKED.name not in said:
            # Python itself was starting.
            return
        assert not re.search(r"^Traceback|^Exception|^\w*Error:", said, flags=re.M), said
        # A driver that has not begun its study yet ends as any command does.
        assert status in (0, 1, 2, 75, 130) or (self.killed and status < 0), (status, said)
        if status == 2:
            # Nothing was started: a pack's file had been damaged.
            assert said.splitlines()[-1].startswith("error: "), said
        elif status not in (0, 130) and status > 0:
            assert said.strip(), f"exit status {status} without a word"


def _copy(source: BinaryIO, log: BinaryIO) -> None:
    with source, log:
        while heard := source.read(65536):
            log.write(heard)


def verify(store: Store) -> list[str]:
    """What `lambda-hat verify` finds, and sets aside."""
    return [str(damage) for damage in Verification(store).look()] if store.targets_dir.is_dir() else []


def _kind(line: str) -> str:
    # The launcher's line names the program of the ranks.
    order = ("launcher", "proxy", "rank", "build", "driver")
    return next((kind for kind in order if KINDS[kind] in line), "other")


def _table(study: Study) -> pa.Table:
    table = pq.read_table(study.results / "llc_runs.parquet")
    return table.drop_columns(list(OWN)).sort_by([("target_id", "ascending"), ("run_id", "ascending")])


def _traces(study: Study) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": run_files.read_bytes(path / "trace.nc") for path in _run_dirs(study)}


def _run_dirs(study: Study) -> list[Path]:
    store = study.store
    return [store.run_dir(target_id, run_id) for target_id in store.target_ids() for run_id in store.run_ids(target_id)]
