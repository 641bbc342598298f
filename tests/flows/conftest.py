"""Studies in folders of their own, for tests in which something happens to them."""

from __future__ import annotations

import pytest

from tests.flows.studies import Study


@pytest.fixture
def make(tmp_path):
    made = []

    def make(**settings) -> Study:
        made.append(Study(tmp_path, **settings))
        return made[-1]

    yield make
    for study in made:
        for driver in study.drivers:
            if driver.poll() is None:
                driver.kill()
            driver.wait()
        study.assert_nothing_runs_within(60)


@pytest.fixture
def short(make) -> Study:
    """24 runs of a third of a second."""
    return make(targets=[{"target": "quadratic"}, {"target": "monomial"}], seeds=12, thin=2000)


@pytest.fixture
def long(make) -> Study:
    """Four runs of some five seconds, of many chunks each."""
    return make(targets=[{"target": "quadratic"}], seeds=4, thin=25000)
