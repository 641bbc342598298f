"""The program that a site's preflight runs under mpirun: every rank reports what it was given and what it sees.

    mpirun -n 4 python mpi/check_pack.py CHECK.json

A check file is JSON: `pack_id`, `store_root` (absolute), `cores_per_rank`, `gpus_per_node`, `ranks_per_gpu`, and
`needs`, the names of modules that ranks import. It may also have the keys that
`lambda_hat.planning.preflight.judge` reads.

Each rank takes its cores and its GPU as in a pack, and writes `check-<rank>-<host>-<pid>.json` into the pack's folder
of the store. If that fails, it writes the same as one line to standard output. It waits for no other rank, because
there may be none. The exit status is 0, whatever was found, and 2 where the report could not be written.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lambda_hat.errors import EXIT_OK, ConfigError, CorruptArtifact, LambdaHatError, StoreError, run_command
from lambda_hat.planning.preflight import CHECK_KEYS, LINE_PREFIX
from lambda_hat.programs.cores import Binding
from lambda_hat.programs.memory import memory_limits
from lambda_hat.store.layout import Store, finite_or_none, read_json, write_bytes_atomic, write_json_atomic
from lambda_hat.store.umask import keep_umask
from mpi.devices import bind_rank, check_gpu
from mpi.dispatch import start_mpi
from mpi.launcher_variables import launcher_local_rank, launcher_local_size, launcher_rank, launcher_size
from mpi.mps import place_of_mps

PACKAGES = ("jax", "jaxlib", "blackjax", "mpi4py")
"""Packages whose versions a rank reports."""

BROKEN_SITE = (ImportError, AttributeError, AssertionError, TypeError, ValueError, RuntimeError, OSError)
"""Exceptions of packages that do not fit together, of an MPI library or a device that does not work, and of the system.
A rank that ends with another one does not report, which the verdict tells, too."""

Report = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Write this rank's report.

    Raises:
        ConfigError: The check file cannot be read, or lacks a key.
        StoreError: The report cannot be written into the store.
    """
    keep_umask(os.environ)
    parser = argparse.ArgumentParser(prog="check_pack.py", description="One rank's part of a site's preflight.")
    parser.add_argument("check", type=Path, metavar="CHECK.json", help="what is checked, as the driver wrote it")
    first = launcher_rank(os.environ) == 0
    with contextlib.nullcontext() if first else contextlib.redirect_stderr(None):
        path = parser.parse_args(argv).check
    try:
        check = read_check(path)
    except ConfigError as error:
        if first:
            raise
        return error.exit_code
    folder = Store(check["store_root"]).pack_dir(check["pack_id"])
    report = examine(check, folder)
    try:
        write_json_atomic(folder / report_name(report), report)
    except StoreError as error:
        # A single write keeps the lines of different ranks whole.
        sys.stdout.write(f"{LINE_PREFIX}{json.dumps(finite_or_none(report))}\n")
        sys.stdout.flush()
        where = f"rank {report['launcher_rank']} on {report['host']}"
        raise StoreError(f"{where}: {error}") from None
    return EXIT_OK


def read_check(path: Path) -> dict[str, Any]:
    """Read a check file; raises ConfigError, naming the file and the key, where it is not one."""
    try:
        check = read_json(path)
    except CorruptArtifact as error:
        raise ConfigError(str(error)) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    missing = [key for key in CHECK_KEYS if not isinstance(check, dict) or key not in check]
    if missing:
        raise ConfigError(f"{path}: {missing[0]}: missing; a check file has the keys {', '.join(CHECK_KEYS)}")
    return check


def report_name(report: Report) -> str:
    """The file name of a report. Processes that all believe to be rank 0 have different files."""
    return f"check-{report['launcher_rank']:04d}-{report['host']}-{report['pid']}.json"


def examine(check: Mapping[str, Any], folder: Path) -> Report:
    """Make this rank's report.

    A part that goes wrong spoils no other part: `errors` has a sentence for each.

    Args:
        check: The content of the check file.
        folder: The pack's folder in the store.
    """
    launched = launcher_size(os.environ)
    report: Report = {
        "pack_id": check["pack_id"],
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "launcher_rank": launcher_rank(os.environ),
        "launcher_size": launched[1] if launched else None,
        "launcher_variable": launched[0] if launched else None,
        "local_rank": launcher_local_rank(os.environ),
        "local_size": launcher_local_size(os.environ),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: installed_version(name) for name in PACKAGES},
        **memory(),
        "errors": {},
    }
    with part(report, "mpi"):
        world = start_mpi(report["launcher_size"])
        report |= {"rank": world.rank, "size": world.size, "mpi_library": mpi_library()}
    rank = report.get("rank", report["launcher_rank"])
    binding = None
    with part(report, "binding"):
        resources = (check["cores_per_rank"], check["gpus_per_node"], check["ranks_per_gpu"])
        binding = bind_rank(rank, *resources, place_of_mps(check))
        report |= {"cores": list(binding.cores), "cores_shared": binding.shared, **gpu(binding)}
    if binding is not None:
        # Without a binding jax would take all cores and every GPU.
        with part(report, "import"):
            begun = time.monotonic()
            # All that a rank imports, so that its time and its failures are those of a rank.
            from lambda_hat.execute import sampling, this_process  # noqa: F401

            report["seconds_import"] = time.monotonic() - begun
            with part(report, "device"):
                if binding.device is not None:
                    check_gpu(rank, binding, this_process.visible_devices)
                report |= this_process.probe()
    # Only now, because looking for a module of jax imports jax.
    report["missing"] = [name for name in check["needs"] if not is_there(name)]
    with part(report, "store"):
        report["store_written"] = False
        probe = folder / f".{report_name(report)}.probe"
        write_bytes_atomic(probe, b"written")
        probe.unlink()
        report["store_written"] = True
    report["seconds_ready"] = seconds_alive()
    return report


@contextlib.contextmanager
def part(report: Report, name: str) -> Iterator[None]:
    """Record an exception of the block as a sentence under `name`; one that is not ours also prints its traceback."""
    try:
        yield
    except LambdaHatError as error:
        report["errors"][name] = str(error)
    except BROKEN_SITE as error:
        traceback.print_exc()
        report["errors"][name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"


def seconds_alive() -> float:
    """Seconds since this process was started, imports included."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def installed_version(name: str) -> str | None:
    """The version of an installed package, without importing it."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def is_there(name: str) -> bool:
    """Whether the module `name` can be found, without importing more than its packages."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def mpi_library() -> str | None:
    """The first line of the MPI library's version; None without mpi4py, which a single process does not need."""
    if "mpi4py.MPI" not in sys.modules:
        return None
    from mpi4py import MPI

    # MPICH ends its lines with a NUL and separates words by tabs.
    return " ".join(MPI.Get_library_version().strip("\0\n").partition("\n")[0].split())


def memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> dict[str, int | None]:
    """Bytes that the node has available, and the least limit of this process's control groups; None: not known."""
    available = None
    with contextlib.suppress(OSError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) * 1024
    limits = memory_limits(cgroups, proc / "self" / "cgroup")
    return {"memory_available": available, "memory_limit": min(limits, default=None)}


def gpu(binding: Binding) -> dict[str, Any]:
    """Facts about the GPU of `binding`. Ranks may have different names for a GPU, but `gpu_id` is the same for all."""
    if binding.device is None:
        return {"device": None, "gpu_id": None}
    found = {"device": f"{binding.device_variable}={binding.device}", "gpu_id": None}
    if binding.device.startswith("MIG-"):
        return found | {"gpu_id": binding.device}
    query = ["nvidia-smi", "-i", binding.device, "--query-gpu=uuid,pci.bus_id,memory.total"]
    try:
        done = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=20, check=True
        )
        uuid, bus, megabytes = (word.strip() for word in done.stdout.strip().split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        return found
    total = int(megabytes) << 20 if megabytes.isdecimal() else None
    return found | {"gpu_id": uuid, "gpu_bus": bus, "gpu_memory": total}


if __name__ == "__main__":
    run_command(main)
