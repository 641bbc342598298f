"""The launch line of an MPI program, a pure function for each flavour of launcher, and which launcher is meant.

In every flavour the launcher leaves the cores and the GPUs of a node to its ranks: a rank binds itself to its own by
its number on the node, so it has to see all of them.

Imported by the driver and by Parsl's workers: standard library only, neither jax nor mpi4py nor parsl.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lambda_hat.errors import ConfigError, nearest

LIBMPI_VARIABLE = "MPI4PY_LIBMPI"
"""mpi4py's wheel loads the MPI library that this names, before any beside the environment's own."""

MPIS = ("bundled", "system")

LOCAL = ("localhost",)
"""The nodes of a launch on this machine alone, outside of any scheduler's knowledge."""

FORWARDED = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX|NPROC|PYTHON\w*|[A-Z]+_NUM_THREADS"
    r"|(LAMBDA_HAT|JAX|XLA|TF_CPP|MPI4PY|OMP|MKL|KMP|NCCL|UCX|FI)_\w+"
)
"""Variables that ranks need on every node, where a launcher hands over only those that are named. The variables that
hide GPUs are not among them: each node has its own."""

HIDING_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Set by schedulers, for one node."""


@dataclass(frozen=True)
class LauncherChoice:
    """Which launcher is meant, as a site says it: plain data, since only the machine that launches can look for it.

    `mpi` is the MPI library of the ranks: `bundled`, of the wheel in python's environment, or `system`. `flavour` is a
    key of FLAVOURS, or `auto`: the launcher is asked, and never is srun. `srun_mpi` is srun's `--mpi`: pmi2 for MPICH,
    pmix for Open MPI; the wrong one gives as many worlds of one rank as there are ranks.
    Raises ConfigError for a value that is not among these.
    """

    mpi: str = "bundled"
    flavour: str = "auto"
    srun_mpi: str = "pmi2"

    def __post_init__(self) -> None:
        for key, value, valid in (("mpi", self.mpi, MPIS), ("flavour", self.flavour, ("auto", *FLAVOURS))):
            if value not in valid:
                raise ConfigError(f"{key}: unknown {value!r}; {nearest(value, valid)}")
        if self.srun_mpi == "none" or not re.fullmatch(r"\w+", self.srun_mpi):
            raise ConfigError(
                f"srun_mpi: got {self.srun_mpi!r}, expected pmi2 (MPICH), pmix (Open MPI) or another name from "
                "srun --mpi=list; none would start ranks that know nothing of each other"
            )


@dataclass(frozen=True)
class Launcher:
    """A launcher that was found, and what its ranks need in their environment to use the MPI library meant."""

    flavour: str
    program: str
    environment: Mapping[str, str] = field(default_factory=dict)
    srun_mpi: str = "pmi2"


@dataclass(frozen=True)
class Launch:
    """Where: `ranks_per_node` ranks on each of `nodes`, each with `cores_per_rank` cores, sharing a node's GPUs.

    `nodes` is `("localhost",)` for this machine, without any scheduler.
    Raises ConfigError for no or unusable nodes (a name twice would put two nodes' ranks on one), and for numbers below
    one (GPUs: below zero).
    """

    nodes: tuple[str, ...]
    ranks_per_node: int
    cores_per_rank: int = 1
    gpus_per_node: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "nodes", tuple(self.nodes))
        named = all(re.fullmatch(r"\w[\w.-]*", node) for node in self.nodes)
        mixed = "localhost" in self.nodes and not self.is_local
        if not self.nodes or not named or mixed or len(set(self.nodes)) < len(self.nodes):
            raise ConfigError(f"nodes: got {list(self.nodes)}, expected names of nodes, each once, or localhost alone")
        for key, least in (("ranks_per_node", 1), ("cores_per_rank", 1), ("gpus_per_node", 0)):
            if getattr(self, key) < least:
                raise ConfigError(f"{key}: got {getattr(self, key)}, expected an integer of at least {least}")

    @property
    def ranks(self) -> int:
        """The size of the MPI world."""
        return len(self.nodes) * self.ranks_per_node

    @property
    def is_local(self) -> bool:
        """On this machine alone."""
        return self.nodes == LOCAL


# --------------------------------------------------------------------------------------------------------------
# The options of each flavour: what stands between the launcher and the command.


def hydra(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """MPICH's and Intel MPI's mpiexec.

    Intel's takes `-bind-to` without a word and binds all the same: I_MPI_PIN in `launch_environment` stops it.
    """
    # Inside a SLURM job Hydra starts its proxies with srun, which waits for ever for a node called localhost.
    start = ["-launcher", "fork"] if launch.is_local else []
    counts = ["-n", str(launch.ranks), "-ppn", str(launch.ranks_per_node), "-hosts", ",".join(launch.nodes)]
    return [*start, "-genvall", *counts, "-bind-to", "none"]


def openmpi(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """Open MPI's mpirun, 4.1 and 5. On other nodes it sets the variables only that `-x` names."""
    # Slots default to the cores, or to what the scheduler counts, of which there may be fewer than ranks.
    place = ["--map-by", f"ppr:{launch.ranks_per_node}:node:OVERSUBSCRIBE"]
    hosts = ",".join(f"{node}:{launch.ranks_per_node}" for node in launch.nodes)
    # A name without a value makes mpirun complain, hence only those that are there.
    names = [word for name in sorted(environ) if FORWARDED.fullmatch(name) for word in ("-x", name)]
    return ["-n", str(launch.ranks), *place, "--host", hosts, "--bind-to", "none", *names]


def srun(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """SLURM's srun, from inside a job.

    Raises ConfigError for this machine without a scheduler.
    """
    gpus = [f"--gpus-per-node={launch.gpus_per_node}", "--gpu-bind=none"] if launch.gpus_per_node else []
    return [
        *_srun_step(launcher, launch),
        # Without it -N2 -n4 may become 3 + 1.
        f"--ntasks-per-node={launch.ranks_per_node}",
        *gpus,
        f"--mpi={launcher.srun_mpi}",
        # A site may say otherwise: one rank's crash must end the pack, a rank that is done early must not.
        "--kill-on-bad-exit=1",
        "--wait=0",
    ]


def _srun_step(launcher: Launcher, launch: Launch) -> list[str]:
    if launch.is_local:
        raise ConfigError(
            "flavour: srun starts ranks on the nodes of a SLURM job, not on localhost; write --site allocation inside "
            "the job, or flavour: auto for this machine"
        )
    return [
        # Builds and packs share nodes; without it a step waits until those before it are over.
        "--overlap",
        # sbatch --export=NONE would otherwise be passed on to every step.
        "--export=ALL",
        f"--nodes={len(launch.nodes)}",
        f"--nodelist={','.join(launch.nodes)}",
        f"--ntasks={launch.ranks}",
        f"--cpus-per-task={launch.cores_per_rank}",
        "--cpu-bind=none",
    ]


def pals(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """HPE Cray PALS' mpiexec (Polaris, Aurora, Crux).

    Syntax: https://docs.alcf.anl.gov/polaris/running-jobs/ and `cray/modules/mpiexec/cli.py` of Cray-HPE/craycli, HPE's
    own; `--hosts` beside `--cpu-bind none` was run on Crux: https://github.com/mlcommons/storage/pull/549. `--depth` is
    left out, since it only says how wide `--cpu-bind depth` binds.
    """
    counts = ["-n", str(launch.ranks), "--ppn", str(launch.ranks_per_node), "--hosts", ",".join(launch.nodes)]
    return ["--envall", *counts, "--cpu-bind", "none"]


def mpt(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """HPE MPT's mpirun: `-np` is the number of ranks on each host of the list before it.

    Syntax: its man page, `mpirun [global_options] host_list -np N program`, and
    `src/radical/pilot/agent/launch_method/mpirun.py` of radical-cybertools/radical.pilot, which ran it on Cheyenne.
    `mpiexec_mpt`, the wrapper that sites document, takes all of PBS_NODEFILE, so packs could not run side by side.
    """
    hosts = [] if launch.is_local else [",".join(launch.nodes)]
    return [*hosts, "-np", str(launch.ranks_per_node)]


FLAVOURS: dict[str, Callable[[Launcher, Launch, Mapping[str, str]], list[str]]] = {
    "hydra": hydra,
    "openmpi": openmpi,
    "srun": srun,
    "pals": pals,
    "mpt": mpt,
}

PROGRAMS: dict[str, tuple[str, ...]] = {
    "auto": ("mpiexec", "mpirun"),
    "hydra": ("mpiexec", "mpiexec.hydra"),
    "openmpi": ("mpiexec", "mpirun"),
    "srun": ("srun",),
    "pals": ("mpiexec",),
    "mpt": ("mpirun",),
}
"""What the launcher is called, likelier names first."""


def launch_line(launcher: Launcher, launch: Launch, command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The words that start `command` as the ranks of `launch`; join them with `shlex.join`.

    `environ` is the environment that the launcher will run in, `launch_environment` included: a launcher that has to be
    told hands over what ranks need of it.
    Raises ConfigError for nodes that the launcher cannot reach.
    """
    line = [launcher.program, *FLAVOURS[launcher.flavour](launcher, launch, environ), *command]
    if launch.is_local or launch.gpus_per_node == 0 or launcher.flavour == "srun":
        return line
    # What the scheduler told the first node may name GPUs that another hasn't got. srun tells each node anew.
    unset = [word for name in HIDING_GPUS if name in environ for word in ("-u", name)]
    return ["env", *unset, *line] if unset else line


def build_prefix(launcher: Launcher, node: str, cores: int, environ: Mapping[str, str]) -> list[str]:
    """The words before a command that make it run, as one process with `cores` cores and no GPU, on `node` of the
    allocation that this process is in; none for localhost.

    The launcher needs `launch_environment` of `Launch((node,), 1, cores)`, as for a pack.
    Raises ConfigError as Launch.
    """
    launch = Launch((node,), 1, cores)
    if launch.is_local:
        return []
    if launcher.flavour == "srun":
        # A step of more cores than the job has is refused; a build on fewer only takes longer.
        launch = replace(launch, cores_per_rank=_cores_there(cores, environ))
        # A step asks for the GPUs of its job unless told; --gres=none is refused in a job of --gpus-per-node.
        gpus = ["--gpus-per-node=0"] if environ.get("SLURM_GPUS_ON_NODE") else []
        return [launcher.program, *_srun_step(launcher, launch), *gpus, "--mpi=none"]
    # MPT's mpirun has to be told of a program that doesn't start MPI.
    told = ["env", "MPI_SHEPHERD=true"] if launcher.flavour == "mpt" else []
    return [*told, *launch_line(launcher, launch, [], environ)]


def launch_environment(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for the launcher, beside its command line; its ranks inherit them.

    `environ` is the environment of the process that launches: inside a SLURM job, Hydra and Open MPI start their
    daemons with an srun of their own, which can only be told through its variables.
    """
    added = dict(launcher.environment)
    if launcher.flavour == "hydra":
        added["I_MPI_PIN"] = "0"
        if launch.is_local:
            # MPICH's two networks would listen on every interface for ranks that can only be on this machine.
            added |= {name: "lo" for name in ("UCX_NET_DEVICES", "FI_TCP_IFACE") if name not in environ}
    elif launcher.flavour == "mpt":
        added["MPI_DSM_OFF"] = "1"
    elif launcher.flavour == "openmpi" and launch.is_local:
        # Inside a job it would look for localhost among the job's nodes. 4.1 reads the first two, 5 the others.
        for name in ("OMPI_MCA_plm", "OMPI_MCA_ras", "PRTE_MCA_plm", "PRTE_MCA_ras"):
            added[name] = "^slurm,tm"
        # Ranks on one machine speak through memory; this transport would listen on every interface.
        added["OMPI_MCA_btl"] = environ.get("OMPI_MCA_btl", "^tcp")
    if launcher.flavour in ("hydra", "openmpi") and "SLURM_JOB_ID" in environ and not launch.is_local:
        added |= _daemons_under_srun(launch, environ)
    return added


GPUS_OF_JOB = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")
"""Variables of which a job that SLURM gave GPUs has at least one."""


def _daemons_under_srun(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """What srun has to know when it starts one daemon on each node, under which the node's ranks will live."""
    added = {"SLURM_OVERLAP": "1", "SLURM_EXPORT_ENV": "ALL", "SLURM_CPU_BIND": "none", "SLURM_MPI_TYPE": "none"}
    added["SLURM_WAIT"] = "0"
    # An srun that is refused leaves Hydra waiting for its daemons for ever, and this one would be where the job has no
    # GPUs; the ranks then tell that they see none.
    if launch.gpus_per_node and any(name in environ for name in GPUS_OF_JOB):
        added |= {"SLURM_GPUS_PER_NODE": str(launch.gpus_per_node), "SLURM_GPU_BIND": "none"}
    # A job that says --cpus-per-task would confine the daemon, and so all ranks of its node, to the cores of one task.
    # SLURM reads the first from 22.05 on, before it the second.
    names = [name for name in ("SRUN_CPUS_PER_TASK", "SLURM_CPUS_PER_TASK") if name in environ]
    cores = _cores_there(launch.ranks_per_node * launch.cores_per_rank, environ)
    return added | {name: str(cores) for name in names}


def _cores_there(wanted: int, environ: Mapping[str, str]) -> int:
    """`wanted`, or as many as the SLURM job has on this node."""
    there = environ.get("SLURM_CPUS_ON_NODE", "")
    return min(wanted, int(there)) if there.isdecimal() else wanted


# --------------------------------------------------------------------------------------------------------------
# Which launcher is meant


def find_launcher(choice: LauncherChoice, environ: Mapping[str, str] | None = None) -> Launcher:
    """The launcher on this machine that `choice` means: in python's environment for `bundled`, the first one on the
    PATH outside of it for `system`, and srun for flavour srun.

    For `system` the library that belongs to it is named in `MPI4PY_LIBMPI`, unless that is set already, or mpi4py was
    compiled here and loads its own. `environ` is `os.environ` unless given.
    Raises ConfigError, with what to install or write, where a launcher or its library is missing, or where it is not
    the flavour that was written.
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
    if program is None:
        raise ConfigError(
            f"mpi: system: no {' or '.join(names)} on the PATH outside {Path(sys.executable).parent}; load the "
            "cluster's MPI (module load mpich, or openmpi), install one (apt install openmpi-bin), or write mpi: "
            "bundled for the one that pip brings"
        )
    flavour = ask_flavour(choice.flavour, program)
    return Launcher(flavour, str(program), _library_environment(program, flavour, environ), choice.srun_mpi)


def assume_launcher(choice: LauncherChoice) -> Launcher:
    """A launcher by its bare name, to show a line on a machine that hasn't got it; `auto` is shown as Hydra's."""
    flavour = "hydra" if choice.flavour == "auto" else choice.flavour
    return Launcher(flavour, PROGRAMS[flavour][0], {}, choice.srun_mpi)


def ask_flavour(flavour: str, program: Path) -> str:
    """The flavour of `program` by what it answers to `--version`; never srun.

    Raises ConfigError where `flavour` is another than it says, and for an unknown answer to `auto`.
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
    """The flavour of the launcher whose answer to `--version` is this, or None for an unknown one."""
    # How PALS answers is in mache/parallel/pbs.py of E3SM-Project/mache; MPT's mpirun says "MPT: libxmpi.so 'HPE MPT
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
    # srun belongs to no MPI: the library is that of the mpiexec beside which the ranks could have been started.
    mpiexec = _outside_environment(PROGRAMS["auto"], environ)
    flavour = "openmpi" if choice.srun_mpi.startswith("pmix") else "hydra"
    flavour = (flavour_of(_version(mpiexec)) if mpiexec else None) or flavour
    return Launcher("srun", program, _library_environment(mpiexec, flavour, environ), choice.srun_mpi)


def _outside_environment(names: Sequence[str], environ: Mapping[str, str]) -> Path | None:
    """The first program of one of these names on the PATH that isn't of python's environment."""
    own_bin = Path(sys.executable).parent.resolve()
    for directory in environ.get("PATH", "").split(os.pathsep):
        for name in names:
            found = Path(directory or ".").absolute() / name
            if _executable(found) and own_bin not in (found.parent.resolve(), found.resolve().parent):
                return found
    return None


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _library_environment(mpiexec: Path | None, flavour: str, environ: Mapping[str, str]) -> dict[str, str]:
    """What makes mpi4py load the MPI library of the installation that `mpiexec` belongs to, or that modules put on the
    loader's path.
    """
    if environ.get(LIBMPI_VARIABLE):
        return {LIBMPI_VARIABLE: environ[LIBMPI_VARIABLE]}
    # Several MPIs may share /usr/lib, and only the version in the file name (12: MPICH's ABI, 40: Open MPI's) tells
    # their libraries apart.
    version = "libmpi.so.40" if flavour == "openmpi" else "libmpi.so.12"
    beside = list(_library_folders(mpiexec)) if mpiexec else []
    # PALS and srun are apart from the MPI that they launch, of which only the loader's path knows.
    loaded = [Path(folder) for folder in environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if folder]
    folders = list(dict.fromkeys([*beside, *loaded]))
    # MPT's own libmpi.so has neither ABI; the wheel would load it and crash.
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
    """Whether mpi4py is PyPI's, with a module for each ABI (MPI.mpich.*.so), and so looks for a library by itself."""
    found = importlib.util.find_spec("mpi4py")
    folders = found.submodule_search_locations if found else None
    return any(
        path.name.split(".")[1] in ("mpich", "openmpi", "mpiabi", "impi")
        for folder in folders or ()
        for path in Path(folder).glob("MPI.*.so")
    )


# --------------------------------------------------------------------------------------------------------------
# Who died, by the launcher's words

ENDED_BY_LAUNCHER = (9, 15)
"""Signals by which Hydra and PALS end the ranks that are left once one has died."""

Process = tuple[str, int]
"""Host and process id."""


def dead_ranks(said: str, flavour: str, ranks: Mapping[Process, int]) -> set[int]:
    """The ranks that a launch ended for, as far as what its launcher `said` tells them from those that it ended itself.

    `ranks` tells of every process of the launch which rank it was. Empty where nobody can be named: Hydra says the same
    of a rank that was killed and of those that it then kills, and names any one of them.
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
    # MPICH's names a process, Intel's a rank as well: https://github.com/bsc-performance-tools/extrae/issues/101
    found = re.findall(
        r"^=   (?:RANK (\d+) )?PID (\d+) RUNNING AT (\S+)\n=   (?:EXIT CODE|EXIT STATUS|KILLED BY SIGNAL): (\d+)",
        said,
        re.MULTILINE,
    )
    dead = set()
    for rank, pid, host, code in found:
        if int(code) in ENDED_BY_LAUNCHER:
            continue
        by_pid = {number for (where, each), number in ranks.items() if each == int(pid) and _same_host(where, host)}
        dead |= {int(rank)} if rank else by_pid if len(by_pid) == 1 else set()
    return dead


def _dead_by_openmpi(said: str) -> set[int]:
    # 4.1 names itself mpirun or orterun and the job [[4037,1],2], 5 prterun and [prterun-host-4037@1,2].
    by_signal = re.findall(r"noticed that process rank (\d+) with PID \d+ on node \S+ exited on\s+signal \d+", said)
    by_status = re.findall(r"The first process to do so was:\s+Process name: \[\S+,(\d+)\]", said)
    return {int(rank) for rank in [*by_signal, *by_status]}


def _dead_by_srun(said: str) -> set[int]:
    dead: set[int] = set()
    for line in said.splitlines():
        if "Terminating StepId=" in line or "CANCELLED AT" in line:
            # What comes after this was ended by SLURM.
            break
        found = re.match(r"srun: error: \S+: tasks? ([\d,-]+): (?!Terminated)", line)
        for part in found[1].split(",") if found else ():
            first, _, last = part.partition("-")
            dead |= set(range(int(first), int(last or first) + 1))
    return dead


def _dead_by_pals(said: str) -> set[int]:
    # "x3102c0s25b1n0.hsn.cm.polaris.alcf.anl.gov: rank 96 died from signal 11 and dumped core", and of those that it
    # ends "rank 99 died from signal 15": https://github.com/E3SM-Project/E3SM/pull/6985
    found = re.findall(r"^\S+: rank (\d+) died from signal (\d+)", said, re.MULTILINE)
    return {int(rank) for rank, number in found if int(number) != 15}


def _same_host(one: str, other: str) -> bool:
    return one.partition(".")[0] == other.partition(".")[0]
