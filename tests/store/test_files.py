"""Single files: whole or none, records that carry their checksum, logs that survive kills and full disks."""

from __future__ import annotations

import errno
import json
import math
import os
import stat
import subprocess
import sys

import pytest

from lambda_hat.errors import EXIT_FAILED, CorruptArtifact, StoreError, StoreUnwritable
from lambda_hat.store import files
from lambda_hat.store.files import (
    EventLog,
    file_entry,
    read_events,
    read_json,
    read_json_or_none,
    read_record,
    remove_litter,
    write_bytes_atomic,
    write_json_atomic,
    write_record,
)


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
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


def test_what_kills_leave_is_removed_once_it_is_old(tmp_path):
    for name in (".trace.nc.01.part", ".trace.nc.02.part", "trace.nc", ".hidden", "a.part"):
        (tmp_path / name).write_bytes(b"")
    os.utime(tmp_path / ".trace.nc.01.part", (0, 0))
    assert remove_litter(tmp_path) == 1
    assert {p.name for p in tmp_path.iterdir()} == {".trace.nc.02.part", "trace.nc", ".hidden", "a.part"}
    assert remove_litter(tmp_path, older_than=0) == 1
    assert remove_litter(tmp_path / "absent") == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from lambda_hat.store import files
files.os.replace = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
files.write_bytes_atomic(Path(sys.argv[1]), b"new")
"""


def test_a_kill_within_a_write_leaves_the_old_file(tmp_path, repo_env):
    path = tmp_path / "file"
    write_bytes_atomic(path, b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], env=repo_env)
    assert done.returncode == -9
    assert path.read_bytes() == b"old"
    assert remove_litter(tmp_path, older_than=0) == 1


REFUSALS = ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EPERM", "EIO", "EFBIG", "ESTALE"]


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_refusal_to_write_is_one_sentence(tmp_path, monkeypatch, name, call):
    code = getattr(errno, name)

    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    path = tmp_path / "analysis.json"
    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(StoreUnwritable) as caught:
        write_record(path, {"a": 1})
    monkeypatch.undo()
    assert str(caught.value) == (
        f"{path}: cannot be written: {os.strerror(code)}; finished runs are kept: once there is room, or the "
        "permission, the same command continues"
    )
    assert caught.value.exit_code == EXIT_FAILED
    assert list(tmp_path.iterdir()) == []


def test_a_limit_of_the_system_is_a_refusal_too(tmp_path, repo_env):
    """RLIMIT_FSIZE: the kernel itself says EFBIG."""
    code = (
        "import resource, signal, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000));"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from pathlib import Path;"
        "from lambda_hat.errors import run_command; from lambda_hat.store.files import write_bytes_atomic;"
        "run_command(lambda: write_bytes_atomic(Path(sys.argv[1]), bytes(100_000)))"
    )
    argv = [sys.executable, "-B", "-c", code, str(tmp_path / "trace.nc")]
    done = subprocess.run(argv, env=repo_env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (EXIT_FAILED, "")
    assert done.stderr == (
        f"error: {tmp_path / 'trace.nc'}: cannot be written: File too large; finished runs are kept: once there is "
        "room, or the permission, the same command continues\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_what_lies_in_the_way_is_another_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "inner", tmp_path / "folder"):
        with pytest.raises(StoreError, match=r"cannot be written: .*; move away what lies there") as caught:
            write_bytes_atomic(path, b"")
        assert not isinstance(caught.value, StoreUnwritable)
        assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_reading_refused_names_the_file(tmp_path):
    with pytest.raises(StoreError, match=rf"^{tmp_path}: cannot be read: Is a directory"):
        read_json(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "absent")
    assert read_json_or_none(tmp_path) is None
    assert read_json_or_none(tmp_path / "absent") is None


def test_a_file_replaced_on_a_server_while_it_is_read_is_read_again(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    write_json_atomic(path, [1])
    read, refusals = type(path).read_bytes, [1, 2]

    def stale(path):
        if refusals:
            refusals.pop()
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(path)

    monkeypatch.setattr(type(path), "read_bytes", stale)
    assert read_json(path) == [1]
    refusals.extend([1, 2, 3])
    with pytest.raises(StoreError, match="cannot be read: Stale file handle"):
        read_json(path)


RECORD = {"a": 0.1, "b": [None, 1e300, -0.0], "c": {"é": "x\n"}, "seed": 2**63, "verdict": "ok", "n": 0}


def test_a_record_comes_back(tmp_path):
    write_record(tmp_path / "r.json", {**RECORD, "nan": math.nan, "pair": (1, math.inf), 3: "key"})
    record = read_record(tmp_path / "r.json")
    assert record == {**RECORD, "nan": None, "pair": [1, None], "3": "key"}
    write_record(tmp_path / "again.json", record)
    assert (tmp_path / "r.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    assert json.loads((tmp_path / "r.json").read_bytes())["a"] == 0.1
    write_record(tmp_path / "empty.json", {})
    assert read_record(tmp_path / "empty.json") == {}


def test_no_bit_of_a_record_can_change(tmp_path):
    """Every bit of it flipped, every length cut: it is refused."""
    path = tmp_path / "r.json"
    write_record(path, RECORD)
    content = path.read_bytes()
    damaged = [content[:length] for length in range(len(content))]
    for index in range(len(content)):
        damaged += [content[:index] + bytes([content[index] ^ 1 << bit]) + content[index + 1 :] for bit in range(8)]
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(CorruptArtifact, match=r"r\.json: "):
            read_record(path)


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"3", b"{}", b'{"sha256": 3}', b"\x00", b"[" * 10**6, b"NaN"])
def test_what_is_no_record(tmp_path, content):
    path = tmp_path / "r.json"
    path.write_bytes(content)
    with pytest.raises(CorruptArtifact, match=r"r\.json: "):
        read_record(path)


def test_an_entry_of_a_file():
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert file_entry(b"") == {"bytes": 0, "sha256": empty}


def test_lines_of_a_log_that_are_no_events_are_passed_over(tmp_path):
    path = tmp_path / "rank-0000.jsonl"
    good = b'{"event": "a"}\n'
    path.write_bytes(good + b"\xff\x00\x80\n[1]\n\n3\n{\n" + b"[" * 10**5 + b'\n{"event": 3}\n{"other": 1}\n' + good)
    events, offset = read_events(path)
    assert (events, offset) == ([{"event": "a"}] * 2, path.stat().st_size)
    assert read_events(tmp_path) == ([], 0)


def test_a_line_after_half_a_line_is_not_glued_to_it(tmp_path):
    path = tmp_path / "rank-0000.jsonl"
    path.write_bytes(b'{"event": "hal')
    with EventLog(path) as log:
        log.append("whole")
    assert [event["event"] for event in read_events(path)[0]] == ["whole"]


def test_a_log_on_a_full_disk_loses_events_only(tmp_path, repo_env):
    code = (
        "import signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from pathlib import Path; import resource;"
        "from lambda_hat.store.files import EventLog; log = EventLog(Path(sys.argv[1]));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 10_000));"
        "[log.append('before', index=i) for i in range(50)];"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); log.append('after')"
    )
    path = tmp_path / "log.jsonl"
    subprocess.run([sys.executable, "-B", "-c", code, str(path)], env=repo_env, check=True)
    events, _ = read_events(path)
    assert [event.get("index") for event in events] == [*range(len(events) - 1), None]
    assert (events[-1]["event"], len(events) > 10) == ("after", True)
    assert path.read_bytes()[:1000].count(b"\n") == len(events) - 1, "the limit cut a line in two"
