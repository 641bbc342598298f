"""The launchers of MPI programs: which one is meant, where it is on this machine, and which ranks it reports dead.

The driver and Parsl's workers import this: standard library only, neither jax nor mpi4py nor parsl.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lambda_hat.errors import ConfigError, nearest
from mpi.launch import FLAVOURS, Launcher, node_name

LIBMPI_VARIABLE = "MPI4PY_LIBMPI"
"""Environment variable that names the MPI library which mpi4py's wheel loads, before all others."""

MPIS = ("bundled", "system")

PROGRAMS: dict[str, tuple[str, ...]] = {
    "auto": ("mpiexec", "mpirun"),
    "hydra": ("mpiexec", "mpiexec.hydra"),
    "openmpi": ("mpiexec", "mpirun"),
    "srun": ("srun",),
    "pals": ("mpiexec",),
    "mpt": ("mpirun",),
}
"""Names of the program of each flavour, the likelier ones first."""


@dataclass(frozen=True)
class LauncherChoice:
    """The launcher that a site asks for. It is plain data, because only the machine that launches can look for it.

    Raises:
        ConfigError: A value is not valid.
    """

    mpi: str = "bundled"
    """The MPI library of the ranks: `bundled`, of the wheel in python's environment, or `system`."""
    flavour: str = "auto"
    """A key of FLAVOURS, or `auto`: the launcher is asked for its version. `auto` is never srun."""
    srun_mpi: str = "pmi2"
    """srun's `--mpi`: pmi2 for MPICH, pmix for Open MPI. With the wrong one every rank is a world of its own."""

    def __post_init__(self) -> None:
        for key, value, valid in (("mpi", self.mpi, MPIS), ("flavour", self.flavour, ("auto", *FLAVOURS))):
            if value not in valid:
                raise ConfigError(f"{key}: unknown {value!r}; {nearest(value, valid)}")
        if self.srun_mpi == "none" or not re.fullmatch(r"\w+", self.srun_mpi):
            raise ConfigError(
                f"srun_mpi: got {self.srun_mpi!r}, expected pmi2 (MPICH), pmix (Open MPI) or another name from "
                "srun --mpi=list; none would start ranks that know nothing of each other"
            )


def find_launcher(choice: LauncherChoice, environ: Mapping[str, str] | None = None) -> Launcher:
    """Find the launcher on this machine that `choice` means.

    `bundled` is the one in python's environment, `system` the first one on the PATH outside of it, and flavour srun is
    srun. For `system`, `MPI4PY_LIBMPI` names the library that belongs to it, unless that variable is set already, or
    mpi4py was compiled here and loads its own.

    Args:
        choice: The launcher that a site asks for.
        environ: By default `os.environ`.

    Raises:
        ConfigError: A launcher or its library is missing, or it is not of the flavour that was written. The message
            says what to install or write.
    """
    environ = os.environ if environ is None else environ
    if choice.mpi == "bundled" and environ.get(LIBMPI_VARIABLE):
        raise ConfigError(
            f"mpi: bundled, but {LIBMPI_VARIABLE}={environ[LIBMPI_VARIABLE]} makes mpi4py load another library; "
            f"unset it, or write mpi: system"
        )
    if choice.flavour == "srun":
        return _find_srun(choice, environ)
    names = PROGRAMS[choice.flavour]
    if choice.mpi == "bundled":
        own_bin = Path(sys.executable).parent
        program = next((own_bin / name for name in names if _executable(own_bin / name)), None)
        if program is None:
            raise ConfigError(
                f"mpi: bundled: no {names[0]} in {own_bin}; write pip install 'lambda-hat[mpi]' (PyPI's mpich), or "
                "mpi: system to use one that the machine has"
            )
        return Launcher(ask_flavour(choice.flavour, program), str(program), {}, choice.srun_mpi)
    program = _outside_environment(names, environ)
    wrapper = None if program else _outside_environment(names, environ, wrappers=True)
    if wrapper is not None:
        raise ConfigError(
            f"mpi: system: {wrapper} belongs to PBS, and only wraps HPE's MPT; no MPI module is loaded: write "
            "module load mpich, or openmpi, into worker_init, or mpi: bundled for the one that pip brings"
        )
    if program is None:
        raise ConfigError(
            f"mpi: system: no {' or '.join(names)} on the PATH outside {Path(sys.executable).parent}; load the "
            "cluster's MPI (module load mpich, or openmpi), install one (apt install openmpi-bin), or write mpi: "
            "bundled for the one that pip brings"
        )
    flavour = ask_flavour(choice.flavour, program)
    return Launcher(flavour, str(program), _library_environment(program, flavour, environ), choice.srun_mpi)


def assume_launcher(choice: LauncherChoice) -> Launcher:
    """A launcher by its bare name, to show a launch line on a machine without it; `auto` is shown as Hydra."""
    flavour = "hydra" if choice.flavour == "auto" else choice.flavour
    return Launcher(flavour, PROGRAMS[flavour][0], {}, choice.srun_mpi)


def ask_flavour(flavour: str, program: Path) -> str:
    """The flavour of a launcher by its answer to `--version`.

    Args:
        flavour: A key of FLAVOURS, or `auto`.
        program: The launcher's path.

    Returns:
        The flavour, never srun.

    Raises:
        ConfigError: The answer is of another flavour, or is unknown and `flavour` is `auto`.
    """
    told = _version(program)
    known = flavour_of(told)
    first_line = next(iter(told.strip().splitlines()), "").strip()[:200]
    if flavour == "auto" and known is None:
        says = f"says {first_line!r}, which is no launcher known here" if first_line else "says nothing"
        raise ConfigError(
            f"flavour: auto: {program} --version {says}; write which one it behaves like in the site file, flavour: "
            f"{' | '.join(FLAVOURS)}"
        )
    if known is not None and flavour not in ("auto", known):
        raise ConfigError(
            f"flavour: got {flavour}, but {program} is of the flavour {known} (it says {first_line!r}); write flavour: "
            f"{known}, or auto, or put another launcher first on the PATH"
        )
    return known or flavour


def flavour_of(version: str) -> str | None:
    """The flavour of a launcher by its answer to `--version`; None for an unknown answer."""
    # E3SM-Project/mache has the answer of PALS in mache/parallel/pbs.py. MPT's mpirun answers "MPT: libxmpi.so 'HPE MPT
    # 2.18  10/02/18 04:03:22'".
    for flavour, pattern in (
        ("hydra", r"HYDRA|Intel\(R\) MPI"),
        ("openmpi", r"Open MPI|OpenRTE|PRRTE"),
        ("mpt", r"\b(HPE|SGI) H?MPT\b|^MPT:"),
        ("pals", r"^mpiexec version \d|\bPALS\b"),
    ):
        if re.search(pattern, version, re.MULTILINE):
            return flavour
    return None


def _version(program: Path) -> str:
    try:
        done = subprocess.run([str(program), "--version"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _find_srun(choice: LauncherChoice, environ: Mapping[str, str]) -> Launcher:
    program = shutil.which("srun", path=environ.get("PATH", ""))
    if program is None:
        raise ConfigError(
            "flavour: srun: no srun on the PATH of this machine; write flavour: auto to use an mpiexec, or add SLURM's "
            "bin folder to the PATH in worker_init"
        )
    if choice.mpi == "bundled":
        return Launcher("srun", program, {}, choice.srun_mpi)
    # srun belongs to no MPI. The library is that of the mpiexec that could have started the ranks in its place.
    mpiexec = _outside_environment(PROGRAMS["auto"], environ)
    flavour = "openmpi" if choice.srun_mpi.startswith("pmix") else "hydra"
    flavour = (flavour_of(_version(mpiexec)) if mpiexec else None) or flavour
    return Launcher("srun", program, _library_environment(mpiexec, flavour, environ), choice.srun_mpi)


def is_wrapper_of_pbs(program: Path) -> bool:
    """Whether a launcher is PBS's own, which is on every PATH, and starts nothing without HPE's MPT."""
    return "pbs_version" in _version(program)


def _outside_environment(names: Sequence[str], environ: Mapping[str, str], wrappers: bool = False) -> Path | None:
    """The first program of one of these names on the PATH that is not in python's environment, and no wrapper of PBS.

    wrappers: take one of those.
    """
    own_bin = Path(sys.executable).parent.resolve()
    for directory in environ.get("PATH", "").split(os.pathsep):
        for name in names:
            found = Path(directory or ".").absolute() / name
            own = own_bin in (found.parent.resolve(), found.resolve().parent)
            if _executable(found) and not own and (wrappers or not is_wrapper_of_pbs(found)):
                return found
    return None


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _library_environment(mpiexec: Path | None, flavour: str, environ: Mapping[str, str]) -> dict[str, str]:
    """The variable that makes mpi4py load the MPI library beside `mpiexec`, or one on the loader's path.

    Args:
        mpiexec: The launcher; None: only the loader's path is searched.
        flavour: Its flavour.
        environ: The environment, with the loader's path.

    Raises:
        ConfigError: mpi4py needs to be told a library, and none is found.
    """
    if environ.get(LIBMPI_VARIABLE):
        return {LIBMPI_VARIABLE: environ[LIBMPI_VARIABLE]}
    # Several MPIs may share /usr/lib. Only the version in the file name tells their libraries apart: 12 is MPICH's ABI,
    # 40 is Open MPI's.
    version = "libmpi.so.40" if flavour == "openmpi" else "libmpi.so.12"
    beside = list(_library_folders(mpiexec)) if mpiexec else []
    # PALS and srun are not installed beside an MPI. Only the loader's path leads to the one that they launch.
    loaded = [Path(folder) for folder in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders = list(dict.fromkeys([*beside, *loaded]))
    # MPT's own libmpi.so has neither ABI: the wheel would load it and crash.
    names = (version,) if flavour == "mpt" else (version, "libmpi.so")
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return {LIBMPI_VARIABLE: str(folder / name)}
    if not _mpi4py_is_wheel():
        return {}
    where = f"found {mpiexec}, but no" if mpiexec else "no"
    looked = ", ".join(map(str, folders)) or "LD_LIBRARY_PATH, which is empty"
    raise ConfigError(
        f"mpi: system: {where} {' or '.join(names)} of it (looked in {looked}); name the library: export "
        f"{LIBMPI_VARIABLE}=/path/to/libmpi.so, or compile mpi4py against it (pip install --no-binary mpi4py mpi4py), "
        "or write mpi: bundled"
    )


def _library_folders(mpiexec: Path) -> Iterator[Path]:
    for prefix in (mpiexec.parent.parent, mpiexec.resolve().parent.parent):
        for folder in (prefix / "lib", prefix / "lib64", *sorted((prefix / "lib").glob("*-linux-gnu"))):
            yield from (folder, folder / "openmpi" / "lib")


@functools.cache
def _mpi4py_is_wheel() -> bool:
    """Whether mpi4py is PyPI's wheel, which has a module for each ABI (MPI.mpich.*.so), and looks for a library."""
    found = importlib.util.find_spec("mpi4py")
    folders = found.submodule_search_locations if found else None
    return any(
        path.name.split(".")[1] in ("mpich", "openmpi", "mpiabi", "impi")
        for folder in folders or ()
        for path in Path(folder).glob("MPI.*.so")
    )


# --------------------------------------------------------------------------------------------------------------
# Which nodes could not start their ranks, and which ranks died, by the output of the launcher

UNREACHED = (
    # srun, also where Hydra starts its proxies by it
    re.compile(r"^srun: error: (?P<words>Task launch for \S+ failed on node (?P<node>[\w.-]+): .*)$", re.MULTILINE),
    re.compile(r"^srun: error: (?P<words>Node failure on (?P<node>[\w.-]+))$", re.MULTILINE),
    # Hydra and Open MPI, whose daemons ssh starts
    re.compile(r"^(?P<words>ssh: connect to host (?P<node>[\w.-]+) port .*)$", re.MULTILINE),
    re.compile(r"^(?P<words>ssh: Could not resolve hostname (?P<node>[\w.-]+): .*)$", re.MULTILINE),
    re.compile(r"^\[proxy:[\d:]+@(?P<node>[\w.-]+)\] \S+ \(.*\): (?P<words>execvp error on file .*)$", re.MULTILINE),
)


def unreached_nodes(said: str) -> dict[str, str]:
    """The nodes on which a launch could not start its ranks.

    Args:
        said: The output of the launcher.

    Returns:
        The launcher's own words, by node.
    """
    found = (match for pattern in UNREACHED for match in pattern.finditer(said))
    return {match["node"]: match["words"].strip() for match in found}


ENDED_BY_LAUNCHER = (9, 15)
"""Signals by which Hydra and PALS end the other ranks after one has died."""

Process = tuple[str, int]
"""Host and process id."""


def dead_ranks(said: str, flavour: str, ranks: Mapping[Process, int]) -> set[int]:
    """The ranks whose death ended a launch, as far as the launcher tells them from those that it ended itself.

    Args:
        said: The output of the launcher.
        flavour: Its flavour.
        ranks: The rank of every process of the launch.

    Returns:
        Their numbers; empty where the output names nobody. Hydra says the same of a rank that was killed and of the
        ranks that it then kills, and names any one of them.
    """
    if flavour == "srun":
        return _dead_by_srun(said)
    if flavour == "pals":
        return _dead_by_pals(said)
    if flavour == "mpt":
        return {
            int(rank) for rank in re.findall(r"^MPT ERROR: Rank (\d+)\(g:\d+\) received signal", said, re.MULTILINE)
        }
    return _dead_by_openmpi(said) | _dead_by_hydra(said, ranks)


def _dead_by_hydra(said: str, ranks: Mapping[Process, int]) -> set[int]:
    # MPICH names a process, Intel MPI a rank as well: https://github.com/bsc-performance-tools/extrae/issues/101
    found = re.findall(
        r"^=   (?:RANK (\d+) )?PID (\d+) RUNNING AT (\S+)\n=   (?:EXIT CODE|EXIT STATUS|KILLED BY SIGNAL): (\d+)",
        said,
        re.MULTILINE,
    )
    dead = set()
    for rank, pid, host, code in found:
        if int(code) in ENDED_BY_LAUNCHER:
            continue
        on_host = {each: number for (where, each), number in ranks.items() if node_name(where) == node_name(host)}
        by_pid = {on_host[int(pid)]} if int(pid) in on_host else set()
        dead |= {int(rank)} if rank else by_pid
    return dead


def _dead_by_openmpi(said: str) -> set[int]:
    # 4.1 calls itself mpirun or orterun, and a process [[4037,1],2]; 5 writes prterun and [prterun-host-4037@1,2].
    by_signal = re.findall(r"noticed that process rank (\d+) with PID \d+ on node \S+ exited on\s+signal \d+", said)
    by_status = re.findall(r"The first process to do so was:\s+Process name: \[\S+,(\d+)\]", said)
    return {int(rank) for rank in [*by_signal, *by_status]}


def _dead_by_srun(said: str) -> set[int]:
    dead: set[int] = set()
    for line in said.splitlines():
        if "Terminating StepId=" in line or "CANCELLED AT" in line:
            # SLURM itself ended the tasks that follow.
            break
        found = re.match(r"srun: error: \S+: tasks? ([\d,-]+): (?!Terminated)", line)
        for part in found[1].split(",") if found else ():
            first, _, last = part.partition("-")
            dead |= set(range(int(first), int(last or first) + 1))
    return dead


def _dead_by_pals(said: str) -> set[int]:
    # A rank that died: "x3102c0s25b1n0.hsn.cm.polaris.alcf.anl.gov: rank 96 died from signal 11 and dumped core". One
    # that PALS ended: "rank 99 died from signal 15". See https://github.com/E3SM-Project/E3SM/pull/6985
    found = re.findall(r"^\S+: rank (\d+) died from signal (\d+)", said, re.MULTILINE)
    return {int(rank) for rank, number in found if int(number) != 15}
