"""Reads what a report shows from a store, which may be damaged, unfinished or half gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd
import pyarrow as pa

from lambda_hat.errors import LambdaHatError
from lambda_hat.estimate.verdict import place_of
from lambda_hat.omegaconf_support import load_build_config
from lambda_hat.report.closing import AGREEMENTS, agreement
from lambda_hat.report.failures import Failure, failures_of
from lambda_hat.report.results import to_frame
from lambda_hat.report.timeline import read_lives
from lambda_hat.store.events import RankLife
from lambda_hat.store.layout import Store

STATUSES = ("finished", "failed", "blocked", "pending")
MOST_NAMED = 5
"""Most targets that a sentence names."""


@dataclass(frozen=True)
class Material:
    """What a report shows of a study, but for the draws of single runs."""

    store: Store
    frame: pd.DataFrame
    """The table: one row per run of the study, finished or not."""
    lives: list[RankLife]
    failures: list[Failure]
    statuses: dict[str, int]
    """Number of runs by status."""
    verdicts: dict[str, int]
    """Number of runs by verdict, ok first."""
    agreements: dict[str, int]
    """Number of runs by word of AGREEMENTS. Runs without an exact λ_t are not counted."""
    missing: list[str]
    """Sentences on what could not be read, or is not there yet."""


def gather(store: Store, table: pa.Table) -> Material:
    """Read what the page shows beside `table`, which is that of `results.collect`."""
    frame = to_frame(table)
    rows = table.to_pylist()
    packs = sorted(store.packs_dir.glob("pack_*")) if store.packs_dir.is_dir() else []
    lives = read_lives(packs, {(row["target_id"], row["run_id"]) for row in rows})
    counts = Counter(row["status"] for row in rows)
    verdicts = Counter(row["verdict"] for row in rows if row["verdict"] is not None)
    judged = Counter(agreement(row) for row in rows if row["status"] == "finished")
    return Material(
        store=store,
        frame=frame,
        lives=lives,
        failures=failures_of(store, rows),
        statuses={status: counts[status] for status in STATUSES if counts[status] or status == "finished"},
        verdicts=dict(sorted(verdicts.items(), key=lambda item: -place_of(item[0]))),
        agreements={word: judged[word] for word in AGREEMENTS},
        missing=list(_missing(store, frame, lives)),
    )


def _missing(store: Store, frame: pd.DataFrame, lives: list[RankLife]) -> Iterator[str]:
    if frame.empty:
        yield f"no run with a readable configuration in {store.root}"
    elif "finished" not in set(frame["status"]):
        yield "no run is finished yet; the same command makes this report again at any time"
    unread = [t for t in store.target_ids() if t not in set(frame["target_id"]) and _unreadable(store, t)]
    if unread:
        yield f"{_named(unread)}: the configuration cannot be read, and its runs are left out"
    done = frame[frame["status"] == "finished"]
    gone = [t for t in dict.fromkeys(done["target_id"]) if store.target_status(t) != "built"]
    if gone:
        yield (
            f"{_named(gone)}: its runs are finished, but the target is no longer in the store; its study builds it "
            "again"
        )
    lost = frame["reason"].fillna("").str.startswith("its result cannot be read")
    if lost.any():
        yield f"{int(lost.sum())} results cannot be read (the table says why); lambda-hat verify sets them aside"
    if len(done) and not lives:
        yield (
            "no chart of the ranks: these runs have no event log; they were sampled without packs, or their packs are "
            "gone"
        )


def _unreadable(store: Store, target_id: str) -> bool:
    if not store.run_ids(target_id):
        return False
    try:
        load_build_config(store.target_dir(target_id) / "config.yaml")
    except LambdaHatError:
        return True
    return False


def _named(ids: list[str]) -> str:
    more = f" and {len(ids) - MOST_NAMED} more" if len(ids) > MOST_NAMED else ""
    return ", ".join(ids[:MOST_NAMED]) + more
