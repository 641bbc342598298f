"""What the processes of a study printed: where it stands, and how it ends."""

from __future__ import annotations

from pathlib import Path

from lambda_hat.store import Store, read_json_or_none

TAIL_LINES = 12
TAIL_BYTES = 16 * 1024
"""Of a log: enough for its last lines, however long it is."""
LINE_LETTERS = 400


def log_of(store: Store, run_dir: Path) -> Path:
    """Where the process wrote that a failed run was sampled by: its rank's log, or its own without packs."""
    record = read_json_or_none(run_dir / "error.json")
    if isinstance(record, dict) and isinstance(record.get("rank"), int) and isinstance(record.get("pack_id"), str):
        return store.pack_dir(record["pack_id"]) / f"rank-{record['rank']:04d}.log"
    return run_dir / "sample.err"


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
