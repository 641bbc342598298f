"""The launch line of an MPI program: a pure function for each flavour of launcher.

In every flavour the launcher leaves the cores and the GPUs of a node to its ranks: a rank binds itself to its own by
its number on the node, so it has to see all of them.

The driver and Parsl's workers import this: standard library only, neither jax nor mpi4py nor parsl.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lambda_hat.errors import ConfigError

LOCAL = ("localhost",)
"""The nodes of a launch on this machine alone, of which no scheduler knows."""

FORWARDED = re.compile(
    r"PATH|LD_LIBRARY_PATH|VIRTUAL_ENV|CONDA_PREFIX|NPROC|PYTHON\w*|[A-Z]+_NUM_THREADS"
    r"|(LAMBDA_HAT|JAX|XLA|TF_CPP|MPI4PY|OMP|MKL|KMP|NCCL|UCX|FI)_\w+"
)
"""Variables that ranks need on every node, for launchers that hand over only those that are named. Variables that hide
GPUs are not among them, because each node has its own."""

HIDING_GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL")
"""Variables by which a scheduler hides GPUs, each for one node."""

RANKS_VARIABLE = "LAMBDA_HAT_RANKS"
"""Environment variable in which a pack is told its ranks: fewer than it is meant for where nodes are left out."""


def node_name(host: str) -> str:
    """The name of a node without its domain, which schedulers, launchers and hosts write or leave out."""
    return host.partition(".")[0]


@dataclass(frozen=True)
class Launcher:
    """A launcher that was found."""

    flavour: str
    """A key of FLAVOURS."""
    program: str
    """Its name or path."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """What its ranks need in their environment to use the MPI library that is meant."""
    srun_mpi: str = "pmi2"
    """As of `LauncherChoice`."""


@dataclass(frozen=True)
class Launch:
    """Where the ranks run.

    Raises:
        ConfigError: There are no nodes, a name is unusable or stands there twice (which would put the ranks of two
            nodes on one), or a number is too small.
    """

    nodes: tuple[str, ...]
    """`("localhost",)` is this machine, without any scheduler."""
    ranks_per_node: int
    cores_per_rank: int = 1
    gpus_per_node: int = 0
    """The ranks of a node share them."""

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
        """Whether all ranks run on this machine, without any scheduler."""
        return self.nodes == LOCAL


# --------------------------------------------------------------------------------------------------------------
# The options of each flavour, which stand between the launcher and the command


def hydra(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """The mpiexec of MPICH and of Intel MPI.

    Intel's accepts `-bind-to` silently, and binds all the same; I_MPI_PIN in `launch_environment` stops it.
    """
    # Inside a SLURM job Hydra starts its proxies with srun, which would wait for ever for a node called localhost.
    start = ["-launcher", "fork"] if launch.is_local else []
    counts = ["-n", str(launch.ranks), "-ppn", str(launch.ranks_per_node), "-hosts", ",".join(launch.nodes)]
    return [*start, "-genvall", *counts, "-bind-to", "none"]


def openmpi(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """The mpirun of Open MPI 4.1 and 5. On other nodes it sets only the variables that `-x` names."""
    # By default there are as many slots as cores, or as the scheduler counts: perhaps fewer than ranks.
    place = ["--map-by", f"ppr:{launch.ranks_per_node}:node:OVERSUBSCRIBE"]
    hosts = ",".join(f"{node}:{launch.ranks_per_node}" for node in launch.nodes)
    # mpirun complains about a name without a value, so only variables that are set are named.
    names = [word for name in sorted(environ) if FORWARDED.fullmatch(name) for word in ("-x", name)]
    return ["-n", str(launch.ranks), *place, "--host", hosts, "--bind-to", "none", *names]


def srun(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """SLURM's srun, from inside a job.

    Raises:
        ConfigError: The launch is on this machine, without a scheduler.
    """
    gpus = [f"--gpus-per-node={launch.gpus_per_node}", "--gpu-bind=none"] if launch.gpus_per_node else []
    return [
        *_srun_step(launcher, launch),
        # Without it, 4 tasks on 2 nodes may become 3 + 1.
        f"--ntasks-per-node={launch.ranks_per_node}",
        *gpus,
        f"--mpi={launcher.srun_mpi}",
        # A site may have other defaults. One rank's crash must end the pack; a rank that is done early must not.
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
        # Builds and packs share nodes. Without it, a step waits until the steps before it have ended.
        "--overlap",
        # Otherwise every step inherits sbatch --export=NONE.
        "--export=ALL",
        f"--nodes={len(launch.nodes)}",
        f"--nodelist={','.join(launch.nodes)}",
        f"--ntasks={launch.ranks}",
        f"--cpus-per-task={launch.cores_per_rank}",
        "--cpu-bind=none",
    ]


def pals(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """The mpiexec of HPE Cray PALS (Polaris, Aurora, Crux).

    For the syntax see https://docs.alcf.anl.gov/polaris/running-jobs/ and HPE's own `cray/modules/mpiexec/cli.py` in
    Cray-HPE/craycli. https://github.com/mlcommons/storage/pull/549 ran `--hosts` beside `--cpu-bind none` on Crux.
    `--depth` is left out, because it only sets the width of `--cpu-bind depth`.
    """
    counts = ["-n", str(launch.ranks), "--ppn", str(launch.ranks_per_node), "--hosts", ",".join(launch.nodes)]
    return ["--envall", *counts, "--cpu-bind", "none"]


def mpt(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> list[str]:
    """The mpirun of HPE MPT; its `-np` is the number of ranks on each host of the list before it.

    For the syntax see its man page, `mpirun [global_options] host_list -np N program`, and
    `src/radical/pilot/agent/launch_method/mpirun.py` in radical-cybertools/radical.pilot, which ran it on Cheyenne.
    Sites document the wrapper `mpiexec_mpt`. It takes all of PBS_NODEFILE, so that packs could not run side by side.
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


def launch_line(launcher: Launcher, launch: Launch, command: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """The words that start `command` as the ranks of `launch`.

    Args:
        launcher: The launcher.
        launch: Where the ranks run.
        command: The words of the command.
        environ: The environment in which the launcher will run, with `launch_environment`. Some launchers have to be
            told which of its variables they hand over.

    Returns:
        The words; `shlex.join` makes them a line.

    Raises:
        ConfigError: The launcher cannot reach these nodes.
    """
    line = [launcher.program, *FLAVOURS[launcher.flavour](launcher, launch, environ), *command]
    if launch.is_local or launch.gpus_per_node == 0 or launcher.flavour == "srun":
        return line
    # The variables of the first node may name GPUs that other nodes do not have. srun sets them anew on each node.
    unset = [word for name in HIDING_GPUS if name in environ for word in ("-u", name)]
    return ["env", *unset, *line] if unset else line


def build_prefix(launcher: Launcher, node: str, cores: int, environ: Mapping[str, str]) -> list[str]:
    """The words before a command that run it on another node, as one process with `cores` cores and no GPU.

    The launcher needs the `launch_environment` of `Launch((node,), 1, cores)`, as for a pack.

    Args:
        launcher: The launcher.
        node: A node of the allocation that this process is in, or localhost.
        cores: Cores of the process.
        environ: The environment of this process.

    Returns:
        The words; none for localhost.

    Raises:
        ConfigError: As of `Launch`.
    """
    launch = Launch((node,), 1, cores)
    if launch.is_local:
        return []
    if launcher.flavour == "srun":
        # SLURM refuses a step of more cores than the job has; a build on fewer cores only takes longer.
        launch = replace(launch, cores_per_rank=_cores_there(cores, environ))
        # By default a step asks for the GPUs of its job. A job of --gpus-per-node refuses --gres=none.
        gpus = ["--gpus-per-node=0"] if environ.get("SLURM_GPUS_ON_NODE") else []
        return [launcher.program, *_srun_step(launcher, launch), *gpus, "--mpi=none"]
    # MPT's mpirun has to be told that a program does not start MPI.
    told = ["env", "MPI_SHEPHERD=true"] if launcher.flavour == "mpt" else []
    return [*told, *launch_line(launcher, launch, [], environ)]


def launch_environment(launcher: Launcher, launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables to set for the launcher; its ranks inherit them.

    Inside a SLURM job, Hydra and Open MPI start their daemons with an srun of their own, which takes its options from
    these variables alone.

    Args:
        launcher: The launcher.
        launch: Where the ranks run.
        environ: The environment of the process that launches.
    """
    added = dict(launcher.environment)
    if launcher.flavour == "hydra":
        added["I_MPI_PIN"] = "0"
        if launch.is_local:
            # All ranks are on this machine, but MPICH's two networks would listen on every interface.
            added |= {name: "lo" for name in ("UCX_NET_DEVICES", "FI_TCP_IFACE") if name not in environ}
    elif launcher.flavour == "mpt":
        added["MPI_DSM_OFF"] = "1"
    elif launcher.flavour == "openmpi" and launch.is_local:
        # Inside a job Open MPI would look for localhost among the job's nodes. 4.1 reads the first two, 5 the others.
        for name in ("OMPI_MCA_plm", "OMPI_MCA_ras", "PRTE_MCA_plm", "PRTE_MCA_ras"):
            added[name] = "^slurm,tm"
        # Ranks on one machine communicate through memory, but this transport would listen on every interface.
        added["OMPI_MCA_btl"] = environ.get("OMPI_MCA_btl", "^tcp")
    if launcher.flavour in ("hydra", "openmpi") and "SLURM_JOB_ID" in environ and not launch.is_local:
        added |= _daemons_under_srun(launch, environ)
    return added


GPUS_OF_JOB = ("SLURM_GPUS_ON_NODE", "SLURM_JOB_GPUS", "SLURM_GPUS_PER_NODE", "SLURM_GPUS")
"""Variables of which a SLURM job with GPUs has at least one."""


def _daemons_under_srun(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """The variables for the srun that starts one daemon on each node, under which the node's ranks will run."""
    added = {"SLURM_OVERLAP": "1", "SLURM_EXPORT_ENV": "ALL", "SLURM_CPU_BIND": "none", "SLURM_MPI_TYPE": "none"}
    added["SLURM_WAIT"] = "0"
    # In a job without GPUs, SLURM would refuse this srun, and Hydra would wait for its daemons for ever. Without the
    # variables the ranks start, and report that they see no GPU.
    if launch.gpus_per_node and any(name in environ for name in GPUS_OF_JOB):
        added |= {"SLURM_GPUS_PER_NODE": str(launch.gpus_per_node), "SLURM_GPU_BIND": "none"}
    # The --cpus-per-task of the job would confine the daemon, and with it all ranks of its node, to the cores of one
    # task. SLURM reads the first variable from 22.05 on, and the second before.
    names = [name for name in ("SRUN_CPUS_PER_TASK", "SLURM_CPUS_PER_TASK") if name in environ]
    cores = _cores_there(launch.ranks_per_node * launch.cores_per_rank, environ)
    return added | {name: str(cores) for name in names}


def _cores_there(wanted: int, environ: Mapping[str, str]) -> int:
    """`wanted` cores, or as many as the SLURM job has on this node if these are fewer."""
    there = environ.get("SLURM_CPUS_ON_NODE", "")
    return min(wanted, int(there)) if there.isdecimal() else wanted
