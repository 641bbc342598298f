"""The record of a failed build or run: its `error.json`."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lambda_hat.errors import LambdaHatError, Paused, StoreUnwritable, is_interruption
from lambda_hat.execute.this_process import where_am_i
from lambda_hat.store.layout import write_json_atomic


@contextmanager
def recording_failure(directory: Path, context: dict[str, Any] | None = None) -> Iterator[None]:
    """Record an exception of the block in `directory/error.json`, and raise it again.

    `Paused`, `StoreUnwritable` and a Ctrl-C are no failures of the target or run, and are not recorded.
    """
    try:
        yield
    except (Paused, StoreUnwritable):
        raise
    except Exception as error:
        if not is_interruption(error):
            record_failure(directory, error, context)
        raise


def record_failure(directory: Path, error: BaseException, context: dict[str, Any] | None = None) -> None:
    """Write `error.json`: the exception, its traceback, host, process and time.

    Args:
        directory: the folder of the target or run.
        error: what was raised.
        context: further entries of the record, such as rank and pack_id.
    """
    write_json_atomic(
        directory / "error.json",
        {
            "type": type(error).__name__,
            "message": str(error),
            "expected": isinstance(error, LambdaHatError),
            "traceback": "".join(traceback.format_exception(error)),
            "time": time.time(),
            **where_am_i(),
            **(context or {}),
        },
    )
