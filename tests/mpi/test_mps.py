"""MPS on fake devices: what is started with which environment, and that it ends, whatever ends the ranks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flows.sites.site_schemas import load_site
from lambda_hat.errors import ConfigError, LaunchError
from mpi.mps import place_of_mps, share_gpu
from mpi.pack import read_pack
from tests.conftest import ROOT

CONTROL = """#!/bin/sh
# As NVIDIA's program: with -d it starts a daemon, and else it reads commands.
if [ "$1" = -d ]; then
    [ -n "$MPS_BROKEN" ] && { echo "no such driver"; exit 3; }
    sleep 0.3
    : > "$CUDA_MPS_PIPE_DIRECTORY/control"
    command=-d
else
    read -r command
fi
about="$CUDA_VISIBLE_DEVICES $CUDA_DEVICE_ORDER $CUDA_MPS_PIPE_DIRECTORY $CUDA_MPS_LOG_DIRECTORY"
echo "$command $about" >> "$MPS_JOURNAL"
"""
RANK = """
import json, os, sys
from pathlib import Path
from unittest import mock
from mpi.devices import bind_rank
names = "CUDA_VISIBLE_DEVICES CUDA_MPS_PIPE_DIRECTORY CUDA_MPS_LOG_DIRECTORY XLA_PYTHON_CLIENT_MEM_FRACTION".split()
with mock.patch("mpi.devices.find_vendor", lambda environment: "cuda"):
    binding = bind_rank(int(os.environ["PMI_RANK"]), 1, 2, 2, Path(sys.argv[1]))
there = (Path(os.environ[names[1]]) / "control").exists()
print(json.dumps([binding.device, there, *(os.environ.get(name) for name in names)]), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Path:
    """The journal of a fake control program."""
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(CONTROL)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("MPS_JOURNAL", str(tmp_path / "journal"))
    for name in list(os.environ):
        if "VISIBLE_DEVICES" in name or name.startswith(("SLURM_", "CUDA_", "XLA_", "JAX_")):
            monkeypatch.delenv(name)
    return tmp_path / "journal"


@pytest.fixture
def ranks(tmp_path, fake, repo_env) -> Iterator[Callable[[str], list[subprocess.Popen[str]]]]:
    """Four ranks of one node with two GPUs, as a launcher starts them."""
    started: list[subprocess.Popen[str]] = []

    def start(devices: str) -> list[subprocess.Popen[str]]:
        for rank in (3, 2, 1, 0):
            launcher = {"PMI_RANK": rank, "PMI_SIZE": 4, "MPI_LOCALRANKID": rank, "MPI_LOCALNRANKS": 4}
            own = {**repo_env, **os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": devices}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", RANK, str(tmp_path / "job")], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    env=own | {name: str(value) for name, value in launcher.items()}, text=True,
                )
            )  # fmt: skip
        return started[::-1]

    yield start
    for process in started:
        process.kill()
        with process:
            pass


def lines_of(journal: Path, number: int) -> list[list[str]]:
    """The lines, once there are so many."""
    until = time.monotonic() + 20
    while not journal.exists() or len(journal.read_text().splitlines()) < number:
        assert time.monotonic() < until, journal.read_text() if journal.exists() else "nothing"
        time.sleep(0.05)
    return sorted(line.split(" ") for line in journal.read_text().splitlines())


def gone(*places: Path) -> bool:
    until = time.monotonic() + 20
    while any(place.exists() for place in places) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(place.exists() for place in places)


@pytest.mark.parametrize("devices", [["2", "5"], ["GPU-aaaa", "GPU-bbbb"]], ids=["numbers", "UUIDs"])
@pytest.mark.parametrize("killed", [False, True])
def test_each_gpu_has_a_daemon_that_ends_with_the_ranks(tmp_path, fake, ranks, devices, killed):
    processes = ranks(",".join(devices))
    places = [tmp_path / "job-0", tmp_path / "job-1"]
    found = [json.loads(process.stdout.readline()) for process in processes]
    seen = ["0", "0"] if devices[0] == "2" else devices
    assert found == [
        [devices[gpu], True, seen[gpu], str(places[gpu]), str(places[gpu]), "0.375"] for gpu in (0, 0, 1, 1)
    ]
    both = list(zip(devices, map(str, places), strict=True))
    begun = [["-d", device, "PCI_BUS_ID", place, place] for device, place in both]
    assert lines_of(fake, 2) == begun
    assert [place.stat().st_mode & 0o777 for place in places] == [0o700, 0o700]
    for process in processes:
        process.send_signal(signal.SIGKILL) if killed else process.stdin.close()
    assert lines_of(fake, 4) == begun + [["quit", *line[1:]] for line in begun]
    assert gone(*places)


def test_a_daemon_that_does_not_start_is_named(tmp_path, fake, monkeypatch):
    monkeypatch.setenv("MPS_BROKEN", "1")
    code = (
        "import os, sys; from pathlib import Path; from mpi.mps import share_gpu; from lambda_hat.errors import *\n"
        "try: share_gpu(Path(sys.argv[1]), 'cuda', None, '0', 0, 2, os.environ)\n"
        "except LaunchError as error: print(error)"
    )
    said = subprocess.check_output([sys.executable, "-c", code, str(tmp_path / "job")], cwd=ROOT, text=True)
    assert said == (
        "gpu_sharing: mps: nvidia-cuda-mps-control -d ended with status 3 (no such driver); write gpu_sharing: none, "
        "or ranks_per_gpu: 1\n"
    )
    assert gone(tmp_path / "job-0")


def test_a_folder_that_someone_else_has_made_is_not_used(tmp_path, fake):
    (tmp_path / "job-0").mkdir()
    with pytest.raises(LaunchError, match="job-0: File exists; write gpu_sharing: none"):
        share_gpu(tmp_path / "job", "cuda", None, "0", 0, 2, os.environ)
    assert not fake.exists()


@pytest.mark.parametrize(
    ("vendor", "bound", "told"),
    [
        ("rocm", None, "is NVIDIA's, and the GPUs of this node are AMD's; write gpu_sharing: none"),
        (
            "cuda",
            ("SLURM_GPUS_PER_TASK=1", 1, 1),
            r"\(SLURM_GPUS_PER_TASK=1\), which the others may not see; write --gpu",
        ),
    ],
)
def test_where_mps_cannot_be(tmp_path, vendor, bound, told):
    with pytest.raises(LaunchError, match=told):
        share_gpu(tmp_path / "job", vendor, bound, "0", 0, 2, os.environ)


def test_packs_meet_on_their_node_by_their_name(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert place_of_mps({"pack_id": "pack_7", "gpu_sharing": "mps"}) == tmp_path / "lambda_hat-pack_7"
    assert place_of_mps({"pack_id": "pack_7", "gpu_sharing": "none"}) is None


def test_a_pack_file_says_none_or_mps(tmp_path):
    path = tmp_path / "pack.json"
    pack = {"format": 1, "pack_id": "p", "store_root": "/s", "cores_per_rank": 1, "expected_ranks": 1, "runs": []}
    path.write_text(json.dumps(pack))
    assert read_pack(path)["gpu_sharing"] == "none"
    path.write_text(json.dumps({**pack, "gpu_sharing": "often"}))
    with pytest.raises(ConfigError, match="gpu_sharing: got 'often', expected none or mps"):
        read_pack(path)


def test_a_site_without_gpus_has_nothing_to_share():
    site = load_site("slurm", ["gpus_per_node=4", "ranks_per_gpu=2", "gpu_sharing=mps"])
    assert (site.gpu_sharing, site.ranks) == ("mps", 8)
    with pytest.raises(ConfigError) as error:
        load_site("slurm", ["gpu_sharing=mps", "ranks_per_node=2"]).check()
    assert error.value.exit_code == 2
    assert str(error.value).endswith(
        "gpu_sharing: got 'mps', but gpus_per_node is 0, so that ranks compute on cores; give gpus_per_node, or write "
        "gpu_sharing: none"
    )
    with pytest.raises(ConfigError, match="gpu_sharing: unknown 'mpss'; did you mean 'mps'"):
        load_site("slurm", ["gpu_sharing=mpss"])
