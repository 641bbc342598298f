"""The store: whole files or none, strict JSON, and what it says of a target or run."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace

import pytest

from lambda_hat import store as store_module
from lambda_hat.config import QuadraticBuild, SgldConfig
from lambda_hat.errors import CorruptArtifact, StoreError, StoreUnwritable
from lambda_hat.store import (
    EventLog,
    Store,
    read_events,
    read_json,
    write_bytes_atomic,
    write_config,
    write_json_atomic,
)


def test_statuses_follow_the_files(tmp_path):
    store = Store(tmp_path)
    assert store.target_status("tgt_1") == "missing"
    assert store.run_status("tgt_1", "run_1") == "pending"
    write_json_atomic(store.target_dir("tgt_1") / "error.json", {})
    write_json_atomic(store.run_dir("tgt_1", "run_1") / "error.json", {})
    assert store.target_status("tgt_1") == "failed"
    assert store.run_status("tgt_1", "run_1") == "failed"
    write_json_atomic(store.target_dir("tgt_1") / "meta.json", {})
    write_json_atomic(store.run_dir("tgt_1", "run_1") / "analysis.json", {})
    assert store.target_status("tgt_1") == "built"
    assert store.run_status("tgt_1", "run_1") == "finished"
    assert store.target_ids() == ["tgt_1"]
    assert store.run_ids("tgt_1") == ["run_1"]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(StoreUnwritable, match="No space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_files_get_the_users_umask(tmp_path):
    previous = os.umask(0o027)
    try:
        write_bytes_atomic(tmp_path / "file", b"")
    finally:
        os.umask(previous)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_is_strict_and_non_finite_becomes_null(tmp_path):
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": float("nan"), "b": [1.0, float("inf")], "c": 0.0, "d": {"e": None}})
    assert read_json(path) == {"a": None, "b": [1.0, None], "c": 0.0, "d": {"e": None}}
    path.write_text('{"a": 1')
    with pytest.raises(CorruptArtifact, match=r"a\.json: not valid JSON"):
        read_json(path)


def test_a_half_written_event_is_left_for_later(tmp_path):
    path = tmp_path / "rank-0000.jsonl"
    with EventLog(path) as log:
        log.append("start", rank=0)
        log.append("end", seconds=float("nan"))
    with path.open("a") as file:
        file.write('{"event": "hal')
    events, offset = read_events(path)
    assert [e["event"] for e in events] == ["start", "end"]
    assert events[1]["seconds"] is None
    with path.open("a") as file:
        file.write('f"}\n')
    later, end = read_events(path, offset)
    assert (later, end) == ([{"event": "half"}], path.stat().st_size)
    assert read_events(tmp_path / "absent") == ([], 0)


def test_a_stored_configuration_that_differs_is_refused(tmp_path):
    store = Store(tmp_path)
    build, cfg = QuadraticBuild(), SgldConfig(target_id="tgt_1")
    write_config(store.target_dir("tgt_1"), build)
    write_config(store.run_dir("tgt_1", "run_1"), cfg)
    store.check_target_config("tgt_1", build)
    store.check_run_config("tgt_1", "run_1", cfg)
    with pytest.raises(StoreError, match=r"differs from the one asked for in seed"):
        store.check_target_config("tgt_1", replace(build, seed=1))
    with pytest.raises(StoreError, match=r"run_1/config\.yaml: .* differs .* in thin"):
        store.check_run_config("tgt_1", "run_1", replace(cfg, thin=3))


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"file/store: the store cannot be written: .*/file is not a folder; give another"
    ):
        Store(tmp_path / "file" / "store").ensure_writable()
    Store(tmp_path / "new" / "store").ensure_writable()
    assert json.dumps(sorted(p.name for p in (tmp_path / "new" / "store").iterdir())) == '["packs", "targets"]'
