"""The launch line of an MPI program, one function per flavour of launcher, and which launcher is meant.

Imported by the driver and by Parsl's workers: standard library only, neither jax nor mpi4py nor parsl.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lambda_hat.errors import ConfigError, nearest

LIBMPI_VARIABLE = "MPI4PY_LIBMPI"
"""mpi4py's wheel loads the MPI library that this names, before any beside the environment's own."""

MPIS = ("bundled", "system")


def hydra(mpiexec: str, nodes: Sequence[str], ranks_per_node: int, program: Sequence[str]) -> list[str]:
    """MPICH's mpiexec. Ranks bind themselves to cores, so Hydra must not."""
    ranks = len(nodes) * ranks_per_node
    options = ["-n", str(ranks), "-ppn", str(ranks_per_node), "-hosts", ",".join(nodes), "-bind-to", "none"]
    return [mpiexec, *options, *program]


FLAVOURS: dict[str, Callable[[str, Sequence[str], int, Sequence[str]], list[str]]] = {"hydra": hydra}


def launch_line(
    flavour: str, nodes: Sequence[str], ranks_per_node: int, program: Sequence[str], mpiexec: str = "mpiexec"
) -> list[str]:
    """The words that start `program` with `ranks_per_node` ranks on each of `nodes`; join them with `shlex.join`.

    Raises ConfigError for an unknown flavour, for no or unusable nodes (a name twice would put two nodes' ranks on
    one), and below one rank per node.
    """
    if flavour not in FLAVOURS:
        raise ConfigError(f"flavour: unknown {flavour!r}; {nearest(flavour, FLAVOURS)}")
    if ranks_per_node < 1:
        raise ConfigError(f"ranks_per_node: got {ranks_per_node}, expected an integer of at least 1")
    if not nodes or len(set(nodes)) < len(nodes) or any(not node or set(node) & set(", \t\n") for node in nodes):
        raise ConfigError(f"nodes: got {list(nodes)}, expected at least one node name, each once")
    return FLAVOURS[flavour](mpiexec, nodes, ranks_per_node, program)


@dataclass(frozen=True)
class Launcher:
    """An mpiexec, and what its ranks need in their environment to use the MPI library that belongs to it."""

    mpiexec: str
    environment: dict[str, str] = field(default_factory=dict)


def find_mpiexec(mpi: str, environment: Mapping[str, str] | None = None) -> Launcher:
    """The launcher that `mpi` means: `bundled`, of the mpich wheel in python's environment; or `system`, the first one
    on the PATH that is outside that environment, whose own MPI library is then named in `MPI4PY_LIBMPI`.

    An `MPI4PY_LIBMPI` that is set already is kept. `environment` is `os.environ` unless given.
    Raises ConfigError, with what to install or set, where a launcher or its library is missing.
    """
    environment = os.environ if environment is None else environment
    own_bin = Path(sys.executable).parent
    if mpi == "bundled":
        bundled = own_bin / "mpiexec"
        if not _executable(bundled):
            raise ConfigError(
                f"mpi: bundled: no mpiexec in {own_bin}; write pip install 'lambda-hat[mpi]' (PyPI's mpich), or "
                "mpi: system to use one that the machine has"
            )
        return Launcher(str(bundled))
    if mpi != "system":
        raise ConfigError(f"mpi: unknown {mpi!r}; {nearest(mpi, MPIS)}")
    for directory in environment.get("PATH", "").split(os.pathsep):
        candidate = Path(directory or ".").absolute() / "mpiexec"
        if _executable(candidate) and own_bin.resolve() not in (candidate.parent.resolve(), candidate.resolve().parent):
            libmpi = environment.get(LIBMPI_VARIABLE) or str(_library_of(candidate))
            return Launcher(str(candidate), {LIBMPI_VARIABLE: libmpi})
    raise ConfigError(
        f"mpi: system: no mpiexec on the PATH outside {own_bin}; load the cluster's MPI (module load mpich, or "
        "openmpi), install one (apt install openmpi-bin), or write mpi: bundled for the one that pip brings"
    )


def _executable(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _library_of(mpiexec: Path) -> Path:
    """The MPI library of the installation that `mpiexec` belongs to."""
    # Several MPIs may share /usr/lib, and only the version in the file name (12: MPICH's ABI, 40: Open MPI's) tells
    # their libraries apart; the launcher says which it is.
    try:
        told = subprocess.run([str(mpiexec), "--version"], capture_output=True, text=True, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        told = ""
    is_open_mpi = any(name in told for name in ("Open MPI", "OpenRTE", "PRRTE"))
    names = ["libmpi.so.40", "libmpi.so"] if is_open_mpi else ["libmpi.so.12", "libmpi.so"]
    folders = list(dict.fromkeys(_library_folders(mpiexec)))
    for name in names:
        for folder in folders:
            if (folder / name).is_file():
                return folder / name
    raise ConfigError(
        f"mpi: system: found {mpiexec}, but no {' or '.join(names)} of it (looked in {', '.join(map(str, folders))}); "
        f"name the library: export {LIBMPI_VARIABLE}=/path/to/libmpi.so, or write mpi: bundled"
    )


def _library_folders(mpiexec: Path) -> Iterator[Path]:
    for prefix in (mpiexec.parent.parent, mpiexec.resolve().parent.parent):
        for folder in (prefix / "lib", prefix / "lib64", *sorted((prefix / "lib").glob("*-linux-gnu"))):
            yield from (folder, folder / "openmpi" / "lib")
