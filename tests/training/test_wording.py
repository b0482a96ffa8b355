"""Questions that point at a text that nobody sees, and those that name it."""

from __future__ import annotations

import pytest

from tests.training.texts import article, told
from training.datasets.instructions import METHODS, Limits
from training.datasets.templates import WORDINGS
from training.datasets.wording import GENERIC


@pytest.mark.parametrize(
    ("question", "points_at"),
    [
        ("What does the extract suggest?", "the extract"),
        ("What does this article say of tea?", "this article"),
        ("Why is the text's tone so grave?", "the text"),
        ("What is stated below?", "stated below"),
        ("Which challenges are mentioned in the text?", "mentioned in the text"),
        ("What matters according to the author?", "according to the author"),
        ("What follows from the author’s argument?", "the author’s argument"),
        ("What does the content of this say?", "the content"),
        ("What does the content of the passage say?", "the passage"),
        ('What does "the passage" mean by tea?', "the passage"),
        ("How is listening defined in the context of the extract?", "the extract"),
    ],
)
def test_a_question_that_points_at_a_text_that_nobody_sees_is_found(question: str, points_at: str) -> None:
    match = GENERIC.search(question)

    assert match is not None
    assert match[0] == points_at


@pytest.mark.parametrize(
    "question",
    [
        "Write the section “Water” of the article “Making tea”.",
        "What does the article 'Making tea' say of water?",
        "What is mentioned in the article *Making tea*?",
        "How does the article titled Making tea begin?",
        "What is the text of the second amendment?",
        "What did it mean in the context of the war?",
        "What is best according to the author of “Making tea”?",
        "How long does green tea take?",
    ],
)
def test_a_question_that_names_the_text_is_understood_by_itself(question: str) -> None:
    assert GENERIC.search(question) is None


@pytest.mark.parametrize("language", WORDINGS)
def test_no_template_points_at_a_text_that_nobody_sees(language: str) -> None:
    documents = []
    for number, category in enumerate(("article", "post", "article", "post")):
        text = article(number)
        title = text.title if number < 2 else ""
        documents.append(told(f"d{number}", title, text.text, "Ada", category=category, language=language))

    made = METHODS["backtranslation"](documents, None, Limits(least_words=20, most_words=40))

    assert len(made.samples) > 10
    assert [sample.instruction for sample in made.samples if GENERIC.search(sample.instruction)] == []
