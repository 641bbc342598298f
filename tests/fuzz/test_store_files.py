"""Every kind of file in a store, its bytes damaged, or whole and telling nonsense."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.driver.deaths import blame, who_died
from flows.driver.plan import make_plan
from lambda_hat.engine.chunks import Kept, encode, leaves_of, read_checkpoint
from lambda_hat.entrypoints import compact, logs, show, status, verify
from lambda_hat.execute.build import build_into
from lambda_hat.execute.sampling import sample_into
from lambda_hat.id_utils import config_digest
from lambda_hat.planning.packing import PlannedRun
from lambda_hat.planning.preflight import read_reports
from lambda_hat.report.closing import rank_usage
from lambda_hat.report.results import collect, runs_in_store, to_frame
from lambda_hat.report.timeline import spans_of
from lambda_hat.store import claims
from lambda_hat.store.compact import survey
from lambda_hat.store.events import PackLog
from lambda_hat.store.files import file_entry, read_record, write_record
from lambda_hat.store.heartbeat import (
    Heartbeat,
    dead_heartbeats,
    heartbeat_over,
    heartbeat_state,
    live_heartbeats,
    mark_ended,
    tidy_heartbeats,
)
from lambda_hat.store.layout import EventLog, Store, deaths_of, read_events, write_json_atomic
from lambda_hat.store.process_identity import whoami
from lambda_hat.store.publish import write_config
from lambda_hat.store.study_records import TO_SAMPLE, Planned, StudyLog, StudyRecord, in_order, write_study
from lambda_hat.targets import load_target
from lambda_hat.workflow_config import Study, compose_study
from mpi.pack import pack_of_study, pack_record, read_pack
from tests.fuzz.judging import FEW, attempt
from tests.fuzz.mutations import VALUES, as_yaml, damaged, mutated

Result = TypeVar("Result")
STUDY = {
    "targets": [
        {"target": "quadratic", "overrides": {"target": {"dim": 2, "rank": 2, "n": 30}}},
        {"target": "dln", "overrides": {"target": {"data": "empirical", "n": 30, "noise_std": 0.1}}},
    ],
    "samplers": [
        {
            "name": "sgld",
            "overrides": {"num_draws": 8, "num_burnin": 2, "num_chains": 1, "step_size": 1e-4, "batch_size": 8},
            "sweep": {"seed": [0, 1]},
        }
    ],
}


class Stored(NamedTuple):
    """A store in which one run is finished, one is in an archive, one has a checkpoint, a failure and deaths, and one
    has not begun."""

    store: Store
    study: Study
    finished: PlannedRun
    unfinished: PlannedRun
    pristine: dict[Path, bytes]

    def dir_of(self, run: PlannedRun) -> Path:
        return self.store.run_dir(run.target_id, run.run_id)

    def reset(self) -> None:
        """Everything as it was first."""
        here = {path for path in self.store.root.rglob("*") if path.is_file()}
        for path in here - self.pristine.keys():
            path.unlink()
        shutil.rmtree(self.store.root / "damaged", ignore_errors=True)
        for path, content in self.pristine.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Stored:
    root = tmp_path_factory.mktemp("fuzz") / "store"
    path = root.parent / "study.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    study = compose_study(path, (), {"store_root": str(root)})
    store = Store(root)
    store.ensure_writable()
    for target_id, build in study.targets.items():
        build_into(store.target_dir(target_id), build)
    finished, archived, unfinished, _ = study.runs
    for run in (archived, finished):
        sample_into(store.run_dir(*run.key), store.target_dir(run.target_id), run)
        if run is archived:
            survey(store, run.target_id).run()
    run_dir = store.run_dir(*unfinished.key)
    write_config(run_dir, unfinished.cfg)
    (run_dir / "checkpoint.npz").write_bytes(
        encode(Kept(7, {"seconds": 1.0}, leaves_of(load_target(store.target_dir(unfinished.target_id))[0].w_star)))
    )
    write_json_atomic(
        run_dir / "error.json", {"type": "ValueError", "message": "x", "rank": 0, "host": "h", "time": 1.0}
    )
    write_json_atomic(run_dir / "deaths.json", [{"pack_id": "pack_x", "rank": 0, "host": "h", "time": 1.0, "how": "x"}])
    with Heartbeat(store.packs_dir) as lease:
        claim = claims.take(run_dir, lease.path, rank=0, pack_id="pack_x")
        assert claim is not None
        lease.note_jobs([{"scheduler": "slurm", "job_id": "7", "name": "packs"}])
    pack_dir = store.pack_dir(f"pack_20260101-000000-{lease.path.stem[-4:]}-0-0000")
    write_json_atomic(pack_dir / "pack.json", pack_record(pack_of_study(study, 1)) | {"lease": str(lease.path)})
    with EventLog(pack_dir / "rank-0000.jsonl") as log:
        ids = {"rank": 0, "target_id": finished.target_id, "run_id": finished.run_id}
        log.append("start", **ids, size=1, host="h", pid=1)
        log.append("run_start", **ids)
        log.append("run_end", **ids, status="finished", seconds=1.0)
        log.append("drain", rank=0, reason="x")
        log.append("end", rank=0, busy=1.0, seconds=2.0)
    with write_down(store, study) as log:
        log.append("lease", lease=lease.path.name)
        log.append("round", name="x", builds=0, runs=2)
        job = {"scheduler": "SLURM", "nodes": 1, "walltime": "01:00:00", "for": "packs"}
        log.append("job", job_id="7", state="submitted", **job)
        log.append("job", job_id="7", state="PENDING (Priority)")
        log.append("pack", pack_id=pack_dir.name, runs=[0, 1])
        log.append("note", sentence="x")
    write_json_atomic(pack_dir / "check-0000.json", {"rank": 0, "host": "h", "ready": 1.0})
    pristine = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return Stored(store, study, finished, unfinished, pristine)


@contextlib.contextmanager
def write_down(store: Store, study: Study) -> Iterator[StudyLog]:
    """The record of a start, and its log."""
    runs = [Planned(run.target_id, run.run_id, run.cost, TO_SAMPLE) for run in study.runs]
    record = StudyRecord(
        "20260101-000000-abcd", ["python", "packed.py"], "/", str(store.root), whoami(), time.time(), "slurm", True,
        1, 0, 0, {target_id: build.label for target_id, build in study.targets.items()}, [], in_order(runs),
    )  # fmt: skip
    log = write_study(store.root, record)
    yield log
    log.close()


def judge(stored: Stored, kind: str) -> None:
    """Let every reader read the store, then those that move files away, and claim."""

    def all_of_it() -> None:
        read_everything(stored)
        change_everything(stored)

    attempt(f"store files: {kind}", all_of_it)


def attempt_one(what: str, read: Callable[[], Result]) -> Result | None:
    return attempt(what, read, counted=False)


def read_everything(stored: Stored) -> None:
    store, study = stored.store, stored.study
    for target_id, build in study.targets.items():
        for digest in (config_digest(build), None):
            for thorough in (False, True):
                attempt_one(
                    "inspect_target", lambda i=target_id, d=digest, t=thorough: store.inspect_target(i, d, t, False)
                )
        attempt_one("load_target", lambda i=target_id: load_target(store.target_dir(i)))
    for run in study.runs:
        for digest in (run.digest, None):
            attempt_one("inspect_run", lambda r=run, d=digest: store.inspect_run(*r.key, d, True, False))
        attempt_one("holder of a claim", lambda r=run: claims.holder(stored.dir_of(r)))
        attempt_one("deaths", lambda r=run: deaths_of(stored.dir_of(r)))
        path = stored.dir_of(run) / "checkpoint.npz"
        if path.is_file():
            attempt_one("checkpoint", lambda p=path: read_checkpoint(p))
    attempt_one("table", lambda: to_frame(collect(store, *runs_in_store(store))))
    for path in store.packs_dir.glob("driver_*.lease"):
        attempt_one("lease", lambda p=path: (heartbeat_state(p), heartbeat_over(p)))
    attempt_one("leases", lambda: (live_heartbeats(store.packs_dir), dead_heartbeats(store.packs_dir)))
    for path in store.packs_dir.glob("pack_*"):
        attempt_one("pack", lambda p=path: read_pack(p / "pack.json"))
        attempt_one("events", lambda p=path: (read_events(p / "rank-0000.jsonl"), rank_usage([p])))
        attempt_one("pack log", lambda p=path: pack_log(p))
        attempt_one("check reports", lambda p=path: read_reports(p))
    attempt_one("status, show, logs", lambda: look_at(stored))
    attempt_one("plan, looking only", lambda: make_plan(store, study, look_only=True))


def look_at(stored: Stored) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        assert status.run(Namespace(store=stored.store.root, watch=None)) == 0
        for run in stored.study.runs:
            names = Namespace(store=stored.store.root, run_words=["/".join(run.key)], lines=5)
            assert show.run(names) == logs.run(names) == 0


def pack_log(directory: Path) -> None:
    log = PackLog(directory)
    log.read()
    blame(log.in_flight, who_died(log, "auto"))
    for life in log.ranks:
        spans_of(life)


def change_everything(stored: Stored) -> None:
    """What moves files away, and what claims."""
    store = stored.store
    attempt_one("plan", lambda: make_plan(store, stored.study))
    for run in stored.study.runs:
        claim = attempt_one("claim", lambda r=run: claims.take(stored.dir_of(r), None, rank=1, pack_id="pack_y"))
        if claim is not None:
            claim.release()
    attempt_one("dead leases", lambda: end_dead_leases(store.packs_dir))

    def compacted() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert compact.run(Namespace(store=store.root, dry_run=False)) in (0, 1)

    def verified() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            assert verify.run(Namespace(store=store.root)) in (0, 1)
            assert verify.run(Namespace(store=store.root)) == 0, "a second look found what the first one had moved"

    attempt_one("compact", compacted)
    attempt_one("verify", verified)


def end_dead_leases(directory: Path) -> None:
    for lease in dead_heartbeats(directory):
        mark_ended(lease.path)
    tidy_heartbeats(directory)


KINDS = [
    "meta.json", "params.npz", "data.npz", "targets/*/config.yaml", "run_*/config.yaml", "analysis.json", "trace.nc",
    "error.json", "deaths.json", "checkpoint.npz", "claim-1", "driver_*.lease", "pack.json", "rank-0000.jsonl",
    "check-0000.json", "studies/*.json", "studies/*.jsonl", "runs.zip",
]  # fmt: skip
DEEP = b"[" * 100_000
FOREIGN = (
    st.sampled_from([b"", b"\0" * 100, b"null", b"[]", b"{}", b'"x"', b"1e999", b"\xff\xfe", DEEP])
    | st.sampled_from([b"PK\x03\x04", b"\x89HDF\r\n", b"\x93NUMPY"])
    | st.binary(max_size=100)
    | VALUES.map(lambda value: json.dumps(value).encode())
    | as_yaml(VALUES)
)  # fmt: skip


def files_of(stored: Stored, kind: str) -> list[Path]:
    found = sorted(path for path in stored.pristine if path.match(kind))
    assert found, kind
    return found


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(data=st.data())
def test_damaged_bytes(stored, kind, data):
    stored.reset()
    path = data.draw(st.sampled_from(files_of(stored, kind)))
    other = st.sampled_from(sorted(stored.pristine.values()))
    path.write_bytes(data.draw(damaged(st.just(stored.pristine[path]), FOREIGN | other)))
    if data.draw(st.booleans()):
        # Old enough for a claim or a lease to count for nothing.
        os.utime(path, (0, time.time() - 10_000))
    judge(stored, f"{kind}: wrong bytes")


@pytest.mark.parametrize("kind", ["meta.json", "analysis.json"])
@FEW
@given(data=st.data())
def test_records_with_a_right_checksum_and_wrong_values(stored, kind, data):
    stored.reset()
    path = data.draw(st.sampled_from(files_of(stored, kind)))
    write_record(path, data.draw(mutated(st.just(read_record(path)))))
    judge(stored, f"{kind}: wrong values, right checksum")


JSON_KINDS = [
    "error.json",
    "deaths.json",
    "claim-1",
    "driver_*.lease",
    "pack.json",
    "rank-0000.jsonl",
    "check-0000.json",
    "studies/*.json",
    "studies/*.jsonl",
]


@pytest.mark.parametrize("kind", JSON_KINDS)
@FEW
@given(data=st.data())
def test_json_with_wrong_values(stored, kind, data):
    stored.reset()
    path = data.draw(st.sampled_from(files_of(stored, kind)))
    lines = [stored.pristine[path]] if path.suffix != ".jsonl" else stored.pristine[path].splitlines()
    lines = [json.dumps(data.draw(mutated(st.just(json.loads(line))))).encode() for line in lines]
    path.write_bytes(b"\n".join(lines) + b"\n")
    if data.draw(st.booleans()):
        os.utime(path, (0, time.time() - 10_000))
    judge(stored, f"{kind}: wrong values")


@pytest.mark.parametrize("name", ["params.npz", "data.npz", "config.yaml"])
@FEW
@given(data=st.data())
def test_damaged_files_that_the_record_vouches_for(stored, name, data):
    """As an old version, or someone else, might have written them."""
    stored.reset()
    path = data.draw(st.sampled_from(files_of(stored, f"targets/*/{name}")))
    content = data.draw(damaged(st.just(stored.pristine[path]), FOREIGN))
    path.write_bytes(content)
    record = copy.deepcopy(read_record(path.parent / "meta.json"))
    record["files"][name] = file_entry(content)
    write_record(path.parent / "meta.json", record)
    judge(stored, f"{name}: wrong bytes, vouched for")


@FEW
@given(data=st.data())
def test_damaged_checkpoints_with_a_right_checksum(stored, data):
    stored.reset()
    (path,) = files_of(stored, "checkpoint.npz")
    content = data.draw(damaged(st.just(stored.pristine[path][:-32]), FOREIGN))
    path.write_bytes(content + hashlib.sha256(content).digest())
    judge(stored, "checkpoint.npz: wrong bytes, right checksum")
