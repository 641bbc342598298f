"""Programs that one process has compiled are loaded by others, and nothing that lies in the folder can stop a run."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lambda_hat.programs import compile_cache, jax_cache
from lambda_hat.programs.compile_cache import MAGIC, build, encode, platform_name, program_key, tidy
from lambda_hat.store.process_identity import whoami

OTHER_PROCESS = """
import hashlib, json
import jax, numpy as np
from lambda_hat.config import HmcConfig, MclmcConfig, QuadraticBuild, QuadraticTarget, SgldConfig
from lambda_hat.programs import compiling as programs
from lambda_hat.samplers import sample
from lambda_hat.store.layout import programs_folder
from lambda_hat.targets import build_target
from lambda_hat.targets.custom import target_of

SMALL = {"num_chains": 2, "num_draws": 20, "num_burnin": 40}
quadratic = build_target(QuadraticBuild(target=QuadraticTarget(dim=4, rank=3)))[0]
# A loss that no text describes: its address is another one in every process.
custom = target_of(lambda w, batch: jax.numpy.mean((batch @ w) ** 2), np.zeros(3), np.eye(3), None)
runs = {
    "sgld": (quadratic, SgldConfig(**SMALL)),
    "hmc": (quadratic, HmcConfig(**SMALL, target_acceptance=0.9)),
    "mclmc": (quadratic, MclmcConfig(**SMALL)),
    "custom": (custom, SgldConfig(**SMALL, step_size=1e-3, batch_size=2)),
}
told = {}
for name, (target, cfg) in runs.items():
    draws = sample(target, cfg)
    told[name] = {
        "bits": hashlib.sha256(draws.loss.tobytes() + draws.step_size.tobytes()).hexdigest(),
        "compiled": draws.programs_compiled,
        "loaded": draws.programs_loaded,
    }
told["bytes"] = [memory for _, memory in programs._programs.values()]
x = jax.numpy.zeros(1000)
donating = programs.compiled("d", lambda: lambda x: x + 1, (x,), False, (0,), programs_folder())
donating.call(x)
told["donated"] = x.is_deleted()
print(json.dumps(told))
"""


def never() -> bool:
    return False


def lowered(number: float):
    return jax.jit(lambda x: jnp.sin(x) * number + jnp.cos(x)).lower(np.ones(7, np.float32))


def made(shared: Path, number: float = 1.5, is_stopping=never) -> bool:
    """Whether the program was loaded; that it is the right one is asserted."""
    executable, loaded = build(lowered(number), shared, is_stopping)
    x = np.arange(7, dtype=np.float32)
    np.testing.assert_allclose(executable(x), np.sin(x) * number + np.cos(x), rtol=1e-6)
    return loaded


def entry_of(shared: Path, number: float = 1.5) -> Path:
    return shared / platform_name() / f"{program_key(lowered(number))}.program"


def in_another_process(shared: Path | str, tmp_path: Path) -> dict:
    env = {**os.environ, "LAMBDA_HAT_CACHE": str(shared), "NPROC": "1", "TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir(exist_ok=True)
    argv = [sys.executable, "-W", "error", "-c", OTHER_PROCESS]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    # Nothing is left on the node.
    assert list((tmp_path / "tmp").iterdir()) == []
    return json.loads(done.stdout)


@pytest.mark.slow
def test_what_is_loaded_gives_the_bits_of_what_was_compiled(tmp_path):
    first, second = (in_another_process(tmp_path / "shared", tmp_path) for _ in range(2))
    without = in_another_process("off", tmp_path)
    for name in ("sgld", "hmc", "mclmc", "custom"):
        assert first[name]["bits"] == second[name]["bits"] == without[name]["bits"]
        assert first[name]["compiled"] == without[name]["compiled"] == second[name]["loaded"] > 0
        assert first[name]["loaded"] == without[name]["loaded"] == second[name]["compiled"] == 0
    assert first["bytes"] == second["bytes"] == without["bytes"] and min(first["bytes"]) > 0
    assert first["donated"] and second["donated"] and without["donated"]


def test_a_program_is_compiled_once_and_then_loaded(tmp_path, capfd):
    assert [made(tmp_path), made(tmp_path), made(tmp_path, 2.5)] == [False, True, False]
    assert sorted(path.name for path in (tmp_path / platform_name()).iterdir()) == sorted(
        [entry_of(tmp_path).name, entry_of(tmp_path, 2.5).name]
    )
    assert capfd.readouterr().err == ""


def test_without_a_folder_every_program_is_compiled():
    assert [build(lowered(3.5), None, never)[1] for _ in range(2)] == [False, False]


def test_a_platform_is_named_by_all_that_decides_the_code(monkeypatch):
    name = platform_name()
    for key, value in (
        ("jaxlib", "0.0"),
        ("device", {"flags": "sse"}),
        ("xla_flags", "--xla_cpu_max_isa=SSE4_2"),
        ("cores", 77),
        ("user", 4711),
    ):
        changed = compile_cache.platform() | {key: value}
        monkeypatch.setattr(compile_cache, "platform", lambda changed=changed: changed)
        assert platform_name() != name
        monkeypatch.undo()
    assert compile_cache.platform()["device"].keys() & {"flags", "Features", "host"}


def damaged(data: bytes) -> dict[str, bytes]:
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    return {
        "empty": b"",
        "truncated": data[:-1],
        "only the format": MAGIC,
        "flipped": bytes(flipped),
        "another format": data.replace(b"program 1", b"program 0"),
        "text": b"no program\n",
    }


@pytest.mark.parametrize("kind", damaged(b"MAGIC"))
def test_a_damaged_entry_is_replaced(tmp_path, capfd, kind):
    made(tmp_path)
    entry = entry_of(tmp_path)
    whole = entry.read_bytes()
    entry.write_bytes(damaged(whole)[kind])
    assert [made(tmp_path), made(tmp_path)] == [False, True]
    said = capfd.readouterr().err
    assert str(entry) in said and "it is removed, and the program compiled" in said and said.count("\n") == 1


def test_what_is_no_file_is_removed(tmp_path):
    entry_of(tmp_path).mkdir(parents=True, mode=0o700)
    entry_of(tmp_path).parent.chmod(0o700)
    assert [made(tmp_path), made(tmp_path)] == [False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../evil": 4}},
        {"files": {"/evil": 4}},
        {"files": {"evil": "4"}},
        {"files": ["evil"]},
        {"files": None},
        {"platform": "programs-cpu-0123456789abcdef"},
    ],
)
def test_an_entry_that_was_not_made_here_is_removed(tmp_path, change):
    made(tmp_path)
    head = json.dumps({"platform": platform_name(), "files": {"evil": 4}} | change).encode() + b"\n"
    rest = head + b"evil"
    entry_of(tmp_path).write_bytes(MAGIC + hashlib.sha256(rest).hexdigest().encode() + rest)
    assert [made(tmp_path), made(tmp_path)] == [False, True]
    assert not list(tmp_path.rglob("evil"))


def test_an_entry_that_jax_cannot_use_is_given_up(tmp_path, capfd):
    made(tmp_path)
    entry = entry_of(tmp_path)
    (name,) = compile_cache.decode(entry.read_bytes())
    entry.write_bytes(encode({name: b"no executable"}))
    assert [made(tmp_path), made(tmp_path), made(tmp_path)] == [False, False, True]
    assert "JAX cannot use it" in capfd.readouterr().err
    entry.write_bytes(encode({"another-cache": b"of another program"}))
    assert [made(tmp_path), made(tmp_path)] == [False, True]


def test_the_least_recently_used_go_first(tmp_path, monkeypatch):
    for number, age in ((1.5, 9000), (2.5, 9500), (3.5, 100)):
        made(tmp_path, number)
        past = time.time() - age
        os.utime(entry_of(tmp_path, number), (past, past))
    # It was the oldest but for one use.
    made(tmp_path, 2.5)
    sizes = [entry_of(tmp_path, number).stat().st_size for number in (1.5, 2.5, 3.5)]
    monkeypatch.setattr(compile_cache, "MOST_BYTES", sum(sizes) - 1)
    tidy(tmp_path)
    assert [entry_of(tmp_path, number).exists() for number in (1.5, 2.5, 3.5)] == [False, True, True]


def test_what_the_dead_left_is_removed(tmp_path, dead):
    folder = tmp_path / platform_name()
    made(tmp_path)
    (folder / "a.busy").write_text(json.dumps(dead))
    (folder / "b.busy").write_text(json.dumps(whoami()))
    (folder / ".c.program.01.part").write_text("")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".d.part").write_text("")
    for path in (folder / ".c.program.01.part", tmp_path / "mine" / ".d.part"):
        os.utime(path, (0, 0))
    tidy(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == sorted(["b.busy", entry_of(tmp_path).name])
    assert (tmp_path / "mine" / ".d.part").exists()


@pytest.fixture
def dead() -> dict:
    """A process of this host that has ended."""
    code = "import json; from lambda_hat.store.process_identity import whoami; print(json.dumps(whoami()))"
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root)
    return json.loads(done.stdout)


@pytest.fixture
def marker(tmp_path) -> Path:
    """Where the one that compiles says so."""
    path = entry_of(tmp_path).with_suffix(".busy")
    path.parent.mkdir(mode=0o700)
    return path


def test_a_killed_compiler_is_not_waited_for(tmp_path, marker, dead):
    marker.write_text(json.dumps(dead))
    assert not made(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("content", ["", "no record", json.dumps({"host": "elsewhere", "pid": 1})])
def test_a_marker_of_the_past_is_not_waited_for(tmp_path, marker, content):
    marker.write_text(content)
    os.utime(marker, (0, 0))
    assert not made(tmp_path)
    assert not marker.exists()


def test_a_live_compiler_is_waited_for_until_the_process_is_to_stop(tmp_path, marker):
    marker.write_text(json.dumps(whoami()))
    asked = iter([False, False, True])
    assert not made(tmp_path, is_stopping=lambda: next(asked))
    assert marker.exists() and list(asked) == []


def test_a_live_compiler_is_waited_for_with_a_bound(tmp_path, marker, monkeypatch):
    monkeypatch.setattr(compile_cache, "MOST_WAIT", 0.2)
    marker.write_text(json.dumps(whoami() | {"pid": "of another host", "place": "elsewhere"}))
    assert not made(tmp_path)


def test_who_has_waited_loads_what_the_other_one_has_compiled(tmp_path, marker):
    made(tmp_path)
    entry = entry_of(tmp_path)
    content = entry.read_bytes()
    entry.unlink()
    marker.write_text(json.dumps(whoami()))
    looks = iter(range(100))

    def then() -> bool:
        if next(looks) == 3:
            entry.write_bytes(content)
            marker.unlink()
        return False

    assert made(tmp_path, is_stopping=then)
    assert not marker.exists()


def test_one_compiles_while_the_others_wait(tmp_path, monkeypatch):
    compilations = []
    real = compile_cache.compile_or_load
    monkeypatch.setattr(compile_cache, "compile_or_load", lambda x: compilations.append(real(x)) or compilations[-1])
    threads = [threading.Thread(target=made, args=(tmp_path, 9.5)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(loaded for _, loaded in compilations) == [False, True, True, True]


def test_a_folder_that_is_none_fails_no_run(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    assert [made(tmp_path / "file"), made(tmp_path / "file")] == [False, False]
    assert capfd.readouterr().err.count("programs are compiled") == 1


def test_a_folder_that_others_can_write_is_not_used(tmp_path, capfd):
    made(tmp_path)
    (tmp_path / platform_name()).chmod(0o770)
    assert not made(tmp_path)
    assert "others can write there" in capfd.readouterr().err


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_a_folder_that_takes_nothing_fails_no_run(tmp_path, monkeypatch, code):
    made(tmp_path)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    for name in ("create", "write_bytes_atomic"):
        monkeypatch.setattr(compile_cache, name, refuse)
    assert [made(tmp_path), made(tmp_path, 2.5), made(tmp_path, 2.5)] == [True, False, False]


def test_a_folder_may_be_deleted_at_any_time(tmp_path, marker):
    marker.write_text(json.dumps(whoami()))

    def deleted() -> bool:
        marker.unlink()
        marker.parent.rmdir()
        return True

    assert not made(tmp_path, is_stopping=deleted)
    assert made(tmp_path)


def test_private_directories_of_the_dead_are_removed(tmp_path, monkeypatch, dead):
    monkeypatch.setattr(jax_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    owners = {"dead": dead, "live": whoami(), "elsewhere": dead | {"place": "another host"}, "new": None, "old": None}
    for name, owner in owners.items():
        directory = tmp_path / f"{jax_cache.PRIVATE_PREFIX}{name}"
        (directory / "jax").mkdir(parents=True)
        if owner is not None:
            (directory / "owner.json").write_text(json.dumps(owner))
    os.utime(tmp_path / f"{jax_cache.PRIVATE_PREFIX}old", (0, 0))
    jax_cache._remove_dead_directories()
    left = {path.name.removeprefix(jax_cache.PRIVATE_PREFIX) for path in tmp_path.iterdir()}
    assert left == {"live", "elsewhere", "new"}


def test_jax_keeps_nothing_that_is_not_ours(tmp_path):
    made(tmp_path)
    jax.jit(lambda x: jnp.tan(x) * 7.25)(np.ones(3, np.float32))
    assert list(jax_cache.private_directory().iterdir()) == []
