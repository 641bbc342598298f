"""What the store makes may be read and written by whom the user's umask says."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_hat.store.umask import UMASK_VARIABLE, process_umask

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from pathlib import Path
from lambda_hat.store.claims import take
from lambda_hat.store.heartbeat import Heartbeat
from lambda_hat.store.layout import EventLog, Store, write_json_atomic, write_record

store = Store(sys.argv[1])
store.ensure_writable()
run_dir = store.run_dir("tgt_x", "run_x")
write_json_atomic(run_dir / "error.json", {})
write_record(run_dir / "analysis.json", {})
with EventLog(store.pack_dir("pack_x") / "rank-0000.jsonl") as log:
    log.append("start")
with Heartbeat(store.packs_dir) as lease:
    take(run_dir, lease.path)
store.set_aside(run_dir / "error.json", "for no reason")
"""


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_the_store_follows_the_umask(tmp_path, repo_env, umask):
    store = tmp_path / "store"
    command = [sys.executable, "-c", PROGRAM, str(store)]
    done = subprocess.run(command, env=repo_env, umask=umask, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [store, *store.rglob("*")]}
    files = {path: mode for path, mode in modes.items() if path.is_file()}
    names = {path.name.partition("_")[0] for path in files}
    assert names >= {"analysis.json", "claim-1", "driver", "rank-0000.jsonl", "error.json.1", "reasons.jsonl"}
    assert set(files.values()) == {0o666 & ~umask}, files
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o777 & ~umask}


@pytest.mark.parametrize("umask", [0o477, 0o700, 0o100])
def test_an_umask_that_hides_the_store_from_its_own_user_is_refused(tmp_path, repo_env, umask):
    command = [sys.executable, "-B", str(ROOT / "flows" / "packed.py"), "--experiments", str(ROOT / "conf/smoke.yaml")]
    done = subprocess.run(command, cwd=tmp_path, env=repo_env, umask=umask, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: umask: got {umask:03o}, which would make the store unreadable to its own user; write umask 077, or "
        "027 to let the group read it, in this shell\n"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("word", "expected"), [("027", 0o027), ("7", 0o007), ("", 0o022), ("u=rwx", 0o022)])
def test_a_process_takes_over_the_umask_of_its_driver(repo_env, word, expected):
    program = "import os; from lambda_hat.store.umask import *; keep_umask(os.environ); print(process_umask())"
    env = {**repo_env, UMASK_VARIABLE: word}
    done = subprocess.run([sys.executable, "-c", program], env=env, umask=0o022, capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr


def test_the_umask_is_read_where_proc_is_missing(monkeypatch):
    umask = process_umask()
    monkeypatch.setattr(Path, "read_text", lambda _: "no such line")
    assert process_umask() == umask == process_umask()
