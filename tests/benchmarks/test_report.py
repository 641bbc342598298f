"""The benchmark of the report: a short look, whose figures mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_report(tmp_path):
    words = [sys.executable, "benchmarks/report.py", "--quick", "--keep", str(tmp_path / "kept")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ": 15 runs." in done.stdout and "| the page, MB |" in done.stdout
    assert (tmp_path / "kept" / "results" / "report.html").is_file()
