"""Grouping runs into packs: a pure function of the set of runs."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

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
    unique = sorted(set(items))
    packs: list[list[RunItem]] = [[] for _ in range(math.ceil(len(unique) / size))]
    loads = [0.0] * len(packs)

    def put(group: list[RunItem]) -> None:
        open_packs = [i for i, pack in enumerate(packs) if len(pack) < size]
        roomy = [i for i in open_packs if len(packs[i]) + len(group) <= size]
        # A group that fits nowhere whole is cut where the most of it fits.
        chosen = (
            min(roomy, key=lambda i: (loads[i], i))
            if roomy
            else min(open_packs, key=lambda i: (len(packs[i]), loads[i], i))
        )
        space = size - len(packs[chosen])
        packs[chosen] += group[:space]
        loads[chosen] += sum(item.cost for item in group[:space])
        if group[space:]:
            put(group[space:])

    for group in _groups(unique, len(packs), size):
        put(group)
    _even_out(packs, loads, size)
    return [sorted(pack, key=lambda item: (-item.cost, item)) for pack in packs]


def _even_out(packs: list[list[RunItem]], loads: list[float], size: int) -> None:
    """Exchange single runs between the heaviest and the lightest pack while they differ by more than the tolerance."""
    tolerance = UNEVEN * sum(loads) / max(len(loads), 1)
    for _ in range(sum(map(len, packs))):
        heavy = max(range(len(packs)), key=lambda i: (loads[i], i))
        light = min(range(len(packs)), key=lambda i: (loads[i], i))
        gap = loads[heavy] - loads[light]
        if gap <= tolerance:
            return
        back: list[RunItem | None] = list(packs[light])
        if len(packs[light]) < size and len(packs[heavy]) > 1:
            back.append(None)
        # What is moved on balance should be half the gap; nothing is gained once it is the whole.
        moved, given, got = min(
            ((a.cost - (b.cost if b else 0.0), a, b) for a in packs[heavy] for b in back),
            key=lambda choice: (abs(choice[0] - gap / 2), choice[1], choice[2] is not None, choice[2] or choice[1]),
        )
        if not 0 < moved < gap:
            return
        packs[heavy].remove(given)
        packs[light].append(given)
        if got is not None:
            packs[light].remove(got)
            packs[heavy].append(got)
        loads[heavy] -= moved
        loads[light] += moved


def _groups(items: list[RunItem], num_packs: int, size: int) -> list[list[RunItem]]:
    """Runs that should stay together, costliest group first, none above the fair share of a pack.

    Targets that share programs are one group; where that is too much each target is one; where that is too much it is
    cut by program, and where that is too much, anywhere.
    """
    fair_share = sum(item.cost for item in items) / max(num_packs, 1) * (1 + 1e-9)

    def fits(group: list[RunItem]) -> bool:
        return len(group) <= size and sum(item.cost for item in group) <= fair_share

    programs: dict[str, set[str]] = defaultdict(set)
    for item in items:
        programs[item.target_id].add(item.program)

    def divided() -> Iterator[list[RunItem]]:
        for family in _split_by(items, lambda item: min(programs[item.target_id])):
            if fits(family):
                yield family
            else:
                yield from _split_by(family, lambda item: item.target_id)

    groups: list[list[RunItem]] = []
    for target_runs in divided():
        if fits(target_runs):
            groups.append(target_runs)
            continue
        for program_runs in _split_by(target_runs, lambda item: item.program):
            piece: list[RunItem] = []
            for item in program_runs:
                if piece and not fits([*piece, item]):
                    groups.append(piece)
                    piece = []
                piece.append(item)
            groups.append(piece)
    return sorted(groups, key=lambda group: (-sum(item.cost for item in group), group))


def _split_by(items: list[RunItem], key: Callable[[RunItem], str]) -> list[list[RunItem]]:
    parts: dict[str, list[RunItem]] = defaultdict(list)
    for item in items:
        parts[key(item)].append(item)
    return list(parts.values())
