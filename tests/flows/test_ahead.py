"""What of a report is drawn while the last runs finish."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks.made_up import finish, write_study
from flows.driver.ahead import Ahead
from flows.driver.options import parse_options
from flows.driver.request import Request
from lambda_hat.report.results import collect
from lambda_hat.report.study_report import write_report
from lambda_hat.workflow_config import compose_study
from tests.report.studies import TWO_RUNS

pytestmark = pytest.mark.parsl


@pytest.fixture
def request_of(tmp_path):
    experiments = write_study(tmp_path, [2], TWO_RUNS, [])

    def make(*words: str) -> Request:
        options = parse_options("", ["--experiments", str(experiments), *words], packed=True)
        return Request.from_options(options, packed=True)

    return make


def drawn_ahead(request: Request, figures: int) -> Ahead:
    """An `Ahead` that has drawn so many figures."""
    ahead = Ahead(request)
    ahead.begin()
    ahead.begin()
    deadline = time.monotonic() + 60
    while len(ahead._figures) < figures and time.monotonic() < deadline:
        time.sleep(0.02)
    return ahead


def test_the_figures_of_finished_runs_are_those_of_the_report(request_of, tmp_path):
    request = request_of()
    store = finish(compose_study(tmp_path / "study.yaml"), pending=1, num_draws=40)
    table = collect(store, request.study.runs, request.study.targets)
    figures = drawn_ahead(request, 1).end()
    (known,) = figures.values()
    first = write_report(store, table, tmp_path / "one", of_runs=figures)
    again = write_report(store, table, tmp_path / "two")
    (path,) = (tmp_path / "two" / "figures").glob("chains_*.png")
    assert path.read_bytes() == known.png
    assert [path.name for path in first.figures] == [path.name for path in again.figures]
    # The report takes what is there.
    figures[next(iter(figures))] = replace(known, png=b"drawn before")
    write_report(store, table, tmp_path / "one", of_runs=figures)
    assert (tmp_path / "one" / "figures" / path.name).read_bytes() == b"drawn before"


def test_nothing_is_drawn_where_no_report_is_wanted(request_of):
    ahead = Ahead(request_of("--no-report"))
    ahead.begin()
    assert ahead._thread is None
    assert ahead.end() == {}


def test_a_defect_is_left_to_the_report(request_of, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such store")

    monkeypatch.setattr("lambda_hat.report.results.collect", broken)
    assert drawn_ahead(request_of(), 0).end() == {}
