"""From documents to samples: what a recipe makes is the same each time, whole families on one side, and no more."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest

from corpus.history import DocumentVersion
from tests.training.texts import WORDS, article, module, told
from training.datasets.building import Built, Ingredients, Recipe, TooFewSamples, build, digest, stratified
from training.datasets.families import TooFew, divide, families
from training.datasets.preferences import Feedback
from training.datasets.samples import SPLITS, InstructionSample, answered, asked
from training.datasets.wordsmith import Request

DOCUMENTS = [*(article(number, "Ada" if number % 3 else "Bob") for number in range(12)), *map(module, range(6))]


@dataclass
class Model:
    """A language model that answers every question alike, and remembers what it was asked."""

    name: str = "a model"
    asked: list[Request] = field(default_factory=list)

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        self.asked += requests
        return ["It all depends on many things that one would have to know first."] * len(requests)


def built(
    recipe: Recipe | None = None, documents: Sequence[DocumentVersion] = DOCUMENTS, model: Model | None = None
) -> Built:
    return build(recipe or Recipe(), Ingredients(documents, model))


def everything(of: Built) -> list[InstructionSample]:
    return [sample for samples in of.splits.values() for sample in samples if isinstance(sample, InstructionSample)]


def test_every_answer_is_a_passage_of_its_document_and_every_family_is_on_one_side() -> None:
    found = built()

    texts = {document.document_id: document.text for document in DOCUMENTS}
    assert Counter(sample.method for sample in everything(found)).keys() == {"backtranslation", "code"}
    for sample in everything(found):
        assert texts[sample.document_id][sample.start : sample.end] == sample.answer
        assert sample.scores["grounding"] == 1.0
    sides = {(sample.family, split) for split, samples in found.splits.items() for sample in samples}
    assert len({family for family, _ in sides}) == len(sides)
    assert all(found.splits[split] for split in SPLITS)


def test_the_same_documents_in_any_order_give_the_same_dataset() -> None:
    one, other = built(), built(documents=DOCUMENTS[::-1])

    assert one.splits == other.splits
    assert digest("instructions", one.splits) == digest("instructions", other.splits)


@pytest.mark.parametrize(
    "edited",
    [
        pytest.param([*DOCUMENTS[1:], article(0, "Bob", seed=1)], id="another text"),
        pytest.param([*DOCUMENTS[1:], msgspec.structs.replace(DOCUMENTS[0], version=2)], id="another version"),
        pytest.param(DOCUMENTS[1:], id="one less"),
    ],
)
def test_another_document_gives_another_dataset(edited: Sequence[DocumentVersion]) -> None:
    assert digest("instructions", built(documents=edited).splits) != digest("instructions", built().splits)


def test_a_cross_post_stays_on_the_side_of_its_first_post_and_is_there_once() -> None:
    first = DOCUMENTS[1]
    again = msgspec.structs.replace(first, document_id="elsewhere", platform="another.example", text=first.text + "\n")

    found = built(documents=[*DOCUMENTS, again])

    assert found.families["elsewhere"] == found.families[first.document_id]
    kept = [sample for sample in everything(found) if sample.document_id in ("elsewhere", first.document_id)]
    assert len({sample.answer for sample in kept}) == len(kept) == 4
    assert found.left_out["gate: exact"] == 4


def test_a_size_keeps_the_shares_of_authors_and_splits_and_a_larger_one_holds_the_smaller() -> None:
    whole, half, quarter = built(), built(Recipe(size=30)), built(Recipe(size=15))

    assert [len(everything(found)) for found in (half, quarter)] == [30, 15]
    texts = [{asked(sample) for sample in everything(found)} for found in (quarter, half, whole)]
    assert texts[0] < texts[1] < texts[2]
    shares = [Counter(sample.author for sample in everything(found)) for found in (whole, half)]
    assert abs(shares[0]["Ada"] / shares[0].total() - shares[1]["Ada"] / 30) < 0.05
    assert half.left_out["size: more than were asked for"] == len(everything(whole)) - 30


def test_a_size_beyond_what_there_is_gives_all() -> None:
    assert stratified(everything(built()), 10_000, 7, {}) == everything(built())


def test_only_what_was_asked_for_is_taken() -> None:
    assert {sample.author for sample in everything(built(Recipe(authors=("Ada",))))} == {"Ada"}
    assert {sample.category for sample in everything(built(Recipe(categories=("code",))))} == {"code"}


def test_a_secret_and_what_an_evaluation_asks_are_kept_out() -> None:
    key = "AKIA" + "QX7Z2LM5N8PR4T6V"
    leaking = article(50)
    leaking = msgspec.structs.replace(leaking, text=leaking.text.replace(".", f". Our key is {key} for good.", 1))
    known = answered(everything(built())[0])

    found = build(Recipe(), Ingredients([*DOCUMENTS, leaking], evaluation_sets={"general": [known]}))

    assert not [sample for sample in everything(found) if key in sample.answer or sample.answer == known]
    assert found.left_out["gate: privacy"] == 1
    assert found.left_out["gate: decontamination"] == 1


def test_preferences_set_the_authors_text_against_the_models_own_answer() -> None:
    model = Model()

    found = built(Recipe(kind="preferences", wordsmith=model.name, size=20), model=model)

    pairs = [sample for samples in found.splits.values() for sample in samples]
    assert len(pairs) == len(model.asked) == 20
    texts = {document.document_id: document.text for document in DOCUMENTS}
    assert all(answered(pair) == texts[pair.document_id][pair.start : pair.end] for pair in pairs)
    assert {pair.generator for pair in pairs} == {"a model"}
    assert all(len(request.messages) == 1 for request in model.asked)


def test_a_model_is_not_asked_for_pairs_that_would_be_too_few() -> None:
    model = Model()

    with pytest.raises(TooFewSamples, match="fewer than 2 samples"):
        built(Recipe(kind="preferences", wordsmith=model.name, size=4), model=model)

    assert model.asked == []


def test_feedback_stays_on_the_side_of_all_that_it_rests_on() -> None:
    of = families({each.document_id: each.text for each in DOCUMENTS})
    places = divide(of, Recipe().seed)
    trained, tested = (min(id for id in places if places[id] == split) for split in ("train", "test"))
    rests_on = {
        "Is it wet?": [trained],
        "Is it cold?": [tested, tested],
        "Is it late?": [trained, tested],
        "Is it far?": ["not there any more", tested],
        "Is it new?": ["not there any more"],
        "Is it ours?": [],
    }
    said = [
        msgspec.convert(
            {
                "feedback_id": question,
                "at": "2026-06-01T10:00:00Z",
                "author": "Ada",
                "model": "twin-1",
                "question": question,
                "answer": f"{question} I could not say this or that of it, {number}.",
                "verdict": "edit",
                "edited": " ".join(source.sample(WORDS, 9)),
                "citations": [{"document_id": id} for id in ids],
            },
            Feedback,
        )
        for number, (question, ids) in enumerate(rests_on.items())
        for source in [random.Random(number)]
    ]

    found = build(Recipe(kind="preferences", wordsmith="a model"), Ingredients(DOCUMENTS, Model(), feedback=said))

    where = {asked(pair): split for split, pairs in found.splits.items() for pair in pairs if pair.method == "feedback"}
    assert where == {
        "Is it wet?": "train",
        "Is it cold?": "test",
        "Is it far?": "test",
        "Is it new?": "train",
        "Is it ours?": "train",
    }
    assert found.left_out["feedback: rests on documents of two splits"] == 1


def test_a_secret_in_the_models_own_answer_is_kept_out() -> None:
    class Leaking(Model):
        def write(self, requests: Sequence[Request]) -> list[str | None]:
            return [
                f"For this write to jane{at}.doe@bigcorp.com, she knows all of it." for at, _ in enumerate(requests)
            ]

    with pytest.raises(TooFewSamples, match="gate: privacy"):
        built(Recipe(kind="preferences", wordsmith="a model", size=20), model=Leaking())


@pytest.mark.parametrize(
    ("documents", "recipe", "told"),
    [
        pytest.param([], Recipe(), "twin ingest", id="no documents"),
        pytest.param(DOCUMENTS, Recipe(authors=("Eve",)), "none of the 18 documents is of Eve", id="nobody's"),
        pytest.param([told(f"d{n}", "Short", f"Only {n}.", "Ada") for n in range(9)], Recipe(), "train", id="nothing"),
        pytest.param(DOCUMENTS, Recipe(size=4), "ask for more samples", id="too few for the splits"),
    ],
)
def test_too_few_samples_are_refused_with_what_to_do(
    documents: Sequence[DocumentVersion], recipe: Recipe, told: str
) -> None:
    with pytest.raises(TooFewSamples, match=told) as refused:
        built(recipe, documents)

    assert "(0)" not in str(refused.value)


def test_too_few_families_are_refused_with_what_to_do() -> None:
    with pytest.raises(TooFew, match="twin ingest"):
        built(documents=DOCUMENTS[:2])
