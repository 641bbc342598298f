"""A benchmark, run as its page says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *words: str | Path, status: int = 0, cwd: Path | None = None, timeout: float = 600):
    """The process of `benchmarks/<name>.py` with these words, after its end with this exit status."""
    line = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *map(str, words)]
    done = subprocess.run(line, capture_output=True, text=True, cwd=cwd, timeout=timeout)
    assert done.returncode == status, done.stdout + done.stderr
    return done
