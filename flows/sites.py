"""Where a study runs: from a site file to a Parsl configuration.

Two executors, by label: `packs` (MPIExecutor: MPI-launched packs) and `tasks` (one process each: target builds, and
the runs of the unpacked flow).
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lambda_hat.errors import ConfigError, nearest
from lambda_hat.omegaconf_support import apply_words, build_dataclass, load_yaml
from lambda_hat.workflow_config import CONF_DIR
from mpi.launch import FLAVOURS, MPIS

if TYPE_CHECKING:
    from parsl import Config
    from parsl.executors import HighThroughputExecutor

REPO_ROOT = Path(__file__).resolve().parents[1]
PACKS, TASKS = "packs", "tasks"
HEARTBEAT_PERIOD, HEARTBEAT_THRESHOLD = 5, 20
STRATEGY_PERIOD = 0.5
"""Parsl's default of 5 s adds as much to the first task (seen: 9 s against 4 s)."""


@dataclass(frozen=True)
class SiteConfig:
    """One site. Resources belong to the pack: `nodes_per_pack * ranks_per_node` ranks run its runs."""

    kind: str = "local"
    mpi: str = "bundled"
    flavour: str = "hydra"
    address: str = "127.0.0.1"
    ranks_per_node: int | None = None
    cores_per_rank: int = 1
    nodes_per_block: int = 1
    nodes_per_pack: int = 1
    task_workers: int | None = None
    worker_init: str = ""
    parsl_config: str = ""
    """A Python file that defines `config`, a `parsl.Config`; set by `--site FILE.py`."""

    def __post_init__(self):
        for key, value, valid in (
            ("kind", self.kind, ("local",)),
            ("mpi", self.mpi, MPIS),
            ("flavour", self.flavour, FLAVOURS),
        ):
            if value not in valid:
                raise ConfigError(f"{key}: unknown {value!r}; {nearest(value, valid)}")
        for key in ("ranks_per_node", "cores_per_rank", "nodes_per_block", "nodes_per_pack", "task_workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"{key}: got {value}, expected an integer of at least 1")
        if self.nodes_per_pack > self.nodes_per_block:
            raise ConfigError(
                f"nodes_per_pack: got {self.nodes_per_pack}, more than nodes_per_block = {self.nodes_per_block}; "
                "a pack lives inside one block"
            )
        if self.kind == "local" and not self.parsl_config and self.nodes_per_block != 1:
            raise ConfigError(f"nodes_per_block: got {self.nodes_per_block}, but the local site is one node")

    @property
    def ranks(self) -> int:
        """MPI ranks per node: as given, or as many as fit on the cores of this process."""
        if self.ranks_per_node is not None:
            return self.ranks_per_node
        return max(1, len(os.sched_getaffinity(0)) // self.cores_per_rank)

    @property
    def resources(self) -> dict[str, int]:
        """Parsl's resource specification of a pack; all three keys, since two of them make a fractional third."""
        return {
            "num_nodes": self.nodes_per_pack,
            "ranks_per_node": self.ranks,
            "num_ranks": self.nodes_per_pack * self.ranks,
        }


def load_site(name: str, words: Sequence[str] = (), ranks: int | None = None) -> SiteConfig:
    """The site `conf/site/<name>.yaml`, or the one in the YAML or Python file `name`, with `key=value` overrides.

    Raises ConfigError naming the file, the key and the valid ones.
    """
    layers: list[tuple[str, dict[str, Any]]] = []
    path = Path(name).expanduser()
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"--site {name}: no such file")
        settings = getattr(_load_python_site(path), "site", {})
        layers.append((str(path), {**settings, "parsl_config": str(path.absolute())}))
    elif path.suffix in (".yaml", ".yml"):
        layers.append((name, load_yaml(path)))
    else:
        known = sorted(p.stem for p in (CONF_DIR / "site").glob("*.yaml"))
        if name not in known:
            raise ConfigError(f"--site: unknown {name!r}; {nearest(name, known)}, or a path to a .yaml or .py file")
        path = CONF_DIR / "site" / f"{name}.yaml"
        layers.append((str(path), load_yaml(path)))
    layers.append(("command line (site.key=value)", apply_words({}, words)))
    if ranks is not None:
        if ranks < 1:
            raise ConfigError(f"--ranks: got {ranks}, expected an integer of at least 1")
        layers.append(("--ranks", {"ranks_per_node": ranks}))
    return build_dataclass(SiteConfig, layers)


def _load_python_site(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("lambda_hat_site", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def parsl_config(site: SiteConfig, run_dir: Path, packs: bool) -> Iterator[Config]:
    """The Parsl configuration of `site`; with `packs`, an executor for MPI packs beside the one for tasks.

    Parsl's own files go to `run_dir`. Raises ConfigError where a Python site does not fit.
    """
    if site.parsl_config:
        yield _python_config(site, packs)
        return
    from parsl import Config
    from parsl.executors import HighThroughputExecutor, MPIExecutor
    from parsl.launchers import SimpleLauncher
    from parsl.providers import LocalProvider

    with _plain_path(run_dir) as parsl_dir:
        node_file = parsl_dir / "nodefile"
        node_file.write_text("localhost\n")
        init = [f"export PYTHONPATH={shlex.quote(_python_path())}", site.worker_init]
        common: dict[str, Any] = {
            "address": site.address,
            "encrypted": True,
            "heartbeat_period": HEARTBEAT_PERIOD,
            "heartbeat_threshold": HEARTBEAT_THRESHOLD,
        }

        def provider(*lines: str) -> LocalProvider:
            return LocalProvider(
                launcher=SimpleLauncher(),
                nodes_per_block=1,
                init_blocks=1,
                min_blocks=1,
                max_blocks=1,
                worker_init="\n".join([*init, *lines]),
            )

        executors: list[HighThroughputExecutor] = [
            HighThroughputExecutor(
                label=TASKS,
                max_workers_per_node=site.task_workers or len(os.sched_getaffinity(0)),
                cores_per_worker=1e-9,
                provider=provider(),
                **common,
            )
        ]
        if packs:
            executors.append(
                MPIExecutor(
                    label=PACKS,
                    mpi_launcher="mpiexec",
                    # One node count per executor: packs of different sizes queueing inside a block can hang for ever.
                    max_workers_per_block=site.nodes_per_block // site.nodes_per_pack,
                    provider=provider(f"export PBS_NODEFILE={shlex.quote(str(node_file))}"),
                    **common,
                )
            )
        for executor in executors:
            _start_by_module(executor)
        yield Config(
            executors=executors,
            run_dir=str(parsl_dir),
            strategy="none",
            strategy_period=STRATEGY_PERIOD,
            retries=0,
            usage_tracking=0,
        )


def _python_config(site: SiteConfig, packs: bool) -> Config:
    from parsl import Config
    from parsl.executors import MPIExecutor

    config = getattr(_load_python_site(Path(site.parsl_config)), "config", None)
    if not isinstance(config, Config):
        raise ConfigError(f"{site.parsl_config}: expected a variable `config`, a parsl.Config")
    executors = {executor.label: executor for executor in config.executors}
    for label in [TASKS, PACKS] if packs else [TASKS]:
        if label not in executors:
            raise ConfigError(
                f"{site.parsl_config}: no executor labelled '{label}'; this flow needs one "
                f"({'an MPIExecutor for packs' if label == PACKS else 'for target builds'})"
            )
    if packs and not isinstance(executors[PACKS], MPIExecutor):
        raise ConfigError(f"{site.parsl_config}: executor '{PACKS}' must be an MPIExecutor")
    return config


def _start_by_module(executor: HighThroughputExecutor) -> None:
    """Let Parsl start its processes with this interpreter, and the interchange end when this process does."""
    package = "parsl.executors.high_throughput"
    # Their scripts are found by name on the PATH, and pip's first line of a script breaks where an environment's path
    # has a space. Parsl fills braces in twice.
    python = shlex.quote(sys.executable).replace("{", "{{{{").replace("}", "}}}}")
    executor.launch_cmd = executor.launch_cmd.replace(
        "process_worker_pool.py", f"{python} -m {package}.process_worker_pool"
    )
    # A killed driver would leave the interchange, and with it the worker pools, behind for minutes; and Ctrl-C is for
    # the driver alone, which then shuts the interchange down. Set after construction, because MPIExecutor's own type
    # check refuses a list here.
    wrapper = [["setsid"], ["setpriv", "--pdeathsig", "TERM"]]
    prefix = [word for words in wrapper if shutil.which(words[0]) for word in words]
    executor.interchange_launch_cmd = [*prefix, sys.executable, "-m", f"{package}.interchange"]


def _python_path() -> str:
    inherited = os.environ.get("PYTHONPATH", "")
    return os.pathsep.join([str(REPO_ROOT), *([inherited] if inherited else [])])


@contextmanager
def _plain_path(directory: Path) -> Iterator[Path]:
    """`directory`, or a link to it without spaces and quotes: Parsl does not quote its own folder in shell lines."""
    directory.mkdir(parents=True, exist_ok=True)
    if re.fullmatch(r"[\w./+@:-]+", str(directory)):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="lambda_hat_") as folder:
        link = Path(folder) / "parsl"
        link.symlink_to(directory)
        yield link
