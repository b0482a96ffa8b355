"""What the code really sends, for documents of any content, is what the released schemas promise."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from corpus.categories import Category
from corpus.documents import LARGEST_MESSAGE
from corpus.index import QdrantIndex, open_index
from corpus.settings import load
from streaming.changes import DeadLetter, Message, decode, delete_envelope, upsert_envelope
from streaming.indexing import Indexed, Outcome, Removed, index_batch
from streaming.log import Log, features

HERE = "11111111-2222-4333-8444-555555555555"
LOG = Log("", "changes", "features.documents", "features.chunks", "dead-letters", "", lambda: "")
WORDS = st.lists(
    st.sampled_from(("# Tea", "green", "leaves", "steep", "\n\n## Water\n\n", "é", "\n", "🍵")), min_size=1
)


class CountingEmbedder:
    """Vectors of length 1 that follow from the text's length."""

    name, dimensions, max_tokens, special_tokens = "counting", 8, 64, 2

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = np.array([[len(text) % 7, *range(1, self.dimensions)] for text in texts], np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(self.token_spans(text)) + self.special_tokens for text in texts]

    def token_spans(self, text: str) -> list[tuple[int, int]]:
        return [match.span() for match in re.finditer(r"\w+|[^\w\s]", text)]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantIndex]:
    home = tmp_path_factory.mktemp("index")
    opened = open_index(load({"TWIN_HOME": str(home)}), "counting-1", CountingEmbedder.dimensions)
    yield opened
    opened.close()


moments = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30), timezones=st.just(UTC))
fields = st.fixed_dictionaries(
    {
        "_id": st.one_of(st.uuids().map(str), st.text(max_size=20), st.integers(-(2**62), 2**62)),
        "category": st.one_of(st.sampled_from([each.value for each in Category]), st.text(max_size=8)),
        "platform": st.text(max_size=20),
        "author_name": st.text(max_size=20),
        "url": st.text(max_size=40),
        "title": st.text(max_size=40),
        "text": st.one_of(WORDS.map(" ".join), st.text()),
    },
    optional={
        "author_id": st.text(max_size=20),
        "published_at": st.one_of(st.none(), moments, st.text(max_size=5)),
        "crawled_at": moments,
        "crawl_id": st.text(max_size=20),
        "content_hash": st.text(max_size=20),
        "metadata": st.dictionaries(
            st.sampled_from(["language", "path"]), st.one_of(st.text(max_size=5), st.integers())
        ),
    },
)


def as_sent(outcome: Outcome) -> dict[str, tuple[bytes | None, Any]]:
    """Key and value by contract."""
    sent = features(outcome, LOG, "counting-1")
    return {contract: (key, None if value is None else json.loads(value)) for contract, key, value in sent}


def upserted(record: Mapping[str, Any], version: int, *headers: tuple[str, bytes | None]) -> Message:
    envelope = dict(upsert_envelope(record, version, "twin", HERE))
    envelope["headers"] = (*envelope["headers"], *headers)
    return Message("twin.twin.documents", version % 4, version, **envelope)


def check_letter(outcome: Outcome, promised: Callable[[str, Any], None]) -> dict[str, Any]:
    ((contract, (key, told)),) = as_sent(outcome).items()
    assert contract == "dead-letters"
    promised(contract, told)
    assert (key or b"").decode() == told["letter_id"]
    return told


@settings(max_examples=150, deadline=None)
@given(record=fields, version=st.integers(0, 2**40))
def test_any_document_is_told_as_promised_and_its_deletion_is_two_tombstones(
    index: QdrantIndex, promised: Callable[[str, Any], None], record: dict[str, Any], version: int
) -> None:
    embedder = CountingEmbedder()
    known = index.records([str(record["_id"])]).get(str(record["_id"]))
    version += known.seen + 1 if known else 0
    (outcome,) = index_batch([decode(upserted(record, version), HERE)], index, embedder)

    if isinstance(outcome, DeadLetter):
        check_letter(outcome, promised)
    else:
        assert isinstance(outcome, Indexed)
        sent = as_sent(outcome)
        assert set(sent) == {"features.documents", "features.chunks"}
        for contract, (key, value) in sent.items():
            promised(contract, value)
            assert (key or b"").decode() == value["document_id"] == str(record["_id"])
        document, chunks = sent["features.documents"][1], sent["features.chunks"][1]
        assert document["version"] == chunks["version"] == version
        assert [chunk["position"] for chunk in chunks["chunks"]] == list(range(len(chunks["chunks"])))
        assert all(chunk["text"] in document["text"] for chunk in chunks["chunks"])
        vectors = [np.frombuffer(base64.b64decode(chunk["embedding"]), "<f4") for chunk in chunks["chunks"]]
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)

    gone = decode(Message("changes", 0, 1, **delete_envelope(record["_id"], version + 2048, "twin", HERE)), HERE)
    (outcome,) = index_batch([gone], index, embedder)
    assert isinstance(outcome, Removed)
    key = str(record["_id"]).encode()
    assert as_sent(outcome) == {"features.documents": (key, None), "features.chunks": (key, None)}


@settings(max_examples=150, deadline=None)
@given(
    key=st.one_of(st.none(), st.binary(max_size=20), st.just(b'{"id":"\\"d\\""}')),
    value=st.binary(min_size=1, max_size=60),
    headers=st.lists(st.tuples(st.text(max_size=5), st.one_of(st.none(), st.binary(max_size=5)))),
)
def test_any_bytes_become_a_letter_that_gives_them_back(
    promised: Callable[[str, Any], None], key: bytes | None, value: bytes, headers: list[tuple[str, bytes | None]]
) -> None:
    outcome = decode(Message("changes", 3, 9, key, value, tuple(headers)), HERE)
    assert isinstance(outcome, DeadLetter)

    letter = check_letter(outcome, promised)

    def given_back(told: str | None) -> bytes | None:
        return None if told is None else base64.b64decode(told, validate=True)

    assert (given_back(letter["key"]), given_back(letter["value"])) == (key, value)
    assert [(name, given_back(told)) for name, told in letter["headers"]] == headers


def test_a_letter_whose_message_would_not_fit_says_so_and_leaves_it_out(promised: Callable[[str, Any], None]) -> None:
    large = Message("changes", 3, 9, b'{"id":"\\"d\\""}', b"x" * 80_000_000)
    outcome = decode(large, HERE)

    letter = check_letter(outcome, promised)

    assert (letter["value"], letter["topic"], letter["offset"]) == (None, "changes", 9)
    assert letter["reason"].endswith("(its message of 80.0 MB is too large for a letter)")
    assert len(features(outcome, LOG, "counting-1")[0][2] or b"") < LARGEST_MESSAGE
