import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mpi.launchers
from lambda_hat.errors import ConfigError
from mpi.launch import FLAVOURS, Launch, Launcher, build_prefix, launch_environment, launch_line
from mpi.launchers import LauncherChoice, assume_launcher, find_launcher, flavour_of

PROGRAM = {"srun": "srun", "mpt": "mpirun"}
ENVIRON = {
    "CUDA_VISIBLE_DEVICES": "0,1",
    "HOME": "/home/me",
    "JAX_ENABLE_X64": "1",
    "LAMBDA_HAT_LEASE": "/a b/lease",
    "NPROC": "8",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": "/a b",
    "SLURM_JOB_ID": "7",
}
NAMES = "-x JAX_ENABLE_X64 -x LAMBDA_HAT_LEASE -x NPROC -x OMP_NUM_THREADS -x PYTHONPATH"
CPU = Launch(("n1",), 4)
CORES = Launch(("n1", "n2"), 2, cores_per_rank=8)
GPUS = Launch(("n1", "n2"), 4, gpus_per_node=4)
SRUN = "srun --overlap --export=ALL"
SRUN_END = "--mpi=pmi2 --kill-on-bad-exit=1 --wait=0"

LINES = {
    ("hydra", CPU): "mpiexec -genvall -n 4 -ppn 4 -hosts n1 -bind-to none",
    ("hydra", CORES): "mpiexec -genvall -n 4 -ppn 2 -hosts n1,n2 -bind-to none",
    ("hydra", GPUS): "env -u CUDA_VISIBLE_DEVICES mpiexec -genvall -n 8 -ppn 4 -hosts n1,n2 -bind-to none",
    ("openmpi", CPU): f"mpiexec -n 4 --map-by ppr:4:node:OVERSUBSCRIBE --host n1:4 --bind-to none {NAMES}",
    ("openmpi", CORES): f"mpiexec -n 4 --map-by ppr:2:node:OVERSUBSCRIBE --host n1:2,n2:2 --bind-to none {NAMES}",
    ("openmpi", GPUS): "env -u CUDA_VISIBLE_DEVICES mpiexec -n 8 --map-by ppr:4:node:OVERSUBSCRIBE --host n1:4,n2:4 "
    f"--bind-to none {NAMES}",
    ("srun", CPU): f"{SRUN} --nodes=1 --nodelist=n1 --ntasks=4 --cpus-per-task=1 --cpu-bind=none --ntasks-per-node=4 "
    f"{SRUN_END}",
    ("srun", CORES): f"{SRUN} --nodes=2 --nodelist=n1,n2 --ntasks=4 --cpus-per-task=8 --cpu-bind=none "
    f"--ntasks-per-node=2 {SRUN_END}",
    ("srun", GPUS): f"{SRUN} --nodes=2 --nodelist=n1,n2 --ntasks=8 --cpus-per-task=1 --cpu-bind=none "
    f"--ntasks-per-node=4 --gpus-per-node=4 --gpu-bind=none {SRUN_END}",
    ("pals", CPU): "mpiexec --envall -n 4 --ppn 4 --hosts n1 --cpu-bind none",
    ("pals", CORES): "mpiexec --envall -n 4 --ppn 2 --hosts n1,n2 --cpu-bind none",
    ("pals", GPUS): "env -u CUDA_VISIBLE_DEVICES mpiexec --envall -n 8 --ppn 4 --hosts n1,n2 --cpu-bind none",
    ("mpt", CPU): "mpirun n1 -np 4",
    ("mpt", CORES): "mpirun n1,n2 -np 2",
    ("mpt", GPUS): "env -u CUDA_VISIBLE_DEVICES mpirun n1,n2 -np 4",
}


def launcher_of(flavour, **changes):
    return Launcher(flavour, PROGRAM.get(flavour, "mpiexec"), **changes)


@pytest.mark.parametrize("flavour, launch", LINES, ids=lambda x: x if isinstance(x, str) else f"{x.ranks}-ranks")
def test_lines(flavour, launch):
    words = launch_line(launcher_of(flavour), launch, ["python", "mpi/run_pack.py", "PACK.json"], ENVIRON)
    assert shlex.join(words) == f"{LINES[flavour, launch]} python mpi/run_pack.py PACK.json"


def test_every_flavour_has_a_line():
    assert {flavour for flavour, _ in LINES} == set(FLAVOURS)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_spaces_and_quotes(flavour):
    command = ["/my env/bin/python", 'it\'s a "pack".py', "$HOME/pack 1.json"]
    launcher = Launcher(flavour, "/opt/my mpi/bin/launcher")
    words = launch_line(launcher, CPU, command, {"PYTHONPATH": "/it's"})
    assert (words[0], words[-3:]) == ("/opt/my mpi/bin/launcher", command)
    line = shlex.join(words)
    assert line.startswith("'/opt/my mpi/bin/launcher' ")
    assert line.endswith(" '/my env/bin/python' 'it'\"'\"'s a \"pack\".py' '$HOME/pack 1.json'")
    assert shlex.split(line) == words


@pytest.mark.parametrize(
    "flavour, line",
    [
        ("hydra", "mpiexec -launcher fork -genvall -n 4 -ppn 4 -hosts localhost -bind-to none"),
        ("openmpi", "mpiexec -n 4 --map-by ppr:4:node:OVERSUBSCRIBE --host localhost:4 --bind-to none"),
        ("pals", "mpiexec --envall -n 4 --ppn 4 --hosts localhost --cpu-bind none"),
        ("mpt", "mpirun -np 4"),
    ],
)
def test_lines_on_this_machine(flavour, line):
    launch = Launch(["localhost"], 4, gpus_per_node=2)
    environ = {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert shlex.join(launch_line(launcher_of(flavour), launch, ["p"], environ)) == f"{line} p"


def test_srun_refuses_this_machine():
    with pytest.raises(ConfigError, match="flavour: srun starts ranks on the nodes of a SLURM job, not on localhost"):
        launch_line(launcher_of("srun"), Launch(("localhost",), 2), ["p"], {})


def test_the_mpi_type_of_srun_is_the_sites():
    assert "--mpi=pmix" in launch_line(launcher_of("srun", srun_mpi="pmix"), CPU, ["p"], {})


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_many_nodes_fit_on_the_command_line(flavour):
    nodes = tuple(f"nid{number:06d}.cluster.example.org" for number in range(500))
    line = launch_line(launcher_of(flavour), Launch(nodes, 128), ["p"], {})
    assert max(map(len, line)) < 128 * 1024  # Linux's limit for one word


@pytest.mark.parametrize(
    "nodes, ranks, cores, gpus, message",
    [
        ([], 1, 1, 0, "nodes: got"),
        (["n1", "n1"], 1, 1, 0, "each once"),
        (["n1,n2"], 1, 1, 0, "nodes: got"),
        ([""], 1, 1, 0, "nodes: got"),
        (["-n1"], 1, 1, 0, "nodes: got"),
        (["n1:4"], 1, 1, 0, "nodes: got"),
        (["localhost", "n1"], 1, 1, 0, "localhost alone"),
        (["n1"], 0, 1, 0, "ranks_per_node: got 0"),
        (["n1"], 1, 0, 0, "cores_per_rank: got 0"),
        (["n1"], 1, 1, -1, "gpus_per_node: got -1"),
    ],
)
def test_impossible_launches_are_refused(nodes, ranks, cores, gpus, message):
    with pytest.raises(ConfigError, match=message):
        Launch(nodes, ranks, cores, gpus)


@pytest.mark.parametrize(
    "choice, message",
    [
        ({"mpi": "sytem"}, "did you mean 'system'"),
        ({"flavour": "hidra"}, "did you mean 'hydra'"),
        ({"srun_mpi": "none"}, "srun_mpi: got 'none', expected pmi2"),
        ({"srun_mpi": ""}, "srun --mpi=list"),
    ],
)
def test_an_unknown_choice_is_refused(choice, message):
    with pytest.raises(ConfigError, match=message):
        LauncherChoice(**choice)


# --------------------------------------------------------------------------------------------------------------
# Environment


SLURM = {"SLURM_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "16"}
DAEMONS = {
    "SLURM_OVERLAP": "1",
    "SLURM_EXPORT_ENV": "ALL",
    "SLURM_CPU_BIND": "none",
    "SLURM_MPI_TYPE": "none",
    "SLURM_WAIT": "0",
}


LOCALHOST = Launch(("localhost",), 2)


@pytest.mark.parametrize(
    "flavour, launch, environ, added",
    [
        ("hydra", CORES, {}, {"I_MPI_PIN": "0"}),
        ("hydra", LOCALHOST, SLURM, {"I_MPI_PIN": "0", "UCX_NET_DEVICES": "lo", "FI_TCP_IFACE": "lo"}),
        ("hydra", LOCALHOST, {"UCX_NET_DEVICES": "eth0"}, {"I_MPI_PIN": "0", "FI_TCP_IFACE": "lo"}),
        ("hydra", CORES, SLURM, {"I_MPI_PIN": "0", **DAEMONS}),
        ("openmpi", CORES, {}, {}),
        (
            "openmpi",
            GPUS,
            {**SLURM, "SLURM_GPUS_ON_NODE": "4", "SRUN_CPUS_PER_TASK": "1", "SLURM_CPUS_PER_TASK": "1"},
            {
                **DAEMONS,
                "SLURM_GPUS_PER_NODE": "4",
                "SLURM_GPU_BIND": "none",
                "SRUN_CPUS_PER_TASK": "4",
                "SLURM_CPUS_PER_TASK": "4",
            },
        ),
        # To ask for GPUs in a job without any would be refused.
        ("hydra", GPUS, SLURM, {"I_MPI_PIN": "0", **DAEMONS}),
        # Never more than the job has.
        (
            "openmpi",
            Launch(("n1",), 8, cores_per_rank=4),
            {**SLURM, "SRUN_CPUS_PER_TASK": "2"},
            {**DAEMONS, "SRUN_CPUS_PER_TASK": "16"},
        ),
        (
            "openmpi",
            LOCALHOST,
            SLURM,
            {
                **dict.fromkeys(["OMPI_MCA_plm", "OMPI_MCA_ras", "PRTE_MCA_plm", "PRTE_MCA_ras"], "^slurm,tm"),
                "OMPI_MCA_btl": "^tcp",
            },
        ),
        ("srun", GPUS, SLURM, {}),
        ("pals", GPUS, {}, {}),
        ("mpt", CORES, {}, {"MPI_DSM_OFF": "1"}),
    ],
)
def test_what_a_launcher_is_told_by_its_environment(flavour, launch, environ, added):
    launcher = launcher_of(flavour, environment={"MPI4PY_LIBMPI": "/opt/libmpi.so"})
    told = launch_environment(launcher, launch, environ)
    assert told == {"MPI4PY_LIBMPI": "/opt/libmpi.so", **added}


@pytest.mark.parametrize(
    "flavour, environ, prefix",
    [
        ("hydra", SLURM, "mpiexec -genvall -n 1 -ppn 1 -hosts n2 -bind-to none"),
        (
            "openmpi",
            {"NPROC": "2"},
            "mpiexec -n 1 --map-by ppr:1:node:OVERSUBSCRIBE --host n2:1 --bind-to none -x NPROC",
        ),
        (
            "srun",
            SLURM,
            f"{SRUN} --nodes=1 --nodelist=n2 --ntasks=1 --cpus-per-task=2 --cpu-bind=none --mpi=none",
        ),
        (
            "srun",
            {"SLURM_CPUS_ON_NODE": "1", "SLURM_GPUS_ON_NODE": "4"},
            f"{SRUN} --nodes=1 --nodelist=n2 --ntasks=1 --cpus-per-task=1 --cpu-bind=none --gpus-per-node=0 --mpi=none",
        ),
        ("pals", {}, "mpiexec --envall -n 1 --ppn 1 --hosts n2 --cpu-bind none"),
        ("mpt", {}, "env MPI_SHEPHERD=true mpirun n2 -np 1"),
    ],
)
def test_builds_are_put_on_a_node(flavour, environ, prefix):
    assert shlex.join(build_prefix(launcher_of(flavour), "n2", 2, environ)) == prefix
    assert build_prefix(launcher_of(flavour), "localhost", 2, environ) == []


def test_a_build_needs_a_node():
    with pytest.raises(ConfigError, match="nodes: got"):
        build_prefix(launcher_of("hydra"), "n1,n2", 1, {})


# --------------------------------------------------------------------------------------------------------------
# Which launcher

VERSIONS = {
    "HYDRA build details:\n    Version:    5.0.2": "hydra",
    "Intel(R) MPI Library for Linux* OS, Version 2021.18.1 Build 20260626 (id: b44796a)": "hydra",
    "mpiexec (OpenRTE) 4.1.4\n\nReport bugs to http://www.open-mpi.org/community/help/": "openmpi",
    "mpiexec (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/": "openmpi",
    "mpiexec version 1.8.0 revision 0123abc": "pals",
    "MPT: libxmpi.so 'HPE MPT 2.18  10/02/18 04:03:22'": "mpt",
    "slurm 22.05.8": None,
    "": None,
}


@pytest.mark.parametrize("version, flavour", VERSIONS.items())
def test_launchers_are_known_by_their_version(version, flavour):
    assert flavour_of(version) == flavour


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def fake_mpi(prefix: Path, version: str, libraries: list[str], name: str = "mpiexec") -> Path:
    """An MPI installation that can say its version and has some libraries."""
    mpiexec = write_program(prefix / "bin" / name, f"#!/bin/sh\necho {shlex.quote(version)}\n")
    for library in libraries:
        (prefix / library).parent.mkdir(parents=True, exist_ok=True)
        (prefix / library).touch()
    return mpiexec


@pytest.fixture
def wheel(monkeypatch):
    monkeypatch.setattr(mpi.launchers, "_mpi4py_is_wheel", lambda: True)


@pytest.mark.parametrize(
    "version, flavour, chosen",
    [
        ("HYDRA build details:", "hydra", "lib/libmpi.so.12"),
        ("mpiexec (OpenRTE) 4.1.4", "openmpi", "lib/x86_64-linux-gnu/openmpi/lib/libmpi.so.40"),
        ("mpirun (Open MPI) 5.0.11", "openmpi", "lib/x86_64-linux-gnu/openmpi/lib/libmpi.so.40"),
    ],
)
@pytest.mark.parametrize("written", ["auto", "itself"])
def test_the_system_library_is_that_of_the_system_launcher(tmp_path, version, flavour, chosen, written):
    prefix = tmp_path / 'a system\'s "mpi"'
    mpiexec = fake_mpi(prefix, version, ["lib/libmpi.so.12", "lib/x86_64-linux-gnu/openmpi/lib/libmpi.so.40"])
    path = os.pathsep.join([str(Path(sys.executable).parent), str(tmp_path), str(mpiexec.parent)])
    choice = LauncherChoice("system", "auto" if written == "auto" else flavour, "pmix")
    launcher = find_launcher(choice, {"PATH": path})
    assert launcher == Launcher(flavour, str(mpiexec), {"MPI4PY_LIBMPI": str(prefix / chosen)}, "pmix")


def test_an_unknown_launcher_is_shown(tmp_path):
    environ = {"PATH": str(fake_mpi(tmp_path, "slurm 22.05.8", ["lib/libmpi.so.12"]).parent)}
    with pytest.raises(ConfigError, match=r"says 'slurm 22.05.8', which .*flavour: hydra \| openmpi \| srun \| pals"):
        find_launcher(LauncherChoice("system"), environ)
    assert find_launcher(LauncherChoice("system", "pals"), environ).flavour == "pals"


def test_the_mpiexec_of_pbs_is_passed_over(tmp_path, wheel):
    wrapper = fake_mpi(tmp_path / "pbs", "pbs_version = 23.06.06", [])
    path = {"PATH": str(wrapper.parent)}
    with pytest.raises(ConfigError) as raised:
        find_launcher(LauncherChoice("system"), path)
    told = f"mpi: system: {wrapper} belongs to PBS, and only wraps HPE's MPT; no MPI module is loaded: "
    assert str(raised.value).startswith(told)
    loaded = fake_mpi(tmp_path / "mpich", "HYDRA build details:", ["lib/libmpi.so.12"])
    path["PATH"] += f":{loaded.parent}"
    assert find_launcher(LauncherChoice("system"), path).program == str(loaded)


def test_a_launcher_that_says_nothing_is_unknown(tmp_path):
    mpiexec = write_program(tmp_path / "mpiexec", "#!/bin/sh\nexit 1\n")
    with pytest.raises(ConfigError, match="mpiexec --version says nothing; write which one"):
        find_launcher(LauncherChoice("system"), {"PATH": str(mpiexec.parent)})


def test_a_launcher_of_another_flavour_is_refused(tmp_path):
    mpiexec = fake_mpi(tmp_path, "mpiexec (OpenRTE) 4.1.4", [])
    with pytest.raises(ConfigError, match=r"flavour: got hydra, but .* is of the flavour openmpi .*OpenRTE"):
        find_launcher(LauncherChoice("system", "hydra"), {"PATH": str(mpiexec.parent)})


def test_a_library_that_is_named_is_kept(tmp_path):
    environ = {"PATH": str(fake_mpi(tmp_path, "HYDRA", []).parent), "MPI4PY_LIBMPI": "/opt/libmpi.so"}
    assert find_launcher(LauncherChoice("system"), environ).environment == {"MPI4PY_LIBMPI": "/opt/libmpi.so"}


def test_a_library_that_is_named_is_not_the_bundled_one():
    with pytest.raises(ConfigError, match=r"mpi: bundled, but MPI4PY_LIBMPI=/opt/libmpi.so makes mpi4py load another"):
        find_launcher(LauncherChoice("bundled"), {"MPI4PY_LIBMPI": "/opt/libmpi.so"})


def test_a_system_launcher_without_its_library_is_refused(tmp_path, wheel):
    mpiexec = fake_mpi(tmp_path, "HYDRA", ["lib/libmpi.so.40"])
    with pytest.raises(ConfigError, match=r"no libmpi\.so\.12 or libmpi\.so of it.*export MPI4PY_LIBMPI="):
        find_launcher(LauncherChoice("system"), {"PATH": str(mpiexec.parent)})


def test_the_library_of_a_launcher_without_any_is_on_the_loaders_path(tmp_path, wheel):
    mpiexec = fake_mpi(tmp_path / "pals", "mpiexec version 1.8.0 revision 0123abc", [])
    library = fake_mpi(tmp_path / "cray", "", ["lib/libmpi.so.12"]).parent.parent / "lib"
    environ = {"PATH": str(mpiexec.parent), "LD_LIBRARY_PATH": f"{tmp_path}{os.pathsep}{library}"}
    launcher = find_launcher(LauncherChoice("system"), environ)
    assert launcher == Launcher("pals", str(mpiexec), {"MPI4PY_LIBMPI": str(library / "libmpi.so.12")})


def test_a_compiled_mpi4py_knows_its_library(tmp_path, monkeypatch):
    monkeypatch.setattr(mpi.launchers, "_mpi4py_is_wheel", lambda: False)
    mpirun = fake_mpi(tmp_path, "MPT: libxmpi.so 'HPE MPT 2.18  10/02/18 04:03:22'", ["lib/libmpi.so"], "mpirun")
    launcher = find_launcher(LauncherChoice("system"), {"PATH": str(mpirun.parent)})
    assert launcher == Launcher("mpt", str(mpirun))


def test_the_installed_mpi4py_is_a_wheel():
    pytest.importorskip("mpi4py")
    assert mpi.launchers._mpi4py_is_wheel()


def test_the_environments_own_mpiexec_is_not_the_systems(tmp_path, monkeypatch):
    own = write_program(tmp_path / "env" / "bin" / "mpiexec", "#!/bin/sh\necho HYDRA\n")
    monkeypatch.setattr(sys, "executable", str(own.parent / "python"))
    linked = tmp_path / "linked" / "mpiexec"
    linked.parent.mkdir()
    linked.symlink_to(own)
    environ = {"PATH": f"{own.parent}{os.pathsep}{linked.parent}"}
    with pytest.raises(ConfigError, match="no mpiexec or mpirun on the PATH outside"):
        find_launcher(LauncherChoice("system"), environ)
    assert find_launcher(LauncherChoice(), environ) == Launcher("hydra", str(own))


def test_a_missing_bundled_launcher_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ConfigError, match=r"pip install 'lambda-hat\[mpi\]'"):
        find_launcher(LauncherChoice(), {})


def test_srun_is_found_on_the_path(tmp_path):
    srun = write_program(tmp_path / "slurm bin" / "srun", "#!/bin/sh\n")
    environ = {"PATH": str(srun.parent)}
    assert find_launcher(LauncherChoice(flavour="srun"), environ) == Launcher("srun", str(srun))
    with pytest.raises(ConfigError, match="flavour: srun: no srun on the PATH"):
        find_launcher(LauncherChoice(flavour="srun"), {"PATH": str(tmp_path)})


def test_the_library_under_srun_is_that_of_the_systems_mpiexec(tmp_path):
    srun = write_program(tmp_path / "slurm" / "srun", "#!/bin/sh\n")
    mpiexec = fake_mpi(tmp_path, "mpiexec (OpenRTE) 4.1.4", ["lib/libmpi.so.12", "lib/libmpi.so.40"])
    environ = {"PATH": f"{srun.parent}{os.pathsep}{mpiexec.parent}"}
    launcher = find_launcher(LauncherChoice("system", "srun", "pmix"), environ)
    library = str(tmp_path / "lib" / "libmpi.so.40")
    assert launcher == Launcher("srun", str(srun), {"MPI4PY_LIBMPI": library}, "pmix")


def test_a_launcher_can_be_shown_without_being_there():
    assert assume_launcher(LauncherChoice("system", "auto")).program == "mpiexec"
    assert assume_launcher(LauncherChoice("system", "mpt")).program == "mpirun"
    assert assume_launcher(LauncherChoice("system", "srun", "pmix")) == Launcher("srun", "srun", {}, "pmix")


# --------------------------------------------------------------------------------------------------------------
# Real launchers

PRETENDED_JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOBID": "7",
    "SLURM_NODELIST": "n1",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_NNODES": "1",
    "SLURM_JOB_NUM_NODES": "1",
    "SLURM_TASKS_PER_NODE": "2",
}
"""Hydra and Open MPI take this for the inside of a SLURM job, whose daemons don't answer."""


def run_line(choice, ranks, command, environ, unshared=()):
    launcher = find_launcher(choice, environ)
    launch = Launch(("localhost",), ranks)
    environ = {**environ, **launch_environment(launcher, launch, environ)}
    line = [*unshared, *launch_line(launcher, launch, command, environ)]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env=environ)


@pytest.mark.mpi
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the host's name, in a namespace of its own")
@pytest.mark.parametrize("job", [{}, PRETENDED_JOB], ids=["no-job", "slurm-job"])
def test_the_bundled_launcher_works_where_the_hosts_name_does_not_resolve(job):
    unknown = "no-such-host-lambda-hat"
    with pytest.raises(OSError):
        socket.gethostbyname(unknown)
    unshared = ["unshare", "--uts", "sh", "-c", f'hostname {unknown} && exec "$@"', "sh"]
    done = run_line(LauncherChoice(), 2, ["hostname"], {**os.environ, **job}, unshared)
    if "unshare" in done.stderr:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [unknown, unknown]


WORLD = """
from mpi4py import MPI
import json, os

world = MPI.COMM_WORLD
rows = world.gather([world.rank, os.environ["LAMBDA_HAT_LEASE"], sorted(os.sched_getaffinity(0))])
if world.rank == 0:
    print(json.dumps([world.size, MPI.Get_library_version(), rows]))
"""


@pytest.mark.mpi
@pytest.mark.parametrize("job", [{}, PRETENDED_JOB], ids=["no-job", "slurm-job"])
def test_open_mpi_makes_one_world_of_more_ranks_than_cores(job):
    # Open MPI refuses root unless told twice.
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    lease = 'it\'s a; "lease"'
    environ = {key: value for key, value in os.environ.items() if key != "MPI4PY_LIBMPI"}
    environ |= {**root, **job, "LAMBDA_HAT_LEASE": lease}
    try:
        done = run_line(LauncherChoice("system", "openmpi"), 4, [sys.executable, "-c", WORLD], environ)
    except ConfigError as error:
        pytest.skip(f"no Open MPI here (apt install openmpi-bin): {error}")
    assert done.returncode == 0, done.stderr
    size, library, rows = json.loads(done.stdout)
    assert size == 4
    assert library.startswith("Open MPI")
    assert rows == [[rank, lease, sorted(os.sched_getaffinity(0))] for rank in range(4)]
