"""Ranks that died, the runs that they were sampling, and the quarantine of runs that kill.

A run in flight on a rank that died gets a death, kept in `deaths.json` of its folder until it finishes. A death is
`sure` where it can only have been this run's: its rank alone is known to have died (by the launcher's words, or by
what the interpreter wrote in its last moment), or it was the only one in flight. Otherwise every run in flight gets a
death that is not sure.

Runs with a death are suspects. They are handed out after all others and one at a time, so a suspect is in flight
alone, and its next death is sure. A run is set aside as `RankDied` at a sure death that is not its first: deaths that
are not sure never condemn a run by themselves, for an innocent one may have been beside a killer twice.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lambda_hat.follow import Key, PackLog
from lambda_hat.store import Store, read_json_or_none, write_json_atomic
from mpi.launch import dead_ranks

DEATHS = "deaths.json"
QUARANTINED = "RankDied"
UNCAUGHT = re.compile(r"rank (\d+) of \d+ on \S+: uncaught exception, ending every rank")
"""A rank's own words where what it does outside of runs goes wrong."""


def deaths_of(run_dir: Path) -> list[dict[str, Any]]:
    """The deaths of a run, oldest first; none where the record is damaged, for it only makes a suspect."""
    content = read_json_or_none(run_dir / DEATHS)
    return [death for death in content if isinstance(death, dict)] if isinstance(content, list) else []


def is_suspect(run_dir: Path) -> bool:
    """Whether a run was in flight when a rank died."""
    return (run_dir / DEATHS).is_file()


def forget(run_dir: Path) -> None:
    """The run has finished, or is wanted again in spite of its deaths."""
    (run_dir / DEATHS).unlink(missing_ok=True)


def who_died(log: PackLog, flavour: str) -> set[int]:
    """The ranks of a pack that are known to have died first, by the launcher's words and their own logs."""
    said = "\n".join(_text(log.directory / name) for name in ("stdout.log", "stderr.log"))
    dead = dead_ranks(said, flavour, log.processes)
    dead |= {int(rank) for rank in UNCAUGHT.findall(said)}
    for path in log.directory.glob("rank-*.log"):
        if "Fatal Python error" in _text(path):
            dead.add(int(path.stem.removeprefix("rank-")))
    return dead


def blame(in_flight: dict[int, list[Key]], dead: set[int]) -> dict[Key, tuple[int, bool]]:
    """Run to its rank, and whether the death is surely its own, for the runs that get a death."""
    # A rank that died between two runs was killed by none of them.
    found = {key: rank for rank, keys in in_flight.items() if not dead or rank in dead for key in keys}
    return {key: (rank, len(dead) <= 1 and len(found) == 1) for key, rank in found.items()}


def record_deaths(store: Store, log: PackLog, flavour: str, how: str) -> tuple[set[int], list[Key]]:
    """Give the runs in flight of a launch that ended badly their deaths, and set aside those that have two.

    how: how the launch ended, in words. Returns the ranks that died, as far as known, and the runs set aside.
    Raises StoreUnwritable.
    """
    dead = who_died(log, flavour)
    condemned = []
    for (target_id, run_id), (rank, sure) in blame(log.in_flight, dead).items():
        run_dir = store.run_dir(target_id, run_id)
        death = {
            "pack_id": log.directory.name,
            "rank": rank,
            "host": log.hosts.get(rank),
            "time": time.time(),
            "how": how,
            "sure": sure,
            "log": str(log.directory / f"rank-{rank:04d}.log"),
        }
        deaths = [*deaths_of(run_dir), death]
        write_json_atomic(run_dir / DEATHS, deaths)
        if sure and len(deaths) > 1:
            _quarantine(run_dir, deaths)
            condemned.append((target_id, run_id))
    return dead, condemned


def _quarantine(run_dir: Path, deaths: list[dict[str, Any]]) -> None:
    told = "; ".join(_sentence(number, death) for number, death in enumerate(deaths, 1))
    last = deaths[-1]
    record = {
        "type": QUARANTINED,
        "message": f"the rank that sampled this run died {len(deaths)} times, so it is not tried again: {told}",
        "expected": True,
        "time": time.time(),
        "rank": last["rank"],
        "host": last["host"],
        "pack_id": last["pack_id"],
        "deaths": deaths,
    }
    write_json_atomic(run_dir / "error.json", record)


def _sentence(number: int, death: dict[str, Any]) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(death.get("time") or 0))
    company = "" if death.get("sure") else ", other runs being in flight as well"
    where = f"rank {death.get('rank')} on {death.get('host')} in {death.get('pack_id')}"
    return f"({number}) {where}, {when}, {death.get('how')}{company}, log {death.get('log')}"


def suspects_among(store: Store, runs: Iterable[Key]) -> list[str]:
    """The keys, as a pack file has them, of those runs that are suspects."""
    return [f"{target}/{run}" for target, run in runs if is_suspect(store.run_dir(target, run))]


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
