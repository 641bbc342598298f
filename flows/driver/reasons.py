"""Why something has no result, in words for a person."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from flows.sites.interchange import InterchangeLost
from lambda_hat.store.layout import error_line
from lambda_hat.store.process_logs import tail_of


def explain(future: Future, error_file: Path, log: Path) -> str:
    """Why something has no result: its `error.json`, else Parsl's exception; then the tail of its log."""
    if error_file.is_file():
        reason = error_line(error_file)
    elif is_lost_block(future.exception()):
        reason = "the workers that it ran on are gone"
    elif future.exception() is not None:
        reason = f"{type(future.exception()).__name__}: {future.exception()}"
    else:
        reason = f"exit status {future.result()}"
    return f"{reason}{log_tail(log)}"


def is_lost_block(failure: BaseException | None) -> bool:
    """Whether something failed because its nodes, or its worker processes, are gone."""
    from parsl.executors.errors import BadStateException
    from parsl.executors.high_throughput.errors import ManagerLost

    return isinstance(failure, (ManagerLost, BadStateException, InterchangeLost))


def log_tail(log: Path) -> str:
    """The last lines of a log under its path, each after a line break; empty where there are none."""
    lines = tail_of(log)
    if not lines:
        return ""
    return "\n    " + "\n    ".join([f"{log} ends with:", *lines])
