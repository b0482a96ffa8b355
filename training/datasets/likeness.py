"""How alike texts are: the same, nearly the same by their words, the same in meaning, or one within the other.

Words are compared by hashes of 64 bits that are the same in every process. No I/O here.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from datasketch import MinHash

Shingles = NDArray[np.uint64]
Vectors = NDArray[np.float32]
Embed = Callable[[Sequence[str]], Vectors]

SHINGLE = 5
# 25 bands of 5: of pairs with a Jaccard of 0.8 one in 20,000 is missed, and what is found is compared exactly anyway.
BANDS = (25, 5)
PERMUTATIONS = BANDS[0] * BANDS[1]
# So far below the line a pair falls by its estimate alone: four standard deviations, one pair in 30,000.
SPREAD = 0.15
# Rows of vectors that are multiplied at once: with 10,000 others a block takes 20 MB.
BLOCK = 512
# Words of a passage that meanings are compared with.
_PASSAGE = 120
# Scripts that put no space between words: each character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def normalised(text: str) -> str:
    """The text without differences of form: NFKC, case-folded, one space between words."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def words(text: str) -> list[str]:
    """The words of a text, case-folded; a character each where the script puts no space between words."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def shingles(text: str | Sequence[str], size: int = SHINGLE) -> Shingles:
    """The hashes of all runs of `size` words, ascending, each once. A shorter text is one run; no word, no run.

    Source: Broder, On the resemblance and containment of documents (1997).
    """
    found = words(text) if isinstance(text, str) else text
    if not found:
        return np.empty(0, np.uint64)
    numbers = np.fromiter((_number(word) for word in found), np.uint64, len(found))
    size = min(size, len(numbers))
    runs = numbers[: len(numbers) - size + 1].copy()
    for step in range(1, size):
        runs = runs * _FACTOR + numbers[step : len(numbers) - size + 1 + step]
    return np.unique(runs)


@lru_cache(maxsize=1 << 18)
def _number(word: str) -> int:
    digest = hashlib.blake2b(word.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def shared(one: Shingles, other: Shingles) -> int:
    """How many runs both have."""
    few, many = sorted((one, other), key=len)
    if not len(few):
        return 0
    places = np.searchsorted(many, few)
    return int((many[np.minimum(places, len(many) - 1)] == few).sum())


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared runs over all runs, from 0 to 1; two empty texts are alike."""
    both = shared(one, other)
    return both / total if (total := len(one) + len(other) - both) else 1.0


def containment(part: Shingles, whole: Shingles) -> float:
    """The share of the runs of `part` that `whole` has, from 0 to 1; nothing is contained in anything."""
    return shared(part, whole) / len(part) if len(part) else 1.0


class NearTexts:
    """So many texts by their runs of words, found again by nearly the same ones.

    Source: MinHash and locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998), by datasketch.
    """

    def __init__(self, most: int) -> None:
        from datasketch import MinHashLSH

        self._lsh = MinHashLSH(num_perm=PERMUTATIONS, params=BANDS)
        self._signatures = np.zeros((most, PERMUTATIONS), np.uint32)

    def add(self, at: int, sketch: MinHash) -> None:
        """Take in a text under a number that is not in use."""
        self._lsh.insert(at, sketch)
        self._signatures[at] = sketch.hashvalues

    def near(self, sketch: MinHash, least: float) -> list[int]:
        """Numbers of the texts whose Jaccard may be at least `least`, ascending: to be compared exactly.

        Texts of one template share a band with each other and are not near: their sketches tell that in one step.
        """
        found = sorted(self._lsh.query(sketch))
        alike = (self._signatures[found] == sketch.hashvalues.astype(np.uint32)).mean(axis=1) if found else ()
        return [at for at, share in zip(found, alike, strict=True) if share >= least - SPREAD]


def sketches(texts: Iterable[Shingles]) -> Iterator[MinHash]:
    """The MinHash of each text; the same runs always give the same."""
    from datasketch import MinHash

    # The runs are hashes already, of which the library wants 32 bits.
    short = ((runs >> np.uint64(32)).tolist() for runs in texts)
    yield from MinHash.generator(short, num_perm=PERMUTATIONS, seed=1, hashfunc=int)


def repeats(texts: Sequence[Sequence[Shingles]], least: float) -> dict[int, int]:
    """Each text that nearly repeats an earlier one that repeats none, and that one.

    A text is one or several parts (an answer; a chosen and a rejected one), and alike when each part is, by a Jaccard
    of at least `least`.
    """
    found: dict[int, int] = {}
    index = NearTexts(len(texts))
    for at, (parts, sketch) in enumerate(zip(texts, sketches(parts[0] for parts in texts), strict=True)):
        if not len(parts[0]):
            continue
        for earlier in index.near(sketch, least):
            if len(parts) == len(texts[earlier]) and all(
                jaccard(one, other) >= least for one, other in zip(parts, texts[earlier], strict=True)
            ):
                found[at] = earlier
                break
        else:
            index.add(at, sketch)
    return found


def counterparts(texts: Sequence[Shingles], others: Sequence[Shingles], least: float) -> dict[int, int]:
    """Each text that is nearly one of the others, and the first such one; by a Jaccard of at least `least`."""
    index = NearTexts(len(others))
    for at, sketch in enumerate(sketches(others)):
        if len(others[at]):
            index.add(at, sketch)
    found: dict[int, int] = {}
    for at, (own, sketch) in enumerate(zip(texts, sketches(texts), strict=True)):
        for other in index.near(sketch, least) if len(own) else ():
            if jaccard(own, others[other]) >= least:
                found[at] = other
                break
    return found


def closest(vectors: Vectors, others: Vectors) -> NDArray[np.float32]:
    """For each vector the largest cosine with one of the others; -1 where there are none. All have length 1."""
    best = np.full(len(vectors), -1.0, np.float32)
    if len(others):
        for start in range(0, len(vectors), BLOCK):
            best[start : start + BLOCK] = (vectors[start : start + BLOCK] @ others.T).max(axis=1)
    return best


def not_alone(vectors: Vectors, least: float) -> list[int]:
    """Those that have a cosine of at least `least` with another, ascending. All have length 1."""
    found: list[int] = []
    for start in range(0, len(vectors), BLOCK):
        alike = vectors[start : start + BLOCK] @ vectors.T >= least
        rows = np.arange(len(alike))
        alike[rows, start + rows] = False
        found += (start + np.flatnonzero(alike.any(axis=1))).tolist()
    return found


def same_meaning(parts: Sequence[Vectors], least: float) -> dict[int, int]:
    """Each text that means the same as an earlier one that repeats none, and that one.

    `parts`: vectors of length 1, of each text's first part, second part and so on; all parts must have a cosine of at
    least `least`. Never holds more than BLOCK rows of the matrix of all pairs.
    """
    found: dict[int, int] = {}
    count = len(parts[0])
    unlike = np.zeros(count, bool)
    for start in range(0, count, BLOCK):
        end = min(start + BLOCK, count)
        alike = np.ones((end - start, end), bool)
        for vectors in parts:
            alike &= vectors[start:end] @ vectors[:end].T >= least
        for at in range(start, end):
            row = alike[at - start, :at] & unlike[:at]
            if row.any():
                found[at] = int(row.argmax())
            else:
                unlike[at] = True
    return found


def grounded(answers: Sequence[str], document: str) -> list[float]:
    """Of each answer the share of its runs of five words (of a shorter one: of all its words) that the document has."""
    found = words(document)
    runs: dict[int, Shingles] = {}
    shares = []
    for own in map(words, answers):
        size = min(SHINGLE, max(len(own), 1))
        if size not in runs:
            runs[size] = shingles(found, size)
        shares.append(containment(shingles(own, size), runs[size]))
    return shares


def passages_of(text: str) -> list[str]:
    """Passages of some hundred words, by paragraphs: what an embedding model reads at once."""
    passages: list[list[str]] = [[]]
    for paragraph in re.split(r"\n\s*\n", text):
        parts = paragraph.split()
        for start in range(0, len(parts), _PASSAGE):
            if passages[-1] and len(passages[-1]) + len(parts) > _PASSAGE:
                passages.append([])
            passages[-1] += parts[start : start + _PASSAGE]
    return [" ".join(passage) for passage in passages if passage]


def remembering(embed: Embed | None) -> Embed | None:
    """The same, but no text is embedded twice."""
    if embed is None:
        return None
    known: dict[str, Vectors] = {}

    def remembered(texts: Sequence[str]) -> Vectors:
        new = [text for text in dict.fromkeys(texts) if text not in known]
        for start in range(0, len(new), BLOCK):
            part = new[start : start + BLOCK]
            known.update(zip(part, embed(part), strict=True))
        return np.stack([known[text] for text in texts]) if texts else np.empty((0, 0), np.float32)

    return remembered
