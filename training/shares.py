"""Shares of counts, with the intervals that hold them with 95 % confidence. No I/O."""

from __future__ import annotations

import math

# The quantile of the normal distribution for 95 % on two sides.
Z = 1.959963984540054


def wilson(hits: int, of: int) -> tuple[float, float]:
    """The interval (95 %) of a share of which `hits` of `of` were seen. Source: Wilson (1927)."""
    if of == 0:
        return 0.0, 1.0
    share, square = hits / of, Z * Z
    centre = (share + square / (2 * of)) / (1 + square / of)
    half = Z / (1 + square / of) * math.sqrt(share * (1 - share) / of + square / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def difference_of_shares(one: tuple[int, int], other: tuple[int, int]) -> tuple[float, float, float]:
    """The first share minus the second, each as (hits, of), and the ends of its interval (95 %).

    Source: Newcombe, Interval estimation for the difference between independent proportions (1998), method 10.
    """
    (low, high), (other_low, other_high) = wilson(*one), wilson(*other)
    share, other_share = one[0] / one[1], other[0] / other[1]
    difference = share - other_share
    return (
        difference,
        difference - math.hypot(share - low, other_high - other_share),
        difference + math.hypot(high - share, other_share - other_low),
    )
