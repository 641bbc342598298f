"""Work for nodes that have none: the pack with most left lets go of runs, and they are a pack of their own.

That is so for a block that starts late, and for one whose packs are done. The driver asks in its heartbeat, which rank
0 of every pack reads; its answer is an event. Runs that a rank has begun stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from flows.driver.rounds import Round
from lambda_hat.planning.packing import PlannedRun

LOOK_SECONDS = 2.0
LEAST_SECONDS = 20.0
"""Expected seconds for each rank of the new pack. A pack takes about ten to start and to compile its first program."""


class SharedPack(Protocol):
    """What is asked of a pack; a `Pack`."""

    directory: Path

    @property
    def takes_questions(self) -> bool:
        """Whether its ranks have begun, and not ended."""
        ...

    @property
    def seconds_left(self) -> float:
        """Expected seconds of the runs that have not begun."""
        ...


class Sharing:
    """The packs of a round that have not ended, and what becomes of runs that they let go of.

    submit: makes a pack of runs and submits it.
    """

    def __init__(self, round_: Round, submit: Callable[[list[PlannedRun]], None]):
        self._round, self._submit = round_, submit
        self._packs: list[SharedPack] = []
        self._asked: SharedPack | None = None
        self._dry: set[SharedPack] = set()
        """Packs that had nothing to let go of."""

    def add(self, pack: SharedPack) -> None:
        """A pack was submitted."""
        self._packs.append(pack)

    def ended(self, pack: SharedPack) -> None:
        """A pack has ended, after its last answer."""
        self._packs.remove(pack)
        if self._asked is pack:
            self._asked = None

    def answered(self, pack: SharedPack, runs: list[PlannedRun]) -> None:
        """A pack has let go of runs; there may be none."""
        self._asked = None
        if not runs:
            self._dry.add(pack)
        if runs and self._round.going_on:
            self._round.progress.more("packs")
            self._round.progress.event(f"{pack.directory.name}: {len(runs)} runs go to nodes that have no work")
            self._submit(runs)

    def look(self) -> bool:
        """Ask a pack where nodes have no work. Returns whether that may be so soon."""
        ranks = self._round.request.site.resources["num_ranks"]
        packs = [pack for pack in self._packs if pack not in self._dry]
        worth = [pack for pack in packs if pack.seconds_left / 2 > LEAST_SECONDS * ranks]
        self._round.workers.keep_blocks(bool(worth))
        at_work = [pack for pack in worth if pack.takes_questions]
        if self._asked is None and at_work and not self._round.request.is_late:
            places = self._round.workers.places() - len(self._round.nodes.left_out)
            if places > len(self._packs):
                self._asked = max(at_work, key=lambda pack: pack.seconds_left)
                self._round.workers.heartbeat.let_go(self._asked.directory.name)
        return bool(worth)
