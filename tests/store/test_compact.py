"""Archives of runs: every run is whole and readable, whatever happens while they are made, and to them."""

from __future__ import annotations

import os
import shutil
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

from lambda_hat.entrypoints import compact
from lambda_hat.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, StoreError
from lambda_hat.store import claims, run_files
from lambda_hat.store.compact import alone, survey
from lambda_hat.store.layout import Store
from lambda_hat.store.process_identity import whoami
from tests.hand_made import OTHER_HOST, HandMade

Tree = dict[str, bytes]
TARGET_FILES = {"config.yaml", "meta.json", "params.npz", "data.npz", "runs.zip", "error.json"}


@pytest.fixture
def made(tmp_path) -> HandMade:
    """Two targets of three runs. Of each the first two are finished, and the last one of all has failed."""
    made = HandMade(tmp_path / "a b" / "runs", 2, 3)
    made.build(0, 1)
    for place in (0, 1, 3, 4):
        made.finish(place, trace=b"trace of run %d" % place, llc_mean=float(place))
        (made.run_dir(place) / "sample.log").write_text(f"said by {place}")
    made.fail(5)
    return made


def compacted(store: Store, dry_run: bool = False) -> int:
    return compact.run(Namespace(store=store.root, dry_run=dry_run))


def tree(root: Path) -> Tree:
    """Every file, and every folder with nothing in it."""
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in root.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def readable(made: HandMade) -> dict[tuple[str, str], dict[str, bytes]]:
    """What every run has, as everything that reads runs gets it."""
    return {
        (target_id, run_id): {
            name: run_files.read_bytes(made.store.run_dir(target_id, run_id) / name)
            for name in run_files.names(made.store.run_dir(target_id, run_id)) - {run_files.DISCARDED}
        }
        for target_id in made.store.target_ids()
        for run_id in made.store.run_ids(target_id)
    }


def assert_whole(made: HandMade, finished: int) -> None:
    states = []
    for key in made.keys:
        status, damages = made.store.inspect_run(*key, None, thorough=True)
        assert damages == []
        assert made.store.run_status(*key) == status
        states.append(status)
    assert states.count("finished") == finished


def test_runs_are_one_file_per_target_with_what_their_folders_had(made, capsys):
    before, files = readable(made), tree(made.store.root)
    assert compacted(made.store, dry_run=True) == EXIT_OK
    assert tree(made.store.root) == files
    assert compacted(made.store) == EXIT_OK
    said = capsys.readouterr().out
    tail = "0 were there before; 1 are unfinished or being sampled, and stay as they are"
    counted = f"{made.store.root}: 4 finished runs, 20 files and folders"
    assert said == "".join(f"{counted}, {goes} into 2 archives; {tail}\n" for goes in ("would go", "went"))
    assert readable(made) == before
    assert_whole(made, 4)
    names = {path.name for target_id in made.targets for path in made.store.target_dir(target_id).iterdir()}
    assert names == {"config.yaml", "meta.json", "params.npz", "data.npz", "runs.zip", made.keys[5][1]}
    assert sorted(path.name for path in made.store.targets_dir.iterdir()) == sorted(made.targets)
    assert made.store.entries(made.targets[0]) >= {key[1] for key in made.keys[:2]}
    archive = made.store.target_dir(made.targets[0]) / "runs.zip"
    with zipfile.ZipFile(archive) as file:
        assert file.testzip() is None
        file.extractall(archive.parent)
    archive.unlink()
    assert readable(made) == before, "any program that reads zip files undoes it"


def test_more_runs_join_those_that_are_there(made, capsys):
    compacted(made.store)
    before = readable(made)
    made.finish(2)
    assert compacted(made.store) == EXIT_OK
    assert "1 finished runs, 4 files and folders, went into 1 archives; 4 were there before" in capsys.readouterr().out
    assert_whole(made, 5)
    assert {key: files for key, files in readable(made).items() if key != made.keys[2]} == before
    files = tree(made.store.root)
    assert compacted(made.store) == EXIT_OK
    assert tree(made.store.root) == files, "nothing to do"


def test_the_time_of_a_result_is_known_to_two_seconds(made):
    then = 1_790_000_001.0
    path = made.run_dir(0) / "analysis.json"
    os.utime(path, (then, then))
    compacted(made.store)
    assert run_files.file_status(path)[1] == then + 1


# --------------------------------------------------------------------------------------------------------------
# Whatever happens meanwhile


def at_step(step: int, root: Path, act: Callable[[], object]) -> Callable[[str, tuple], None]:
    """A hook that acts before the operation of that number on the store's files."""
    count, acting = 0, False

    def hook(event: str, arguments: tuple) -> None:
        nonlocal count, acting
        on_files = event == "open" or event.startswith(("os.", "shutil."))
        if acting or not on_files or not any(str(root / "targets") in str(word) for word in arguments):
            return
        count += 1
        if count == step:
            acting = True
            act()
            acting = False

    return hook


def in_a_child(work: Callable[[], int], hook: Callable[[str, tuple], None]) -> int:
    """The exit status of `work` in a process of its own with this hook, which a process cannot lose again."""
    child = os.fork()
    if not child:
        status = 99
        try:
            sys.addaudithook(hook)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def copies(made: HandMade, folder: Path):
    """The same study again and again, as it was first."""
    shutil.copytree(made.store.root, folder / "pristine")
    while True:
        shutil.rmtree(made.store.root)
        shutil.copytree(folder / "pristine", made.store.root)
        yield


def test_a_kill_at_any_step_loses_nothing_and_the_next_call_goes_on(made, tmp_path):
    compacted(made.store)
    run_files.discard(made.run_dir(1))
    made.finish(1, trace=b"once more")
    made.finish(2)
    before = readable(made)
    for step, _ in enumerate(copies(made, tmp_path), 1):
        status = in_a_child(lambda: compacted(made.store), at_step(step, made.store.root, lambda: os._exit(77)))
        assert readable(made) == before, step
        assert_whole(made, 5)
        assert compacted(made.store) == EXIT_OK
        assert readable(made) == before, step
        left = [path.name for path in (made.store.root / "targets").rglob("*") if path.name not in TARGET_FILES]
        assert sorted(left) == sorted([*made.targets, made.keys[5][1]]), step
        if status == EXIT_OK:
            break
        assert status == 77
    assert step > 60


@pytest.mark.slow
@pytest.mark.parametrize("place", [1, 3])
@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_is_discarded_at_any_step_is_sampled_again(made, tmp_path, place, ended):
    """As `--rerun all` does beside it, with a rank that begins at once, and may have ended."""

    def discard_and_sample() -> None:
        run_files.discard(made.run_dir(place))
        claim = claims.take(made.run_dir(place), None)
        assert claim is not None
        if ended:
            made.finish(place, trace=b"once more", llc_mean=7.0)
            claim.finished()
        else:
            (made.run_dir(place) / "checkpoint.npz").write_bytes(b"begun")

    for step, _ in enumerate(copies(made, tmp_path), 1):
        acted = tmp_path / f"acted {step}"

        def act(acted: Path = acted) -> None:
            discard_and_sample()
            acted.touch()

        assert in_a_child(lambda: compacted(made.store), at_step(step, made.store.root, act)) == EXIT_OK, step
        if not acted.exists():
            break
        if not ended:
            assert made.store.run_status(*made.keys[place]) == "pending", step
            assert (made.run_dir(place) / "checkpoint.npz").read_bytes() == b"begun", step
            made.finish(place, trace=b"once more")
        assert compacted(made.store) == EXIT_OK
        assert run_files.read_bytes(made.run_dir(place) / "trace.nc") == b"once more", step
        assert_whole(made, 4)
    assert step > 40


@pytest.mark.slow
def test_a_reader_finds_every_run_at_every_step(made, tmp_path):
    before = readable(made)
    for step, _ in enumerate(copies(made, tmp_path), 1):
        seen = tmp_path / f"seen {step}"

        def look(seen: Path = seen) -> None:
            assert readable(made) == before
            seen.touch()

        assert in_a_child(lambda: compacted(made.store), at_step(step, made.store.root, look)) == 0, step
        if not seen.exists():
            break
    assert step > 40


def test_runs_that_are_held_or_have_folders_in_them_stay(made):
    claim = claims.take(made.run_dir(0), None)
    (made.run_dir(3) / "mine").mkdir()
    plans = [survey(made.store, target_id) for target_id in made.targets]
    assert [[run.run_id for run in one.loose] for one in plans] == [[made.keys[1][1]], [made.keys[4][1]]]
    compacted(made.store)
    assert (made.run_dir(0) / "trace.nc").exists() and (made.run_dir(3) / "mine").exists()
    claim.finished()
    compacted(made.store)
    assert not made.run_dir(0).exists()


def test_a_claim_on_an_archived_run_finds_it_finished(made):
    """As of a rank whose pack was planned before."""
    compacted(made.store)
    claim = claims.take(made.run_dir(0), None)
    assert made.store.run_status(*made.keys[0]) == "finished"
    claim.finished()
    assert_whole(made, 4)


# --------------------------------------------------------------------------------------------------------------
# Damage


def test_a_damaged_run_stays_for_verify(made, capsys):
    (made.run_dir(0) / "trace.nc").write_bytes(b"TRACE of run 0")
    assert compacted(made.store) == EXIT_FAILED
    said = capsys.readouterr().out
    assert said.endswith(
        "damaged finished runs, which stay too: 1; lambda-hat verify says which, and sets them aside\n"
    )
    assert "3 finished runs, 15 files and folders, went into 2 archives" in said
    assert (made.run_dir(0) / "trace.nc").read_bytes() == b"TRACE of run 0"


def test_damage_in_an_archive_costs_the_run_that_it_hits(made):
    compacted(made.store)
    archive = made.store.target_dir(made.targets[0]) / "runs.zip"
    archive.write_bytes(archive.read_bytes().replace(b"trace of run 1", b"TRACE of run 1"))
    assert made.store.inspect_run(*made.keys[1], None) == ("finished", []), "its size is right"
    looked = made.store.inspect_run(*made.keys[1], None, thorough=True, move=False)
    assert looked[0] == "pending" and not made.run_dir(1).exists()
    status, damages = made.store.inspect_run(*made.keys[1], None, thorough=True)
    assert status == "pending"
    assert [damage.path.name for damage in damages] == ["analysis.json", "trace.nc"]
    aside = made.store.root / "damaged" / "targets" / made.keys[1][0] / made.keys[1][1]
    assert (aside / "trace.nc.1").read_bytes() == b"TRACE of run 1"
    assert made.store.run_status(*made.keys[1]) == "pending"
    assert_whole(made, 3)
    made.finish(1, trace=b"anew")
    assert compacted(made.store) == EXIT_OK
    assert run_files.read_bytes(made.run_dir(1) / "trace.nc") == b"anew"
    assert_whole(made, 4)


@pytest.mark.parametrize("content", [b"", b"PK\5\6", b"PK\5\6" + b"\xff" * 18, b"{}"])
def test_what_is_no_archive_is_set_aside(made, content):
    compacted(made.store)
    archive = made.store.target_dir(made.targets[0]) / "runs.zip"
    archive.write_bytes(content)
    with pytest.raises(StoreError, match=r"runs\.zip: not a whole archive; lambda-hat verify sets it aside"):
        compacted(made.store)
    assert [made.store.run_status(*key) for key in made.keys[:2]] == ["pending"] * 2
    status, damages = made.store.inspect_target(made.targets[0], None)
    assert status == "built"
    assert [str(damage) for damage in damages] == [
        f"{archive}: not a whole archive of runs; set aside as "
        f"{made.store.root / 'damaged' / 'targets' / made.targets[0] / 'runs.zip.1'}"
    ]
    assert made.store.inspect_target(made.targets[0], None) == ("built", [])
    assert compacted(made.store) == EXIT_OK


@pytest.mark.parametrize("name", ["../evil", "run_1/../../evil", "run_1/sub/file", "/etc/passwd", "run_1/.."])
def test_an_archive_leads_out_of_no_folder(made, name):
    with zipfile.ZipFile(made.store.target_dir(made.targets[0]) / "runs.zip", "w") as file:
        file.writestr(name, b"x")
    assert run_files.is_damaged(made.store.target_dir(made.targets[0]))
    assert made.store.run_ids(made.targets[0]) == sorted(key[1] for key in made.keys[:2])


def test_a_compressed_archive_is_none(made):
    with zipfile.ZipFile(made.store.target_dir(made.targets[0]) / "runs.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("run_1/trace.nc", bytes(10_000))
    assert run_files.is_damaged(made.store.target_dir(made.targets[0]))


# --------------------------------------------------------------------------------------------------------------
# Refused


@pytest.mark.parametrize("driver", [whoami(), OTHER_HOST], ids=["here", "elsewhere"])
def test_a_store_that_an_older_version_writes_is_refused(made, driver):
    made.lease(**driver)
    files = tree(made.store.root)
    with pytest.raises(StoreError) as error:
        compacted(made.store)
    assert error.value.exit_code == EXIT_USAGE
    assert str(error.value) == (
        f"{made.store.root}: process {driver['pid']} on {driver['host']} is at work here with an older version of "
        "lambda_hat, which finds no runs in archives; wait for its end, or stop it; nothing was changed"
    )
    assert tree(made.store.root) == files
    made.lease(age=100, **OTHER_HOST)
    assert compacted(made.store) == EXIT_OK, "that driver has ended"


def test_a_driver_of_this_version_may_be_at_work(made):
    made.lease(store=2)
    assert compacted(made.store) == EXIT_OK


def test_without_room_nothing_is_begun(made, monkeypatch):
    files = tree(made.store.root)
    usage = shutil.disk_usage(made.store.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StoreError, match=r"runs\.zip: it would take .* MiB, and the disk has room for 0\.0 MiB; not"):
        compacted(made.store)
    assert tree(made.store.root) == files


def test_a_disk_that_is_full_after_all_changes_nothing(made, monkeypatch):
    before = readable(made)

    def full(descriptor: int) -> None:
        if "runs.zip" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        compacted(made.store)
    assert readable(made) == before
    assert [path for path in made.store.root.rglob("*") if "runs.zip" in path.name or "compact" in path.name] == []


def test_one_process_at_a_time(made):
    refused = rf"process {os.getpid()} on .* compacts this store now; wait for its end"
    with alone(made.store), pytest.raises(StoreError, match=refused):
        compacted(made.store)
    assert compacted(made.store) == EXIT_OK
