"""Where the scripts and presets lie that run studies: in the checkout, or in the installed package."""

from __future__ import annotations

from pathlib import Path


def _root() -> Path:
    package = Path(__file__).resolve().parent
    checkout = package.parent
    if all((checkout / name).is_file() for name in ("flows/packed.py", "pyproject.toml")):
        return checkout
    return package / "shipped"


ROOT = _root()
"""The folder of `flows/`, `mpi/`, `conf/` and `slurm_templates/`."""
SCRIPTS = {"run": ROOT / "flows" / "packed.py", "tune": ROOT / "flows" / "tune.py"}
"""By the commands of `lambda-hat` that they are."""
