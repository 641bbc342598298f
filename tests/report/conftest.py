"""Studies whose files are those of real ones, with made-up numbers."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

from benchmarks.made_up import CHECKPOINTS, SAMPLERS, finish, write_study
from lambda_hat.report import Report, write_report
from lambda_hat.results import collect, runs_of
from lambda_hat.store import Store
from lambda_hat.workflow_config import compose_study

SCRIPT = "<script>window.pwned = 1</script>"
ODD = {"target": {"factory": "mymodel:f", "kwargs": {"name": SCRIPT, "cost": "$1 and $2"}}}
"""A label that is a danger to a page, and no formula in a figure."""
TWO_RUNS = [{"name": "hmc", "sweep": {"seed": [0, 1]}}]


class Made(NamedTuple):
    """A study, and what was made of it."""

    folder: Path
    experiments: Path
    store: Store
    report: Report

    @property
    def page(self) -> str:
        return self.report.page.read_text()


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Made:
    """Eight targets times fifteen settings; three runs failed, two have not begun."""
    folder = tmp_path_factory.mktemp("whole")
    experiments = write_study(folder, [1, 4], SAMPLERS, [CHECKPOINTS, ODD])
    finish(compose_study(experiments), failed=3, pending=2, num_draws=100)
    store, refs = runs_of(folder / "runs", experiments)
    return Made(folder, experiments, store, write_report(store, collect(store, refs), folder / "results"))


@pytest.fixture
def small(tmp_path) -> Store:
    """Two finished runs of one target."""
    return finish(compose_study(write_study(tmp_path, [2], TWO_RUNS, [])), num_draws=40)
