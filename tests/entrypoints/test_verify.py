"""`lambda-hat verify`: every kind of file, damaged in ways that planning does not look for."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lambda_hat.config import HmcConfig, QuadraticBuild, SgldConfig
from lambda_hat.engine.chunks import Kept, encode
from lambda_hat.entrypoints.verify import Verification
from lambda_hat.id_utils import Run, config_digest, target_id_for
from lambda_hat.store.claims import take
from lambda_hat.store.layout import Store, write_bytes_atomic, write_json_atomic
from lambda_hat.store.publish import publish_run, publish_target, write_config

BUILD = QuadraticBuild()
TARGET = target_id_for(BUILD)
CFG = SgldConfig(target_id=TARGET)
OTHER = HmcConfig(target_id=TARGET)


def verify(folder, env):
    return subprocess.run(
        [sys.executable, "-m", "lambda_hat.entrypoints.cli", "verify", f"--store={folder.name}"],
        cwd=folder.parent, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def filled(folder):
    """A finished run, one that stands at a checkpoint after trouble, a failed target, a pack, and some made by hand."""
    store = Store(folder)
    for name in (TARGET, "tgt_mine"):
        publish_target(store.target_dir(name), BUILD, {}, {"params.npz": b"params", "data.npz": b"data"})
    for name in (Run.of(CFG).run_id, "run_1"):
        run_dir = store.run_dir(TARGET, name)
        publish_run(run_dir, Run.of(CFG), write_config(run_dir, CFG), b"trace", {"llc_mean": 1.0})
    half = store.run_dir(TARGET, Run.of(OTHER).run_id)
    write_config(half, OTHER)
    write_bytes_atomic(half / "checkpoint.npz", encode(Kept(7, {}, [np.ones(3)])))
    write_json_atomic(half / "error.json", {"type": "E"})
    write_json_atomic(half / "deaths.json", [])
    write_config(store.target_dir("tgt_failed"), BUILD)
    write_json_atomic(store.target_dir("tgt_failed") / "error.json", {"type": "E"})
    write_json_atomic(store.pack_dir("pack_1") / "pack.json", {"runs": []})
    return store


def test_a_whole_store(awkward_dir, repo_env):
    store = filled(awkward_dir)
    before = sorted(store.root.rglob("*"))
    done = verify(store.root, repo_env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (f"{store.root}: 2 built targets and 2 finished runs are whole; 1 runs are unfinished\n")
    assert sorted(store.root.rglob("*")) == before


def test_a_flipped_bit_in_any_file_is_named_and_set_aside(tmp_path):
    store = filled(tmp_path / "store")
    names = [path.relative_to(store.root) for path in sorted(store.root.rglob("*")) if path.is_file()]
    assert len(names) == 21
    for index, name in enumerate(names):
        copy = Store(shutil.copytree(store.root, tmp_path / str(index)))
        path = copy.root / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x80
        path.write_bytes(content)
        damages = list(Verification(copy).look())
        assert path in [damage.path for damage in damages]
        assert {damage.path.parent for damage in damages} == {path.parent}
        assert (copy.root / "damaged" / f"{name}.1").read_bytes() == content
        assert list(Verification(copy).look()) == []


def test_what_is_said_of_damage(awkward_dir, repo_env):
    store = filled(awkward_dir)
    (store.target_dir(TARGET) / "run_file").write_bytes(b"no folder")
    (store.run_dir(TARGET, Run.of(CFG).run_id) / "trace.nc").write_bytes(b"TRACE")
    done = verify(store.root, repo_env)
    assert (done.returncode, done.stderr) == (1, "")
    lines = done.stdout.splitlines()
    aside = store.root / "damaged"
    where = store.run_dir(TARGET, Run.of(CFG).run_id).relative_to(store.root)
    assert lines[0] == (
        f"damaged: {store.target_dir(TARGET) / 'run_file'}: a file lies where a folder belongs; set aside as "
        f"{aside / 'targets' / TARGET / 'run_file.1'}"
    )
    assert lines[1].startswith(
        f"damaged: {store.root / where / 'analysis.json'}: it vouches for trace.nc, which changed"
    )
    assert lines[2].startswith(f"damaged: {store.root / where / 'trace.nc'}: its sha256 is")
    assert lines[3:] == [
        f"{store.root}: 2 built targets and 1 finished runs are whole; 2 runs are unfinished",
        f"damaged or foreign: 3; what was set aside lies in {aside}",
        "to build and sample again what is missing now, run your study: lambda-hat run --experiments FILE "
        f"--store={shlex.quote(store.root.name)}",
    ]
    assert (aside / where / "trace.nc.1").read_bytes() == b"TRACE"
    assert list(Verification(store).look()) == []


@pytest.mark.parametrize("name", ["params.npz", "data.npz", "trace.nc", "checkpoint.npz", "config.yaml"])
def test_what_planning_cannot_see(tmp_path, name):
    store = Store(tmp_path / "store")
    publish_target(store.target_dir(TARGET), BUILD, {}, {"params.npz": b"params", "data.npz": b"data"})
    run_dir = store.run_dir(TARGET, Run.of(CFG).run_id)
    publish_run(run_dir, Run.of(CFG), write_config(run_dir, CFG), b"trace", {"llc_mean": 1.0})
    half = store.run_dir(TARGET, Run.of(OTHER).run_id)
    write_bytes_atomic(half / "checkpoint.npz", encode(Kept(7, {}, [np.ones(3)])))
    (path,) = [p for p in store.root.rglob(name) if name != "config.yaml" or p.parent == run_dir]
    content = path.read_bytes()
    path.write_bytes(content.replace(b"seed: 0", b"seed: 1") if name == "config.yaml" else content[:-1] + b"?")
    assert store.inspect_target(TARGET, config_digest(BUILD)) == ("built", [])
    assert store.inspect_run(TARGET, Run.of(CFG).run_id, Run.of(CFG).digest) == ("finished", [])
    damages = list(Verification(store).look())
    assert damages[-1].path == path and damages[-1].moved_to.is_relative_to(store.root / "damaged")
    assert list(Verification(store).look()) == []


def test_a_run_that_is_being_sampled_is_left_alone(tmp_path):
    store = Store(tmp_path / "store")
    run_dir = store.run_dir(TARGET, Run.of(CFG).run_id)
    publish_run(run_dir, Run.of(CFG), write_config(run_dir, CFG), b"trace", {})
    (run_dir / "trace.nc").write_bytes(b"under way")
    claim = take(run_dir, None)
    found = Verification(store)
    assert list(found.look()) == []
    assert found.summary().endswith("1 being sampled now and left out")
    claim.release()
    assert len(list(Verification(store).look())) == 2
