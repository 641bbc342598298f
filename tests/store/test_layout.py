"""The store: what it says of a target or run, and what becomes of what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from lambda_hat.config import DlnBuild, RuntimeConfig, SgldConfig
from lambda_hat.errors import StoreError, StoreUnwritable
from lambda_hat.id_utils import Run, config_digest, target_id_for
from lambda_hat.store.checksums import Digests
from lambda_hat.store.claims import take
from lambda_hat.store.files import read_events, read_record, write_record
from lambda_hat.store.layout import Store, programs_folder, write_json_atomic
from lambda_hat.store.publish import publish_run, publish_target, write_config


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


def test_a_store_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        StoreError, match=r"file/store: the store cannot be written: .*/file is not a folder; give another"
    ):
        Store(tmp_path / "file" / "store").ensure_writable()
    Store(tmp_path / "new" / "store").ensure_writable()
    assert json.dumps(sorted(p.name for p in (tmp_path / "new" / "store").iterdir())) == '["packs", "targets"]'


def test_programs_are_exchanged_through_the_store_the_users_folder_or_the_one_that_is_named(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    run_dir = store.run_dir("tgt_1", "run_1")
    monkeypatch.delenv("LAMBDA_HAT_CACHE", raising=False)
    assert programs_folder(run_dir) == store.cache_dir == tmp_path / "store" / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert programs_folder(tmp_path / "mine" / "run") == programs_folder() == tmp_path / "user" / "lambda_hat"
    monkeypatch.setenv("LAMBDA_HAT_CACHE", str(tmp_path / "other"))
    assert programs_folder(run_dir) == programs_folder() == tmp_path / "other"
    monkeypatch.setenv("LAMBDA_HAT_CACHE", "off")
    assert programs_folder(run_dir) is None and programs_folder() is None


def test_a_full_disk_is_noticed_before_anything_starts(tmp_path, monkeypatch):
    store = Store(tmp_path / "store")
    synced = []

    def full(descriptor):
        synced.append(os.fstat(descriptor).st_size)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreUnwritable, match="No space left on device; finished runs are kept"):
        store.ensure_writable()
    assert synced == [16 * 1024]
    monkeypatch.undo()
    store.ensure_writable()
    assert [list(folder.iterdir()) for folder in (store.targets_dir, store.packs_dir)] == [[], []]


# --------------------------------------------------------------------------------------------------------------
# Inspection


BUILD = DlnBuild()
CFG = SgldConfig(target_id=target_id_for(BUILD), thin=7)
RUN = Run.of(CFG)
RUN_ID = RUN.run_id


@pytest.fixture(params=["plain", "a b 'c' $(d)"])
def store(tmp_path, request):
    """A target with one finished run."""
    store = Store(tmp_path / request.param)
    publish_target(store.target_dir(CFG.target_id), BUILD, {"n": 1}, {"params.npz": b"params", "data.npz": b"data"})
    run_dir = store.run_dir(CFG.target_id, RUN_ID)
    publish_run(run_dir, RUN, write_config(run_dir, CFG), b"trace", {"llc_mean": 1.0})
    return store


def inspect(store, **options):
    """Statuses and damages of target and run."""
    status, damages = store.inspect_target(CFG.target_id, config_digest(BUILD), **options)
    run_status, run_damages = store.inspect_run(CFG.target_id, RUN_ID, RUN.digest, **options)
    return (status, run_status), [*damages, *run_damages]


def names(store, damages):
    return [str(damage.path.relative_to(store.target_dir(CFG.target_id))) for damage in damages]


@pytest.mark.parametrize("thorough", [False, True])
def test_what_is_whole(store, thorough):
    assert inspect(store, thorough=thorough) == (("built", "finished"), [])
    assert not (store.root / "damaged").exists()
    assert store.inspect_target("tgt_0", config_digest(BUILD)) == ("missing", [])
    assert store.inspect_run("tgt_0", RUN_ID, RUN.digest) == ("pending", [])


def test_failures_are_not_damage(store):
    for name in ("meta.json", f"{RUN_ID}/analysis.json"):
        (store.target_dir(CFG.target_id) / name).unlink()
    for folder in (store.target_dir(CFG.target_id), store.run_dir(CFG.target_id, RUN_ID)):
        (folder / "error.json").write_bytes(b"\xffnot json")
    assert inspect(store) == (("failed", "failed"), [])


DAMAGES = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "longer": lambda data: data + b"x",
    "flipped": lambda data: data[:3] + bytes([data[3] ^ 16]) + data[4:],
}
RECORDS = {"meta.json": "meta.json", f"{RUN_ID}/analysis.json": f"{RUN_ID}/analysis.json"}
FILES = RECORDS | {
    "params.npz": "meta.json",
    "data.npz": "meta.json",
    "config.yaml": "meta.json",
    f"{RUN_ID}/trace.nc": f"{RUN_ID}/analysis.json",
    f"{RUN_ID}/config.yaml": f"{RUN_ID}/analysis.json",
}


@pytest.mark.parametrize("damage", [*DAMAGES, "gone", "folder"])
@pytest.mark.parametrize("name", FILES, ids=lambda name: name.replace(RUN_ID, "run"))
def test_every_damage_is_found_named_and_set_aside(store, name, damage):
    if name in RECORDS and damage == "gone":
        return
    path, record = store.target_dir(CFG.target_id) / name, store.target_dir(CFG.target_id) / FILES[name]
    before, vouching = path.read_bytes(), record.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
        (path / "inner").write_bytes(b"kept")
    elif damage != "gone":
        path.write_bytes(DAMAGES[damage](before))
    cheap = damage in ("empty", "cut", "longer", "gone", "folder") or name in RECORDS
    statuses, damages = inspect(store, thorough=not cheap, move=False)
    assert names(store, damages) == list(dict.fromkeys([FILES[name], name]))
    assert not (store.root / "damaged").exists()
    assert inspect(store, thorough=not cheap) != (statuses, damages), "what was moved says where to"
    assert statuses == (("built", "pending") if name.startswith(RUN_ID) else ("missing", "finished"))

    aside = store.root / "damaged" / "targets" / CFG.target_id
    assert not path.exists() and not record.exists()
    if record != path:
        assert (aside / f"{FILES[name]}.1").read_bytes() == vouching
    if damage == "folder":
        assert (aside / f"{name}.1" / "inner").read_bytes() == b"kept"
    elif damage != "gone":
        assert (aside / f"{name}.1").read_bytes() == DAMAGES[damage](before)
    reasons, _ = read_events(store.root / "damaged" / "reasons.jsonl")
    assert {event["path"] for event in reasons} == {str(record)} | (
        {str(path)} - ({str(path)} if damage == "gone" else set())
    )
    assert inspect(store, thorough=True)[1] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "its format is 2, expected 3"),
        ({"target_id": "tgt_0"}, "foreign: it belongs to 'tgt_0'"),
        ({"config": "0" * 64}, "foreign: it belongs to another configuration"),
        ({"files": None}, "it does not vouch for config.yaml"),
        ({"files": {"config.yaml": 3}}, "it does not vouch for config.yaml"),
    ],
)
def test_records_of_something_else_are_foreign(store, change, reason):
    for name in RECORDS:
        path = store.target_dir(CFG.target_id) / name
        write_record(path, read_record(path) | change)
    statuses, damages = inspect(store)
    assert statuses == ("missing", "pending")
    assert [damage.reason for damage in damages] == [reason, reason]


def test_a_run_under_another_id_is_foreign(store):
    path = store.run_dir(CFG.target_id, RUN_ID) / "analysis.json"
    write_record(path, read_record(path) | {"run_id": "run_sgld_0"})
    assert inspect(store)[1][0].reason == "foreign: it belongs to 'run_sgld_0'"


def test_what_is_published_anew_during_the_look_is_not_moved(store, monkeypatch):
    """Another driver samples the run again while its old trace is read."""
    run_dir = store.run_dir(CFG.target_id, RUN_ID)
    digest = Digests.__call__

    def late(digests, path):
        if path.name == "trace.nc":
            monkeypatch.setattr(Digests, "__call__", digest)
            publish_run(run_dir, RUN, write_config(run_dir, CFG), b"another trace", {"llc_mean": 2.0})
        return digest(digests, path)

    monkeypatch.setattr(Digests, "__call__", late)
    assert store.inspect_run(CFG.target_id, RUN_ID, RUN.digest, thorough=True) == ("finished", [])
    assert read_record(run_dir / "analysis.json")["llc_mean"] == 2.0


def test_data_do_not_lead_out_of_the_store(store):
    path = store.target_dir(CFG.target_id) / "meta.json"
    for name in ("..", "../../x", "/etc", "", 3, "a\0b"):
        write_record(path, read_record(path) | {"data_of": name})
        statuses, damages = store.inspect_target(CFG.target_id, config_digest(BUILD), move=False)
        reason = f"its data lie with {name!r}, which is not the name of a target"
        assert (statuses, damages[0].reason) == ("missing", reason)


def test_data_of_a_sibling_are_looked_at_there(store):
    arrays = {"params.npz": b"params", "data.npz": b"data"}
    sibling = replace(BUILD, seed=1)
    sibling_id = target_id_for(sibling)
    publish_target(store.target_dir(sibling_id), sibling, {}, arrays, data_of=CFG.target_id)
    assert not (store.target_dir(sibling_id) / "data.npz").exists()
    digests = Digests()
    assert store.inspect_target(sibling_id, config_digest(sibling), thorough=True, digests=digests) == ("built", [])
    (store.target_dir(CFG.target_id) / "data.npz").unlink()
    status, damages = store.inspect_target(sibling_id, config_digest(sibling))
    assert (status, damages[0].path) == ("missing", store.target_dir(sibling_id) / "meta.json")


@pytest.mark.parametrize("thorough", [False, True])
def test_other_cores_are_the_same_run(store, thorough):
    runtime = RuntimeConfig(cores_per_rank=12)
    write_config(store.target_dir(CFG.target_id), replace(BUILD, runtime=runtime))
    write_config(store.run_dir(CFG.target_id, RUN_ID), replace(CFG, runtime=runtime))
    assert inspect(store, thorough=thorough) == (("built", "finished"), [])


def test_an_edited_configuration_is_found_by_a_thorough_look(store):
    write_config(store.run_dir(CFG.target_id, RUN_ID), replace(CFG, thin=8))
    assert inspect(store) == (("built", "finished"), [])
    statuses, damages = inspect(store, thorough=True)
    assert statuses == ("built", "pending")
    assert names(store, damages) == [f"{RUN_ID}/analysis.json", f"{RUN_ID}/config.yaml"]


@pytest.mark.parametrize("which", ["run", "target"])
def test_a_file_in_place_of_a_folder(tmp_path, which):
    store = Store(tmp_path)
    folder = store.run_dir(CFG.target_id, RUN_ID) if which == "run" else store.target_dir(CFG.target_id)
    folder.parent.mkdir(parents=True)
    folder.write_bytes(b"x")
    status, damages = store.inspect_run(CFG.target_id, RUN_ID, RUN.digest)
    assert (status, [damage.path for damage in damages]) == ("pending", [folder])
    assert damages[0].moved_to.read_bytes() == b"x"
    assert store.inspect_run(CFG.target_id, RUN_ID, RUN.digest) == ("pending", [])


def test_nothing_is_overwritten_by_what_is_set_aside(tmp_path):
    store = Store(tmp_path)
    path = tmp_path / "targets" / "tgt_1" / "meta.json"
    path.parent.mkdir(parents=True)
    for content in ("1", "2"):
        path.write_text(content)
        store.set_aside(path, "why")
    path.mkdir()
    store.set_aside(path, "why")
    store.set_aside(path.parent, "the whole folder")
    aside = tmp_path / "damaged" / "targets"
    assert [(aside / "tgt_1" / f"meta.json.{n}").is_dir() for n in (1, 2, 3)] == [False, False, True]
    assert [(aside / "tgt_1" / f"meta.json.{n}").read_text() for n in (1, 2)] == ["1", "2"]
    assert (aside / "tgt_1.1").is_dir()
    gone = store.set_aside(path, "someone was faster")
    assert (gone.moved_to, str(gone)) == (None, f"{path}: someone was faster")
    assert sorted(p.name for p in (aside / "tgt_1").iterdir()) == ["meta.json.1", "meta.json.2", "meta.json.3"]


RACER = """
import sys
from lambda_hat.store.layout import Store
store, moved = Store(sys.argv[1]), 0
for number in range(200):
    damage = store.set_aside(store.targets_dir / f"file{number}", "why")
    moved += damage.moved_to is not None
print(moved)
"""


def test_what_two_drivers_set_aside_at_once_is_moved_once(tmp_path, repo_env):
    store = Store(tmp_path)
    store.targets_dir.mkdir()
    for number in range(200):
        (store.targets_dir / f"file{number}").write_text(str(number))
    argv = [sys.executable, "-c", RACER, str(tmp_path)]
    racers = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=repo_env) for _ in range(3)]
    moved = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(moved) == 200
    kept = sorted(int(path.read_text()) for path in (tmp_path / "damaged" / "targets").iterdir())
    assert kept == list(range(200))


def test_only_what_is_in_the_store_is_moved(tmp_path):
    store = Store(tmp_path / "store")
    for path in (tmp_path / "other", store.root):
        with pytest.raises(StoreError, match="not within the store"):
            store.set_aside(path, "why")


def test_a_store_that_cannot_be_moved_in_says_so(store, monkeypatch):
    path = store.target_dir(CFG.target_id) / "meta.json"
    path.write_bytes(b"")

    def refuse(*args):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(StoreUnwritable, match=r"meta\.json: cannot be written: Read-only file system"):
        store.inspect_target(CFG.target_id, config_digest(BUILD))
    assert path.exists()
    assert not any(p.is_file() for p in (store.root / "damaged").rglob("*"))


def test_a_file_that_cannot_be_read_is_no_damage(store, monkeypatch):
    """The disk says EIO today; the file may be whole."""

    def refuse(path, *args, **kwargs):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(store.root), "read_bytes", refuse)
    with pytest.raises(StoreError, match=r"meta\.json: cannot be read: Input/output error"):
        inspect(store)
    monkeypatch.undo()
    assert inspect(store) == (("built", "finished"), [])


def test_publishing_a_target_removes_what_kills_left(store):
    part = store.target_dir(CFG.target_id) / ".params.npz.0123.part"
    part.write_bytes(b"half")
    os.utime(part, (0, 0))
    publish_target(store.target_dir(CFG.target_id), BUILD, {}, {"params.npz": b"p", "data.npz": b"d"})
    assert not part.exists()


# --------------------------------------------------------------------------------------------------------------
# What a run costs the file system


def test_files_and_operations_of_a_finished_run(tmp_path):
    """Many runs are short, and servers of metadata slow."""
    store = Store(tmp_path)
    run_dir = store.run_dir(CFG.target_id, RUN_ID)
    store.target_dir(CFG.target_id).mkdir(parents=True)
    seen: list[str] = []
    watched = {"os.mkdir", "os.rename", "os.remove", "os.listdir", "os.scandir"}
    on = True

    def look(event, args):
        if not on:
            return
        if event == "open" and str(args[0]).startswith(str(run_dir)):
            made = args[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            seen.append("create" if made else "read")
        elif event in watched and str(args[0]).startswith(str(run_dir)):
            seen.append(event.removeprefix("os."))

    synced = []
    fsync = os.fsync
    sys.addaudithook(look)
    try:
        os.fsync = lambda descriptor: (synced.append(descriptor), fsync(descriptor))[1]
        claim = take(run_dir, None, rank=0)
        assert store.run_status(CFG.target_id, RUN_ID) != "finished"
        config = write_config(run_dir, CFG)
        publish_run(run_dir, RUN, config, b"trace", {"llc_mean": 1.0})
        claim.finished()
    finally:
        on = False
        os.fsync = fsync
    counts = {what: seen.count(what) for what in ("mkdir", "create", "rename", "remove", "read")}
    # One creation fails, in the folder that is not there yet, and three removals of what most runs do not have.
    assert counts == {"mkdir": 1, "create": 4 + 1, "rename": 3, "remove": 1 + 3, "read": 1}
    assert "listdir" not in seen and "scandir" not in seen
    assert len(synced) == 3
    assert sorted(p.name for p in run_dir.iterdir()) == ["analysis.json", "config.yaml", "trace.nc"]
