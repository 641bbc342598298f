"""The benchmark of the report: a short look, whose figures mean nothing."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.running import run


@pytest.mark.slow
def test_report(tmp_path):
    printed = run("report", "--quick", "--keep", tmp_path / "kept").stdout
    assert ": 15 runs, in folders of their own and in archives." in printed and "| the page, MB |" in printed
    assert re.search(r"^\| files and folders of targets and runs \| 48 \| 21 \|", printed, flags=re.MULTILINE)
    assert (tmp_path / "kept" / "results" / "report.html").is_file()
