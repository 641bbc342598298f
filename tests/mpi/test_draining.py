"""Packs that are stopped, killed, kept out and run out of room: nothing is lost, and the bits stay the same."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from lambda_hat.store import claims
from lambda_hat.store.drain import DEADLINE_VARIABLE
from lambda_hat.store.layout import Store, read_json, write_json_atomic
from lambda_hat.workflow_config import compose_study
from tests.mpi.test_run_pack import PROGRAM, events_of, numbers, run

STUDY = """
targets:
  - {target: quadratic, overrides: {target: {dim: 4, rank: 3}}}
samplers:
  - name: sgld
    overrides: {num_chains: 2, num_draws: 800, thin: 6000, num_burnin: 50, runtime: {checkpoint_every: 1}}
    sweep: {seed: [0, 1]}
  - {name: sgld, overrides: {num_chains: 2, num_draws: 50, num_burnin: 50}}
"""
LONG = 2
"""Runs of several seconds; the last one takes none to speak of."""


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY)
    return compose_study(path)


@pytest.fixture(scope="module")
def built(study, tmp_path_factory):
    """A store in which the target is built and the short run was sampled without a disturbance."""
    store = Store(tmp_path_factory.mktemp("store") / "undisturbed")
    write_pack(store, study, "pack_short", runs=[study.runs[LONG].pack_entry()])
    done = run(pack_file(store, "pack_short"))
    assert done.returncode == 0, done.stderr
    return store


@pytest.fixture(scope="module")
def whole(study, built):
    """The same store, with every run."""
    write_pack(built, study, "pack_whole")
    done = run(pack_file(built, "pack_whole"), ranks=2)
    assert done.returncode == 0, done.stderr
    return built


@pytest.fixture
def store(built, tmp_path):
    """Another store with the same target, and no runs."""
    fresh = Store(tmp_path / 'a "store"')
    for folder in built.targets_dir.iterdir():
        shutil.copytree(folder, fresh.targets_dir / folder.name, ignore=shutil.ignore_patterns("run_*"))
    return fresh


def pack_file(store, pack_id):
    return store.pack_dir(pack_id) / "pack.json"


def write_pack(store, study, pack_id, **more):
    builds = [{"target_id": target_id, "config": asdict(cfg)} for target_id, cfg in study.targets.items()]
    pack = {"format": 1, "pack_id": pack_id, "store_root": str(store.root), "cores_per_rank": 1, "expected_ranks": None}
    write_json_atomic(
        pack_file(store, pack_id), pack | {"builds": builds, "runs": [r.pack_entry() for r in study.runs]} | more
    )


class Started:
    """A pack under mpiexec, in a process group of its own."""

    def __init__(self, store, pack_id, ranks=2, environment=None):
        line = [str(Path(sys.executable).parent / "mpiexec"), "-n", str(ranks), sys.executable, PROGRAM]
        self.store, self.pack_id = store, pack_id
        self.process = subprocess.Popen(
            [*line, str(pack_file(store, pack_id))],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd="/",
            env=os.environ | (environment or {}),
            start_new_session=True,
        )

    def wait_for(self, condition, seconds=120.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, "it never came to it"
            time.sleep(0.05)

    def events(self, *kinds):
        return [event for event in events_of(self.store, self.pack_id) if event["event"] in kinds]

    def end(self, seconds):
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out + err


def checkpoints(store):
    return sorted(store.root.rglob("checkpoint.npz"))


@pytest.mark.mpi
@pytest.mark.slow
def test_runs_that_are_stopped_again_and_again_give_the_bits_of_undisturbed_ones(study, whole, store):
    """By each signal, by the clock, and by a kill that leaves no time for anything: then a second since the last
    checkpoint is lost, and no more."""

    def start(name):
        """A pack whose long runs have got beyond where they were before."""
        before = {path: path.stat().st_mtime_ns for path in checkpoints(store)}
        write_pack(store, study, name)
        pack = Started(store, name)

        def advanced():
            now = {path: path.stat().st_mtime_ns for path in checkpoints(store)}
            return sum(since > before.get(path, 0) for path, since in now.items()) == LONG

        pack.wait_for(advanced)
        return pack

    for stop in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        pack = start(f"pack_{stop.name}")
        pack.process.send_signal(stop)
        # PBS leaves 10 s after a signal.
        code, told = pack.end(10.0)
        assert code == 0, told
        assert f"{stop.name} came" in told
        ends = pack.events("run_end")
        assert {end["status"] for end in ends} <= {"paused", "finished", "left"}
        assert [end["advanced"] for end in ends if end["status"] == "paused"] == [True] * LONG
        assert len(pack.events("drain")) == len(pack.events("end")) == 2
        assert len(checkpoints(store)) == LONG

    write_pack(store, study, "pack_clock")
    pack = Started(store, "pack_clock", environment={DEADLINE_VARIABLE: str(time.time() + 5.0)})
    code, told = pack.end(30.0)
    assert code == 0 and "time is up" in told
    assert not store.pack_dir("pack_clock").joinpath("error.json").exists()

    pack = start("pack_kill")
    ranks = [event["pid"] for event in pack.events("start")]
    os.kill(ranks[1], signal.SIGKILL)
    assert pack.end(20.0)[0] != 0

    write_pack(store, study, "pack_last")
    assert run(pack_file(store, "pack_last"), ranks=2).returncode == 0
    assert numbers(store, study.runs) == numbers(whole, study.runs)
    left = {path.name for run_ in study.runs for path in store.run_dir(run_.target_id, run_.run_id).iterdir()}
    assert left == {"config.yaml", "trace.nc", "analysis.json"}


@pytest.mark.mpi
@pytest.mark.slow
def test_a_run_is_sampled_in_one_of_two_packs_at_once(study, whole, store):
    for name in ("pack_one", "pack_other"):
        write_pack(store, study, name)
    packs = [Started(store, name) for name in ("pack_one", "pack_other")]
    told = [pack.end(180.0) for pack in packs]
    assert [code for code, _ in told] == [0, 0], told
    ends = [end for pack in packs for end in pack.events("run_end")]
    sampled = [(end["target_id"], end["run_id"]) for end in ends if end["status"] == "finished" and "cached" not in end]
    assert sorted(sampled) == sorted((r.target_id, r.run_id) for r in study.runs)
    for end in ends:
        assert end["status"] in ("finished", "elsewhere")
        if end["status"] == "elsewhere":
            assert "another process samples it: process " in end["reason"]
    assert numbers(store, study.runs) == numbers(whole, study.runs)


@pytest.mark.slow
def test_the_claim_of_a_live_process_keeps_a_rank_away(study, store):
    short = study.runs[LONG]
    directory = store.run_dir(short.target_id, short.run_id)
    claim = claims.take(directory, None, rank=7, pack_id="pack_elsewhere")
    write_pack(store, study, "pack_kept_out", runs=[short.pack_entry()])
    assert run(pack_file(store, "pack_kept_out")).returncode == 0
    (end,) = [event for event in events_of(store, "pack_kept_out") if event["event"] == "run_end"]
    assert end["status"] == "elsewhere"
    assert end["reason"].startswith(f"another process samples it: process {os.getpid()} on ")
    assert "pack_elsewhere" in end["reason"]
    claim.release()
    write_pack(store, study, "pack_let_in", runs=[short.pack_entry()])
    assert run(pack_file(store, "pack_let_in")).returncode == 0
    assert store.run_status(short.target_id, short.run_id) == "finished"


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(["mount", *options], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.mpi
@pytest.mark.slow
def test_a_full_disk_is_one_message_and_loses_nothing(study, built, store, small_disk):
    small = Store(small_disk / "store")
    shutil.copytree(store.targets_dir, small.targets_dir)
    short = [study.runs[LONG]]
    runs = [run_.pack_entry() for run_ in short]
    write_pack(small, study, "pack_full", runs=runs)
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    # Room for logs, lease, claim and configuration, and not for the trace.
    os.truncate(ballast, ballast.stat().st_size - 7 * 4096)
    done = run(pack_file(small, "pack_full"), ranks=2)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    (end,) = [event for event in events_of(small, "pack_full") if event["event"] == "run_end"]
    assert end["status"] == "left" and end["store_error"] is True
    assert str(small.root) in end["reason"] and "No space left on device" in end["reason"]
    directory = small.run_dir(runs[0]["target_id"], runs[0]["run_id"])
    assert not (directory / "error.json").exists() and not (directory / "analysis.json").exists()
    # Said by the rank that met it, and where that is rank 0, once more as what stopped the pack.
    assert f"reason: {end['reason']}" in done.stdout
    ballast.unlink()
    write_pack(small, study, "pack_room", runs=runs)
    assert run(pack_file(small, "pack_room")).returncode == 0
    assert numbers(small, short) == numbers(built, short)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_checkpoint_is_set_aside_and_the_run_begins_anew(study, built, store, damage):
    short = study.runs[LONG]
    path = store.run_dir(short.target_id, short.run_id) / "checkpoint.npz"
    path.parent.mkdir(parents=True)
    path.write_bytes({"flip": b"PK" + bytes(99), "cut": b"P", "empty": b""}[damage])
    write_pack(store, study, "pack_anew", runs=[short.pack_entry()])
    assert run(pack_file(store, "pack_anew")).returncode == 0
    assert numbers(store, [short]) == numbers(built, [short])
    (aside,) = store.root.joinpath("damaged").rglob("checkpoint.npz*")
    assert aside.is_file()


def test_a_deadline_that_is_none_is_refused(study, store):
    for deadline, environment in (("soon", {}), (None, {DEADLINE_VARIABLE: "tomorrow"})):
        write_pack(store, study, "pack_when", deadline=deadline)
        done = run(pack_file(store, "pack_when"), environment=environment)
        assert done.returncode == 2 and "expected seconds since the epoch" in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_driver_the_exit_status_says_that_runs_are_left(study, store, tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(STUDY)
    environment = {DEADLINE_VARIABLE: str(time.time() - 1)}
    done = run("--experiments", path, "--store", store.root, environment=environment)
    assert done.returncode == 75, done.stderr
    assert "3 left" in done.stdout and "time is up" in done.stdout
    assert read_json(next(store.packs_dir.glob("*/pack.json")))["suspects"] == []
