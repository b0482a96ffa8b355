"""What a model is evaluated on: the test split of a dataset version that no training of this model has seen."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from corpus.documents import headings_below
from corpus.history import DocumentVersion
from corpus.prompts import Message, Source, answer_messages
from training.datasets.building import stratified
from training.datasets.likeness import passages_of
from training.datasets.samples import InstructionSample
from training.evaluation.style import Text
from training.inputs import UnusableInput, dataset_folder, source_dataset
from training.runs import RunRecord, read_record, run_of

if TYPE_CHECKING:
    from training.datasets.store import Record

# Words of a passage that stands in a prompt, as the app's do; how many of other documents stand beside the right one.
PASSAGE_WORDS, OTHERS = 300, 3
# Models that a run may have been trained on top of, one after another.
LONGEST_CHAIN = 20
_WORD = re.compile(r"\w+")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t#]*$", re.MULTILINE)


class Seen(UnusableInput):
    """The model was trained on documents that it would be evaluated on."""


@dataclass(frozen=True, slots=True)
class Question:
    """A held-out sample that the model is asked; `passages`: the one that the answer rests on, then those of other
    documents; empty where the document's text is not known."""

    sample: InstructionSample
    passages: tuple[Source, ...]
    key: str

    @property
    def messages(self) -> list[Message]:
        """The question alone, as the model was trained to be asked."""
        return asking(self.sample.instruction)

    def resting(self, others: int) -> tuple[list[Message], tuple[Source, ...]]:
        """The app's own prompt with the right passage among so many others, and the passages as they are numbered."""
        chosen = sorted(self.passages[: others + 1], key=lambda each: _hash(self.key, each.title, each.text))
        numbered = tuple(
            Source(n, each.title, each.author, each.heading_path, each.text) for n, each in enumerate(chosen, 1)
        )
        fence = f"passage-{_hash(self.key, self.sample.instruction)[:16]}"
        return answer_messages(self.sample.instruction, numbered, (), fence), numbered


@dataclass(frozen=True, slots=True)
class HeldOut:
    """`samples`: the whole test split; `questions`: those of them that a model answers, evenly drawn; `author`: whose
    samples are most, whose style is measured; `own`: passages of held-out documents in that author's own words;
    `others`: passages of other authors; `notes`: what is to be known of them."""

    dataset: str
    generation: str
    samples: tuple[InstructionSample, ...]
    questions: tuple[Question, ...]
    author: str
    own: tuple[Text, ...]
    others: tuple[Text, ...]
    notes: Mapping[str, str]


def asking(question: str) -> list[Message]:
    """A question alone, as a chat."""
    return [{"role": "user", "content": question}]


def version(reference: str, datasets: Path) -> tuple[Record, Path]:
    """The record of the dataset version that `reference` names, and the folder that `dataset_folder` finds.

    Raises UnusableInput.
    """
    from training.datasets.store import RECORD, Record

    folder = dataset_folder(reference, datasets)
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=Record), folder
    except (OSError, msgspec.DecodeError) as error:
        raise UnusableInput(f"{folder / RECORD} is not a dataset's record ({error}): build it anew") from error


def trained_on(folder: Path) -> list[str]:
    """The datasets that this run, the runs that made its base and that base itself were trained on, last first; none
    where nobody noted any.

    Raises UnusableInput where one of the runs is gone, RunRefused where its record cannot be read.
    """
    records = [record for _, record in chain(folder)]
    if records:
        first = records[-1].base_dataset or source_dataset(Path(records[-1].base_model))
    else:
        first = source_dataset(folder)
    return list(dict.fromkeys([*(record.dataset for record in records), *([first] if first else [])]))


def base_of(folder: Path) -> str | None:
    """The model that the first run of a chain began with; None for a model that no run made. Raises as `trained_on`."""
    bases = [record.base_model for _, record in chain(folder)]
    return bases[-1] if bases else None


def chain(folder: Path) -> Iterator[tuple[Path, RunRecord]]:
    """The run that made the model, with its record, that which made its base, and so on; none where no run made it.

    Raises as `trained_on`.
    """
    place = run_of(folder)
    for _ in range(LONGEST_CHAIN):
        record = read_record(place) if place is not None else None
        if place is None or record is None:
            return
        yield place, record
        place = _run_before(place, record)
    raise UnusableInput(f"the runs before {folder} go round in a circle: their run.json name each other as base_run")


def _run_before(place: Path, record: RunRecord) -> Path | None:
    """The run that made the base of the run in `place`; None where no run did. Raises UnusableInput."""
    # Of a run that was named by its `model/`, older records have the model alone.
    named = record.base_run or record.base_model
    # A relative path may be of another working directory, and a home may have moved as a whole.
    places = [Path(named), *(above / named for above in place.parents)]
    if record.base_run is not None:
        places.append(place.parent / Path(named).name)
    found = next((run for each in places if (run := run_of(each)) not in (None, place)), None)
    if found is None and record.base_run is not None:
        raise UnusableInput(
            f"the run {record.base_run}, which made the base of {place}, is not there any more, so nobody can tell "
            "which documents the model is made of: put it back"
        )
    return found


def refuse_seen(evaluated: tuple[Record, Path], trained: Sequence[tuple[Record, Path]]) -> None:
    """Raises Seen where a test document, or one of its family, was in the train split of a dataset, with examples.

    Families are compared by their documents, not by their names: a family's name may differ between versions.
    """
    tested = _documents(evaluated, "test")
    for record, folder in trained:
        both = sorted(tested & _documents((record, folder), "train"))
        if both:
            raise Seen(
                f"{len(both)} of {len(tested)} documents that {evaluated[0].id} tests by were trained on in "
                f"{record.id} (such as {both[0]}): evaluate on {record.id}, or on a dataset of other documents"
            )


def _documents(version: tuple[Record, Path], split: str) -> set[str]:
    """The documents of a split, and all of their families that the version rests on."""
    from training.datasets.store import read_split

    record, folder = version
    samples = list(read_split(folder / f"{split}.parquet", record.kind)) if record.splits.get(split) else []
    families = {sample.family for sample in samples} - {""}
    return {each.document_id for each in record.documents if each.family in families} | (
        {sample.document_id for sample in samples} - {""}
    )


def held_out(record: Record, folder: Path, documents: Sequence[DocumentVersion], *, count: int, seed: int) -> HeldOut:
    """The test split of a version, with `count` questions drawn from it.

    `documents`: as they were when the version was built, as far as they are known. Raises UnusableInput.
    """
    from training.datasets.store import read_split

    if record.kind != "instructions":
        raise UnusableInput(f"{record.id} holds {record.kind}: models are evaluated on a dataset of instructions")
    if not record.splits.get("test"):
        raise UnusableInput(f"{record.id} has no test split: build one with a share for it (twin dataset build)")
    samples = [each for each in read_split(folder / "test.parquet", record.kind) if isinstance(each, InstructionSample)]
    author = Counter(sample.author for sample in samples).most_common(1)[0][0]
    texts = {each.document_id: each for each in documents}
    known = {id: each for id, each in texts.items() if each.version == _versions(record).get(id)}
    drawn = stratified(samples, count, seed, {})
    chosen = [each for each in drawn if isinstance(each, InstructionSample)]
    questions = _questions(chosen, samples, known, seed)
    own, others = _texts(samples, author, known, documents)
    notes = {}
    if len(chosen) < len(samples):
        notes["questions"] = f"{len(chosen)} of {len(samples)} held-out questions were answered (--questions)"
    without = sum(not question.passages for question in questions)
    if without:
        notes["passages"] = (
            f"the passages of {without} of {len(questions)} questions are not known: the document history does not "
            "hold these versions"
        )
    return HeldOut(record.id, record.generation, tuple(samples), questions, author, own, others, notes)


def _versions(record: Record) -> dict[str, int]:
    return {each.document_id: each.version for each in record.documents}


def _questions(
    chosen: Sequence[InstructionSample],
    samples: Sequence[InstructionSample],
    known: Mapping[str, DocumentVersion],
    seed: int,
) -> tuple[Question, ...]:
    """Each question with its passage, and with passages that other families' questions rest on."""
    found = []
    order = np.random.default_rng(seed)
    for at, sample in enumerate(chosen):
        right = _passage(sample, known)
        passages: tuple[Source, ...] = ()
        if right is not None:
            strangers = [each for each in samples if each.family != sample.family]
            picked = order.permutation(len(strangers))[: OTHERS * 2].tolist()
            others = [passage for place in picked if (passage := _passage(strangers[place], known)) is not None]
            passages = (right, *dict.fromkeys(each for each in others if each.text != right.text))[: OTHERS + 1]
        found.append(Question(sample, passages, f"{seed}:{at}:{sample.document_id}:{sample.start}"))
    return tuple(found)


def _passage(sample: InstructionSample, known: Mapping[str, DocumentVersion]) -> Source | None:
    """The passage that an answer rests on, with whole paragraphs around it as far as PASSAGE_WORDS goes.

    Where the document is not known, an answer in the author's own words is its passage.
    """
    document = known.get(sample.document_id)
    if document is None:
        return Source(0, "", sample.author, (), sample.answer) if is_own(sample) else None
    start, end = widened(document.text, sample.start, sample.end, PASSAGE_WORDS)
    headings = headings_below(heading_path(document.text, start), document.title)
    return Source(0, document.title, document.author, headings, document.text[start:end].strip())


def is_own(sample: InstructionSample) -> bool:
    """Whether the answer is the author's own text, not one that a model made from it."""
    return sample.method != "question"


def widened(text: str, start: int, end: int, most: int) -> tuple[int, int]:
    """The span moved out by one paragraph after another, before and behind in turn, up to `most` words."""
    blocks = [(match.start(), match.end()) for match in re.finditer(r"\S(?:.|\n(?!\s*\n))*", text)]
    before = [block for block in blocks if block[0] < start]
    after = [block for block in blocks if block[1] > end]
    begin, finish = start, end
    while before or after:
        moved = False
        if before and len(_WORD.findall(text, before[-1][0], finish)) <= most:
            begin, moved = before.pop()[0], True
        if after and len(_WORD.findall(text, begin, after[0][1])) <= most:
            finish, moved = after.pop(0)[1], True
        if not moved:
            break
    return begin, finish


def heading_path(text: str, at: int) -> list[str]:
    """The Markdown headings above this place, outermost first."""
    above: dict[int, str] = {}
    for match in _HEADING.finditer(text, 0, at):
        level = len(match[1])
        above = {each: title for each, title in above.items() if each < level} | {level: match[2]}
    return [above[level] for level in sorted(above)]


def _texts(
    samples: Sequence[InstructionSample],
    author: str,
    known: Mapping[str, DocumentVersion],
    documents: Sequence[DocumentVersion],
) -> tuple[tuple[Text, ...], tuple[Text, ...]]:
    """Passages of held-out documents by the author, and of documents by others: whole documents where they are known,
    else the answers that are passages."""
    families = {sample.document_id: sample.family or sample.document_id for sample in samples}
    own: list[Text] = []
    others: list[Text] = []
    for id, family in families.items():
        if id in known and known[id].author == author:
            own += [Text(passage, family) for passage in passages_of(known[id].text)]
    for document in documents:
        if document.author != author:
            others += [Text(passage, document.document_id) for passage in passages_of(document.text)]
    for sample in samples:
        if is_own(sample) and sample.document_id not in known:
            side = own if sample.author == author else others
            side.append(Text(sample.answer, sample.family or sample.document_id))
    return tuple(own), tuple(others)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
