"""How like an author a text is: what a classifier says that was never shown the document, and how far distributions of
sentence lengths, words and punctuation lie apart. No I/O here.

Every figure comes with its yardstick: the same of the author's own text, held against the author's other documents.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.datasets.likeness import words
from training.evaluation.intervals import Figure, Floats

FOLDS = 5
# Fewer texts of either side teach a classifier nothing; more cost seconds and teach little.
FEWEST, MOST = 8, 500
# Characters of an n-gram, and places that n-grams are hashed to.
GRAMS, PLACES = (1, 2, 3, 4), 1 << 14
# The smaller, the nearer a classifier keeps to its texts: 1 over the C of other libraries.
RIDGE = 0.1
NEWTON_STEPS = 25

LONGEST_SENTENCE = 60
# Words that are told apart, the rarest of more count as one; and how much of a text is looked at for them, since a
# longer one has more of the rare words.
VOCABULARY, LEADING_WORDS = 10_000, 120
PUNCTUATION = ".,;:!?…-–—()[]{}\"'“”‘’«»„*_`#/&%@+=<>|~。，、；：！？"
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？])[\"'”’»)\]]*\s+|\n\s*\n|(?<=[。！？])")
# Draws of which the words are compared at once, so that a vocabulary of thousands takes tens of megabytes.
DRAWS_TOGETHER = 100

_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Text(NamedTuple):
    """A text and the document family that it belongs to."""

    text: str
    group: str


@dataclass(frozen=True, slots=True)
class Classified:
    """What a classifier of an author's texts said of texts whose document family it was not trained on.

    `right`: of every text that it was tried on, whether it was told right, weighted so that both sides count alike;
    `groups`: its family; `author`: the probability that the author's own texts are his, which come first; `answers`:
    of each list of answers theirs.
    """

    right: Floats
    weights: Floats
    groups: tuple[str, ...]
    author: Floats
    answers: tuple[Floats, ...]


def classified(
    own: Sequence[Text], others: Sequence[Text], answers: Sequence[Sequence[Text]], seed: int
) -> Classified | None:
    """Logistic regression on hashed character n-grams (TF-IDF), the author's texts against others, cross-fitted.

    Families are dealt to FOLDS folds; what is of a fold is judged by the classifier of all other folds, answers by
    their question's family. None where either side has fewer than FEWEST texts or fewer than two families.
    Source: Stamatatos, A survey of modern authorship attribution methods (2009), for character n-grams; Hastie,
    Tibshirani and Friedman, The Elements of Statistical Learning, 4.4.1 (iteratively reweighted least squares).
    """
    own, others = _drawn(own, seed), _drawn(others, seed + 1)
    if min(len(own), len(others)) < FEWEST:
        return None
    folds = _folds(own, {}, seed)
    folds = _folds(others, folds, seed)
    for each in answers:
        folds = _folds(each, folds, seed)
    training = [*own, *others]
    labels = np.array([1.0] * len(own) + [0.0] * len(others))
    place = np.array([folds[each.group] for each in training])
    counts = _grams([each.text for each in training])
    asked = [(_grams([each.text for each in side]), np.array([folds[each.group] for each in side])) for side in answers]
    told, said = np.full(len(training), np.nan), [np.full(len(side), np.nan) for side in answers]
    for fold in range(FOLDS):
        seen = place != fold
        if {0.0, 1.0} != set(labels[seen].tolist()):
            return None
        judge = _trained(counts[seen], labels[seen])
        told[~seen] = judge(counts[~seen])
        for (texts, at), into in zip(asked, said, strict=True):
            into[at == fold] = judge(texts[at == fold])
    right = ((told > 0.5) == (labels == 1)).astype(float)
    weights = np.where(labels == 1, 0.5 / len(own), 0.5 / len(others))
    return Classified(right, weights, tuple(each.group for each in training), told[: len(own)], tuple(said))


def _drawn(texts: Sequence[Text], seed: int) -> list[Text]:
    """At most MOST of the texts that are not empty, each with one space between words: passages come from documents and
    answers from models, and line ends alone would tell these apart."""
    plain = [Text(" ".join(each.text.split()), each.group) for each in texts if each.text.strip()]
    if len(plain) <= MOST:
        return plain
    chosen = np.random.default_rng(seed).choice(len(plain), MOST, replace=False)
    return [plain[at] for at in sorted(chosen.tolist())]


def _folds(texts: Sequence[Text], known: dict[str, int], seed: int) -> dict[str, int]:
    """A fold for each family: those that have none yet are dealt out in an order by `seed`, so each fold has some."""
    new = sorted({each.group for each in texts} - known.keys())
    order = np.random.default_rng(seed).permutation(len(new))
    return known | {new[at]: turn % FOLDS for turn, at in enumerate(order.tolist())}


def _grams(texts: Sequence[str]) -> NDArray[np.float32]:
    """How often each hashed n-gram of characters stands in each text, shape (texts, PLACES)."""
    found = np.zeros((len(texts), PLACES), np.float32)
    for row, text in enumerate(texts):
        signs = np.frombuffer(" ".join(text.split()).encode("utf-32-le", errors="replace"), np.uint32).astype(np.uint64)
        for size in GRAMS:
            runs = np.full(max(0, len(signs) - size + 1), np.uint64(size))
            for step in range(size):
                runs = (runs + signs[step : len(signs) - size + 1 + step]) * _FACTOR
                runs ^= runs >> np.uint64(29)
            np.add.at(found[row], (runs % np.uint64(PLACES)).astype(np.int64), 1)
    return found


def _trained(counts: NDArray[np.float32], labels: Floats) -> Callable[[NDArray[np.float32]], Floats]:
    """A function from counts to the probability of label 1; both labels weigh alike.

    Solved over the texts, not the n-grams, of which there are more: the weights are a sum of the texts' rows.
    """
    rarity = np.log((1 + len(counts)) / (1 + (counts > 0).sum(axis=0))) + 1

    def rows(raw: NDArray[np.float32]) -> Floats:
        scaled = np.log1p(raw) * rarity
        return np.asarray(scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), 1e-12), float)

    known = rows(counts)
    # The 1 is a feature that all share, in place of an intercept.
    alike = known @ known.T + 1.0
    share = np.where(labels == 1, 0.5 / (labels == 1).mean(), 0.5 / (labels == 0).mean())
    mixed = np.zeros(len(labels))
    for _ in range(NEWTON_STEPS):
        score = alike @ mixed
        chance = _logistic(score)
        curve = np.maximum(share * chance * (1 - chance), 1e-6)
        aim = score + share * (labels - chance) / curve
        following = np.linalg.solve(alike + np.diag(RIDGE / curve), aim)
        if np.abs(following - mixed).max() < 1e-6:
            break
        mixed = following
    return lambda raw: _logistic((rows(raw) @ known.T + 1.0) @ mixed)


def _logistic(score: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(score, -50, 50))))


# Distances


@dataclass(frozen=True, slots=True)
class Distance:
    """`counts`: of texts what is counted in each, shape (texts, kinds); `between`: of two sums of such rows, each
    shape (draws, kinds), how far apart their distributions are."""

    counts: Callable[[Sequence[str]], Floats]
    between: Callable[[Floats, Floats], Floats]


def sentence_lengths(texts: Sequence[str]) -> Floats:
    """Of each text how many of its sentences have 0, 1, ... LONGEST_SENTENCE words, or more."""
    found = np.zeros((len(texts), LONGEST_SENTENCE + 2))
    for row, text in enumerate(texts):
        lengths = [count for part in _SENTENCE_END.split(text) if (count := len(words(part)))]
        for length in lengths or [0]:
            found[row, min(length, LONGEST_SENTENCE + 1)] += 1
    return found


def transport(one: Floats, other: Floats) -> Floats:
    """How many words longer or shorter a sentence must become on average for one distribution to become the other.

    Source: the Wasserstein distance in one dimension (Vallender 1974).
    """
    apart = np.abs(np.cumsum(_shares(one), axis=1) - np.cumsum(_shares(other), axis=1))
    return np.asarray(apart[:, :-1].sum(axis=1))


def word_counts(texts: Sequence[str]) -> Floats:
    """Of each text how often it has each word, of all that these texts have, within its first LEADING_WORDS."""
    split = [words(text)[:LEADING_WORDS] for text in texts]
    totals = Counter(word for found in split for word in found)
    ranked = sorted(totals, key=lambda word: (-totals[word], word))
    place = {word: min(rank, VOCABULARY - 1) for rank, word in enumerate(ranked)}
    found = np.zeros((len(texts), max(1, min(len(ranked), VOCABULARY))))
    for row, each in enumerate(split):
        np.add.at(found[row], [place[word] for word in each], 1)
    return found


def divergence(one: Floats, other: Floats) -> Floats:
    """The square root of the Jensen-Shannon divergence to base 2: 0 for equal distributions, 1 where none is shared or
    one is empty. Source: Endres and Schindelin, A new metric for probability distributions (2003)."""
    apart = np.empty(len(one))
    for start in range(0, len(one), DRAWS_TOGETHER):
        part = slice(start, start + DRAWS_TOGETHER)
        left, right = _shares(one[part]), _shares(other[part])
        middle = (left + right) / 2
        apart[part] = np.sqrt(np.clip((_relative(left, middle) + _relative(right, middle)) / 2, 0, 1))
    apart[(one.sum(axis=1) == 0) | (other.sum(axis=1) == 0)] = 1.0
    return apart


def punctuation(texts: Sequence[str]) -> Floats:
    """Of each text how often it has each mark of PUNCTUATION; at the end, its characters that are no spaces."""
    counts = [Counter(text) for text in texts]
    rows = [
        [*(each[mark] for mark in PUNCTUATION), sum(n for sign, n in each.items() if not sign.isspace())]
        for each in counts
    ]
    return np.array(rows, float).reshape(len(texts), len(PUNCTUATION) + 1)


def marks_apart(one: Floats, other: Floats) -> Floats:
    """The sum over all marks of how many more or fewer there are in 1,000 characters."""
    left, right = (1_000 * each[:, :-1] / np.maximum(each[:, -1:], 1) for each in (one, other))
    return np.asarray(np.abs(left - right).sum(axis=1))


DISTANCES: dict[str, Distance] = {
    "style_sentence_length": Distance(sentence_lengths, transport),
    "style_vocabulary": Distance(word_counts, divergence),
    "style_punctuation": Distance(punctuation, marks_apart),
}
Side = Literal["author", "model", "against"]


def distances(name: str, author: Sequence[Text], sides: Sequence[Sequence[str]], seed: int) -> list[Figure]:
    """How far each side's answers lie from the author's text, by the distance of this name.

    `sides`: answers to the same questions as the author's texts answer, in order. The families are divided into two
    halves, and answers of one half are held against the author's texts of the other, both ways: so the author himself,
    given as a side, is the yardstick, and no side is held against its own questions' text.
    """
    distance = DISTANCES[name]
    rows = distance.counts([*(each.text for each in author), *(text for side in sides for text in side)])
    own, rest = rows[: len(author)], rows[len(author) :]
    half = halves(author, seed)

    def of(answers: Floats) -> Figure:
        def apart(weights: Floats) -> Floats:
            both = [distance.between((weights * here) @ answers, (weights * ~here) @ own) for here in (half, ~half)]
            # A draw in which one half has no text gives no distance.
            empty = ((weights * half).sum(axis=1) == 0) | ((weights * ~half).sum(axis=1) == 0)
            return np.where(empty, np.nan, (both[0] + both[1]) / 2)

        return apart

    return [of(rest[at * len(author) : (at + 1) * len(author)]) for at in range(len(sides))]


def halves(texts: Sequence[Text], seed: int) -> NDArray[np.bool_]:
    """Which texts are of the first of two halves of about one length; no family is in both, unless there is but one."""
    sizes: Counter[str] = Counter()
    for each in texts:
        sizes[each.group] += len(each.text) + 1
    if len(sizes) == 1:
        return np.array([at % 2 == 0 for at in range(len(texts))])
    names = sorted(sizes)
    order = np.random.default_rng(seed).permutation(len(names)).tolist()
    filled = [0, 0]
    side: dict[str, bool] = {}
    for name in sorted((names[at] for at in order), key=lambda name: -sizes[name]):
        first = filled[0] <= filled[1]
        side[name] = first
        filled[0 if first else 1] += sizes[name]
    return np.array([side[each.group] for each in texts])


def _shares(counts: Floats) -> Floats:
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1e-12))


def _relative(part: Floats, middle: Floats) -> Floats:
    """The Kullback-Leibler divergence to base 2, where nothing counts as nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(part > 0, part * np.log2(part / middle), 0.0)
    return np.asarray(terms.sum(axis=1))
