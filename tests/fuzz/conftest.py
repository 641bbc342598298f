"""How many inputs were tried is told at the end of a run."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest

from tests.fuzz.judging import ACCEPTED, TRIED


@pytest.fixture(autouse=True, scope="module")
def unchecked() -> Iterator[None]:
    """Foreign input meets the code as it runs for users, without the checks of types and shapes."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if TRIED:
        terminalreporter.section("inputs fuzzed")
        for what, count in sorted((+TRIED).items()):
            terminalreporter.write_line(f"{count:7d}  {what} ({ACCEPTED[what]} gave a result)")
        terminalreporter.write_line(f"{sum(TRIED.values()):7d}  in all")
