"""Grouping runs into packs: a pure function of the set of runs."""

from __future__ import annotations

import math
from bisect import insort
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from operator import attrgetter

from lambda_hat.errors import ConfigError

UNEVEN = 0.1
"""Packs may differ by this fraction of a fair share for the sake of keeping runs of one target together."""


@dataclass(frozen=True, order=True)
class RunItem:
    """One run to be packed. `cost` is its expected seconds; runs of equal `program` share compiled code."""

    target_id: str
    run_id: str
    program: str
    cost: float


_ORDER = attrgetter("target_id", "run_id", "program", "cost")
_COST_ORDER = attrgetter("cost", "target_id", "run_id", "program")
"""As keys much faster than the comparison of items."""

_Load = tuple[float, int]
"""Seconds of work in a pack, and its number."""
_NONE: _Load = (math.inf, -1)


def make_packs(items: Iterable[RunItem], size: int) -> list[list[RunItem]]:
    """Group `items` into the fewest packs of at most `size` runs.

    Runs of one target, targets that share programs, and within a target runs of one program stay together where they
    fit, so that a pack can start when few targets are there and compiles little; each group goes to the pack that has
    the least work so far.
    Every run is in exactly one pack, longest first inside it; the result does not depend on the order of `items`.

    Raises ConfigError where `size` is below 1.
    """
    if size < 1:
        raise ConfigError(f"--pack: got {size}, expected an integer of at least 1")
    unique = sorted(set(items), key=_ORDER)
    size = min(size, max(len(unique), 1))
    packs = _Packs(math.ceil(len(unique) / size), size)
    for group in _groups(unique, len(packs.runs), size):
        packs.put(group)
    _even_out(packs.runs, packs.loads, size)
    return [sorted(pack, key=lambda item: (-item.cost, _ORDER(item))) for pack in packs.runs]


class _Packs:
    """Packs that are being filled. `put` takes about the logarithm of `size`, however many packs there are."""

    def __init__(self, number: int, size: int):
        self.runs: list[list[RunItem]] = [[] for _ in range(number)]
        self.loads = [0.0] * number
        self._by_space: list[list[_Load]] = [[] for _ in range(size + 1)]
        """For every number of runs that still fit a heap of the packs with room for so many, the lightest first."""
        self._by_space[size] = [(0.0, pack) for pack in range(number)]
        self._widest = size
        """No pack has room for more."""
        self._leaves = 1 << size.bit_length()
        self._lightest: list[_Load] = [_NONE] * (2 * self._leaves)
        """A binary tree, root at 1, over the tops of those heaps: each node has the lightest pack below it."""
        self._update(size)

    def put(self, group: list[RunItem]) -> None:
        """Add `group` to the lightest pack that has room for all of it. One that fits nowhere whole is cut where the
        most of it fits."""
        done = 0
        while done < len(group):
            load, pack = self._lightest_with_room(len(group) - done)
            if (load, pack) == _NONE:
                while not self._by_space[self._widest]:
                    self._widest -= 1
                load, pack = self._by_space[self._widest][0]
            space = len(self._by_space) - 1 - len(self.runs[pack])
            part = group[done : done + space]
            done += len(part)
            self.runs[pack] += part
            self.loads[pack] += sum(item.cost for item in part)
            heappop(self._by_space[space])
            heappush(self._by_space[space - len(part)], (self.loads[pack], pack))
            self._update(space)
            self._update(space - len(part))

    def _update(self, space: int) -> None:
        node = self._leaves + space
        self._lightest[node] = self._by_space[space][0] if self._by_space[space] else _NONE
        while node > 1:
            node //= 2
            self._lightest[node] = min(self._lightest[2 * node], self._lightest[2 * node + 1])

    def _lightest_with_room(self, least: int) -> _Load:
        node = self._leaves + least
        best = self._lightest[node]
        while node > 1:
            if node % 2 == 0:
                best = min(best, self._lightest[node + 1])
            node //= 2
        return best


def _even_out(packs: list[list[RunItem]], loads: list[float], size: int) -> None:
    """Exchange single runs between the heaviest and the lightest pack while they differ by more than the tolerance."""
    tolerance = UNEVEN * sum(loads) / max(len(loads), 1)
    for pack in packs:
        pack.sort(key=_COST_ORDER)
    # Of a pack whose load has changed, entries that have another one are dropped where they come to the top.
    lightest = [(load, i) for i, load in enumerate(loads)]
    heaviest = [(-load, -i) for i, load in enumerate(loads)]
    heapify(lightest)
    heapify(heaviest)
    for _ in range(sum(map(len, packs))):
        while lightest[0][0] != loads[lightest[0][1]]:
            heappop(lightest)
        while -heaviest[0][0] != loads[-heaviest[0][1]]:
            heappop(heaviest)
        light, heavy = lightest[0][1], -heaviest[0][1]
        gap = loads[heavy] - loads[light]
        if gap <= tolerance:
            return
        one_way = len(packs[light]) < size and len(packs[heavy]) > 1
        given, got = _best_exchange(packs[heavy], packs[light], gap / 2, one_way)
        moved = packs[heavy][given].cost - (0.0 if got is None else packs[light][got].cost)
        if not 0 < moved < gap:
            return
        there = packs[heavy].pop(given)
        back = None if got is None else packs[light].pop(got)
        insort(packs[light], there, key=_COST_ORDER)
        if back is not None:
            insort(packs[heavy], back, key=_COST_ORDER)
        loads[heavy] -= moved
        loads[light] += moved
        for pack in (light, heavy):
            heappush(lightest, (loads[pack], pack))
            heappush(heaviest, (-loads[pack], -pack))


def _best_exchange(heavy: list[RunItem], light: list[RunItem], wanted: float, one_way: bool) -> tuple[int, int | None]:
    """Which run of `heavy` to give for which of `light`, None being for none where `one_way` allows that, so that what
    is moved on balance comes closest to `wanted`. Both are cheapest first."""
    prices = [item.cost for item in light]
    least, best = math.inf, (0, None)
    other = 0
    for given, item in enumerate(heavy):
        ideal = item.cost - wanted
        if one_way and abs(ideal) < least:
            least, best = abs(ideal), (given, None)
        # The dearer the run that is given, the dearer the one to take for it.
        while other + 1 < len(prices) and prices[other + 1] <= ideal:
            other += 1
        for got in range(other, min(other + 2, len(prices))):
            if abs(ideal - prices[got]) < least:
                least, best = abs(ideal - prices[got]), (given, got)
    return best


def _groups(items: list[RunItem], num_packs: int, size: int) -> list[list[RunItem]]:
    """Runs that should stay together, costliest group first, none above the fair share of a pack.

    Targets that share programs are one group; where that is too much each target is one; where that is too much it is
    cut by program, and where that is too much, anywhere.
    """
    fair_share = sum(item.cost for item in items) / max(num_packs, 1) * (1 + 1e-9)

    def fits(group: list[RunItem]) -> bool:
        return len(group) <= size and sum(item.cost for item in group) <= fair_share

    family: dict[str, str] = {}
    for item in items:
        family[item.target_id] = min(item.program, family.get(item.target_id, item.program))

    def divided() -> Iterator[list[RunItem]]:
        for relatives in _split_by(items, lambda item: family[item.target_id]):
            if fits(relatives):
                yield relatives
            else:
                yield from _split_by(relatives, lambda item: item.target_id)

    groups: list[list[RunItem]] = []
    for target_runs in divided():
        if fits(target_runs):
            groups.append(target_runs)
            continue
        for program_runs in _split_by(target_runs, lambda item: item.program):
            piece: list[RunItem] = []
            cost = 0.0
            for item in program_runs:
                if piece and (len(piece) == size or cost + item.cost > fair_share):
                    groups.append(piece)
                    piece, cost = [], 0.0
                piece.append(item)
                cost += item.cost
            groups.append(piece)
    return sorted(groups, key=lambda group: (-sum(item.cost for item in group), _ORDER(group[0])))


def _split_by(items: list[RunItem], key: Callable[[RunItem], str]) -> list[list[RunItem]]:
    parts: dict[str, list[RunItem]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return list(parts.values())
