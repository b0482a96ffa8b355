"""The change-to-feature path against a plain model: in whatever order changes come, the index equals the warehouse."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from httpx import Headers
from numpy.typing import NDArray
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from corpus.documents import Document, to_record
from corpus.index import Filters, QdrantIndex, open_index
from corpus.points import IndexUnavailable, Where
from corpus.settings import load
from streaming.changes import REPAIR_HEADER, VERSION_HEADER, DeadLetter, Event, Message, decode, upsert_envelope
from streaming.indexing import Indexed, Removed, Unchanged, index_batch
from tests.streaming.samples import HERE, WORDS, WordEmbedder, article, deleted, document, read, upserted


def test_a_document_becomes_chunks_that_are_found(index: QdrantIndex, embedder: WordEmbedder) -> None:
    (outcome,) = index_batch([upserted(document("a", article(["zorbital", "quixotic"])), 1)], index, embedder)

    assert isinstance(outcome, Indexed)
    assert outcome.embedded == len(outcome.chunks) == len(embedder.embedded)
    hits = index.search("the quixotic station", embedder.embed(["the quixotic station"])[0], Filters(), 1)
    assert "quixotic" in hits[0].text
    assert hits[0].text == index.records([hits[0].document_id])[hits[0].document_id].text[hits[0].start : hits[0].end]


def test_a_one_word_edit_embeds_only_the_passage_it_is_in(index: QdrantIndex, embedder: WordEmbedder) -> None:
    uniques = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
    text = article(uniques)
    index_batch([upserted(document("a", text), 1)], index, embedder)
    embedder.embedded.clear()

    (outcome,) = index_batch([upserted(document("a", text.replace("four", "fourth")), 2)], index, embedder)

    assert isinstance(outcome, Indexed)
    assert (outcome.embedded, outcome.removed) == (1, 1)
    assert len(embedder.embedded) == 1
    assert "fourth" in embedder.embedded[0]


def test_a_redelivery_embeds_nothing_and_an_older_change_does_nothing(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    old, new = document("a", article(["old"])), document("a", article(["new"]))
    index_batch([upserted(old, 1)], index, embedder)
    index_batch([upserted(new, 5)], index, embedder)
    embedder.embedded.clear()

    outcomes = [
        index_batch([event], index, embedder)[0] for event in (upserted(old, 1), upserted(new, 6), deleted(old, 3))
    ]

    assert [outcome.why for outcome in outcomes if isinstance(outcome, Unchanged)] == ["stale", "stale"]
    assert embedder.embedded == []
    assert "new" in index.records([new.id])[new.id].text


def test_what_is_indexed_is_told_downstream_again_whichever_delivery_says_so(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    """A crash may have come before downstream was told, and the next delivery may hold more than the first."""
    one, refused = document("a", article(["one", "two"])), document("a", " \n ")
    index_batch([upserted(one, 5)], index, embedder)
    embedder.embedded.clear()

    (again,) = index_batch([upserted(one, 5)], index, embedder)
    _, later = index_batch([upserted(one, 5), upserted(one, 6)], index, embedder)
    index_batch([upserted(refused, 7)], index, embedder)
    (below,) = index_batch([upserted(one, 6)], index, embedder)

    for outcome in (again, later):
        assert isinstance(outcome, Indexed)
        assert set(outcome.vectors) == set(outcome.record.chunk_ids)
    assert isinstance(below, Indexed)
    assert index.records([one.id])[one.id].failure is not None
    assert embedder.embedded == []


def test_a_late_older_upsert_does_not_bring_a_deleted_document_back(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one = document("a", article(["gone"]))
    index_batch([upserted(one, 1)], index, embedder)
    (outcome,) = index_batch([deleted(one, 5)], index, embedder)

    index_batch([upserted(one, 4)], index, embedder)

    assert isinstance(outcome, Removed)
    assert index.counts().chunks == 0
    index_batch([upserted(one, 6)], index, embedder)
    assert index.counts().documents == 1


def test_a_change_that_is_refused_after_one_that_is_not_leaves_the_earlier_one_searchable(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    good = document("a", article(["good"]))
    index_batch([upserted(document("a", article(["former"])), 1)], index, embedder)
    broken = {**upsert_envelope(to_record(good), 6, "twin", HERE), "value": b'{"op": "u", "source": {"ts_ms": "x"}}'}

    outcomes = index_batch([upserted(good, 5), decode(Message("changes", 0, 6, **broken), HERE)], index, embedder)

    assert [type(outcome) for outcome in outcomes] == [Indexed, DeadLetter]
    record = index.records([good.id])[good.id]
    assert "good" in record.text
    assert record.failure is not None
    assert index.counts().chunks == len(record.places)


def test_of_two_workers_with_one_document_the_newer_change_stays_whoever_is_slower(
    index: QdrantIndex, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    uniques = ["one", "two", "three"]
    older, newer = (document("a", article([*uniques, word])) for word in ("older", "newer"))
    index_batch([upserted(document("a", article(uniques)), 1)], index, embedder)
    write = index._write

    def overtaken(*arguments: Any) -> bool:
        monkeypatch.setattr(index, "_write", write)
        index_batch([upserted(newer, 6)], index, embedder)
        return write(*arguments)

    monkeypatch.setattr(index, "_write", overtaken)
    (outcome,) = index_batch([upserted(older, 5)], index, embedder)

    assert isinstance(outcome, Unchanged)
    assert index.records([newer.id])[newer.id].content_hash == newer.content_hash
    assert index.counts().chunks == len(index.records([newer.id])[newer.id].places)


def test_points_that_are_gone_come_back_with_a_snapshot(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one = document("a", article(["one", "two", "three"]))
    index_batch([upserted(one, 5)], index, embedder)
    lost = index.records([one.id])[one.id].chunk_ids[1]
    index._chunks.delete(Where(ids=[lost]))

    (outcome,) = index_batch([read(one, offset=0)], index, embedder)

    assert isinstance(outcome, Indexed)
    assert (outcome.embedded, outcome.reused) == (1, 2)
    assert lost in index.vectors([lost])


def test_a_repair_writes_a_document_anew_though_the_ledger_has_it(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one = document("a", article(["one", "two"]))
    index_batch([upserted(one, 5)], index, embedder)
    first, second = index.records([one.id])[one.id].chunk_ids
    index._chunks.delete(Where(ids=[first]))
    index._chunks.set_payload(Where(ids=[second]), {"author": "Mallory"})
    asked = upsert_envelope(to_record(one), 9, "twin", HERE)
    headers = (*asked["headers"], (REPAIR_HEADER, b"1"))

    message = Message("changes", 0, 9, asked["key"], asked["value"], headers)
    (outcome,) = index_batch([decode(message, HERE)], index, embedder)

    assert isinstance(outcome, Indexed)
    assert outcome.embedded == 2
    assert {point.payload["author"] for point in index._chunks.retrieve([first, second])} == {"Ada"}
    assert index.counts().chunks == 2


def test_equal_texts_of_two_documents_are_two_sets_of_points(index: QdrantIndex, embedder: WordEmbedder) -> None:
    first, second = document("a", article(["same"])), document("b", article(["same"]))
    index_batch([upserted(first, 1), upserted(second, 2)], index, embedder)

    index_batch([deleted(first, 3)], index, embedder)

    assert [hit.document_id for hit in index.search("same", embedder.embed(["same"])[0], Filters(), 5)] == [second.id]


def test_a_new_title_embeds_nothing(index: QdrantIndex, embedder: WordEmbedder) -> None:
    text = article(["one", "two"])
    index_batch([upserted(document("a", text, title="Old"), 1)], index, embedder)
    embedder.embedded.clear()

    index_batch([upserted(document("a", text, title="Renamed"), 2)], index, embedder)

    assert embedder.embedded == []
    assert {hit.title for hit in index.chunks(document("a", text).id)} == {"Renamed"}


@pytest.mark.parametrize(
    ("bad", "step"),
    [(document("bad", "  \n\n "), "clean"), (document("bad", "text", category="poem"), "validate")],
)
def test_one_document_that_cannot_be_indexed_does_not_stop_the_others(
    index: QdrantIndex, embedder: WordEmbedder, bad: Document, step: str
) -> None:
    good = document("good", article(["fine"]))

    refused, indexed = index_batch([upserted(bad, 1), upserted(good, 2)], index, embedder)

    assert isinstance(refused, DeadLetter)
    assert refused.step == step
    assert isinstance(indexed, Indexed)
    failure = index.records([bad.id])[bad.id].failure
    assert failure is not None
    assert (failure.step, failure.source_hash) == (step, bad.content_hash)
    mended = replace(document("bad", article(["mended"])), id=bad.id)
    index_batch([upserted(mended, 3)], index, embedder)
    assert index.records([bad.id])[bad.id].failure is None


class Picky(WordEmbedder):
    """A model that cannot take one text, or none at all."""

    def __init__(self, poison: str, away: bool = False) -> None:
        super().__init__()
        self.poison, self.away = poison, away

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        if self.away or any(self.poison in text for text in texts):
            raise RuntimeError("it cannot be computed")
        return super().embed(texts)


def test_a_text_that_the_model_does_not_take_is_a_letter_and_the_others_are_embedded(index: QdrantIndex) -> None:
    good, bad = document("good", article(["fine", "well"])), document("bad", article(["calm", "poison"]))

    indexed, refused = index_batch([upserted(good, 1), upserted(bad, 2)], index, Picky("poison"))

    assert isinstance(indexed, Indexed)
    assert isinstance(refused, DeadLetter)
    assert (refused.step, refused.reason) == ("embed", "RuntimeError: it cannot be computed")
    assert index.counts().documents == 1
    assert index.counts().chunks == len(indexed.chunks)


def test_a_model_that_takes_no_text_is_no_documents_fault(index: QdrantIndex) -> None:
    with pytest.raises(RuntimeError, match="cannot be computed"):
        index_batch([upserted(document("good", article(["fine"])), 1)], index, Picky("poison", away=True))

    assert index.records([document("good", "").id]) == {}


@pytest.mark.parametrize("kept", [False, True], ids=["new", "indexed before"])
def test_what_the_index_cannot_hold_is_a_letter_and_leaves_what_was_searchable(
    index: QdrantIndex, embedder: WordEmbedder, kept: bool
) -> None:
    before, good = document("bad", article(["before"])), document("good", article(["fine"]))
    bad = replace(document("bad", article(["after"])), crawl_id="\ud800")
    if kept:
        index_batch([upserted(before, 1)], index, embedder)

    refused, indexed = index_batch([upserted(bad, 2), upserted(good, 3)], index, embedder)

    assert isinstance(refused, DeadLetter)
    assert (refused.step, refused.version) == ("write", 2)
    assert isinstance(indexed, Indexed)
    record = index.records([bad.id])[bad.id]
    assert record.failure is not None
    assert [("before" in hit.text) for hit in index.chunks(bad.id)] == [True] * kept


def answered(status: int) -> UnexpectedResponse:
    return UnexpectedResponse(status, "", b"", Headers())


@pytest.mark.parametrize(
    ("error", "of_content"),
    [
        (answered(400), True),
        (answered(413), True),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"), True),
        (answered(401), False),
        (answered(500), False),
        (ResponseHandlingException(OSError("refused")), False),
        (IndexUnavailable("away"), False),
        (OSError(28, "No space left on device"), False),
        (Exception("the engine's own"), False),
    ],
    ids=str,
)
def test_an_index_that_is_away_or_full_is_no_documents_fault(
    index: QdrantIndex, embedder: WordEmbedder, monkeypatch: pytest.MonkeyPatch, error: Exception, of_content: bool
) -> None:
    def refuse(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(index, "replace", refuse)
    events = [upserted(document("good", article(["fine"])), 1)]

    if of_content:
        (letter,) = index_batch(events, index, embedder)
        assert isinstance(letter, DeadLetter)
        assert letter.step == "write"
    else:
        with pytest.raises(type(error)):
            index_batch(events, index, embedder)
        assert index.records([document("good", "").id]) == {}


def refusal(one: Document, version: int) -> Event:
    """A change of this document that cannot be read."""
    record = {**to_record(one), "text": ["no", "text"]}
    return decode(Message("changes", 0, version, **upsert_envelope(record, version, "twin", HERE)), HERE)


@pytest.mark.parametrize("order", [(2, 3), (3, 5), (2, 1), (3, 2, 5, 3), (2, 4), (2, 6)])
def test_a_refusal_within_a_batch_leaves_what_one_by_one_would(
    tmp_path: Path, embedder: WordEmbedder, order: tuple[int, ...]
) -> None:
    """Versions 2 and 5 are refused, 4 has the content of 1, 6 is a deletion; a batch is delivered after the first."""
    one = document("a", article(["first"]))
    changes = {1: upserted(one, 1), 2: refusal(one, 2), 3: upserted(document("a", article(["third"])), 3)}
    changes |= {4: upserted(one, 4), 5: refusal(one, 5), 6: deleted(one, 6)}
    records = []
    for together in (True, False):
        opened = open_index(load({"TWIN_HOME": str(tmp_path / str(together))}), "words-1", embedder.dimensions)
        events = [changes[version] for version in order]
        for batch in [[changes[1]], *([events] if together else [[event] for event in events])]:
            index_batch(batch, opened, embedder)
        record = opened.records([one.id])[one.id]
        hits = opened.chunks(one.id)
        assert set(opened.vectors([hit.chunk_id for hit in hits])) == {hit.chunk_id for hit in hits}
        assert opened.counts().chunks == len(hits)
        records.append(record)
        opened.close()

    assert records[0] == records[1]


def test_a_refused_snapshot_read_is_replayed_as_of_its_time(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one, mended = document("a", article(["old"])), document("a", article(["mended"]))
    event = read(one, offset=3)
    (refused,) = index_batch([event], index, Picky("old"))
    assert isinstance(refused, DeadLetter)
    assert refused.version == 1
    index_batch([upserted(mended, 900)], index, embedder)

    again = replace(refused.message, offset=9, headers=((VERSION_HEADER, b"1"),))
    (outcome,) = index_batch([decode(again, HERE)], index, embedder)

    assert outcome == Unchanged(again, "stale", one.id, refused=False)
    assert index.records([one.id])[one.id].content_hash == mended.content_hash


def test_a_replay_of_a_message_that_no_longer_fails_is_indexed(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one = document("a", article(["old"]))
    (refused,) = index_batch([read(one, offset=3)], index, Picky("old"))
    assert isinstance(refused, DeadLetter)

    again = replace(refused.message, offset=9, headers=((VERSION_HEADER, b"1"),))
    (outcome,) = index_batch([decode(again, HERE)], index, embedder)

    assert isinstance(outcome, Indexed)
    assert outcome.record.failure is None


def test_a_snapshot_tells_what_was_missed_and_is_overtaken_by_later_changes(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    first, missed, later = (document("a", article([word])) for word in ("first", "missed", "later"))
    index_batch([upserted(first, 900)], index, embedder)

    index_batch([read(missed, offset=0)], index, embedder)
    assert index.records([first.id])[first.id].content_hash == missed.content_hash

    # Committed while the snapshot was on its way: by the clock of the snapshot's sender this would be older.
    index_batch([upserted(later, 905)], index, embedder)
    assert index.records([first.id])[first.id].content_hash == later.content_hash


def test_a_redelivered_read_does_not_undo_a_later_change(index: QdrantIndex, embedder: WordEmbedder) -> None:
    old, new = document("a", article(["old"])), document("a", article(["new"]))
    index_batch([read(old, offset=3)], index, embedder)
    change = upserted(new, 900)
    index_batch([replace(change, message=replace(change.message, log="life-1", offset=8))], index, embedder)

    (again,) = index_batch([read(old, offset=3)], index, embedder)

    assert again == Unchanged(again.message, "stale", old.id)
    (anew,) = index_batch([read(old, offset=3, log="life-2")], index, embedder)
    assert isinstance(anew, Indexed)


def test_a_snapshot_of_what_is_indexed_embeds_nothing_and_tells_downstream_again(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    one = document("a", article(["one", "two"]))
    index_batch([upserted(one, 5)], index, embedder)
    version = index.records([one.id])[one.id].version
    embedder.embedded.clear()

    (outcome,) = index_batch([read(one, offset=0)], index, embedder)

    assert isinstance(outcome, Indexed)
    assert (outcome.embedded, outcome.record.version, embedder.embedded) == (0, version, [])
    assert set(outcome.vectors) == set(outcome.record.chunk_ids)


@pytest.mark.parametrize("seed", range(6))
def test_any_history_with_redeliveries_and_reorder_across_documents_ends_as_the_warehouse(
    index: QdrantIndex, embedder: WordEmbedder, seed: int
) -> None:
    """Seeded random operations against a dictionary: after each settled batch the two agree."""
    source = random.Random(seed)
    warehouse: dict[str, Document] = {}
    log: list[Event] = []
    for version in range(1, 120):
        name = f"d{source.randrange(8)}"
        if name in warehouse and source.random() < 0.3:
            log.append(deleted(warehouse.pop(name), version))
        else:
            uniques = [source.choice(WORDS) + str(source.randrange(50)) for _ in range(source.randint(1, 6))]
            warehouse[name] = document(name, article(uniques, source.randrange(5)))
            log.append(upserted(warehouse[name], version))
    position = 0
    while position < len(log):
        following = position + source.randint(1, 12)
        batch = log[position:following]
        if source.random() < 0.3:
            # A crash before the commit: everything since an earlier offset is delivered again.
            index_batch(batch, index, embedder)
            position = max(0, position - source.randint(0, 20))
            continue
        index_batch(batch, index, embedder)
        position = following

    records = {record.document_id: record for record in index.scan()}
    assert {record.document_id for record in records.values()} == {one.id for one in warehouse.values()}, f"seed {seed}"
    for one in warehouse.values():
        assert records[one.id].content_hash == one.content_hash, f"seed {seed}"
        chunks = index.chunks(one.id)
        text = index.records([one.id])[one.id].text
        assert " ".join(hit.text for hit in chunks).split() == text.split(), f"seed {seed}"
        assert set(index.vectors([hit.chunk_id for hit in chunks])) == {hit.chunk_id for hit in chunks}, f"seed {seed}"
    assert index.counts().chunks == sum(len(record.places) for record in records.values()), (
        f"seed {seed}: points left over"
    )


def test_a_batch_that_is_given_up_while_it_is_embedded_writes_nothing_and_is_whole_the_next_time(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    texts = [article([f"unique{number}" for number in range(20)], seed) for seed in range(8)]
    events = [upserted(document(f"{seed}", text), 1) for seed, text in enumerate(texts)]
    asked = iter((None, None, InterruptedError()))

    def go_on() -> None:
        if (error := next(asked)) is not None:
            raise error

    with pytest.raises(InterruptedError):
        index_batch(events, index, embedder, go_on)
    assert len(embedder.embedded) == 128
    assert (index.counts().documents, index.counts().chunks) == (0, 0)

    outcomes = index_batch(events, index, embedder)
    assert index.counts().documents == len(events)
    assert index.counts().chunks == sum(len(each.chunks) for each in outcomes if isinstance(each, Indexed)) > 128


def test_a_document_that_is_deleted_and_refused_in_one_batch_is_not_shown_as_it_was(
    index: QdrantIndex, embedder: WordEmbedder
) -> None:
    one = document("a", article(["gone"]))
    index_batch([upserted(one, 1)], index, embedder)

    index_batch([deleted(one, 2), upserted(document("a", "  \n"), 3)], index, embedder)

    assert index.chunks(one.id) == []
    assert index.records([one.id])[one.id].text == ""
    assert index.counts().chunks == 0


def test_the_content_of_another_crawl_tells_its_time(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one = document("a", article(["one"]))
    again = replace(one, crawled_at=datetime(2026, 2, 1, tzinfo=UTC), crawl_id="another")
    index_batch([upserted(one, 1)], index, embedder)
    embedder.embedded.clear()

    index_batch([upserted(again, 2)], index, embedder)

    record = index.records([one.id])[one.id]
    assert (record.crawled_at, record.crawl_id, embedder.embedded) == (again.crawled_at, "another", [])
    since = Filters(since=datetime(2026, 1, 15, tzinfo=UTC))
    assert index.search("one", embedder.embed(["one"])[0], since, 5) != []


def test_a_document_that_was_reinserted_as_it_was_is_there(index: QdrantIndex, embedder: WordEmbedder) -> None:
    one = document("a", article(["one"]))
    index_batch([upserted(one, 1)], index, embedder)

    index_batch([deleted(one, 2), upserted(one, 3)], index, embedder)

    assert "one" in " ".join(hit.text for hit in index.chunks(one.id))
    assert not index.records([one.id])[one.id].deleted
