"""The quality gates: what falls, why, and that the order of the samples decides nothing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.datasets.gates import GATES, Context, Gated, Thresholds, gate
from training.datasets.likeness import BLOCK, jaccard, not_alone, passages_of, repeats, same_meaning, shingles
from training.datasets.privacy import exposed, hidden
from training.datasets.samples import InstructionSample, PreferenceSample, Sample

WORDS = [f"{first}{last}" for first in ("am", "be", "ce", "del", "em", "fjo", "gro") for last in ("ber", "sin", "dar")]


def prose(seed: int, count: int = 60) -> str:
    """Words that no other seed puts in this order."""
    source = random.Random(seed)
    return " ".join(f"{source.choice(WORDS)}{source.randrange(100)}th" for _ in range(count))


def sample(answer: str, question: str = "What do you think of it?", **fields: Any) -> InstructionSample:
    given = {
        "method": "question",
        "document_id": "d1",
        "version": 1,
        "start": 0,
        "end": 0,
        "author": "Ada",
        "category": "article",
        "language": None,
        "generator": "templates",
        "prompt_version": "1",
    }
    return InstructionSample(instruction=question, answer=answer, **(given | fields))


def pair(chosen: str, rejected: str, **fields: Any) -> PreferenceSample:
    given = {
        "method": "on-policy",
        "document_id": "d1",
        "version": 1,
        "start": 0,
        "end": 0,
        "author": "Ada",
        "category": "article",
        "language": None,
        "generator": "tiny",
        "prompt_version": "1",
    }
    return PreferenceSample(prompt="What of it?", chosen=chosen, rejected=rejected, **(given | fields))


def fallen(gated: Gated) -> list[tuple[str, int, int | None]]:
    return [(finding.gate, finding.at, finding.other) for finding in gated.findings]


def embedded(texts: Sequence[str]) -> NDArray[np.float32]:
    """A text means its first word, and a little of what follows."""
    rows = np.zeros((len(texts), 64), np.float32)
    for row, text in enumerate(texts):
        first, *others = text.casefold().split()
        rows[row, sum(first.encode()) % 32] += 1
        for other in others:
            rows[row, 32 + sum(other.encode()) % 32] += 0.01
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_an_answer_that_comes_back_in_other_case_spaces_and_characters_falls_and_names_the_one_it_repeats() -> None:
    first = "The ﬁnal draft was  written in Zürich by six of us."
    again = "the final draft was written in\nZÜRICH by six of us."

    gated = gate([sample(first), sample(again, start=7), sample(again, "Where was it written?", start=8)], Context())

    assert [(finding.gate, finding.at, finding.reason, finding.other) for finding in gated.findings] == [
        ("exact", 1, "the same question and answer", 0),
        ("exact", 2, "the same answer", 0),
    ]


@pytest.mark.parametrize(("changed", "falls"), [(1, True), (12, False)])
def test_an_answer_with_a_changed_word_falls_and_one_with_many_is_another(changed: int, falls: bool) -> None:
    words = prose(1).split()
    edited = [f"new{at}" if at % 5 == 2 and at // 5 < changed else word for at, word in enumerate(words)]

    gated = gate([sample(" ".join(words), start=0), sample(" ".join(edited), start=1)], Context())

    assert fallen(gated) == ([("near", 1, 0)] if falls else [])


def test_every_pair_of_nearly_the_same_texts_is_found_as_by_comparing_all() -> None:
    source = random.Random(3)
    texts = []
    for seed in range(40):
        words = prose(seed, 100).split()
        texts.append(words)
        for _ in range(4):
            edited = list(words)
            for _ in range(source.randrange(1, 6)):
                edited[source.randrange(100)] = "other"
            texts.append(edited)
    runs = [shingles(words) for words in texts]

    found = repeats([(own,) for own in runs], 0.8)

    first: list[int] = []
    for at in range(len(runs)):
        if not any(jaccard(runs[at], runs[earlier]) >= 0.8 for earlier in first):
            first.append(at)
    assert 40 < len(first) < len(texts)
    assert sorted(set(range(len(texts))) - found.keys()) == first
    assert all(jaccard(runs[one], runs[other]) >= 0.8 for one, other in found.items())


@pytest.mark.parametrize("by_meaning", [False, True])
def test_which_of_two_is_kept_does_not_depend_on_the_order_of_the_samples(by_meaning: bool) -> None:
    given: list[Sample] = []
    for seed in range(6):
        words = prose(seed).split()
        for step in range(4):
            # Each is near to the next, the first not to the last.
            text = " ".join([*words[step:], *(f"more{seed}{at}" for at in range(step))])
            given.append(sample(text, document_id=f"d{(seed + step) % 3}", start=seed * 10 + step))
            given.append(sample(text.upper(), "Once more?", document_id=f"d{step}", start=seed * 10 + step))

    outcomes = set()
    for seed in range(10):
        shuffled = list(given)
        random.Random(seed).shuffle(shuffled)
        gated = gate(shuffled, Context(embed=embedded if by_meaning else None))
        outcomes.add(frozenset(repr(shuffled[at]) for at in gated.kept))

    assert len(outcomes) == 1
    assert 2 <= len(outcomes.pop()) < 24


def test_the_same_meaning_in_other_words_falls_within_one_language_and_method_only() -> None:
    given = [
        sample("tea is best when steeped for two minutes", language="en", start=0),
        sample("tea wants to be drawn for a hundred and twenty seconds", language="en", start=1),
        sample("tea soll zwei Minuten ziehen und nicht mehr", language="de", start=2),
        sample("coffee is another matter that nobody here writes about", language="en", start=3),
    ]

    assert fallen(gate(given, Context(embed=embedded))) == [("semantic", 1, 0)]
    without = gate(given, Context())
    assert fallen(without) == []
    assert "no embedding model" in without.left_out["semantic"]


class Counting:
    """Embeds as `embedded` does, and remembers what."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.texts += texts
        return embedded(texts)


def test_a_pair_means_the_same_when_both_of_its_answers_do() -> None:
    given = [
        pair("tea is best when steeped for two minutes", "nobody knows how long it takes", start=0),
        pair("tea wants to be drawn for a while", "nobody can tell you about that", start=1),
        pair("tea soaks in hot water and then rests", "everything depends on the water there is", start=2),
        pair("coffee is another matter that nobody writes about", "nobody drinks coffee here at all", start=3),
    ]
    embed = Counting()

    gated = gate(given, Context(embed=embed))

    assert fallen(gated) == [("semantic", 1, 0)]
    # No chosen answer is like the last one, so what it was preferred to decides nothing.
    assert set(embed.texts) == {part for each in given for part in (each.chosen, each.rejected)} - {given[3].rejected}


def test_meanings_are_compared_in_blocks_as_all_at_once() -> None:
    count = 2 * BLOCK + 100
    vectors = np.random.default_rng(5).normal(size=(count, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    found = same_meaning([vectors], 0.97)

    kept: list[int] = []
    for at in range(count):
        alike = [earlier for earlier in kept if float(vectors[earlier] @ vectors[at]) >= 0.97]
        if not alike:
            kept.append(at)
    assert sorted(set(range(count)) - found.keys()) == kept
    assert 20 < len(kept) < BLOCK


def test_whoever_is_like_another_is_found_in_blocks_as_all_at_once() -> None:
    count = 2 * BLOCK + 100
    vectors = np.random.default_rng(5).normal(size=(count, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    found = not_alone(vectors, 0.9)

    alike = vectors @ vectors.T >= 0.9
    np.fill_diagonal(alike, False)
    assert found == np.flatnonzero(alike.any(axis=1)).tolist()
    assert 20 < len(found) < count
    assert not_alone(vectors[:0], 0.9) == []


def test_a_pair_is_another_pair_when_another_answer_was_rejected() -> None:
    chosen = prose(1)
    given = [pair(chosen, prose(2), start=0), pair(chosen, prose(3), start=1), pair(chosen, prose(2), start=2)]

    assert fallen(gate(given, Context())) == [("exact", 2, 0)]


DOCUMENT = "Before it opens, the gate counts everything that was found. " + prose(9, 400)


def test_an_answer_that_is_a_passage_of_its_document_is_grounded_and_an_invented_one_falls() -> None:
    passage = " ".join(DOCUMENT.split()[20:80])

    gated = gate([sample(passage), sample(prose(10))], Context(passages={"d1": DOCUMENT}))

    assert fallen(gated) == [("grounding", 1, None)]
    assert gated.scores[0]["grounding"] == 1.0
    assert gated.scores[1]["grounding"] == 0.0
    assert "shares no 5 words in a row" in gated.findings[0].reason


def test_a_short_answer_is_grounded_by_all_of_its_words() -> None:
    limits = Thresholds(shortest_answer=1)
    given = [sample("Before it opens"), sample("Before it closes")]

    gated = gate(given, Context(passages={"d1": DOCUMENT}, thresholds=limits))

    assert fallen(gated) == [("grounding", 1, None)]


def test_an_answer_in_words_of_its_own_needs_the_meaning_of_its_document() -> None:
    # Six words in a row of the document, and fifty of its own: by words it rests on little.
    close = "before it opens the gate counts " + prose(11, 50)
    far = "otherwise before it opens the gate counts " + prose(12, 50)
    passages = {"d1": DOCUMENT}

    assert fallen(gate([sample(close), sample(far)], Context(passages))) == [
        ("grounding", 0, None),
        ("grounding", 1, None),
    ]
    gated = gate([sample(close), sample(far)], Context(passages, embed=embedded))
    assert fallen(gated) == [("grounding", 1, None)]
    assert gated.scores[0]["closeness"] > 0.7 > gated.scores[1]["closeness"]


def test_only_answers_that_share_a_little_are_held_against_their_documents_meaning() -> None:
    whole, elsewhere = " ".join(DOCUMENT.split()[20:80]), prose(22, 300)
    little, invented = "before it opens the gate counts " + prose(11, 50), prose(10)
    given = [
        sample(whole),
        sample(little),
        sample(invented),
        sample(" ".join(elsewhere.split()[:50]), document_id="d2", language="fr"),
    ]
    embed = Counting()

    gated = gate(given, Context({"d1": DOCUMENT, "d2": elsewhere}, embed=embed))

    assert fallen(gated) == [("grounding", 2, None)]
    assert ["closeness" in gated.scores[at] for at in range(4)] == [False, True, False, False]
    assert set(passages_of(DOCUMENT)) <= set(embed.texts)
    assert not set(passages_of(elsewhere)) & set(embed.texts)


def test_an_answer_is_held_against_its_own_document_and_no_other() -> None:
    passage = " ".join(DOCUMENT.split()[20:80])
    passages = {"d1": DOCUMENT, "d2": prose(20, 300)}
    elsewhere, nowhere = sample(passage, document_id="d2"), sample(prose(21), document_id="d3")

    gated = gate([elsewhere, nowhere], Context(passages))

    assert fallen(gated) == [("grounding", 0, None), ("grounding", 1, None)]
    assert gated.findings[1].reason == "its document is not among the documents"


def test_what_a_person_preferred_is_not_held_against_a_document() -> None:
    preferred = pair(prose(30), prose(31), method="feedback", document_id="")

    assert gate([preferred], Context({"d1": DOCUMENT})).kept == (0,)


def test_the_declared_language_decides_then_that_of_the_answer_and_code_is_let_through() -> None:
    german = (
        "Der Tee wird mit achtzig Grad heißem Wasser aufgegossen und zieht zwei Minuten, bevor man ihn trinkt. "
        "Danach kann man dieselben Blätter noch einmal verwenden."
    )
    given = [
        sample(german, start=0),
        sample(german.replace("Tee", "Kaffee und Kuchen am Sonntag mit Freunden"), language="en", start=1),
        sample("Water and tea are all that you need for this.", language="fr", start=2),
        sample("def boil(water):\n    return water.heated(80, minutes=2)", category="code", language="go", start=3),
        sample("Zu kurz, um es zu wissen.", start=4),
    ]

    gated = gate(given, Context(languages=frozenset({"en"})))

    assert [(finding.gate, finding.at, finding.reason) for finding in gated.findings] == [
        ("language", 0, "its language is de"),
        ("language", 2, "its language is fr"),
    ]


@pytest.mark.parametrize(
    ("question", "answer", "what"),
    [
        ("Why?", prose(1), "question has 1 words"),
        ("What do you think?", "Not very much.", "answer has 3 words"),
        ("What do you think?", prose(1, 1_200), "answer has 1200 words"),
        ("これはどう思いますか", "お茶は八十度のお湯で二分間入れるのが一番です", None),
    ],
)
def test_what_is_too_short_or_too_long_falls(question: str, answer: str, what: str | None) -> None:
    gated = gate([sample(answer, question)], Context())

    assert (what in gated.findings[0].reason) if what else gated.kept == (0,)


@pytest.mark.parametrize(
    "answer",
    [
        "Thanks for reading The Gate! Subscribe for free to receive new posts. Share this post. Leave a comment.",
        "Subscribe to my weekly newsletter and never miss a post. © 2024 The Gate. Privacy policy",
        "Wir verwenden Cookies, um die Seite zu verbessern. Newsletter abonnieren und nichts mehr verpassen.",
        "Read more: how gates open\n\nYou might also like\n\nBack to top\n\nShare",
        "- [Gates and how they open](https://example.com/a)\n- [Doors](https://example.com/b)\n- [Walls]"
        "(https://example.com/c)",
        "0.91 | 0.92 | 0.31\n0.77 | 0.12 | 0.44\n0.11 | 0.43 | 0.97\n1.00 | 0.00 | 0.50\naccuracy | loss | epoch",
    ],
)
def test_what_surrounds_a_text_on_a_page_is_no_answer(answer: str) -> None:
    assert fallen(gate([sample(answer)], Context())) == [("boilerplate", 0, None)]


@pytest.mark.parametrize(
    "answer",
    [
        "A consumer subscribes to the topic and reads what came. You can subscribe to several topics by a pattern.",
        "Cookies identify a session. The site sets one when you sign in, and it lasts for a day: see RFC 6265.",
        "We follow the same path: read more than you write, and share this knowledge with your team every week.",
        "See [the guide](https://example.com/guide) on how a gate is built in four steps.\nThis is the first.",
    ],
)
def test_an_author_may_write_of_subscriptions_cookies_and_links(answer: str) -> None:
    assert gate([sample(answer)], Context()).kept == (0,)


# Put together here, so that no scanner of repositories takes them for real ones.
RANDOM = "q7Xz9Lm2" + "Kp4Rt6Vw" + "8Yb3Nc5D"
EXPOSED = {
    "Write to ada.lovelace@engine.org about it": ("an e-mail address", "ada.lovelace@engine.org"),
    "Call me at +44 20 7946 0958 in the morning": ("a phone number", "+44 20 7946 0958"),
    "Tel.: 030 901820 in the office": ("a phone number", "030 901820"),
    "our office is (212) 736-5000, ask for Ada": ("a phone number", "(212) 736-5000"),
    "transfer it to DE89 3704 0044 0532 0130 00 please": ("an IBAN", "DE89 3704 0044 0532 0130 00"),
    "paid with 4111 1111 1111 1111 in May": ("a card number", "4111 1111 1111 1111"),
    "the server at 93.184.215.14 was down": ("a public IP address", "93.184.215.14"),
    "AWS_ID = " + "AKIA" + "IOSFODNN7QWERTYU": ("an AWS access key", "AKIA" + "IOSFODNN7QWERTYU"),
    "clone with ghp_" + RANDOM + RANDOM: ("a GitHub token", "ghp_" + RANDOM + RANDOM),
    "login with hf_" + "abcdefghij" * 3 + "klmn": ("a Hugging Face token", "hf_" + "abcdefghij" * 3 + "klmn"),
    "OPENAI=sk-proj-" + RANDOM: ("a key of a language model's provider", "proj-" + RANDOM),
    "sent eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0." + RANDOM: ("a JSON web token", RANDOM),
    "mongodb://twin:Pa55-w0rd@db.internal/twin": ("a password in an address", "Pa55-w0rd"),
    'password = "Tr0ub4dor&3"': ("a password or key in an assignment", "Tr0ub4dor&3"),
    "the secret: " + RANDOM: ("a random string after key, token or secret", RANDOM),
    "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIEow\nabc\n-----END RSA PRIVATE KEY-----": ("a private key", "MIIEow"),
}
HARMLESS = [
    "Write to ada@example.com or no-reply@engine.org, or clone git@github.com:twin/twin.git",
    "@app.route('/') decorates, h@self.weight multiplies, and medium.com/@ada.writes is a page",
    "In 2023-10-12 we had 1,234,567,890 rows, 3.14159265358979 on average, and 20240115123456 as an id",
    "call 555-0123 in the film, or +1 202-555-0123",
    "GB82 TEST 1234 5698 7654 33 has a wrong check sum",
    "4111 1111 1111 1112 has one too",
    "the nodes 10.0.0.4, 127.0.0.1 and 192.168.1.20 ask 8.8.8.8; version 4.18.2.1 and section 1.2.3.4 differ",
    'password = os.environ["TWIN_PASSWORD"]; token = settings.token; api_key="your-api-key"; secret: "${SECRET}"',
    "tokenizer.pad_token = tokenizer.eos_token and key = lambda pair: pair[1]; primary_key=document_identifier",
    "postgres://user:${PASSWORD}@host/db and https://example.com:8080/a@b",
]


@pytest.mark.parametrize(("text", "found"), EXPOSED.items(), ids=[what for what, _ in EXPOSED.values()])
def test_personal_data_and_secrets_fall_and_no_reason_repeats_them(text: str, found: tuple[str, str]) -> None:
    what, value = found
    answer = f"This is what the author wrote one day: {text} and there was more."

    gated = gate([sample(answer)], Context())

    assert fallen(gated) == [("privacy", 0, None)]
    assert gated.findings[0].reason.startswith(what)
    assert value not in gated.findings[0].reason
    assert value not in hidden(answer)
    assert f"[{what}]" in hidden(answer)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_personal_data_or_a_secret_is_let_through(text: str) -> None:
    assert list(exposed(text)) == []
    assert hidden(text) == text


def test_a_secret_in_a_rejected_answer_falls_too() -> None:
    gated = gate([pair(prose(1), "Ask ada@engine.org, who knows all of it.")], Context())

    assert gated.findings[0].reason == "an e-mail address (personal data) in the rejected answer, at character 4"


def test_what_a_model_is_evaluated_by_is_not_trained_on() -> None:
    evaluation = {"general": [prose(40, 30), "Who built the gate?"], "style": [prose(41, 30)]}
    given = [
        sample(f"{prose(50, 20)} {' '.join(prose(41, 30).split()[10:18])} {prose(51, 20)}", start=0),
        sample(f"{prose(52, 20)} {' '.join(prose(40, 30).split()[10:17])} {prose(53, 20)}", start=1),
        sample(prose(54), "WHO built the  gate", start=2),
        sample(prose(55), "Who built the gate, and when?", start=3),
    ]

    gated = gate(given, Context(evaluation_sets=evaluation))

    assert [(finding.gate, finding.at, finding.reason) for finding in gated.findings] == [
        ("decontamination", 0, "shares 8 words in a row with the evaluation set 'style'"),
        ("decontamination", 2, "is a text of the evaluation set 'general'"),
    ]


def test_every_sample_is_kept_or_falls_at_one_gate_and_no_text_is_embedded_twice() -> None:
    asked: list[str] = []

    def counting(texts: Sequence[str]) -> NDArray[np.float32]:
        asked.extend(texts)
        return embedded(texts)

    passages = {"d1": DOCUMENT}
    inside = [" ".join(DOCUMENT.split()[at : at + 40]) for at in range(15, 300, 50)]
    given = [sample(text, start=at) for at, text in enumerate([*inside, inside[0], prose(60), "Too short."])]

    gated = gate(given, Context(passages, embed=counting))

    assert sorted([*gated.kept, *(finding.at for finding in gated.findings)]) == list(range(len(given)))
    assert {finding.gate for finding in gated.findings} <= GATES.keys()
    assert list(gated.scores) == list(range(len(given)))
    assert all(0 <= value <= 1 for scores in gated.scores.values() for value in scores.values())
    assert len(asked) == len(set(asked)) > 0
    assert gated.left_out.keys() == {"language", "decontamination"}


def test_no_samples_pass_all_gates() -> None:
    assert gate([], Context({"d1": DOCUMENT}, embed=embedded)).kept == ()


def test_the_hashes_of_words_are_the_same_in_every_process() -> None:
    # Of another run of the interpreter, whose own hashes of strings are others in each.
    assert shingles("one two three four five six").tolist() == [7003702146407501101, 8460764315691458476]


def test_words_are_told_apart_in_scripts_without_spaces() -> None:
    texts = ["机器学习模型需要数据才能训练", "机器学习模型需要代码才能训练"]

    runs = [shingles(text) for text in texts]

    assert [len(own) for own in runs] == [10, 10]
    assert 0 < jaccard(*runs) < 1
