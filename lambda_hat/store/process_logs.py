"""What the processes of a study printed."""

from __future__ import annotations

from pathlib import Path

from lambda_hat.errors import StoreError
from lambda_hat.store.layout import Store, read_json_or_none
from lambda_hat.store.run_files import read_bytes

TAIL_LINES = 12
TAIL_BYTES = 16 * 1024
"""Read from the end of a log for its last lines, however long it is."""
LINE_LETTERS = 400


def log_of(store: Store, directory: Path) -> Path:
    """The log of the process in which a run or a build failed: its rank's, or without packs its own."""
    record = read_json_or_none(directory / "error.json")
    if isinstance(record, dict) and isinstance(record.get("rank"), int) and isinstance(record.get("pack_id"), str):
        return store.pack_dir(record["pack_id"]) / f"rank-{record['rank']:04d}.log"
    return directory / ("sample.err" if directory.name.startswith("run_") else "build.err")


def text_of(log: Path) -> str:
    """All of a log; empty where it cannot be read."""
    try:
        return read_bytes(log).decode(errors="replace")
    except (OSError, StoreError):
        return ""


def tail_of(log: Path) -> list[str]:
    """The last lines of a log; none where it is empty or cannot be read."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line[:LINE_LETTERS] for line in text.rstrip().splitlines()[-TAIL_LINES:]]
