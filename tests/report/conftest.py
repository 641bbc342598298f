"""Studies whose files are those of real ones, with made-up numbers."""

from __future__ import annotations

import pytest

from benchmarks.made_up import CHECKPOINTS, SAMPLERS, finish, write_study
from lambda_hat.report.results import collect, runs_of
from lambda_hat.report.study_report import write_report
from lambda_hat.store.layout import Store
from lambda_hat.workflow_config import compose_study
from tests.report.studies import ODD, TWO_RUNS, Made


@pytest.fixture(scope="session")
def whole(tmp_path_factory) -> Made:
    """Five targets times fifteen settings; three runs failed, two have not begun."""
    folder = tmp_path_factory.mktemp("whole")
    experiments = write_study(folder, [1, 4], SAMPLERS, [{**CHECKPOINTS, "checkpoints": {"every": 250}}, ODD])
    finish(compose_study(experiments), failed=3, pending=2, num_draws=100)
    store, *study = runs_of(folder / "runs", experiments)
    return Made(folder, experiments, store, write_report(store, collect(store, *study), folder / "results"))


@pytest.fixture
def small(tmp_path) -> Store:
    """Two finished runs of one target."""
    return finish(compose_study(write_study(tmp_path, [2], TWO_RUNS, [])), num_draws=40)
