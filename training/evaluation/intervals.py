"""Intervals of figures by resampling: how far a figure would move had the samples been others of their kind. No I/O.

A figure is a function from weights to values: a row of weights says how often each sample counts. So one function
gives the figure itself (each sample once) and what it is in every resample, and two models are compared in the same
resamples. What is drawn are document families, each with all of its samples: answers from one document are alike, and
ten of them say less than ten from ten documents.
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16; Davison and Hinkley,
Bootstrap Methods and their Application (1997), 3.8 (clusters).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from training.evaluation.figures import Comparison, Metric

Floats = NDArray[np.floating[Any]]
# Weights, shape (draws, samples), to the figure in each draw, shape (draws,).
Figure = Callable[[Floats], Floats]
RESAMPLES = 1_000
CONFIDENCE = 0.95
# Of fewer families nothing can be drawn: their samples are drawn, and two models are not compared by them.
FEWEST_FAMILIES = 3


def mean(values: Sequence[float] | Floats) -> Figure:
    """The mean over the samples."""
    found = np.asarray(values, float)
    return lambda weights: np.asarray((weights @ found) / weights.sum(axis=1))


def ratio(
    above: Sequence[float], below: Sequence[float], then: Callable[[Floats], Floats] = lambda value: value
) -> Figure:
    """A function of the sum of `above` over the sum of `below`."""
    over, under = np.asarray(above, float), np.asarray(below, float)
    return lambda weights: then((weights @ over) / (weights @ under))


def metric(
    name: str,
    better: Literal["lower", "higher"],
    figure: Figure,
    n: int,
    seed: int,
    *,
    groups: Sequence[str] | None = None,
    moved: bool = False,
) -> Metric:
    """The figure over all `n` samples with its percentile interval.

    `groups`: the family of each sample (default: each has its own). `moved`: shifted by the mean error of the
    resamples. A distance of distributions is larger in every resample than it is, because a sample that counts twice
    brings no new words. Raises ValueError without samples.
    """
    value, drawn = _values(figure, n, seed, groups)
    low, high = _interval(drawn, value if moved else None)
    families = _families(n, groups)
    return Metric(name=name, better=better, value=value, low=low, high=high, n=n, families=families)


def comparison(
    name: str,
    one: Figure,
    other: Figure,
    n: int,
    seed: int,
    *,
    groups: Sequence[str] | None = None,
    moved: bool = False,
) -> Comparison:
    """`one` minus `other`, both taken in the same resamples. Raises ValueError without samples."""

    def difference(weights: Floats) -> Floats:
        return one(weights) - other(weights)

    value, drawn = _values(difference, n, seed, groups)
    low, high = _interval(drawn, value if moved else None)
    return Comparison(name=name, difference=value, low=low, high=high, n=n, families=_families(n, groups))


def ratio_of_quantiles(
    one: Sequence[float], other: Sequence[float], share: float, seed: int = 0
) -> tuple[float, float, float]:
    """How many times the quantile of `one` at this share is that of `other`, with the ends of its interval.

    Both are samples of their own, of numbers above 0, and drawn apart. Raises ValueError where one is empty.
    """
    if not one or not other:
        raise ValueError("a quantile needs a sample")
    source = np.random.default_rng(seed)

    def drawn(values: Sequence[float]) -> Floats:
        found = np.asarray(values, float)
        return np.asarray(np.quantile(found[source.integers(len(found), size=(RESAMPLES, len(found)))], share, axis=1))

    low, high = _interval(drawn(one) / drawn(other), None)
    return float(np.quantile(one, share) / np.quantile(other, share)), low, high


def comparable(groups: Sequence[str]) -> bool:
    """Whether samples of these families are of enough of them to compare models by."""
    return len(set(groups)) >= FEWEST_FAMILIES


def _families(n: int, groups: Sequence[str] | None) -> int:
    return n if groups is None else len(set(groups))


def _values(figure: Figure, n: int, seed: int, groups: Sequence[str] | None) -> tuple[float, Floats]:
    if n < 1:
        raise ValueError("a figure needs a sample")
    if groups is not None and len(groups) != n:
        raise ValueError(f"{n} samples have {len(groups)} families")
    place = np.arange(n)
    if groups is not None and comparable(groups):
        place = np.unique(np.asarray(groups), return_inverse=True)[1]
    count = int(place.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    return float(figure(np.ones((1, n)))[0]), figure(drawn[:, place])


def _interval(drawn: Floats, around: float | None) -> tuple[float, float]:
    """The middle CONFIDENCE of the draws; a draw that gave no number (nothing in it to divide by) is left out."""
    known = drawn[np.isfinite(drawn)]
    rest = (1 - CONFIDENCE) / 2
    low, high = np.quantile(known, (rest, 1 - rest))
    if around is None:
        return float(low), float(high)
    error = float(known.mean()) - around
    return min(around, float(low) - error), max(around, float(high) - error)
