"""The benchmark of ranks that share a GPU: its short form, on cores."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.running import run


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.parsl
def test_sharing(tmp_path):
    assert re.search(
        r"\| none \| 2 \| [1-9]\d* \|$", run("sharing", "--quick", "--out", tmp_path).stdout, flags=re.MULTILINE
    )
    assert (tmp_path / "sharing.md").is_file()
