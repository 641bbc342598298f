"""How many inputs were tried is told at the end of a run."""

from __future__ import annotations

import pytest

from tests.fuzz.judging import ACCEPTED, TRIED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        terminalreporter.section("inputs fuzzed")
        for what, count in sorted((+TRIED).items()):
            terminalreporter.write_line(f"{count:7d}  {what} ({ACCEPTED[what]} gave a result)")
        terminalreporter.write_line(f"{sum(TRIED.values()):7d}  in all")
