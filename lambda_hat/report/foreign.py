"""Imports of packages that would read or write the user's folders."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType


@contextlib.contextmanager
def matplotlib_without_trace() -> Iterator[None]:
    """Keep matplotlib from leaving folders in the user's home, unless this process has imported it already."""
    if "matplotlib" in sys.modules or os.environ.get("MPLCONFIGDIR"):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="lh.") as folder, _variable("MPLCONFIGDIR", folder):
        yield


def import_itables() -> ModuleType:
    """Import itables with its own defaults, whatever `itables.toml` or `pyproject.toml` lies around."""
    if "itables" not in sys.modules:
        with _variable("ITABLES_CONFIG", ""):
            import itables  # noqa: F401
    return sys.modules["itables"]


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
