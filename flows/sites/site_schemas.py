"""Sites: where a study runs, as data. Each kind has a schema; `flows/sites/executors.py` makes executors of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from lambda_hat.errors import ConfigError, nearest
from lambda_hat.omegaconf_support import (
    apply_words,
    build_dataclass,
    load_yaml,
    refuse_interpolation,
    schema_for,
)
from lambda_hat.workflow_config import CONF_DIR
from mpi.launch import Launch
from mpi.launchers import LauncherChoice

LOOPBACK = ("localhost", "::1")
MOST = 100_000
"""Nodes, ranks, cores, blocks: more than any machine has."""
ONE_WORD = re.compile(r"[^\s\x00-\x1f\x7f]+")
DIRECTIVE = re.compile(r"(#[^\x00-\x1f\x7f]*)?")
GPU_SHARING = ("none", "mps")
"""How ranks share a GPU: in turn, or at the same time through NVIDIA's MPS."""
SHELL_KEYS = ("worker_init", "scheduler_options")
"""Keys whose text is for a shell or a scheduler."""
WALLTIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d{2})")


@dataclass(frozen=True)
class SiteConfig:
    """The keys of every site. Resources belong to the pack: `nodes_per_pack * ranks_per_node` ranks sample its runs."""

    kind: str = "local"
    mpi: str = "bundled"
    flavour: str = "auto"
    srun_mpi: str = "pmi2"
    ranks_per_node: int | None = None
    cores_per_rank: int = 1
    gpus_per_node: int = 0
    ranks_per_gpu: int = 1
    gpu_sharing: str = "none"
    nodes_per_pack: int | None = 1
    task_workers: int | None = None
    worker_init: str = ""

    def __post_init__(self):
        if "\0" in self.worker_init:
            raise ConfigError("worker_init: got a zero byte, expected lines of a shell")
        if self.gpu_sharing not in GPU_SHARING:
            raise ConfigError(f"gpu_sharing: unknown {self.gpu_sharing!r}; {nearest(self.gpu_sharing, GPU_SHARING)}")
        self.launcher  # noqa: B018 - refuses what it is made of
        for key, value in vars(self).items():
            if key.endswith(("_per_node", "_per_rank", "_per_gpu", "_per_pack", "_per_block", "_workers", "_blocks")):
                least = 0 if key in ("gpus_per_node", "min_blocks") else 1
                if value is not None and value < least:
                    raise ConfigError(f"{key}: got {value}, expected an integer of at least {least}")
                if value is not None and value > MOST:
                    raise ConfigError(f"{key}: got {value}, expected at most {MOST}")

    def check(self) -> None:
        """Refuse what could not run, or would leave nodes or GPUs idle. Raises ConfigError naming the key."""
        if self.pack_nodes > self.block_nodes:
            raise ConfigError(
                f"nodes_per_pack: got {self.pack_nodes}, more than the {self.block_nodes} nodes of a block; a pack "
                "lives inside one block"
            )
        if self.block_nodes % self.pack_nodes:
            raise ConfigError(
                f"nodes_per_pack: got {self.pack_nodes}, which would leave {self.block_nodes % self.pack_nodes} of the "
                f"{self.block_nodes} nodes of a block idle; give a divisor, or null for one pack over the whole block"
            )
        if self.gpu_sharing != "none" and not self.gpus_per_node:
            raise ConfigError(
                f"gpu_sharing: got {self.gpu_sharing!r}, but gpus_per_node is 0, so that ranks compute on cores; give "
                "gpus_per_node, or write gpu_sharing: none"
            )
        wanted = self.gpus_per_node * self.ranks_per_gpu
        if self.gpus_per_node and self.ranks != wanted:
            what = "leave GPUs idle" if self.ranks < wanted else "put ranks on GPUs that others use"
            raise ConfigError(
                f"ranks_per_node: got {self.ranks}, but {self.gpus_per_node} GPUs a node with ranks_per_gpu = "
                f"{self.ranks_per_gpu} take {wanted}; this would {what}. Leave it null, or change ranks_per_gpu"
            )

    @property
    def launcher(self) -> LauncherChoice:
        """The MPI launcher to use."""
        return LauncherChoice(self.mpi, self.flavour, self.srun_mpi)

    def launch(self, nodes: Sequence[str]) -> Launch:
        """A pack on `nodes`."""
        return Launch(tuple(nodes), self.ranks, self.cores_per_rank, self.gpus_per_node)

    @property
    def block_nodes(self) -> int:
        """Nodes of one block."""
        return 1

    @property
    def node_cores(self) -> int | None:
        """Cores of a node that packs may use. None: not known."""
        return len(os.sched_getaffinity(0))

    @property
    def nodes(self) -> list[str]:
        """Names of a block's nodes for a launch line; placeholders where they are not known yet."""
        return [f"NODE{i + 1}" for i in range(self.block_nodes)]

    @property
    def pack_nodes(self) -> int:
        """Nodes of one pack."""
        return self.block_nodes if self.nodes_per_pack is None else self.nodes_per_pack

    @property
    def packs_per_block(self) -> int:
        """Packs that run side by side in one block."""
        return self.block_nodes // self.pack_nodes

    @property
    def ranks(self) -> int:
        """MPI ranks per node: as given, else by the node's GPUs, else as many as its cores take."""
        if self.ranks_per_node is not None:
            return self.ranks_per_node
        if self.gpus_per_node:
            return self.gpus_per_node * self.ranks_per_gpu
        if self.node_cores is None:
            raise ConfigError("ranks_per_node: missing; give it, or cores_per_node (a rank for every cores_per_rank)")
        return max(1, self.node_cores // self.cores_per_rank)

    @property
    def resources(self) -> dict[str, int]:
        """Parsl's resource specification of a pack, with all three keys: of two Parsl makes a fractional third."""
        return {
            "num_nodes": self.pack_nodes,
            "ranks_per_node": self.ranks,
            "num_ranks": self.pack_nodes * self.ranks,
        }


@dataclass(frozen=True)
class LocalSite(SiteConfig):
    """This machine."""

    @property
    def nodes(self) -> list[str]:
        return ["localhost"]

    def check(self) -> None:
        super().check()
        nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
        if nodes.isdecimal() and int(nodes) > 1:
            raise ConfigError(
                f"site local: this is inside a SLURM job of {nodes} nodes and would use one of them; write "
                "--site allocation"
            )


@dataclass(frozen=True)
class PythonSite(SiteConfig):
    """A Python file that defines `config`, a `parsl.Config`, and perhaps `site`, a dict of these keys."""

    kind: str = "python"
    nodes_per_block: int = 1
    parsl_config: str = ""

    @property
    def block_nodes(self) -> int:
        return self.nodes_per_block


@dataclass(frozen=True)
class AllocationSite(SiteConfig):
    """Inside one SLURM or PBS job. All of its nodes are one block, and nothing more is submitted."""

    kind: str = "allocation"

    @cached_property
    def nodes(self) -> list[str]:
        return allocated_nodes(os.environ)

    @property
    def block_nodes(self) -> int:
        return len(self.nodes)

    @property
    def node_cores(self) -> int | None:
        for variable in ("SLURM_CPUS_ON_NODE", "NCPUS"):
            if os.environ.get(variable, "").isdecimal():
                return int(os.environ[variable])
        return super().node_cores

    def check(self) -> None:
        super().check()
        gpus = os.environ.get("SLURM_GPUS_ON_NODE", "0")
        if gpus.isdecimal() and int(gpus) > self.gpus_per_node:
            raise ConfigError(
                f"gpus_per_node: got {self.gpus_per_node}, but SLURM gave this job {gpus} on each node "
                f"(SLURM_GPUS_ON_NODE); write site.gpus_per_node={gpus}, or ask for fewer"
            )


@dataclass(frozen=True)
class BatchBuilds:
    """Blocks that targets are built in: one node each, apart from those of the packs."""

    cores_per_node: int = 1
    mem_per_node: int | None = None
    walltime: str = "01:00:00"
    max_blocks: int = 1
    scheduler_options: str = ""


def _check_directives(prefix: str, part: BatchSite | BatchBuilds) -> None:
    """Refuse values that would break their line of a job script, or begin another line."""
    for key in ("account", "partition", "qos", "constraint", "queue", "select_options", "address", "interface"):
        value = getattr(part, key, None)
        if value and not ONE_WORD.fullmatch(value):
            raise ConfigError(
                f"{prefix}{key}: got {value!r}, expected one word, since it stands in a line of a job script"
            )
    for line in part.scheduler_options.split("\n"):
        if not DIRECTIVE.fullmatch(line):
            raise ConfigError(
                f"{prefix}scheduler_options: got the line {line!r}, expected lines that begin with #SBATCH or #PBS; "
                "shell lines go into worker_init"
            )


@dataclass(frozen=True)
class BatchSite(SiteConfig):
    """From a login node a scheduler is asked for blocks of nodes."""

    account: str | None = None
    address: str | None = None
    interface: str | None = None
    nodes_per_block: int = 1
    min_blocks: int = 0
    max_blocks: int = 1
    cores_per_node: int | None = None
    mem_per_node: int | None = None
    exclusive: bool = True
    walltime: str = "01:00:00"
    scheduler_options: str = ""
    lost_blocks: int = 3
    poll_seconds: int = 60
    one_machine: bool = False
    builds: BatchBuilds = field(default_factory=BatchBuilds)

    def __post_init__(self):
        super().__post_init__()
        if self.address is not None and self.interface is not None:
            raise ConfigError(f"interface: got {self.interface} beside address {self.address}; give one of them")
        for key, text in (("walltime", self.walltime), ("builds.walltime", self.builds.walltime)):
            parse_walltime(key, text)
        for key, value in (("lost_blocks", self.lost_blocks), ("poll_seconds", self.poll_seconds)):
            if value < 1:
                raise ConfigError(f"{key}: got {value}, expected an integer of at least 1")
        for prefix, part in (("", self), ("builds.", self.builds)):
            _check_directives(prefix, part)
        if self.max_blocks < self.min_blocks:
            raise ConfigError(f"max_blocks: got {self.max_blocks}, fewer than min_blocks = {self.min_blocks}")

    @property
    def block_nodes(self) -> int:
        return self.nodes_per_block

    @property
    def node_cores(self) -> int | None:
        return self.cores_per_node

    @property
    def walltime_seconds(self) -> int:
        """Seconds of `walltime`. Raises ConfigError if it is no walltime."""
        return parse_walltime("walltime", self.walltime)

    def check(self) -> None:
        super().check()
        address = self.address or ("127.0.0.1" if self.interface == "lo" else "")
        if (address in LOOPBACK or address.startswith("127.")) and not self.one_machine:
            raise ConfigError(
                f"address: got {self.address or self.interface}, which compute nodes cannot reach; leave it null "
                "(every address of this machine is tried), or name the network: interface: ib0. (one_machine: true is "
                "for a cluster whose nodes are all this machine)"
            )
        if self.cores_per_node is None:
            return
        cores = self.ranks * self.cores_per_rank
        if cores > self.cores_per_node:
            raise ConfigError(
                f"cores_per_node: got {self.cores_per_node}, but {self.ranks} ranks of {self.cores_per_rank} cores "
                f"need {cores}"
            )


@dataclass(frozen=True)
class SlurmBuilds(BatchBuilds):
    """Blocks of SLURM jobs that targets are built in. Null: as in the site."""

    partition: str | None = None
    qos: str | None = None


@dataclass(frozen=True)
class SlurmSite(BatchSite):
    """Blocks are SLURM jobs."""

    kind: str = "slurm"
    partition: str | None = None
    qos: str | None = None
    constraint: str | None = None
    builds: SlurmBuilds = field(default_factory=SlurmBuilds)


@dataclass(frozen=True)
class PbsBuilds(BatchBuilds):
    """Blocks of PBS jobs that targets are built in. Null: as in the site."""

    queue: str | None = None
    select_options: str = ""


@dataclass(frozen=True)
class PbsSite(BatchSite):
    """Blocks are PBS jobs."""

    kind: str = "pbs"
    queue: str | None = None
    select_options: str = ""
    builds: PbsBuilds = field(default_factory=PbsBuilds)

    @property
    def chunk_cores(self) -> int:
        """`ncpus` of a node."""
        return self.cores_per_node or self.ranks * self.cores_per_rank


def asked_for(site: BatchSite, label: str) -> str:
    """The keys of a site that the blocks of an executor are made of, with their values.

    label: packs, or tasks: the blocks of builds.
    """
    builds = label == "tasks"
    part: BatchSite | BatchBuilds = site.builds if builds else site
    keys = ["nodes_per_block", *_BLOCK_KEYS] if not builds else _BLOCK_KEYS
    found = {("builds." if builds else "") + key: getattr(part, key) for key in keys if hasattr(part, key)}
    for key in ("queue", "partition", "qos") if builds else ():
        # Builds go where packs go, unless they say otherwise.
        if f"builds.{key}" in found and found[f"builds.{key}"] is None:
            del found[f"builds.{key}"]
            found[key] = getattr(site, key)
    found["account"] = site.account
    return ", ".join(f"{key}={'null' if value is None else value}" for key, value in found.items() if value != "")


_BLOCK_KEYS = (
    "cores_per_node", "gpus_per_node", "mem_per_node", "walltime", "queue", "partition", "qos", "constraint",
    "select_options", "scheduler_options",
)  # fmt: skip
SITE_SCHEMAS: dict[str, type[SiteConfig]] = {
    "local": LocalSite,
    "allocation": AllocationSite,
    "slurm": SlurmSite,
    "pbs": PbsSite,
}


def load_site(
    name: str,
    words: Sequence[str] = (),
    options: Mapping[str, tuple[str, Any]] | None = None,
    asked: str = "--site",
) -> SiteConfig:
    """The site `conf/site/<name>.yaml`, or the one in the YAML or Python file `name`.

    words: `key=value` overrides. options: command-line options that override further, each with its key and its value,
    None if it was not given. asked: what messages call the place that names the site.
    Raises ConfigError naming the file, the key and the valid keys of that kind of site.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    path = Path(name).expanduser()
    if path.suffix in (".py", ".yaml", ".yml") and not path.is_file():
        raise ConfigError(f"{asked} {name}: no such file")
    if path.suffix == ".py":
        settings = getattr(load_python_site(path), "site", {})
        layers.append((str(path), {**settings, "parsl_config": str(path.absolute())}))
    elif path.suffix in (".yaml", ".yml"):
        layers.append((name, load_yaml(path)))
        refuse_interpolation(layers[-1][1], name, SHELL_KEYS)
    else:
        known = sorted(p.stem for p in (CONF_DIR / "site").glob("*.yaml"))
        if name not in known:
            raise ConfigError(f"{asked}: unknown {name!r}; {nearest(name, known)}, or a path to a .yaml or .py file")
        path = CONF_DIR / "site" / f"{name}.yaml"
        layers.append((str(path), load_yaml(path)))
    layers.append(("command line (site.key=value)", apply_words({}, words, SHELL_KEYS)))
    for option, (key, value) in (options or {}).items():
        if value is None:
            continue
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"{option}: got {value}, expected an integer of at least 1")
        if isinstance(value, str):
            parse_walltime(option, value)
        layers.append((option, {key: value}))
    if path.suffix == ".py":
        schema: type[SiteConfig] = PythonSite
    else:
        kinds = [(source, layer["kind"]) for source, layer in layers if "kind" in layer]
        source, kind = kinds[-1] if kinds else (name, "local")
        schema = schema_for(SITE_SCHEMAS, kind, f"{source}: kind")
    site = build_dataclass(schema, layers)
    site.check()
    return site


def load_python_site(path: Path) -> Any:
    """The module in the file `path`."""
    spec = importlib.util.spec_from_file_location("lambda_hat_site", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse_walltime(key: str, text: str) -> int:
    """Seconds of `12:00:00`, `1-12:00:00`, `30:00` (minutes) or `3600`, as which YAML reads an unquoted `1:00:00`."""
    match = WALLTIME.fullmatch(text.strip())
    if match:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    elif text.strip().isdecimal():
        total = int(text)
    else:
        total = 0
    if total < 1:
        raise ConfigError(f"{key}: got {text!r}, expected hours:minutes:seconds, such as 12:00:00 or 1-12:00:00")
    return total


def format_walltime(seconds: int) -> str:
    """`HH:MM:SS`, which SLURM, PBS and Parsl read alike."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def known_nodes(site: SiteConfig) -> list[str] | None:
    """The nodes that packs of a site can ever run on; none where they have no names. None: a scheduler may give any."""
    if isinstance(site, BatchSite):
        return None
    return site.nodes if isinstance(site, AllocationSite) else []


def allocated_nodes(environment: Mapping[str, str]) -> list[str]:
    """The nodes of this process's SLURM or PBS job, each once. Raises ConfigError outside of a job."""
    if environment.get("SLURM_NODELIST"):
        command = ["scontrol", "show", "hostnames", environment["SLURM_NODELIST"]]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"site allocation: {' '.join(command)}: {error}") from None
        if done.returncode:
            raise ConfigError(f"site allocation: {' '.join(command)}: {done.stderr.strip()}")
        names = done.stdout.split()
    elif environment.get("PBS_NODEFILE"):
        try:
            # One line per MPI process: a node comes as often as it has mpiprocs.
            names = Path(environment["PBS_NODEFILE"]).read_text().split()
        except OSError as error:
            raise ConfigError(
                f"site allocation: PBS_NODEFILE: {environment['PBS_NODEFILE']}: {error.strerror}"
            ) from None
    else:
        raise ConfigError(
            "site allocation: this is not inside a SLURM or PBS job (neither SLURM_NODELIST nor PBS_NODEFILE is set); "
            "lambda-hat run --submit slurm|pbs --nodes N --walltime HH:MM:SS submits one, and --site slurm|pbs "
            "runs from a login node"
        )
    return list(dict.fromkeys(names))
