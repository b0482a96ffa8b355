"""The warehouse over a MongoDB that really runs."""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import bson
import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Timestamp
from pymongo import MongoClient

from corpus import warehouse as store
from corpus.documents import Document, new_document, source_version, to_record
from corpus.settings import Settings
from corpus.warehouse import Saved, Warehouse, WarehouseUnavailable, connect, refusal

NOW = datetime(2026, 3, 1, 12, 0, 0, 123_000, UTC)


@pytest.fixture
def settings(mongodb_uri: str) -> Settings:
    return Settings(mongodb_uri=mongodb_uri, database=f"test-{uuid.uuid4()}")


@pytest.fixture
def warehouse(settings: Settings) -> Iterator[Warehouse]:
    with connect(settings) as opened:
        yield opened


@pytest.fixture
def database(settings: Settings) -> Iterator[Any]:
    """The same database, as somebody else sees it."""
    with MongoClient[dict[str, Any]](settings.mongodb_uri, tz_aware=True) as client:
        yield client[settings.database]


def written(number: int = 0, text: str = "As it was.", **fields: Any) -> Document:
    given = {
        "url": f"https://example.com/{number}",
        "category": "article",
        "platform": "example.com",
        "author_name": "Ada",
        "title": f"Number {number}",
        "text": text,
        "crawl_id": "crawl",
        "crawled_at": NOW,
        "published_at": NOW - timedelta(days=1),
        "metadata": {"language": "en", "tags": ["a"]},
    }
    return new_document(**{**given, **fields})


def test_a_document_comes_back_as_it_was_saved(warehouse: Warehouse) -> None:
    document = written(text="Ünïcode 🜁 and\x00NUL\n")
    warehouse.save([document])
    assert warehouse.get(document.id) == document


def test_only_what_changed_is_written(warehouse: Warehouse, database: Any) -> None:
    first, second = written(1), written(2)
    assert warehouse.save([first, second]) == Saved(inserted=2)
    later = {"crawl_id": "later", "crawled_at": NOW + timedelta(hours=1)}

    saved = warehouse.save([written(1, **later), written(2, "Edited.", **later), written(3, **later)])

    assert saved == Saved(inserted=1, updated=1, unchanged=1)
    assert database.documents.find_one({"_id": first.id})["crawl_id"] == "crawl"
    assert database.documents.find_one({"_id": second.id})["text"] == "Edited."


def test_more_documents_than_a_batch_holds_are_all_kept(warehouse: Warehouse) -> None:
    documents = [written(number) for number in range(450)]
    assert warehouse.save(iter(documents)) == Saved(inserted=450)
    assert warehouse.count() == 450
    assert {stamp.id for stamp in warehouse.stamps()} == {document.id for document in documents}


def test_authors_are_kept_once(warehouse: Warehouse, database: Any) -> None:
    warehouse.save([written(1), written(2), written(3, author_name="Grace")])
    assert sorted(author["name"] for author in database.authors.find()) == ["Ada", "Grace"]


def test_a_stamp_names_the_write(warehouse: Warehouse) -> None:
    document = written()
    warehouse.save([document, written(1)])
    (stamp,) = warehouse.stamps([document.id, "unknown"])
    assert dataclasses.astuple(stamp) == (
        document.id,
        document.content_hash,
        NOW,
        "Number 0",
        "https://example.com/0",
        "Ada",
        "article",
        "example.com",
    )


ODD = [
    *(7.5, 7.0, float("nan"), True, None, Decimal128("7.10"), Timestamp(7, 1), b"seven", {"of": {"seven": 7}}),
    *(Binary.from_uuid(uuid.UUID(int=7)), datetime(2026, 3, 1, 12, tzinfo=UTC)),
]


@pytest.mark.parametrize("id", [ObjectId("66322d00a1b2c3d4e5f60718"), 5, -(2**63), Int64(7), *ODD], ids=repr)
def test_records_that_others_wrote_are_seen_too(id: object, warehouse: Warehouse, database: Any) -> None:
    database.documents.insert_one({"_id": id, "text": 7, "url": "there"})
    (stamp,) = warehouse.stamps()
    assert list(warehouse.stamps(["unknown", stamp.id])) == [stamp]
    assert warehouse.addresses([stamp.id]) == {"there"}
    assert (stamp.id, stamp.content_hash, stamp.title) == (str(id), "None", "")
    assert [record["text"] for record in warehouse.raw_records([str(id)])] == [7]
    assert warehouse.delete(["unknown"]) == 0
    assert warehouse.delete([str(id)]) == 1
    assert warehouse.count() == 0


def test_metadata_is_had_without_the_rest_of_a_record(warehouse: Warehouse, database: Any) -> None:
    document = written(metadata={"path": "piers.md"})
    warehouse.save([document])
    database.documents.insert_one({"_id": "odd", "metadata": "none"})
    assert warehouse.metadata(document.id) == {"path": "piers.md"}
    assert warehouse.metadata("odd") == warehouse.metadata("unknown") == {}


def test_deleting_says_how_many_there_were(warehouse: Warehouse) -> None:
    documents = [written(number) for number in range(3)]
    warehouse.save(documents)
    assert warehouse.delete([documents[0].id, documents[1].id, "unknown"]) == 2
    assert warehouse.get(documents[0].id) is None
    assert warehouse.count() == 1


def test_urls_are_found_by_their_beginning(warehouse: Warehouse) -> None:
    urls = ["file:///notes/a.md", "file:///notes/deep/b.md", "file:///notes-too/c.md", "file:///other.md"]
    warehouse.save([written(url=url) for url in urls])
    assert sorted(url for _, url in warehouse.urls_under("file:///notes/")) == urls[:2]


def test_a_document_is_found_by_the_address_it_was_fetched_from(warehouse: Warehouse) -> None:
    document = written(metadata={"requested_url": "http://example.com/0?utm_source=x"})
    warehouse.save([document, written(1)])
    assert warehouse.by_request("http://example.com/0?utm_source=x") == document
    assert warehouse.by_request("http://example.com/0") is None


def test_a_warehouse_keeps_its_identity_and_another_has_its_own(settings: Settings, mongodb_uri: str) -> None:
    def identity(database: str) -> str:
        with connect(Settings(mongodb_uri=mongodb_uri, database=database)) as opened:
            return opened.identity()

    assert uuid.UUID(identity(settings.database))
    assert identity(settings.database) == identity(settings.database)
    assert identity(f"test-{uuid.uuid4()}") != identity(settings.database)


def test_the_version_of_now_lies_between_the_changes_before_and_after(warehouse: Warehouse, database: Any) -> None:
    with database.documents.watch(max_await_time_ms=2_000) as changes:

        def write(number: int) -> int:
            database.documents.insert_one(to_record(written(number)))
            change = next(changes)
            return source_version(int(change["wallTime"].timestamp() * 1_000), change["clusterTime"].inc)

        before = write(1)
        now = warehouse.now()
        after = write(2)
    assert before <= now <= after
    assert before < after


def test_marks_are_written_and_old_ones_go(warehouse: Warehouse, database: Any) -> None:
    database.watermarks.insert_one({"_id": "old", "at": datetime.now(UTC) - timedelta(hours=2)})
    warehouse.mark("new")
    assert [mark["_id"] for mark in database.watermarks.find()] == ["new"]


def test_a_crawl_is_recorded_in_its_newest_state(warehouse: Warehouse, database: Any) -> None:
    warehouse.record_crawl({"_id": "1", "state": "running"})
    warehouse.record_crawl({"_id": "1", "state": "done"})
    assert list(database.crawls.find()) == [{"_id": "1", "state": "done"}]


def test_without_an_address_the_message_says_what_to_do() -> None:
    with pytest.raises(WarehouseUnavailable, match=r"run `twin up`, or set TWIN_MONGODB_URI"):
        connect(Settings())


@pytest.mark.parametrize("call", [Warehouse.count, Warehouse.identity, lambda opened: list(opened.stamps())])
def test_a_server_that_is_away_is_named_without_its_password(call: Callable[[Warehouse], object]) -> None:
    settings = Settings(mongodb_uri="mongodb://ada:secret@127.0.0.1:9/")
    with (
        connect(settings, timeout=0.2) as opened,
        pytest.raises(WarehouseUnavailable, match=r"127\.0\.0\.1:9/ does not answer") as raised,
    ):
        call(opened)
    assert "secret" not in str(raised.value)


def test_an_address_that_is_none_is_refused_without_its_password() -> None:
    with pytest.raises(WarehouseUnavailable, match="TWIN_MONGODB_URI") as raised:
        connect(Settings(mongodb_uri="mongo://ada:secret@host"))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metadata": {"number": 2**70}}, "cannot be stored"),
        ({"metadata": {"a\x00b": 1}}, "cannot be stored"),
        ({"metadata": {"list": json.loads("[" * 99 + "1" + "]" * 99)}}, "cannot be stored (its metadata is nested"),
        ({"metadata": {"list": json.loads("[" * 900 + "]" * 900)}}, "cannot be stored (its metadata is nested"),
        ({"text": "x" * 16_000_000}, "takes 16.0 MB"),
    ],
)
def test_what_mongodb_cannot_hold_is_told_before(fields: dict[str, Any], reason: str) -> None:
    assert (refusal(written(**fields)) or "").startswith(reason)
    assert refusal(written()) is None


def built(id: str, documents: int, **more: Any) -> dict[str, Any]:
    """A record of a data set whose documents are `{id}-0`, `{id}-1` and so on, and one more that was only cited."""
    ids = [f"{id}-{number}" for number in range(documents)]
    rows = [{"document_id": each, "version": 1} for each in ids]
    return {"_id": id, "created_at": NOW, "documents": rows, "document_ids": [*ids, "cited"], **more}


def test_the_documents_of_a_data_set_lie_in_pieces_and_come_back_whole(
    warehouse: Warehouse, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PIECE", 3)
    many, few = built("many", 8), built("few", 1, created_at=NOW + timedelta(days=1))
    for record in (many, few):
        warehouse.record_built("datasets", record)

    assert "document_ids" not in database.datasets.find_one({"_id": "many"})
    assert max(len(piece["document_ids"]) for piece in database.lineages.find()) == 3
    assert warehouse.built("datasets") == [few, many]
    assert warehouse.built("datasets", "many") == [many]
    assert [(each["_id"], each["document_count"]) for each in warehouse.datasets()] == [("few", 2), ("many", 9)]
    assert warehouse.built_from(["many-4", "cited of none"]) == {"datasets": ["many"], "models": []}
    assert warehouse.built_from(["few-0", "many-0", "x", "y", "cited"])["datasets"] == ["few", "many"]
    # Its newer state has fewer: nothing of the former one is found.
    warehouse.record_built("datasets", built("many", 2))
    assert warehouse.built("datasets", "many") == [built("many", 2)]
    assert warehouse.built_from(["many-7"])["datasets"] == []


def test_a_data_set_whose_documents_are_in_its_record_is_read_as_one_in_pieces(
    warehouse: Warehouse, database: Any
) -> None:
    old = built("old", 2)
    database.datasets.insert_one(dict(old))

    assert warehouse.built("datasets", "old") == [old]
    assert warehouse.built_from(["old-1"])["datasets"] == ["old"]
    (listed,) = warehouse.datasets()
    assert (listed["document_count"], "documents" in listed) == (3, False)


def test_what_a_killed_build_left_is_no_data_set_and_a_lineage_that_is_not_whole_says_so(
    warehouse: Warehouse, database: Any
) -> None:
    warehouse.record_built("datasets", built("d1", 2))
    database.lineages.insert_one({"_id": "d2:0", "dataset": "d2", "document_ids": ["d1-0"]})

    assert warehouse.built_from(["d1-0"])["datasets"] == ["d1"]
    database.lineages.delete_one({"_id": "d1:0"})
    with pytest.raises(WarehouseUnavailable, match=r"lacks d1:0.*d1 is made of"):
        warehouse.built("datasets", "d1")


def test_a_piece_of_a_lineage_fits_into_a_record() -> None:
    # As long as the ids of others may well be.
    row = {"document_id": "https://example.com/" + "x" * 200, "version": 1 << 60, "content_hash": "f" * 64}
    row["family"] = row["document_id"]

    assert store.PIECE * len(bson.encode({"documents": [row], "document_ids": [row["family"]]})) < store.LARGEST_RECORD


def test_feedback_that_is_taken_in_again_has_been_there_since_the_first_time(warehouse: Warehouse) -> None:
    warehouse.record_told("feedback", {"f1": {"feedback_id": "f1", "verdict": "up"}})
    (first,) = warehouse.feedback()

    warehouse.record_told("feedback", {"f1": {**first, "verdict": "down"}, "f2": {"feedback_id": "f2"}})

    again, second = warehouse.feedback()
    assert (again["verdict"], again["kept_at"]) == ("down", first["kept_at"])
    assert second["kept_at"] >= first["kept_at"]


def test_of_two_texts_that_a_model_wrote_to_one_request_the_first_stays(warehouse: Warehouse) -> None:
    given = [{"model": "m", "document_id": "d1", "text": text} for text in ("What came first.", "What came later.")]

    kept = [warehouse.keep_written("key", record) for record in given]

    assert [record["text"] for record in kept] == ["What came first."] * 2
    assert warehouse.written("m")["key"]["text"] == "What came first."
    # An erasure asks when.
    assert kept[0]["kept_at"] == kept[1]["kept_at"]
