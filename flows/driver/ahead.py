"""What of the report can be done while the last runs finish: cores are idle then, which the report would wait for."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from flows.driver.request import Request

if TYPE_CHECKING:
    from lambda_hat.report.study_report import FiguresOfRuns

MOST_RUNS = 1000
"""Of a study of more runs only packages are imported ahead: its table takes long to read."""


class Ahead:
    """A thread that imports what the report needs, and draws the figures of runs that are finished.

    It has stopped at the end of `with Ahead(request) as ahead:`.
    """

    def __init__(self, request: Request):
        self._request, self._stop = request, threading.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._figures: FiguresOfRuns = {}

    def __enter__(self) -> Ahead:
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()

    def begin(self) -> None:
        """Start, unless it has been started, or no report is wanted."""
        if self._request.report and self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="report-ahead")
            # What goes wrong there goes wrong in the report as well, which says so.
            self._thread.submit(self._draw)

    def end(self) -> FiguresOfRuns:
        """Stop after the figure that is being drawn. Returns the figures."""
        self._stop.set()
        if self._thread is not None:
            self._thread.shutdown()
        return self._figures

    def _draw(self) -> None:
        from lambda_hat.report.results import collect
        from lambda_hat.report.study_report import draw_ahead, import_packages

        study = self._request.study
        import_packages()
        if len(study.runs) <= MOST_RUNS and not self._stop.is_set():
            table = collect(self._request.store, study.runs, study.targets)
            draw_ahead(table, self._figures, going=lambda: not self._stop.is_set())
