"""One study in a folder whose name would do harm in a shell, and what it leaves behind, listens on, and stores."""

from __future__ import annotations

import os
import pickle
import pickletools
import shutil
import signal
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.security.watching import Listener, Watch

ROOT = Path(__file__).resolve().parents[2]
NASTY = "-dash $(touch pwned) `touch pwned`; touch pwned & \"double\" 'single' ${HOME} é\u2028 \\ {0} %s\nnew line"
UMASK = 0o007
pytestmark = [pytest.mark.parsl, pytest.mark.mpi, pytest.mark.slow]


class Place(NamedTuple):
    """Where a study runs, and everything around it that should stay empty."""

    base: Path
    here: Path
    env: dict[str, str]

    @property
    def store(self) -> Path:
        return self.here / "runs"

    @property
    def outside(self) -> list[str]:
        """Everything in the home, the folder of temporary files, and those of the desktop standard."""
        return sorted(
            str(path.relative_to(self.base)) for name in ("home", "t") for path in (self.base / name).rglob("*")
        )

    def words(self, *more: str) -> list[str]:
        return [sys.executable, str(ROOT / "flows" / "packed.py"), f"--experiments={self.here.name[:5]}.yaml", *more]

    def run(self, *more: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.words(*more), cwd=self.here, env=self.env, capture_output=True, text=True, timeout=300, umask=UMASK
        )


def make_place(base: Path) -> Place:
    here = base / NASTY
    for folder in (here, base / "home", base / "t"):
        folder.mkdir()
    home = str(base / "home")
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "MPL", "LAMBDA_HAT_CACHE"))
    }
    env |= {"HOME": home, "TMPDIR": str(base / "t"), "PYTHONDONTWRITEBYTECODE": "1", "LAMBDA_HAT_TEST_MARK": str(base)}
    env |= {f"XDG_{name}_HOME": f"{home}/{name}" for name in ("CACHE", "CONFIG", "DATA", "STATE")}
    study = {
        "targets": [
            {"target": "monomial"},
            {"target": "dln", "overrides": {"target": {"data": "empirical", "n": 100, "noise_std": 0.1}}},
        ],
        "samplers": [
            {"name": "sgld", "overrides": {"num_draws": 50, "num_burnin": 20, "num_chains": 2, "step_size": 1e-4}},
        ],
    }
    (here / f"{NASTY[:5]}.yaml").write_text(yaml.safe_dump(study))
    return Place(base, here, env)


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Place, list[Listener]]:
    """A finished study, and the sockets that its processes listened on."""
    place = make_place(tmp_path_factory.mktemp("s"))
    watch = Watch("LAMBDA_HAT_TEST_MARK", str(place.base))
    watch.start()
    done = place.run("--ranks", "2")
    listeners = watch.stop()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 finished" in done.stdout
    return place, listeners


def test_a_name_that_a_shell_would_obey_does_no_harm_and_works(ended):
    place, _ = ended
    assert not list(place.base.rglob("pwned"))
    assert not Path("pwned").exists()
    table = pd.read_parquet(place.here / "results" / "llc_runs.parquet")
    assert set(table["status"]) == {"finished"}
    assert all(Path(path).is_dir() for path in table["run_dir"])
    again = place.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert "everything is cached; no sampler is started" in again.stdout


def test_nothing_is_written_outside_of_store_and_results(ended):
    place, _ = ended
    assert place.outside == []
    assert {path.name for path in place.here.iterdir()} == {"runs", "results", f"{NASTY[:5]}.yaml"}
    assert {path.name for path in place.base.iterdir()} == {"home", "t", NASTY}
    assert list((place.store / "cache").glob("programs-*/*.program"))


def test_everything_listens_on_loopback_alone(ended):
    """But for the port on which Hydra's mpiexec waits for its own helper; it has no option to bind it."""
    _, listeners = ended
    loopback = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert any(listener.address in loopback for listener in listeners)
    for listener in listeners:
        if listener.address not in loopback:
            assert any("/mpiexec " in program for program in listener.programs), listener


def holds_a_pickle(data: bytes) -> bool:
    """Whether `data` can be read as a pickle from its first byte to its last."""
    try:
        return [opcode.name for opcode, _, _ in pickletools.genops(data)][-1:] == ["STOP"]
    except (ValueError, IndexError):
        return False


def test_no_pickle_in_the_store(ended):
    place, _ = ended
    assert holds_a_pickle(pickle.dumps({"a": [1, print]}))
    kinds = set()
    for path in place.store.rglob("*"):
        if path.is_file():
            kinds.add(path.suffix)
            data = path.read_bytes()
            # A protocol's first bytes, which every pickle since 2003 begins with; text may happen to be an older one.
            assert not (data[:1] == b"\x80" and holds_a_pickle(data)), path
            if path.suffix == ".npz":
                for name in zipfile.ZipFile(path).namelist():
                    array = np.load(path, allow_pickle=False)[name.removesuffix(".npy")]
                    assert not array.dtype.hasobject
    assert kinds >= {".npz", ".json", ".yaml", ".nc", ".jsonl"}


def test_folders_and_files_follow_the_umask(ended):
    place, _ = ended
    for path in [place.store, *place.store.rglob("*"), *(place.here / "results").rglob("*")]:
        if "parsl" in path.relative_to(place.here).parts or path.is_symlink():
            continue
        wanted = 0o777 if path.is_dir() else 0o666
        # Compiled programs are native code, and commands are started again: nobody else may plant one.
        kept_closed = 0o077 if path.parent == place.store / "cache" else 0
        kept_closed |= 0o022 if path.parent == place.store / "studies" and path.suffix == ".json" else 0
        assert stat.S_IMODE(path.stat().st_mode) == wanted & ~(UMASK | kept_closed), path


def test_a_killed_driver_leaves_a_link_that_the_next_one_removes(ended, tmp_path):
    place = make_place(tmp_path)
    driver = subprocess.Popen(
        place.words("--ranks", "2"), cwd=place.here, env=place.env, stdout=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not list(place.store.glob("packs/pack_*/rank-0001.jsonl")):
        assert time.monotonic() < deadline
        assert driver.poll() is None
        time.sleep(0.1)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    while left := [name for name in place.outside if not name.startswith("t/lambda_hat_link_")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    done = place.run("--ranks", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert place.outside == []
    shutil.rmtree(place.here)
