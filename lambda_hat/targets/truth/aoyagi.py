"""The learning coefficient of a deep linear network."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations


def dln_llc(widths: Sequence[int], rank: int) -> tuple[float, int]:
    """The learning coefficient lambda and multiplicity m of a deep linear network, least over all true parameters.

    Aoyagi 2024 (Neural Networks 172, 106132), Theorem 1: let `M_k = H_k - r`, let `s` be the sum of the l + 1 least of
    them (`_least` chooses l), and `a = s - (ceil(s/l) - 1) l`. Then, with the sum over these l + 1,

        lambda = (r (H_0 + H_L) - r^2)/2 + a (l - a)/(4 l) - s^2 (l - 1)/(4 l) + 1/2 sum_{i<j} M_i M_j,
        m = a (l - a) + 1.

    Args:
        widths: H_0 (inputs), the hidden widths, H_L (outputs).
        rank: the rank r of the true map.

    Raises:
        ValueError: if the rank exceeds a width.
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
    """The shortest prefix of l + 1 >= 2 entries with sum s such that `l max <= s`, and `s < l next` if one follows."""
    for l in range(1, len(ascending)):
        prefix, rest = ascending[: l + 1], ascending[l + 1 :]
        if l * prefix[-1] <= sum(prefix) and (not rest or sum(prefix) < l * rest[0]):
            return prefix
    raise AssertionError(f"no prefix of {ascending} fits, which the theorem excludes")
