"""Document families: documents that hold much of the same text, which no split may divide. No I/O here."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from training.datasets.likeness import Shingles, containment, normalised, repeats, shingles
from training.datasets.samples import SPLITS, Split

# Jaccard of runs of five words, from which two documents are the same one on two platforms.
NEAR = 0.8
# Share of the smaller document that the larger one has, from which it is a copy of a part; less is enough under one
# title.
CONTAINED, CONTAINED_OF_ONE_TITLE = 0.5, 0.2
# Runs of words that more documents than these have tell nothing of a document: a licence, the frame of a site.
COMMON = 10
# Fewer runs of its own make no document a part of another.
FEWEST_RUNS = 10


class TooFew(ValueError):
    """There are too few document families to divide; the message says how many are needed and what to do."""


def families(documents: Mapping[str, str], titles: Mapping[str, str] | None = None) -> dict[str, str]:
    """The family of each document: the smallest id of those that belong together, its own where it is alone.

    `documents`: cleaned text by id; `titles` may lack some. Documents belong together when they are nearly the same by
    their words, when one has half of what is the other's own, or, under one title, a fifth; and so on from each to the
    next. Source: Broder, On the resemblance and containment of documents (1997).
    """
    ids = sorted(documents)
    runs = [shingles(documents[id]) for id in ids]
    heads = [normalised((titles or {}).get(id, "")) for id in ids]
    chief = list(range(len(ids)))

    def of(one: int) -> int:
        while chief[one] != one:
            chief[one] = one = chief[chief[one]]
        return one

    def join(one: int, other: int) -> None:
        first, second = sorted((of(one), of(other)))
        chief[second] = first

    for one, other in repeats([(own,) for own in runs], NEAR).items():
        join(one, other)
    # Of copies one is enough; counted each, their text would be taken for the frame of a site.
    copies: dict[int, set[str]] = {}
    for at, head in enumerate(heads):
        copies.setdefault(of(at), set()).update({head} - {""})
    firsts = list(copies)
    own = _without_common([runs[at] for at in firsts])
    for one, other in _sharing(own):
        first, second = firsts[one], firsts[other]
        same_title = bool(copies[first] & copies[second])
        if of(first) != of(second) and _belongs(own[one], own[other], same_title):
            join(first, second)
    return {id: ids[of(at)] for at, id in enumerate(ids)}


def _belongs(one: Shingles, other: Shingles, same_title: bool) -> bool:
    smaller, larger = sorted((one, other), key=len)
    least = CONTAINED_OF_ONE_TITLE if same_title else CONTAINED
    return len(smaller) >= FEWEST_RUNS and containment(smaller, larger) >= least


def _without_common(runs: Sequence[Shingles]) -> list[Shingles]:
    """Of each document the runs that at most COMMON documents have."""
    if not runs:
        return []
    every, counts = np.unique(np.concatenate(runs), return_counts=True)
    common = every[counts > COMMON]
    return [np.setdiff1d(own, common, assume_unique=True) for own in runs]


def _sharing(runs: Sequence[Shingles]) -> list[tuple[int, int]]:
    """Pairs of documents that share a run, of which at most COMMON documents have each."""
    if not runs:
        return []
    hashes = np.concatenate(runs)
    owners = np.repeat(np.arange(len(runs)), [len(own) for own in runs])
    order = np.argsort(hashes, kind="stable")
    hashes, owners = hashes[order], owners[order]
    pairs: set[int] = set()
    for step in range(1, COMMON):
        same = hashes[step:] == hashes[:-step]
        found: NDArray[np.int64] = owners[:-step][same] * len(runs) + owners[step:][same]
        pairs.update(np.unique(found).tolist())
    return [divmod(pair, len(runs)) for pair in sorted(pairs)]


def split_of(members: Collection[str], seed: int, validation: float = 0.1, test: float = 0.1) -> Split:
    """Where the family with these documents goes, by itself: the same whatever other families there are.

    The member with the smallest hash decides, so a family that grows moves only when a new member has a smaller one,
    and large families go nowhere more often than small ones.
    """
    leader = min(members, key=lambda id: (_draw(seed, "leader", id), id))
    place = _draw(seed, "place", leader)
    return "test" if place < test else "validation" if place < test + validation else "train"


def divide(families: Mapping[str, str], seed: int, validation: float = 0.1, test: float = 0.1) -> dict[str, Split]:
    """The split of each document: each family whole, no split that has a share empty.

    `families`: the family of each document, as `families` gives it. Where chance leaves a split empty, it is given the
    family of the fullest that is drawn first. Raises TooFew with fewer families than splits, ValueError for shares that
    are none.
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(
            f"the shares of validation ({validation}) and test ({test}) must not be negative, and leave some for train"
        )
    members: dict[str, list[str]] = {}
    for id, family in families.items():
        members.setdefault(family, []).append(id)
    wanted = [split for split, share in zip(SPLITS, (1.0, validation, test), strict=True) if share > 0]
    if len(members) < len(wanted):
        count = len(members)
        raise TooFew(
            f"there {'is' if count == 1 else 'are'} {count} document famil{'y' if count == 1 else 'ies'}, and "
            f"{', '.join(wanted)} need one each ({len(wanted)}), as no family is divided: bring in documents that are "
            "no copies of these (twin ingest), or set the share of validation or test to 0"
        )
    places = {family: split_of(ids, seed, validation, test) for family, ids in members.items()}
    for split in wanted:
        counts = Counter(places.values())
        if not counts[split]:
            fullest = max(wanted, key=lambda each: counts[each])
            _, moved = min(
                (min(_draw(seed, "leader", id) for id in members[family]), family)
                for family, place in places.items()
                if place == fullest
            )
            places[moved] = split
    return {id: places[family] for id, family in families.items()}


def _draw(seed: int, what: str, id: str) -> float:
    """A number from 0 to 1 that depends on nothing else."""
    digest = hashlib.sha256(f"{seed}:{what}:{id}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:7], "big") / (1 << 56)
