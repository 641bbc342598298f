"""Every benchmark, and the report of them all: `make bench`.

    python benchmarks/bench.py [--quick] [--out DIR] [NAME ...]

Each is a process of its own and writes its section and figure into `--out` (default benchmarks/results); RESULTS.md in
the folder above is put together from the sections that are there, so that a single benchmark can be run again.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.devinterp_side import NOTE  # noqa: E402

NAMES = tuple(
    """
    first compiling packing step busy handout memory startup costs scale tune report calibration equilibrium metrics
    temperature wells beside defaults large size promise
    """.split()
)
DEVINTERP = {"calibration": False, "beside": True}
"""Benchmarks that ask devinterp, in an interpreter of its own, and whether they are nothing without it."""
PACKAGES = ("jax", "jaxlib", "blackjax", "numpy", "parsl", "mpi4py", "mpich")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a short look: its figures mean nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR", help="for sections and figures")
    parser.add_argument("--devinterp", metavar="PYTHON", help=NOTE)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(NAMES)}; default: all")
    args = parser.parse_args()
    if unknown := set(args.names) - set(NAMES):
        parser.error(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    quick = ["--quick"] if args.quick else []
    for name in args.names or NAMES:
        if DEVINTERP.get(name) and not args.devinterp:
            print(f"-- {name}: left as it was, for want of --devinterp PYTHON, the {NOTE}\n", flush=True)
            continue
        begun = time.monotonic()
        other = ["--devinterp", args.devinterp] if name in DEVINTERP and args.devinterp else []
        line = [sys.executable, str(HERE / f"{name}.py"), "--out", str(args.out), *quick, *other]
        subprocess.run(line, check=True)
        print(f"-- {name}: {time.monotonic() - begun:.0f} s\n", flush=True)
    report = args.out.parent / "RESULTS.md"
    report.write_text("\n\n".join([head(), *sections(args.out)]) + "\n")
    print(f"{report}")


def head() -> str:
    """Machine and versions."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"""# Benchmarks: what was measured

`make bench` writes this file. {time.strftime("%Y-%m-%d")}; {processor()}, {len(os.sched_getaffinity(0))} cores,
{memory:.0f} GiB; Python {platform.python_version()}, {versions}.

Figures are medians with the least and the most in brackets. Ratios are of runs that alternate on this machine."""


def processor() -> str:
    """The name that Linux has for it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def sections(folder: Path) -> list[str]:
    """What the benchmarks have written, their figures where this file finds them."""
    found = [folder / f"{name}.md" for name in NAMES]
    return [path.read_text().strip().replace("](", f"]({folder.name}/") for path in found if path.is_file()]


if __name__ == "__main__":
    main()
