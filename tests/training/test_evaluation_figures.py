"""From what models gave to figures with intervals: what is compared, on which samples, and what is left out."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from corpus.history import DocumentVersion
from corpus.prompts import Source
from corpus.settings import load
from training.datasets.building import Recipe
from training.datasets.samples import InstructionSample, Split
from training.datasets.store import Lineage, Record, statistics, write_folder
from training.datasets.wordsmith import Request
from training.evaluation.commands import NotComparable, _against, _judge
from training.evaluation.evaluating import (
    Figures,
    Item,
    Measured,
    Others,
    Rested,
    _as_texts,
    _of_both,
    correctness,
    figures,
    general_set,
    groundedness,
    markers,
)
from training.evaluation.held_out import (
    PASSAGE_WORDS,
    HeldOut,
    Question,
    Seen,
    base_of,
    heading_path,
    held_out,
    refuse_seen,
    trained_on,
    version,
    widened,
)
from training.evaluation.intervals import comparison, mean, metric, ratio
from training.evaluation.style import Text
from training.inputs import BASE_RECORD, UnusableInput
from training.local_model import Likelihood, whole_sentences
from training.runs import RunRecord

AUTHOR = "Ada"
TOPICS = ("tea", "boats", "lamps", "ropes", "charts", "gulls", "tides", "storms", "piers", "sails")


def text_of(topic: str) -> str:
    return (
        f"# On {topic}\n\nI have thought about {topic} for years. They are plain things.\n\n## How they are made\n\n"
        f"One makes {topic} slowly, with both hands, and puts them away when it rains. Nobody hurries.\n\n"
        f"My neighbour makes {topic} too. We do not agree about how.\n"
    )


def document(topic: str, author: str = AUTHOR, version: int = 1) -> DocumentVersion:
    text = text_of(topic)
    values = dict.fromkeys(DocumentVersion.__struct_fields__, "") | {"language": "en", "published_at": None}
    values |= {"document_id": topic, "version": version, "sequence": 1, "generation": "g1", "title": f"On {topic}"}
    return msgspec.convert(values | {"author": author, "text": text, "content_hash": topic}, DocumentVersion)


def sample(topic: str, author: str = AUTHOR, **changes: Any) -> InstructionSample:
    text = text_of(topic)
    start, end = text.index("One makes"), text.index("\n\nMy neighbour")
    made = InstructionSample(
        instruction=f"How do you make {topic}?",
        answer=text[start:end],
        method="backtranslation",
        document_id=topic,
        version=1,
        start=start,
        end=end,
        author=author,
        category="article",
        language="en",
        generator="templates",
        prompt_version="templates-1",
        family=topic,
    )
    return msgspec.structs.replace(made, **changes)


def dataset(folder: Path, splits: dict[Split, list[InstructionSample]], id: str = "instructions-1") -> Path:
    used = {each.document_id: each.family for found in splits.values() for each in found}
    record = Record(
        id=id,
        name="notes",
        kind="instructions",
        hash="0" * 64,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        generation="g1",
        as_of=None,
        sequence=1,
        recipe=Recipe(),
        splits={split: len(found) for split, found in splits.items()},
        document_ids=tuple(used),
        documents=tuple(Lineage(id, 1, id, family) for id, family in used.items()),
        code_revision=None,
        statistics=statistics(splits, "instructions"),
    )
    write_folder(folder / id, record, splits)
    return folder / id


def questions(topics: Sequence[str] = TOPICS, **changes: Any) -> tuple[Question, ...]:
    return tuple(Question(sample(topic, **changes), (), topic) for topic in topics)


def world(**changes: Any) -> HeldOut:
    asked = questions()
    values: dict[str, Any] = {
        "dataset": "instructions-1",
        "generation": "g1",
        "samples": tuple(each.sample for each in asked),
        "questions": asked,
        "author": AUTHOR,
        "own": (),
        "others": (),
        "notes": {},
    }
    return HeldOut(**values | changes)


def gave(name: str, nats: float = 2.0, **changes: Any) -> Measured:
    """A model to which each token of each answer costs so many nats, and a little more from answer to answer."""
    likelihoods = tuple(Likelihood((nats + at / 20) * (10 + at), 10 + at, 50 + at) for at in range(len(TOPICS)))
    values: dict[str, Any] = {
        "name": name,
        "likelihoods": likelihoods,
        "answers": tuple(f"I make {topic} by hand. It takes a while." for topic in TOPICS),
        "rested": (None,) * len(TOPICS),
        "general": (),
        "tokens": "bpe",
    }
    return Measured(**values | changes)


def found(model: Measured, against: Measured | None = None, held: HeldOut | None = None, **more: Any) -> Figures:
    return figures(held or world(), model, against, seed=7, **more)


# Intervals


def test_an_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(1).normal(5, 2, 400)

    told = metric("m", "higher", mean(values), 400, seed=7)

    width = 2 * 1.96 * values.std() / math.sqrt(400)
    assert told.value == pytest.approx(values.mean())
    assert told.low < told.value < told.high
    assert told.high - told.low == pytest.approx(width, rel=0.15)


def test_about_95_of_100_intervals_hold_what_is_true() -> None:
    held = 0
    for seed in range(100):
        values = np.random.default_rng(seed).exponential(3, 60)
        told = metric("m", "lower", mean(values), 60, seed=seed)
        held += told.low <= 3 <= told.high

    assert 86 <= held <= 99


def test_two_models_are_compared_sample_by_sample() -> None:
    # Samples differ far more than the models do: unpaired, nothing could be said.
    hard = np.random.default_rng(1).normal(0, 10, 50)

    told = comparison("m", mean(hard + 0.5), mean(hard), 50, seed=7)

    assert told.difference == pytest.approx(0.5)
    assert told.low == pytest.approx(0.5)
    assert told.high == pytest.approx(0.5)


def test_a_ratio_is_of_the_sums_and_not_the_mean_of_ratios() -> None:
    told = metric("m", "lower", ratio([1.0, 30.0], [1.0, 10.0]), 2, seed=7)

    assert told.value == pytest.approx(31 / 11)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = list(np.random.default_rng(1).normal(size=30))

    first, again, other = (metric("m", "lower", mean(values), 30, seed) for seed in (7, 7, 8))

    assert first == again
    assert first != other


def alike(seed: int, families: int, each: int, spread: float = 1.0) -> tuple[Any, list[str]]:
    """By how much a model that is no better seems better on each answer: those of a family move together."""
    chance = np.random.default_rng(seed)
    of_family = np.repeat(chance.normal(0, spread, families), each)
    groups = [f"family {number}" for number in range(families) for _ in range(each)]
    return of_family + chance.normal(0, 0.5, families * each), groups


def test_many_answers_from_few_documents_do_not_make_a_model_surely_better() -> None:
    surely = 0
    for seed in range(200):
        gains, groups = alike(seed, families=20, each=10)
        told = comparison("m", mean(gains), mean(np.zeros(200)), 200, seed, groups=groups)
        surely += told.low > 0

    # One in forty is right; answer by answer it is one in four.
    assert surely <= 14


def test_a_figure_says_of_how_many_families_it_is() -> None:
    gains, groups = alike(1, families=4, each=5)

    told = metric("m", "higher", mean(gains), 20, seed=7, groups=groups)
    compared = comparison("m", mean(gains), mean(gains - 1), 20, seed=7, groups=groups)

    assert (told.n, told.families) == (compared.n, compared.families) == (20, 4)


def test_a_family_of_one_answer_each_is_as_an_answer_alone() -> None:
    values = list(np.random.default_rng(1).normal(size=30))

    alone, named = (
        metric("m", "lower", mean(values), 30, 7, groups=groups) for groups in (None, [f"{at:02}" for at in range(30)])
    )

    assert alone == named


def test_models_are_not_compared_by_two_families() -> None:
    asked = tuple(
        Question(sample(topic, family="one" if at else "other"), (), topic) for at, topic in enumerate(TOPICS)
    )
    held = world(questions=asked, samples=tuple(each.sample for each in asked))

    told = found(gave("taught"), gave("base", 2.5), held, judge=Judge("by hand"))

    assert told.comparisons == {}
    assert told.metrics["bits_per_byte"].families == 2
    assert told.metrics["bits_per_byte"].low < told.metrics["bits_per_byte"].high
    assert told.metrics["bits_per_byte_against"].value > told.metrics["bits_per_byte"].value
    assert told.notes["families"].startswith("models are compared by document families, 3 at least")


def test_a_figure_of_no_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a sample"):
        metric("m", "lower", mean([]), 0, seed=7)


# Likelihood


def test_perplexity_and_bits_are_of_all_tokens_and_bytes_together() -> None:
    one = gave("one")

    told = found(one)

    nats, tokens, size = (sum(column) for column in list(zip(*one.likelihoods, strict=True))[:3])
    assert told.metrics["perplexity"].value == pytest.approx(math.exp(nats / tokens))
    assert told.metrics["bits_per_byte"].value == pytest.approx(nats / size / math.log(2))
    assert told.comparisons == {}


def test_a_model_that_finds_the_text_likelier_has_a_difference_below_nothing() -> None:
    told = found(gave("taught", 2.0), gave("base", 2.5))

    assert told.comparisons["perplexity"].high < 0
    assert told.comparisons["bits_per_byte"].high < 0
    assert told.metrics["perplexity_against"].value > told.metrics["perplexity"].value


def test_models_with_different_tokens_are_compared_by_bits_per_byte_alone() -> None:
    told = found(gave("taught"), gave("base", 2.5, tokens="unigram"))

    assert "perplexity" in told.metrics
    assert "perplexity" not in told.comparisons
    assert "different tokens" in told.notes["perplexity"]
    assert told.comparisons["bits_per_byte"].n == len(TOPICS)


def test_answers_that_one_context_does_not_hold_are_left_out_for_both() -> None:
    short = gave("base", 2.5)
    cut = (short.likelihoods[0]._replace(whole=False), *short.likelihoods[1:])

    told = found(gave("taught"), gave("base", 2.5, likelihoods=cut))

    assert told.metrics["perplexity"].n == told.comparisons["perplexity"].n == len(TOPICS) - 1
    assert told.notes["perplexity"].startswith("1 of 10 held-out answers are longer than the context")


# Answers with passages


def rested(answer: str, *passages: str) -> Rested:
    return Rested(answer, tuple(Source(n, "On tea", AUTHOR, (), text) for n, text in enumerate(passages, 1)))


def test_an_answer_is_grounded_as_far_as_its_runs_of_words_stand_in_the_passages() -> None:
    (question,) = questions(["tea"])
    passage = "One makes tea slowly with both hands and puts it away when it rains."

    whole = groundedness(question, rested("One makes tea slowly with both hands [1].", passage))
    half = groundedness(question, rested("One makes tea slowly with cold milk from the north.", passage))

    assert whole == 1
    assert half == pytest.approx(1 / 6)
    assert groundedness(question, rested("Puts it [1] away", passage)) == 1
    assert groundedness(question, rested("Tea rains", passage)) == 0
    assert groundedness(question, rested(" [1]", passage)) == 0


def test_an_answer_is_correct_as_far_as_it_shares_the_authors_words() -> None:
    question = Question(sample("tea", answer="seventy degrees two minutes"), (), "")

    assert correctness(question, rested("Seventy degrees, two minutes. [1]")) == 1
    assert correctness(question, rested("seventy degrees, four hours")) == pytest.approx(0.5)
    assert correctness(question, rested("")) == 0


def test_markers_are_right_where_they_name_given_passages_and_no_other() -> None:
    (question,) = questions(["tea"])

    assert markers(question, rested("Slowly [1], with both hands [ 2 ].", "a", "b")) == 1
    assert markers(question, rested("Slowly [1][3].", "a", "b")) == 0
    assert markers(question, rested("Slowly.", "a", "b")) == 0


def test_answers_with_passages_are_compared_where_both_models_had_room_for_them() -> None:
    answers = tuple(rested(f"One makes {topic} slowly, with both hands", text_of(topic)) for topic in TOPICS)
    one = gave("taught", rested=answers)
    other = gave("base", rested=(None, *(each._replace(answer="no idea at all of that") for each in answers[1:])))

    told = found(one, other)

    assert told.comparisons["groundedness"].n == len(TOPICS) - 1
    assert told.comparisons["groundedness"].low == 1
    assert told.comparisons["correctness"].low > 0
    assert told.metrics["markers"].value == 0


def test_without_passages_it_is_said_why_nothing_is_known_of_grounding() -> None:
    told = found(gave("taught"))

    assert "groundedness" not in told.metrics
    assert told.notes["groundedness"].startswith("not measured")


# Style


def test_style_is_learned_from_the_other_models_answers_where_there_is_no_other_author() -> None:
    own = tuple(Text(part, topic) for topic in TOPICS for part in text_of(topic).split("\n\n"))
    strange = tuple("lorem ipsum dolor sit amet, consectetur" for _ in TOPICS)
    other = gave("base", answers=strange)
    told = found(
        gave("taught"),
        other,
        world(own=own),
        others=Others("answers of base", tuple(Text(text, topic) for text, topic in zip(strange, TOPICS, strict=True))),
    )

    assert told.comparisons["style_author"].low > 0
    assert told.metrics["style_classifier"].low > 0.9
    assert told.metrics["style_author_yardstick"].value > 0.8
    assert told.notes["style_author"].startswith("the classifier tells the author's passages from answers of base, and")


def test_no_model_is_more_like_the_author_because_the_other_one_stood_for_the_strangers() -> None:
    own = tuple(Text(part, topic) for topic in TOPICS for part in text_of(topic).split("\n\n"))
    # Two strangers, each with words of its own.
    one = gave("one", answers=tuple(f"Zany zebras zip past {topic}, buzzing with jazz." for topic in TOPICS))
    other = gave("other", answers=tuple(f"Quick queens quote {topic}; quaint quilts." for topic in TOPICS))
    held = world(own=own)

    told = found(one, other, held, others=_of_both(held, one, other, 7)).comparisons["style_author"]
    turned = found(other, one, held, others=_of_both(held, other, one, 7)).comparisons["style_author"]
    unfair = found(one, other, held, others=Others("answers of other", _as_texts(held, other.answers)))

    assert unfair.comparisons["style_author"].low > 0.1
    assert abs(told.difference) < 0.05
    assert told.difference == pytest.approx(-turned.difference, abs=1e-6)


def test_strangers_are_as_many_answers_of_one_model_as_of_the_other() -> None:
    one = gave("one", answers=("", *(f"One on {topic}." for topic in TOPICS[1:])))
    other = gave("other", answers=(*(f"Other on {topic}." for topic in TOPICS[:-1]), "  "))

    both = _of_both(world(), one, other, 7)

    assert [each.group for each in both.texts] == [*TOPICS[1:-1], *TOPICS[1:-1]]
    assert sum(each.text.startswith("One") for each in both.texts) == len(TOPICS) - 2
    assert both.what == "answers of one and other"


def test_without_anybody_else_it_is_said_that_style_is_not_known() -> None:
    told = found(gave("taught"))

    assert "style_author" not in told.metrics
    assert told.notes["style_author"].endswith(
        "there are 0 passages of the author, 0 passages of other authors; name a model to compare with (--against)"
    )


def test_where_another_model_was_named_nobody_is_told_to_name_one() -> None:
    told = found(gave("taught"), gave("base"), others=Others("answers of taught and base", ()))

    assert told.notes["style_author"].endswith("0 passages of other authors, 0 answers of taught and base")


def test_distances_come_with_the_authors_own_as_a_yardstick() -> None:
    told = found(gave("taught"), gave("base", answers=("zq",) * len(TOPICS)))

    for name in ("style_sentence_length", "style_vocabulary", "style_punctuation"):
        assert told.metrics[f"{name}_yardstick"].value < told.metrics[name].value
        assert told.metrics[name].low <= told.metrics[name].value <= told.metrics[name].high
    assert told.metrics["style_vocabulary_against"].value == 1
    assert told.comparisons["style_vocabulary"].high < 0


def test_distances_are_of_answers_that_are_not_empty() -> None:
    some = tuple("" if at < 5 else f"I make {topic} by hand." for at, topic in enumerate(TOPICS))

    of_some = found(gave("taught", answers=some), gave("base"))
    of_none = found(gave("taught", answers=("", " ") * 5), gave("base"))

    assert of_some.metrics["style_vocabulary"].n == of_some.metrics["style_vocabulary_against"].n == 5
    assert of_some.notes["empty answers"] == "5 of 10 answers of taught are empty"
    assert "style_vocabulary" not in of_none.metrics
    assert of_none.notes["style_distances"] == (
        "not measured: 0 answers are too few (10 of 10 answers of taught are empty)"
    )
    assert "empty answers" not in found(gave("taught")).notes


def test_no_distance_is_said_to_be_perhaps_below_nothing() -> None:
    own = tuple(each.sample.answer for each in questions())

    told = found(gave("taught", answers=own), gave("base"))

    for name in ("style_sentence_length", "style_vocabulary", "style_punctuation"):
        assert told.metrics[name].low >= 0, name
        assert told.metrics[f"{name}_yardstick"].low >= 0, name


def test_answers_that_a_model_wrote_for_the_author_are_no_measure_of_his_style() -> None:
    told = found(gave("taught"), held=world(questions=questions(method="question")))

    assert "style_vocabulary" not in told.metrics
    assert told.notes["style_distances"] == "not measured: 0 answers are too few"


def test_a_sentence_that_was_cut_off_is_no_sentence() -> None:
    assert whole_sentences("It is done. And then the") == "It is done."
    assert whole_sentences("and then the ") == "and then the"


# The judge


class Judge:
    """Prefers whichever answer has `word` in it; away if told so."""

    name = "judge"

    def __init__(self, word: str) -> None:
        self.word = word

    def write(self, requests: Sequence[Request]) -> list[str | None]:
        shown = [each.messages[1]["content"].partition('is="answer-2"') for each in requests]
        return ["1" if self.word in first else "2" if self.word in second else "hm" for first, _, second in shown]


def test_a_win_rate_is_compared_with_the_other_models() -> None:
    answers = tuple(f"No idea of {topic}." for topic in TOPICS)

    told = found(gave("taught"), gave("base", answers=answers), judge=Judge("by hand"))

    assert told.metrics["win_rate"].value == 1
    assert told.comparisons["win_rate"].difference == 1
    assert told.notes["win_rate"].startswith("10 of 10 pairs judged by judge, each in both orders")


def test_a_judge_that_rambles_leaves_the_evaluation_without_a_win_rate_and_says_so() -> None:
    answers = tuple(f"No idea of {topic}." for topic in TOPICS)

    told = found(gave("taught"), gave("base", answers=answers), judge=Judge("zebra"))

    assert "win_rate" not in told.metrics
    assert "no verdict in 20 of 20 replies" in told.notes["win_rate"]
    assert "perplexity" in told.comparisons


def test_without_a_judge_or_another_model_it_is_said_which_is_missing() -> None:
    assert "no judge is set" in found(gave("taught"), gave("base")).notes["win_rate"]
    assert "no other model" in found(gave("taught"), judge=Judge("a")).notes["win_rate"]


@pytest.fixture
def heard() -> Iterator[tuple[str, list[str | None]]]:
    """The address of a judge that answers `1`, and the keys that it was shown."""
    keys: list[str | None] = []

    class Server(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Authorization"])
            body = b'{"choices": [{"message": {"role": "assistant", "content": "1"}, "finish_reason": "stop"}]}'
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", keys
        server.shutdown()


def test_the_key_of_the_settings_is_shown_to_their_own_server_and_to_no_other_judge(
    heard: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    url, keys = heard
    request = Request("a", "v", ({"role": "user", "content": "Which?"},))
    named = SimpleNamespace(judge_url=url, judge_model=None)
    unnamed = SimpleNamespace(judge_url=None, judge_model="judge")

    for own, asked in (("http://models.example:8000", named), (url, named), (url, unnamed)):
        judge = _judge(asked, load({"TWIN_LLM_URL": own, "TWIN_LLM_API_KEY": "s3cret"}, tmp_path))  # type: ignore[arg-type]
        assert judge is not None
        assert judge.write([request]) == ["1"]

    assert "s3cret" not in (keys[0] or "")
    assert keys[1:] == ["Bearer s3cret", "Bearer s3cret"]
    assert _judge(unnamed, load({}, tmp_path)) is None  # type: ignore[arg-type]


# The champion


def test_the_champion_is_compared_with_where_its_files_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    champion = SimpleNamespace(id="twin-3", folder=str(tmp_path / "model"))
    crowned: list[Any] = [None]
    monkeypatch.setattr("corpus.warehouse.connect", lambda settings: nullcontext())
    monkeypatch.setattr("training.release.registry.Registry.champion", lambda registry: crowned[0])
    settings = load({}, tmp_path)

    with pytest.raises(NotComparable, match="there is no champion yet"):
        _against("champion", settings)
    crowned[0] = champion
    with pytest.raises(NotComparable, match=r"the champion twin-3 is not at .* any more"):
        _against("champion", settings)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert _against("champion", settings) == tmp_path / "model"
    assert _against(None, settings) is None


# The general set


def test_what_was_lost_of_general_knowledge_is_seen() -> None:
    items = [Item(f"{at}?", ("a", "b"), "a") for at in range(40)]

    told = found(
        gave("taught", general=(True,) * 10 + (False,) * 30),
        gave("base", general=(True,) * 30 + (False,) * 10),
        general=items,
    )

    assert told.metrics["general"].value == pytest.approx(0.25)
    assert told.comparisons["general"].high < 0
    assert told.notes["general"] == "a model that knows nothing has 50%"


def test_the_general_set_is_whole_and_gives_nothing_away_by_form() -> None:
    items = general_set()

    assert len(items) >= 60
    assert len({item.question for item in items}) == len(items)
    for item in items:
        assert item.answer in item.choices
        assert len(set(item.choices)) == len(item.choices) == 4
    longest, shortest = (sum(edge(item.choices, key=len) == item.answer for item in items) for edge in (max, min))
    assert max(longest, shortest) < len(items) / 2
    places = [item.choices.index(item.answer) for item in items]
    assert max(map(places.count, range(4))) < len(items) / 2


# What is held out


def test_questions_are_asked_with_the_passage_that_they_rest_on_among_others(tmp_path: Path) -> None:
    place = dataset(tmp_path, {"train": [], "validation": [], "test": [sample(topic) for topic in TOPICS]})
    record, folder = version(str(place), tmp_path)

    held = held_out(record, folder, [document(topic) for topic in TOPICS], count=100, seed=7)

    assert len(held.questions) == len(TOPICS)
    places = set()
    for question in held.questions:
        messages, numbered = question.resting(3)
        right = [each for each in numbered if question.sample.answer in each.text]
        assert len(numbered) == 4
        assert len(right) == 1
        assert right[0].heading_path == ()
        assert right[0].title == f"On {question.sample.document_id}"
        assert [each.n for each in numbered] == [1, 2, 3, 4]
        assert messages[0]["role"] == "system"
        assert all(each.text in messages[1]["content"] for each in numbered)
        assert question.resting(3) == (messages, numbered)
        assert len(question.resting(0)[1]) == 1
        places.add(right[0].n)
    assert len(places) > 1
    assert len(held.own) >= len(TOPICS)
    assert held.others == ()


def test_without_the_documents_an_answer_in_the_authors_words_is_its_own_passage(tmp_path: Path) -> None:
    asked = [sample(topic) for topic in TOPICS[:5]] + [sample(topic, method="question") for topic in TOPICS[5:]]
    place = dataset(tmp_path, {"train": [], "validation": [], "test": asked})
    record, folder = version(str(place), tmp_path)

    held = held_out(record, folder, [document(topic, version=2) for topic in TOPICS], count=100, seed=7)

    known = [question for question in held.questions if question.passages]
    assert {question.sample.method for question in known} == {"backtranslation"}
    assert all(question.passages[0].text == question.sample.answer for question in known)
    assert held.notes["passages"].startswith("the passages of 5 of 10 questions are not known")


def test_the_author_is_whose_samples_are_most_and_others_are_told_apart(tmp_path: Path) -> None:
    asked = [sample(topic) for topic in TOPICS[:6]] + [sample(topic, author="Bob") for topic in TOPICS[6:]]
    place = dataset(tmp_path, {"train": [], "validation": [], "test": asked})
    record, folder = version(str(place), tmp_path)

    held = held_out(record, folder, [document("clouds", "Cleo")], count=4, seed=7)

    assert held.author == AUTHOR
    assert {each.group for each in held.own} == set(TOPICS[:6])
    assert {each.group for each in held.others} == {*TOPICS[6:], "clouds"}
    assert len(held.samples) == 10
    assert len(held.questions) == 4
    assert held.notes["questions"].startswith("4 of 10")


def test_a_passage_is_widened_by_whole_paragraphs_up_to_its_size() -> None:
    paragraphs = [f"Paragraph {number} has words " + "word " * 96 for number in range(9)]
    text = "\n\n".join(paragraphs)
    start = text.index("Paragraph 4")

    begin, end = widened(text, start, start + 20, PASSAGE_WORDS)

    assert text[begin:].startswith("Paragraph ")
    assert len(text[begin:end].split()) == 300
    assert text[begin:end].count("Paragraph") == 3
    assert widened("One line.", 0, 9, PASSAGE_WORDS) == (0, 9)


def test_the_headings_above_a_place_are_those_that_are_still_open() -> None:
    text = "# A\n\n## B\n\ntext\n\n## C\n\n### D\n\nhere"

    assert heading_path(text, text.index("here")) == ["A", "C", "D"]
    assert heading_path(text, text.index("text")) == ["A", "B"]


def test_a_dataset_that_cannot_be_evaluated_on_is_refused_in_words(tmp_path: Path) -> None:
    without = dataset(tmp_path, {"train": [sample("tea")], "validation": [], "test": []})
    record, folder = version(str(without), tmp_path)
    with pytest.raises(UnusableInput, match="has no test split"):
        held_out(record, folder, [], count=10, seed=7)
    with pytest.raises(UnusableInput, match="there is no dataset nothing, here or in"):
        version("nothing", tmp_path)
    assert version(record.name, folder.parent) == (record, folder)
    preferences = msgspec.structs.replace(record, kind="preferences")
    with pytest.raises(UnusableInput, match="holds preferences"):
        held_out(preferences, folder, [], count=10, seed=7)
    (folder / "record.json").write_text('{"id": "instructions-1"}')
    with pytest.raises(UnusableInput, match="is not a dataset's record"):
        version(str(folder), tmp_path)


# What the model has seen


def test_a_model_that_was_trained_on_the_test_is_refused_with_an_example(tmp_path: Path) -> None:
    old = dataset(tmp_path, {"train": [sample("tea")], "validation": [], "test": [sample("boats")]}, "old")
    new = dataset(tmp_path, {"train": [sample("boats")], "validation": [], "test": [sample("tea")]}, "new")

    with pytest.raises(Seen, match=r"1 of 1 documents that new tests by were trained on in old \(such as tea\)"):
        refuse_seen(version(str(new), tmp_path), [version(str(old), tmp_path)])
    refuse_seen(version(str(new), tmp_path), [version(str(new), tmp_path)])


def test_a_family_is_known_again_under_another_name(tmp_path: Path) -> None:
    # The copy came later and has the smaller id, so the family is named after it now.
    trained = [sample("tea", family="tea"), sample("boats")]
    old = dataset(tmp_path, {"train": trained, "validation": [], "test": [sample("ropes")]}, "old")
    tested = [sample("a copy of tea", family="a copy of tea"), sample("tea", family="a copy of tea")]
    new = dataset(tmp_path, {"train": [], "validation": [], "test": tested}, "new")

    with pytest.raises(Seen, match="such as tea"):
        refuse_seen(version(str(new), tmp_path), [version(str(old), tmp_path)])


def run(folder: Path, dataset: str, base_model: str = "base", base_run: str | None = None) -> Path:
    folder.mkdir()
    record = RunRecord(
        state="finished",
        stage="sft",
        method="full",
        base_model=base_model,
        base_run=base_run,
        dataset=dataset,
        generation="g1",
        documents=1,
        rows=1,
        seed=1,
        devices=1,
        device="cpu",
        code_revision=None,
        versions={},
        started_at="2026-01-01T00:00:00+00:00",
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    return folder


def test_a_model_has_seen_what_its_base_was_trained_on_too(tmp_path: Path) -> None:
    first = run(tmp_path / "sft", "instructions-1", "org/base")
    second = run(tmp_path / "dpo", "preferences-1", str(first), str(first))

    assert trained_on(second / "model") == ["preferences-1", "instructions-1"]
    assert base_of(second) == "org/base"
    assert trained_on(tmp_path) == []
    assert base_of(tmp_path) is None


def test_a_base_run_that_is_gone_leaves_nobody_sure_of_what_was_seen(tmp_path: Path) -> None:
    second = run(tmp_path / "dpo", "preferences-1", "gone", "gone")

    with pytest.raises(UnusableInput, match="is not there any more"):
        trained_on(second)


def test_a_relative_base_run_is_found_beside_the_run(tmp_path: Path) -> None:
    run(tmp_path / "sft", "instructions-1")
    second = run(tmp_path / "dpo", "preferences-1", "sft", "sft")

    assert trained_on(second) == ["preferences-1", "instructions-1"]


def test_a_run_on_top_of_the_model_of_another_has_seen_what_that_was_trained_on(tmp_path: Path) -> None:
    first = run(tmp_path / "sft", "instructions-1", "org/base")
    (first / "model").mkdir()
    # As older runs noted it: the model alone.
    older = run(tmp_path / "older", "preferences-1", str(first / "model"))
    newer = run(tmp_path / "newer", "preferences-2", str(first / "model"), str(first))

    assert trained_on(older) == ["preferences-1", "instructions-1"]
    assert trained_on(newer) == ["preferences-2", "instructions-1"]
    assert base_of(older) == "org/base"


def test_runs_are_found_again_when_their_folder_has_moved(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    first = run(tmp_path / "old" / "sft", "instructions-1")
    run(tmp_path / "old" / "dpo", "preferences-1", str(first), str(first))
    (tmp_path / "old").rename(tmp_path / "new")

    assert trained_on(tmp_path / "new" / "dpo") == ["preferences-1", "instructions-1"]


def test_what_a_tiny_base_was_made_of_has_been_seen_by_all_on_top_of_it(tmp_path: Path) -> None:
    base = tmp_path / "tiny"
    base.mkdir()
    (base / BASE_RECORD).write_text('{"dataset": "instructions-0"}')
    first = run(tmp_path / "sft", "instructions-1", str(base))
    second = run(tmp_path / "dpo", "preferences-1", str(first), str(first))

    assert trained_on(second) == ["preferences-1", "instructions-1", "instructions-0"]
    assert trained_on(base) == ["instructions-0"]
    (base / BASE_RECORD).write_text("{}")
    with pytest.raises(UnusableInput, match="make the base anew"):
        trained_on(first)


def test_runs_that_name_each_other_are_no_endless_loop(tmp_path: Path) -> None:
    run(tmp_path / "one", "a", "two", str(tmp_path / "two"))
    second = run(tmp_path / "two", "b", "one", str(tmp_path / "one"))

    with pytest.raises(UnusableInput, match="go round in a circle"):
        trained_on(second)


def test_the_general_set_is_one_that_no_training_sample_may_repeat(tmp_path: Path) -> None:
    from training.datasets.store import evaluation_sets, evaluation_texts

    settings = load({}, tmp_path)
    texts = evaluation_texts(settings, evaluation_sets(settings))["general"]

    assert {item.question for item in general_set()} <= set(texts)
