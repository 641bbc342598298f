"""What may happen to a study: each fault is a small function that says whether it hit anything."""

from __future__ import annotations

import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from lambda_hat.store import run_files
from tests.faults.study import Study

ROOT = Path(__file__).resolve().parents[2]
Act = Callable[[Study, random.Random], bool]


@dataclass(frozen=True)
class Fault:
    """needs: the kinds of process that it waits for, any of them. is_kill: it counts as a kill point. weight: how often
    it is drawn."""

    name: str
    needs: tuple[str, ...]
    act: Act
    weight: float = 1.0
    is_kill: bool = True


def _signalling(number: int, *kinds: str, every: bool = False) -> Act:
    def act(study: Study, rng: random.Random) -> bool:
        found = study.processes(*kinds)
        rng.shuffle(found)
        chosen = found if every else found[:1]
        if "driver" in kinds:
            _expect_death(study, [process.pid for process in chosen])
        return any([process.signal(number) for process in chosen])

    return act


def _expect_death(study: Study, pids: list[int]) -> None:
    for driver in study.drivers:
        driver.killed |= driver.process.pid in pids


def _ctrl_c(times: int) -> Act:
    def act(study: Study, rng: random.Random) -> bool:
        if not study.running:
            return False
        driver = rng.choice(study.running)
        _expect_death(study, [driver.process.pid])
        for press in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(driver.process.pid, signal.SIGINT)
            if press + 1 < times:
                time.sleep(rng.uniform(0.05, 3.0))
        return True

    return act


def _second_driver(study: Study, rng: random.Random) -> bool:
    if len(study.running) != 1:
        return False
    study.start()
    return True


def _compact(study: Study, rng: random.Random) -> bool:
    """Finished runs are put into archives meanwhile; every other time that is killed."""
    command = [sys.executable, "-m", "lambda_hat.entrypoints.cli", "compact", "--store", str(study.store.root)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    killed = rng.random() < 0.5
    if killed:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(rng.uniform(0.5, 4.0))
        process.kill()
    _, complaints = process.communicate()
    assert killed or "Traceback" not in complaints, complaints
    return True


# --------------------------------------------------------------------------------------------------------------
# The store cannot be written


def _full_disk(study: Study, rng: random.Random) -> bool:
    """The store's small file system has no byte left for some seconds."""
    if not study.store.root.is_mount():
        return False
    ballast = study.folder / "runs" / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(64 * 1024))
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(512))
    time.sleep(rng.uniform(0.5, 6.0))
    ballast.unlink()
    return True


def _permission_gone(study: Study, rng: random.Random) -> bool:
    """Nothing can be made in any folder of the store for some seconds; root is kept out by the immutable flag."""
    folders = [folder for folder, _, _ in os.walk(study.store.root)]
    done = subprocess.run(["chattr", "+i", *folders], capture_output=True)
    try:
        time.sleep(rng.uniform(0.5, 4.0))
    finally:
        subprocess.run(["chattr", "-i", *folders], capture_output=True, check=done.returncode == 0)
    return done.returncode == 0


def _small_files_only(study: Study, rng: random.Random) -> bool:
    """A process may write no file beyond some bytes for some seconds: the system says EFBIG."""
    found = study.processes("rank", "driver", "build")
    if not found:
        return False
    process = rng.choice(found)
    try:
        old = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (rng.choice((0, 500, 3000)), old[1]))
        time.sleep(rng.uniform(0.5, 4.0))
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, old)
    except ProcessLookupError:
        return False
    return True


# --------------------------------------------------------------------------------------------------------------
# Files are damaged

PATTERNS = (
    "targets/tgt_*/config.yaml", "targets/tgt_*/meta.json", "targets/tgt_*/params.npz", "targets/tgt_*/data.npz",
    "targets/tgt_*/run_*/config.yaml", "targets/tgt_*/run_*/trace.nc", "targets/tgt_*/run_*/analysis.json",
    "targets/tgt_*/run_*/checkpoint.npz", "targets/tgt_*/run_*/claim-*", "targets/tgt_*/run_*/error.json",
    "targets/tgt_*/run_*/deaths.json", "packs/pack_*/pack.json", "packs/pack_*/rank-*.jsonl", "packs/driver_*.lease",
    "targets/tgt_*/runs.zip", "../results/llc_runs.parquet",
)  # fmt: skip
PUBLISHED = ("config.yaml", "trace.nc", "analysis.json")


def files(study: Study) -> Iterator[tuple[str, list[Path]]]:
    """The kinds of files that the store has now."""
    for pattern in PATTERNS:
        base = study.store.root
        found = sorted((base / "..").resolve().glob(pattern[3:]) if pattern.startswith("../") else base.glob(pattern))
        if found:
            yield pattern, found


def _damaged(content: bytes, rng: random.Random) -> bytes:
    how = rng.choice(("cut", "empty", "flip", "flip", "foreign"))
    if how == "cut":
        return content[: rng.randrange(len(content))] if content else content
    if how == "flip" and content:
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 8))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    return rng.choice((b"", b"{}", b"[1]", b"\x80\x04K\x01.", rng.randbytes(300))) if how == "foreign" else b""


def damage_one(study: Study, rng: random.Random) -> bool:
    """Cut, empty, flip bits of, or overwrite one file of a kind drawn at random, where it lies."""
    kinds = list(files(study))
    if not kinds:
        return False
    _, found = rng.choice(kinds)
    path = rng.choice(found)
    study.note()
    try:
        content = path.read_bytes()
        _excuse(study, path)
        path.write_bytes(_damaged(content, rng))
    except OSError:
        return False
    return True


def _excuse(study: Study, path: Path) -> None:
    if path.name == run_files.ARCHIVE:
        study.excused.update((path.parent.name, run_id) for run_id in run_files.runs_in(path.parent))
        return
    if path.parent.name.startswith("run_") and (path.name in PUBLISHED or path.name.startswith("claim-")):
        study.excused[path.parent.parent.name, path.parent.name] += 1
    if path.parent.name.startswith("tgt_"):
        study.damaged_targets.add(path.parent.name)
    if re.fullmatch(r"rank-\d+\.jsonl", path.name):
        study.unreadable.add(path)


# --------------------------------------------------------------------------------------------------------------

FAULTS = (
    Fault("kill -9 of a rank", ("rank",), _signalling(signal.SIGKILL, "rank"), 4),
    Fault("kill -9 of all ranks", ("rank",), _signalling(signal.SIGKILL, "rank", every=True), 2),
    Fault("kill -9 of mpiexec", ("launcher",), _signalling(signal.SIGKILL, "launcher"), 2),
    Fault("kill -9 of MPI's proxy", ("proxy",), _signalling(signal.SIGKILL, "proxy")),
    Fault("kill -9 of a build", ("build",), _signalling(signal.SIGKILL, "build")),
    Fault("kill -9 of the driver", ("driver",), _signalling(signal.SIGKILL, "driver"), 3),
    Fault("SIGTERM to a rank", ("rank",), _signalling(signal.SIGTERM, "rank")),
    Fault("SIGUSR1 to a rank", ("rank",), _signalling(signal.SIGUSR1, "rank")),
    Fault("SIGTERM to mpiexec", ("launcher",), _signalling(signal.SIGTERM, "launcher")),
    Fault("SIGUSR1 to mpiexec", ("launcher",), _signalling(signal.SIGUSR1, "launcher")),
    Fault("SIGTERM to the driver", ("driver",), _signalling(signal.SIGTERM, "driver")),
    Fault("SIGUSR1 to the driver", ("driver",), _signalling(signal.SIGUSR1, "driver"), 0.5),
    Fault("Ctrl-C", ("driver",), _ctrl_c(1)),
    Fault("Ctrl-C twice", ("driver",), _ctrl_c(2)),
    Fault("a second driver", ("driver",), _second_driver, 1.5, is_kill=False),
    Fault("full disk", ("driver",), _full_disk, 1, is_kill=False),
    Fault("permission denied", ("driver",), _permission_gone, 1, is_kill=False),
    Fault("file size limit", ("driver",), _small_files_only, 1, is_kill=False),
    Fault("damaged file", ("driver",), damage_one, 3, is_kill=False),
    Fault("lambda-hat compact", ("driver",), _compact, 3, is_kill=False),
)
