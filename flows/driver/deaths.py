"""Ranks that died, the runs that they were sampling, and the quarantine of runs that kill.

A run in flight on a rank that died gets a death, kept in `deaths.json` of its folder until it finishes. A death is
`sure` where only this run can have caused it: its rank alone is known to have died (the launcher says so, or the
interpreter's last words), or it was the only run in flight. Otherwise every run in flight gets a death that is not
sure.

Runs with a death are suspects. They are handed out after all others and one at a time, so a suspect is in flight
alone, and its next death is sure. A run is set aside as `RankDied` at a sure death that is not its first. Deaths that
are not sure never condemn a run by themselves: an innocent run may be beside a killer twice. Nor do deaths on one node
that is left out since (`flows/driver/bad_nodes.py`): the run is tried on another.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.driver.bad_nodes import BadNodes
from lambda_hat.store.events import Key, PackLog
from lambda_hat.store.layout import DEATHS, Store, deaths_of, write_json_atomic
from lambda_hat.store.process_logs import text_of
from mpi.launch import node_name
from mpi.launchers import dead_ranks

QUARANTINED = "RankDied"
UNCAUGHT = re.compile(r"rank (\d+) of \d+ on \S+: uncaught exception, ending every rank")
"""What a rank says of an exception outside of runs."""


def is_suspect(run_dir: Path) -> bool:
    """Whether a run was in flight when a rank died."""
    return (run_dir / DEATHS).is_file()


def forget(run_dir: Path) -> None:
    """Drop the deaths of a run that has finished, or that is wanted again in spite of them."""
    (run_dir / DEATHS).unlink(missing_ok=True)


def who_died(log: PackLog, flavour: str) -> set[int]:
    """The ranks of a pack that are known to have died first, from the launcher's words and their own logs."""
    said = "\n".join(text_of(log.directory / name) for name in ("stdout.log", "stderr.log"))
    processes = {(life.host, life.pid): life.rank for life in log.ranks if life.pid is not None}
    dead = dead_ranks(said, flavour, processes)
    dead |= {int(rank) for rank in UNCAUGHT.findall(said)}
    for path in log.directory.glob("rank-*.log"):
        if "Fatal Python error" in text_of(path):
            dead.add(int(path.stem.removeprefix("rank-")))
    return dead


def blame(in_flight: dict[int, list[Key]], dead: set[int]) -> dict[Key, tuple[int, bool]]:
    """The runs that get a death, each with its rank and whether the death is surely its own.

    in_flight: rank to its runs in flight. dead: the ranks that are known to have died.
    """
    # No run killed a rank that died between two runs.
    found = {key: rank for rank, keys in in_flight.items() if not dead or rank in dead for key in keys}
    return {key: (rank, len(dead) <= 1 and len(found) == 1) for key, rank in found.items()}


def record_deaths(
    store: Store, log: PackLog, flavour: str, how: str, nodes: BadNodes
) -> tuple[set[int], list[Key], list[str]]:
    """A launch has ended badly: give its runs in flight their deaths, and set aside those that have two.

    how: how the launch ended, in words. nodes: learn of the death. Returns the ranks that are known to have died, the
    runs set aside, and what is new of nodes.
    Raises StoreUnwritable.
    """
    dead, hosts = who_died(log, flavour), {life.rank: life.host for life in log.ranks}
    blamed = blame(log.in_flight, dead)
    nodes.died(log.directory.name, [hosts[rank] for rank in dead or hosts if rank in hosts], blamed)
    news = nodes.judge()
    condemned = []
    for (target_id, run_id), (rank, sure) in blamed.items():
        run_dir = store.run_dir(target_id, run_id)
        death = {
            "pack_id": log.directory.name,
            "rank": rank,
            "host": hosts.get(rank),
            "time": time.time(),
            "how": how,
            "sure": sure,
            "log": str(log.directory / f"rank-{rank:04d}.log"),
        }
        deaths = [*deaths_of(run_dir), death]
        write_json_atomic(run_dir / DEATHS, deaths)
        places = {node_name(str(each.get("host"))) for each in deaths}
        if sure and len(deaths) > 1 and not (len(places) == 1 and places <= nodes.left_out.keys()):
            _quarantine(run_dir, deaths)
            condemned.append((target_id, run_id))
    return dead, condemned, news


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
    """Those of `runs` that are suspects, named as in a pack file."""
    return [f"{target}/{run}" for target, run in runs if is_suspect(store.run_dir(target, run))]
