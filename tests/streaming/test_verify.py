"""A verification finds every fault that is made by hand, takes nothing under way for one, and mends what it finds."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from corpus.documents import ORDER_BITS, Document, source_version, to_record
from corpus.index import QdrantIndex, ledger_point, open_index
from corpus.points import DENSE, SPARSE, Point, Where
from corpus.settings import load
from corpus.warehouse import Stamp
from streaming.changes import REPAIR_HEADER, Message, decode, delete_envelope, upsert_envelope
from streaming.indexing import index_batch
from streaming.verify import KINDS, NotApplied, Report, Verification
from tests.streaming.samples import HERE, WordEmbedder, article, document

MILLISECOND = 1_700_000_000_000
WRONG_ID = "00000000-0000-4000-8000-00000000000a"


@dataclass
class Notes:
    """A warehouse in memory, whose clock goes on with every change."""

    documents: dict[str, Document] = field(default_factory=dict)
    clock: int = MILLISECOND
    looked: Callable[[], None] = lambda: None

    def now(self) -> int:
        return source_version(self.clock, 0)

    def stamps(self, ids: Iterable[str] | None = None) -> Iterator[Stamp]:
        self.looked()
        for one in [self.documents[id] for id in (self.documents if ids is None else ids) if id in self.documents]:
            yield Stamp(
                one.id, one.content_hash, one.crawled_at, one.title, one.url, one.author_name, one.category, "p"
            )

    def raw_records(self, ids: Iterable[str]) -> Iterator[dict[str, Any]]:
        yield from (to_record(self.documents[id]) for id in ids if id in self.documents)


@dataclass
class System:
    """A warehouse, an index that follows it, and what is on its way from the one to the other."""

    notes: Notes
    index: QdrantIndex
    embedder: WordEmbedder
    under_way: list[Message] = field(default_factory=list)
    offset: int = 0
    broken: bool = False

    def save(self, one: Document) -> None:
        self.notes.clock += 1
        self.notes.documents[one.id] = one
        self.send_one(one.id, ())

    def delete(self, id: str) -> None:
        self.notes.clock += 1
        del self.notes.documents[id]
        self.send_one(id, ())

    def send_one(self, id: str, headers: Sequence[tuple[str, bytes]]) -> None:
        one = self.notes.documents.get(id)
        version = self.notes.now()
        told = delete_envelope(id, version, "twin", HERE)
        if one is not None:
            told = upsert_envelope(to_record(one), version, "twin", HERE)
        self.offset += 1
        self.under_way.append(
            Message("changes", 0, self.offset, told["key"], told["value"], (*told["headers"], *headers), "life")
        )

    def repair(self, ids: Collection[str]) -> None:
        self.notes.clock += 1
        for id in ids:
            self.send_one(id, [(REPAIR_HEADER, b"1")])

    def settle(self) -> None:
        if self.broken:
            raise NotApplied("capture does not answer")
        messages, self.under_way = self.under_way, []
        index_batch([decode(message, HERE) for message in messages], self.index, self.embedder)

    def verify(self, **options: Any) -> Report:
        verification = Verification(
            self.notes,  # type: ignore[arg-type]
            self.index,
            self.embedder,  # type: ignore[arg-type]
            self.settle,
            self.repair,
        )
        return verification.run(**options)


@pytest.fixture
def system(index: QdrantIndex, embedder: WordEmbedder) -> System:
    made = System(Notes(), index, embedder)
    for name in ("a", "b", "c", "d"):
        made.save(document(name, article([f"{name}-{number}" for number in range(4)])))
    made.settle()
    return made


def kinds(report: Report) -> dict[str, int]:
    return {kind: getattr(report, kind) for kind in KINDS if getattr(report, kind)}


def chunk(system: System, name: str, position: int = 0) -> str:
    id = document(name, "").id
    return system.index.records([id])[id].chunk_ids[position]


def remove_ten_points(system: System) -> None:
    ids = [chunk(system, name, number) for name in ("a", "b", "c", "d") for number in range(3)][:10]
    system.index._chunks.delete(Where(ids=ids))


def change_a_text(system: System) -> None:
    system.index._chunks.set_payload(Where(ids=[chunk(system, "a")]), {"text": "something else"})


def change_an_author(system: System) -> None:
    system.index._chunks.set_payload(Where(ids=[chunk(system, "a")]), {"author": "Mallory"})


def take_away_the_owner(system: System) -> None:
    system.index._chunks.set_payload(Where(ids=[chunk(system, "a")]), {"document_id": None})


def give_a_version_of_the_future(system: System) -> None:
    system.index._chunks.set_payload(Where(ids=[chunk(system, "a")]), {"version": 2**60, "title": "Mine"})


def copy_a_point(system: System) -> None:
    id = chunk(system, "a")
    payload = system.index._chunks.retrieve([id])[0].payload
    system.index._chunks.upsert([Point(WRONG_ID, payload, system.index.vectors([id])[id])])


def copy_a_point_of_nobody(system: System) -> None:
    id = chunk(system, "a")
    payload = {**system.index._chunks.retrieve([id])[0].payload, "document_id": "nobody's"}
    shard = system.index._chunks._shard
    names = system.index._chunks._names
    # Other programs number their points.
    shard.update(
        names.UpdateOperation.upsert_points([names.Point(17, {"dense": system.index.vectors([id])[id]}, payload)])
    )


def insert_of_another_generation(system: System) -> None:
    id = chunk(system, "a")
    payload = {**system.index._chunks.retrieve([id])[0].payload, "generation": "words-0"}
    system.index._chunks.upsert([Point(WRONG_ID, payload, system.index.vectors([id])[id])])


def remove_a_record(system: System) -> None:
    system.index._ledger.delete(Where(ids=[ledger_point(document("a", "").id)]))


def break_a_record(system: System) -> None:
    system.index._ledger.set_payload(Where(ids=[ledger_point(document("a", "").id)]), {"places": "nonsense"})


def copy_a_record(system: System) -> None:
    payload = system.index._ledger.retrieve([ledger_point(document("a", "").id)])[0].payload
    system.index._ledger.upsert([Point(WRONG_ID, payload)])


def put_a_record_ahead(system: System) -> None:
    system.index._ledger.set_payload(Where(ids=[ledger_point(document("a", "").id)]), {"seen": 2**60})


def put_a_record_a_little_ahead(system: System) -> None:
    ahead = system.notes.now() + (30 * 60_000 << ORDER_BITS)
    forged = {"seen": ahead, "title": "Mallory's"}
    system.index._ledger.set_payload(Where(ids=[ledger_point(document("a", "").id)]), forged)


def put_a_tombstone_a_little_ahead(system: System) -> None:
    ahead = system.notes.now() + (30 * 60_000 << ORDER_BITS)
    forged = {"seen": ahead, "deleted": True, "state": "deleted", "places": [], "version": None}
    system.index._ledger.set_payload(Where(ids=[ledger_point(document("a", "").id)]), forged)


def give_a_truth_value_as_a_version(system: System) -> None:
    system.index._chunks.set_payload(Where(ids=[chunk(system, "a")]), {"version": True})


def file_a_record_under_another_state(system: System) -> None:
    system.index._ledger.set_payload(Where(ids=[ledger_point(document("a", "").id)]), {"state": "deleted"})


def take_the_chunks_from_a_record(system: System) -> None:
    system.index._chunks.delete(Where(ids=[chunk(system, "a", number) for number in range(4)]))
    system.index._ledger.set_payload(Where(ids=[ledger_point(document("a", "").id)]), {"places": []})


def miss_a_change(system: System) -> None:
    system.save(document("a", article(["changed"])))
    system.under_way.clear()


def miss_a_document(system: System) -> None:
    system.save(document("e", article(["new"])))
    system.under_way.clear()


def miss_a_deletion(system: System) -> None:
    system.delete(document("a", "").id)
    system.under_way.clear()


FAULTS: list[tuple[Callable[[System], None], dict[str, int]]] = [
    (remove_ten_points, {"missing": 10}),
    (change_a_text, {"stale": 1}),
    (change_an_author, {"stale": 1}),
    (take_away_the_owner, {"stale": 1}),
    (give_a_version_of_the_future, {"stale": 1}),
    (copy_a_point, {"duplicate": 1}),
    (copy_a_point_of_nobody, {"orphaned": 1}),
    (insert_of_another_generation, {"wrong_generation": 1}),
    (remove_a_record, {"missing": 1, "orphaned": 4}),
    (break_a_record, {"missing": 1, "orphaned": 4, "stale": 1}),
    (copy_a_record, {"duplicate": 1}),
    (put_a_record_ahead, {"stale": 1}),
    (put_a_record_a_little_ahead, {"stale": 5}),
    (put_a_tombstone_a_little_ahead, {"missing": 1, "orphaned": 4, "stale": 1}),
    (give_a_truth_value_as_a_version, {"stale": 1}),
    (file_a_record_under_another_state, {"stale": 1}),
    (take_the_chunks_from_a_record, {"stale": 1}),
    (miss_a_change, {"stale": 1}),
    (miss_a_document, {"missing": 1}),
    (miss_a_deletion, {"orphaned": 1}),
]


def test_an_index_that_follows_its_warehouse_has_no_fault(system: System) -> None:
    report = system.verify()

    assert (report.documents, report.chunks, report.found, report.unsettled) == (4, 16, 0, None)


@pytest.mark.parametrize(("harm", "expected"), FAULTS, ids=[harm.__name__ for harm, _ in FAULTS])
def test_a_fault_made_by_hand_is_named_and_mended(
    system: System, harm: Callable[[System], None], expected: dict[str, int]
) -> None:
    harm(system)

    found = system.verify()
    mended = system.verify(repair=True)
    after = system.verify()

    assert kinds(found) == kinds(mended) == expected
    assert found.repaired == 0
    assert mended.repaired == mended.found == len(mended.faults)
    assert (after.found, after.documents) == (0, len(system.notes.documents))
    sampled = system.verify(sample=10)
    assert (sampled.found, sampled.documents) == (0, len(system.notes.documents))


def test_faults_of_all_kinds_at_once_are_mended_together(system: System) -> None:
    for harm in (copy_a_point, remove_ten_points, miss_a_deletion, miss_a_document, copy_a_record):
        harm(system)

    report = system.verify(repair=True)

    assert report.repaired == report.found > 0
    assert system.verify().found == 0


def test_of_two_documents_with_one_id_either_may_be_indexed(system: System, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = system.notes.stamps

    def twice(ids: Iterable[str] | None = None) -> Iterator[Stamp]:
        for stamp in stamps(ids):
            yield replace(stamp, content_hash="of the other")
            yield stamp
            yield replace(stamp, content_hash="of the other")

    monkeypatch.setattr(system.notes, "stamps", twice)
    assert system.verify().found == 0
    change_a_text(system)
    assert kinds(system.verify()) == {"stale": 1}
    miss_a_deletion(system)
    assert kinds(system.verify()) == {"orphaned": 1, "stale": 1}


def test_what_is_under_way_is_no_fault(system: System) -> None:
    system.save(document("a", article(["edited"])))
    system.save(document("e", article(["new"])))
    system.delete(document("b", "").id)

    report = system.verify()

    assert report.found == 0
    # As they were found at the look that judged them: "a" and "e" have one chunk each, "c" and "d" four, "b" is gone.
    assert report.chunks == 1 + 1 + 4 + 4


def test_a_generation_that_is_being_built_is_told_as_it_was_when_it_had_followed(
    system: System, tmp_path: Path
) -> None:
    settings = load({"TWIN_HOME": str(tmp_path / "another")})
    system.index = open_index(settings, system.index.generation, system.embedder.dimensions)
    for one in system.notes.documents.values():
        system.save(one)

    report = system.verify()
    system.index.close()

    assert (report.documents, report.chunks, report.found) == (4, 16, 0)


def test_a_document_that_is_edited_all_the_time_is_in_flight_and_a_fault_beside_it_is_found(
    system: System,
) -> None:
    edits = iter(range(1000))

    def edited() -> None:
        one = document("a", article([f"edit-{next(edits)}"]))
        system.save(replace(one, crawled_at=one.crawled_at + timedelta(seconds=next(edits))))

    change_a_text(system)
    copy_a_point_of_nobody(system)
    system.notes.looked = edited
    report = system.verify()

    assert kinds(report) == {"orphaned": 1}
    assert report.in_flight == 1


def test_where_changes_cannot_be_followed_the_report_says_so(system: System) -> None:
    system.save(document("a", article(["edited"])))
    system.broken = True

    report = system.verify(repair=True)

    assert report.unsettled == "capture does not answer"
    assert (report.stale, report.repaired) == (1, 0)


def test_a_repair_embeds_only_the_documents_that_have_a_fault(system: System) -> None:
    change_a_text(system)
    system.embedder.embedded.clear()

    system.verify(repair=True)

    assert len(system.embedder.embedded) == 4


def test_only_what_was_read_since_is_compared(system: System) -> None:
    later = replace(document("e", article(["late"])), crawled_at=datetime(2026, 6, 1, tzinfo=UTC))
    system.save(later)
    system.settle()
    change_a_text(system)

    since = system.verify(since=datetime(2026, 5, 1, tzinfo=UTC))
    miss_a_change(system)
    del system.notes.documents[later.id]

    assert (since.documents, since.chunks, since.found) == (1, 1, 0)
    assert kinds(system.verify(since=datetime(2026, 5, 1, tzinfo=UTC))) == {"orphaned": 1}


@pytest.mark.parametrize("lost", [DENSE, SPARSE, "another"])
def test_a_sample_is_cleaned_split_and_embedded_anew(system: System, lost: str) -> None:
    id = chunk(system, "a")
    (stored,) = system.index._chunks.retrieve([id], vectors=[DENSE, SPARSE])
    dense = [1.0] + [0.0] * 15 if lost == "another" else stored.dense
    left = Point(id, stored.payload, None if lost == DENSE else dense, None if lost == SPARSE else stored.sparse)
    system.index._chunks.delete(Where(ids=[id]))
    system.index._chunks.upsert([left])

    assert system.verify().found == 0
    report = system.verify(sample=4)
    assert [fault.what for fault in report.faults] == [f"the vectors of chunk {id} are not those of its text"]
    assert system.verify(sample=4, repair=True).repaired == 1
    assert system.verify(sample=4).found == 0


def test_a_record_that_is_none_is_named_whatever_is_compared(system: System) -> None:
    break_a_record(system)

    since = datetime(2020, 1, 1, tzinfo=UTC)
    for chosen in ({"sample": 4}, {"since": since}):
        assert kinds(system.verify(**chosen)) == {"missing": 1, "orphaned": 4, "stale": 1}
    assert system.verify(sample=4, repair=True).repaired == 6
    assert system.verify().found == 0


@pytest.mark.parametrize("payload", [{"seen": "abc"}, {"places": 7}, {"document_id": "another"}], ids=str)
def test_a_record_that_is_none_holds_no_change_up(system: System, payload: dict[str, Any]) -> None:
    a, b = document("a", article(["edited"])), document("b", article(["edited"]))
    system.index._ledger.set_payload(Where(ids=[ledger_point(a.id)]), payload)
    assert a.id not in {record.document_id for record in system.index.scan()}
    system.save(a)
    system.save(b)

    system.settle()

    assert system.verify().found == 0
    assert {record.source_hash for record in system.index.records([a.id, b.id]).values()} == {
        a.content_hash,
        b.content_hash,
    }


def test_a_refused_document_is_no_fault(system: System) -> None:
    system.save(document("a", "  \n "))
    system.settle()

    assert system.verify().found == 0
    assert system.index.records([document("a", "").id])[document("a", "").id].failure is not None


def test_a_sample_finds_a_document_that_is_refused_without_a_cause(system: System) -> None:
    system.save(document("empty", "  \n "))
    system.settle()
    healthy = document("a", article([f"a-{number}" for number in range(4)]))
    forged = {"version": MILLISECOND, "step": "clean", "reason": "none", "source_hash": healthy.content_hash}
    system.index._ledger.set_payload(Where(ids=[ledger_point(healthy.id)]), {"failure": forged})

    assert system.verify().found == 0
    report = system.verify(sample=5)
    assert [fault.what for fault in report.faults] == ["it is refused (clean: none) and would be indexed"]
    assert system.verify(sample=5, repair=True).repaired == 1
    assert system.index.records([healthy.id])[healthy.id].failure is None
    assert system.verify(sample=5).found == 0
