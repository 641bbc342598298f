"""The benchmark of the report: a short look, whose figures mean nothing."""

from __future__ import annotations

from tests.benchmarks.running import run


def test_report(tmp_path):
    printed = run("report", "--quick", "--keep", tmp_path / "kept").stdout
    assert ": 15 runs." in printed and "| the page, MB |" in printed
    assert (tmp_path / "kept" / "results" / "report.html").is_file()
