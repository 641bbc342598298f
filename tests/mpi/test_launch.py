import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lambda_hat.errors import ConfigError
from mpi.launch import FLAVOURS, find_mpiexec, launch_line


@pytest.mark.parametrize(
    "nodes, ranks_per_node, program, line",
    [
        (
            ["localhost"],
            4,
            ["python", "mpi/run_pack.py", "PACK.json"],
            "mpiexec -n 4 -ppn 4 -hosts localhost -bind-to none python mpi/run_pack.py PACK.json",
        ),
        (
            ["nid001", "nid002", "nid003"],
            2,
            ["python", "a.py"],
            "mpiexec -n 6 -ppn 2 -hosts nid001,nid002,nid003 -bind-to none python a.py",
        ),
        (
            ["n1"],
            1,
            ["/my env/bin/python", 'it\'s a "pack".py', "$HOME/pack 1.json"],
            "mpiexec -n 1 -ppn 1 -hosts n1 -bind-to none '/my env/bin/python' "
            "'it'\"'\"'s a \"pack\".py' '$HOME/pack 1.json'",
        ),
    ],
    ids=["local", "three-nodes", "spaces-and-quotes"],
)
def test_hydra_lines(nodes, ranks_per_node, program, line):
    words = launch_line("hydra", nodes, ranks_per_node, program)
    assert shlex.join(words) == line
    assert shlex.split(line) == words


def test_the_launcher_may_be_a_path():
    assert launch_line("hydra", ["n1"], 1, ["p"], "/opt/my mpi/bin/mpiexec")[0] == "/opt/my mpi/bin/mpiexec"


@pytest.mark.parametrize(
    "flavour, nodes, ranks_per_node, message",
    [
        ("hidra", ["n1"], 1, "did you mean 'hydra'"),
        ("hydra", [], 1, "at least one node name"),
        ("hydra", ["n1", "n1"], 1, "each once"),
        ("hydra", ["n1,n2"], 1, "each once"),
        ("hydra", [""], 1, "each once"),
        ("hydra", ["n1"], 0, "ranks_per_node: got 0"),
    ],
)
def test_impossible_launches_are_refused(flavour, nodes, ranks_per_node, message):
    with pytest.raises(ConfigError, match=message):
        launch_line(flavour, nodes, ranks_per_node, ["p"])


def test_flavours_are_named():
    assert "hydra" in FLAVOURS


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_mpi(prefix: Path, version: str, libraries: list[str]) -> Path:
    """An MPI installation that can say its version and has some libraries."""
    mpiexec = write_program(prefix / "bin" / "mpiexec", f"#!/bin/sh\necho {shlex.quote(version)}\n")
    for library in libraries:
        (prefix / library).parent.mkdir(parents=True, exist_ok=True)
        (prefix / library).touch()
    return mpiexec


@pytest.mark.parametrize(
    "version, chosen",
    [
        ("HYDRA build details:", "lib/libmpi.so.12"),
        ("mpiexec (OpenRTE) 4.1.4", "lib/x86_64-linux-gnu/openmpi/lib/libmpi.so.40"),
        ("mpirun (Open MPI) 5.0.11", "lib/x86_64-linux-gnu/openmpi/lib/libmpi.so.40"),
    ],
)
def test_the_system_library_is_that_of_the_system_launcher(tmp_path, version, chosen):
    prefix = tmp_path / 'a system\'s "mpi"'
    mpiexec = fake_mpi(prefix, version, ["lib/libmpi.so.12", "lib/x86_64-linux-gnu/openmpi/lib/libmpi.so.40"])
    own_bin = Path(sys.executable).parent
    launcher = find_mpiexec("system", {"PATH": os.pathsep.join([str(own_bin), str(tmp_path), str(mpiexec.parent)])})
    assert launcher.mpiexec == str(mpiexec)
    assert launcher.environment == {"MPI4PY_LIBMPI": str(prefix / chosen)}


def test_a_library_that_is_named_is_kept(tmp_path):
    mpiexec = fake_mpi(tmp_path, "?", [])
    launcher = find_mpiexec("system", {"PATH": str(mpiexec.parent), "MPI4PY_LIBMPI": "/opt/libmpi.so"})
    assert launcher.environment == {"MPI4PY_LIBMPI": "/opt/libmpi.so"}


def test_a_system_launcher_without_its_library_is_refused(tmp_path):
    mpiexec = fake_mpi(tmp_path, "HYDRA", ["lib/libmpi.so.40"])
    with pytest.raises(ConfigError, match=r"no libmpi\.so\.12 or libmpi\.so of it.*export MPI4PY_LIBMPI="):
        find_mpiexec("system", {"PATH": str(mpiexec.parent)})


def test_the_environments_own_mpiexec_is_not_the_systems(tmp_path, monkeypatch):
    own = write_program(tmp_path / "env" / "bin" / "mpiexec", "#!/bin/sh\n")
    monkeypatch.setattr(sys, "executable", str(own.parent / "python"))
    linked = tmp_path / "linked" / "mpiexec"
    linked.parent.mkdir()
    linked.symlink_to(own)
    with pytest.raises(ConfigError, match="no mpiexec on the PATH outside"):
        find_mpiexec("system", {"PATH": f"{own.parent}{os.pathsep}{linked.parent}"})
    assert find_mpiexec("bundled", {}).mpiexec == str(own)


def test_a_missing_bundled_launcher_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"pip install 'lambda-hat\[mpi\]'"):
        find_mpiexec("bundled")


def test_an_unknown_mpi_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'system'"):
        find_mpiexec("sytem")


@pytest.mark.mpi
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the host's name, in a namespace of its own")
def test_the_bundled_launcher_works_where_the_hosts_name_does_not_resolve():
    unknown = "no-such-host-lambda-hat"
    with pytest.raises(OSError):
        socket.gethostbyname(unknown)
    line = launch_line("hydra", ["localhost"], 2, ["hostname"], find_mpiexec("bundled").mpiexec)
    command = ["unshare", "--uts", "sh", "-c", f"hostname {unknown} && exec {shlex.join(line)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [unknown, unknown]
