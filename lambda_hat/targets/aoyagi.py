"""Learning coefficient of a deep linear network."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations


def dln_llc(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """Learning coefficient lambda and multiplicity m of a deep linear network whose true map has rank `rank`.

    widths: H_0 (inputs), hidden widths, H_L (outputs). The coefficient is the least over all true parameters.
    Aoyagi 2024 (Neural Networks 172, 106132), Theorem 1: with `M_k = H_k - r`, `s` the sum of the l + 1 least of them
    (l below), and `a = s - (ceil(s/l) - 1) l`,

        lambda = (r (H_0 + H_L) - r^2)/2 + a (l - a)/(4 l) - s^2 (l - 1)/(4 l) + 1/2 sum_{i<j} M_i M_j,
        m = a (l - a) + 1.

    Raises ValueError where the rank exceeds a width.
    """
    if not 0 <= rank <= min(widths):
        raise ValueError(f"rank: got {rank}, expected 0 to the least of the widths {list(widths)}")
    least = _least(sorted(width - rank for width in widths))
    l, s = len(least) - 1, sum(least)
    a = s - (-(-s // l) - 1) * l
    pairs = sum(x * y for x, y in combinations(least, 2))
    regular = Fraction(rank * (widths[0] + widths[-1]) - rank**2, 2)
    llc = regular + Fraction(a * (l - a) - s**2 * (l - 1), 4 * l) + Fraction(pairs, 2)
    return float(llc), a * (l - a) + 1


def _least(ascending: list[int]) -> list[int]:
    """The shortest prefix of l + 1 >= 2 entries whose sum s has `l max <= s`, and `s < l next` unless it is all."""
    for l in range(1, len(ascending)):
        prefix, rest = ascending[: l + 1], ascending[l + 1 :]
        if l * prefix[-1] <= sum(prefix) and (not rest or sum(prefix) < l * rest[0]):
            return prefix
    raise AssertionError(f"no prefix of {ascending} fits, which the theorem excludes")
