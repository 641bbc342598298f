"""What the store makes may be read and written by whom the user's umask says."""

from __future__ import annotations

import stat
import subprocess
import sys

import pytest

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
