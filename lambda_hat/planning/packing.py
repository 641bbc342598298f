"""Planned runs, and their grouping into packs: a pure function of the set of runs."""

from __future__ import annotations

import math
from bisect import bisect, insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any

from lambda_hat.errors import ConfigError
from lambda_hat.id_utils import Run

PACK_FORMAT = 1
"""Of a pack file, which `mpi/run_pack.py` explains."""
UNEVEN = 0.1
"""Packs may differ by this fraction of a fair share for the sake of keeping runs of one target together."""
LOOK = 256
"""How many of the lightest packs are searched for room: to search 30,000 of them for each group takes too long."""


@dataclass(frozen=True)
class PlannedRun(Run):
    """A run, and what is expected of it."""

    program: str
    """Runs with the same `program` are expected to share compiled code. Empty: it is not known."""
    cost: float
    """Expected seconds, without compilation."""
    site: str = ""
    """Where it is sampled, as its entry says it. Empty: on the site of the study."""

    def pack_entry(self) -> dict[str, Any]:
        """The entry of the run in a pack file."""
        names = {"target_id": self.target_id, "run_id": self.run_id}
        return {**names, "config": asdict(self.cfg), "cost": self.cost, "program": self.program}


_COST = attrgetter("cost")
_ORDER = attrgetter("target_id", "run_id", "program", "cost")
"""As a key much faster than the comparison of runs."""


def make_packs(items: Iterable[PlannedRun], size: int) -> list[list[PlannedRun]]:
    """Group `items` into the fewest packs of at most `size` runs.

    Runs of one target, targets that share programs, and within a target runs of one program stay together where they
    fit, so that a pack can start when few targets are there and compiles little. The costliest group comes first, and
    each goes to the pack that has the least work so far. Single runs are then exchanged until the packs are even.
    Every run is in exactly one pack, longest first inside it. The result does not depend on the order of `items`.

    Raises ConfigError where `size` is below 1.
    """
    if size < 1:
        raise ConfigError(f"--pack: got {size}, expected an integer of at least 1")
    unique = sorted({item.key: item for item in items}.values(), key=_ORDER)
    packs: list[list[PlannedRun]] = [[] for _ in range(math.ceil(len(unique) / size))]
    fair_share = _total(unique) / max(len(packs), 1)
    groups = _groups(unique, fair_share * (1 + 1e-9), size)
    _fill(packs, sorted(groups, key=lambda group: (-_total(group), _ORDER(group[0]))), size)
    _even_out(packs, UNEVEN * fair_share, size)
    return [sorted(pack, key=lambda item: (-item.cost, _ORDER(item))) for pack in packs]


def _groups(items: list[PlannedRun], most: float, size: int) -> Iterator[list[PlannedRun]]:
    """Runs that should stay together: at most `size` of them, and of a cost of at most `most` where that can be.

    Targets that share programs are one group; where that is too much each target is one; where that is too much it is
    cut by program, and where that is too much, anywhere.
    """
    family: dict[str, str] = {}
    for item in items:
        family[item.target_id] = min(item.program, family.get(item.target_id, item.program))
    keys = (lambda item: family[item.target_id], attrgetter("target_id"), attrgetter("program"))

    def divided(group: list[PlannedRun], depth: int) -> Iterator[list[PlannedRun]]:
        total = _total(group)
        fit = size if total <= most else max(1, min(size, int(len(group) * most / total)))
        if len(group) <= fit or depth == len(keys):
            yield from (group[first : first + fit] for first in range(0, len(group), fit))
        else:
            split: dict[str, list[PlannedRun]] = defaultdict(list)
            for item in group:
                split[keys[depth](item)].append(item)
            for part in split.values():
                yield from divided(part, depth + 1)

    return divided(items, 0)


def _fill(packs: list[list[PlannedRun]], groups: Iterable[list[PlannedRun]], size: int) -> None:
    """Put each group into the lightest pack that has room for all of it.

    A group that fits nowhere whole is cut where the most of it fits.
    """
    with_room = [(0.0, number) for number in range(len(packs))]
    for group in groups:
        while group:
            rooms = [size - len(packs[number]) for _, number in with_room[:LOOK]]
            wanted = min(len(group), max(rooms))
            load, number = with_room.pop(next(k for k, room in enumerate(rooms) if room >= wanted))
            part, group = group[:wanted], group[wanted:]
            packs[number] += part
            if len(packs[number]) < size:
                insort(with_room, (load + _total(part), number))


def _even_out(packs: list[list[PlannedRun]], tolerance: float, size: int) -> None:
    """Exchange single runs between the heaviest and the lightest pack while they differ by more than `tolerance`."""
    for pack in packs:
        pack.sort(key=_COST)
    by_load = sorted((_total(pack), number) for number, pack in enumerate(packs))
    for _ in range(sum(map(len, packs))):
        (least, light), (most, heavy) = by_load[0], by_load[-1]
        gap = most - least
        if gap <= tolerance:
            return
        has_room = len(packs[light]) < size and len(packs[heavy]) > 1
        given, got = _best_exchange(packs[heavy], [None] * has_room + packs[light], gap / 2)
        moved = given.cost - _cost_of(got)
        if not 0 < moved < gap:
            return
        for run, here, there in ((given, heavy, light), (got, light, heavy)):
            if run is not None:
                packs[here].remove(run)
                insort(packs[there], run, key=_COST)
        del by_load[-1], by_load[0]
        insort(by_load, (least + moved, light))
        insort(by_load, (most - moved, heavy))


def _best_exchange(
    heavy: Sequence[PlannedRun], light: Sequence[PlannedRun | None], wanted: float
) -> tuple[PlannedRun, PlannedRun | None]:
    """Which run of `heavy` to give for which of `light`, both cheapest first.

    The difference of their costs comes as close as possible to `wanted`. None in `light` stands for no run in return.
    """

    def pairs() -> Iterator[tuple[PlannedRun, PlannedRun | None]]:
        for given in heavy:
            above = bisect(light, given.cost - wanted, key=_cost_of)
            yield from ((given, got) for got in light[max(above - 1, 0) : above + 1])

    return min(pairs(), key=lambda pair: abs(pair[0].cost - _cost_of(pair[1]) - wanted))


def _cost_of(run: PlannedRun | None) -> float:
    return 0.0 if run is None else run.cost


def _total(items: Iterable[PlannedRun]) -> float:
    return sum(item.cost for item in items)
