"""What the tests of the report look at."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lambda_hat.report.study_report import Report
from lambda_hat.store.layout import Store

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
