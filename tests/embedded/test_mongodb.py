"""The embedded MongoDB, asked by the real driver: documents, writes, sessions and change streams over a real socket."""

from __future__ import annotations

import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Binary, Decimal128, Int64, MaxKey, MinKey, ObjectId, Regex, Timestamp, decode, encode
from bson.codec_options import CodecOptions
from bson.raw_bson import RawBSONDocument
from hypothesis import given, settings
from hypothesis import strategies as st
from pymongo import ASCENDING, DESCENDING, DeleteOne, InsertOne, MongoClient, ReplaceOne, ReturnDocument, UpdateOne
from pymongo.collection import Collection
from pymongo.database import Database
from pymongo.errors import BulkWriteError, CollectionInvalid, DuplicateKeyError, OperationFailure, PyMongoError
from pymongo.monitoring import CommandFailedEvent, CommandListener, CommandStartedEvent, CommandSucceededEvent
from pymongo.write_concern import WriteConcern

from embedded.mongodb import connection_string
from embedded.mongodb.query import matcher
from embedded.mongodb.store import Store, scan
from embedded.mongodb.update import difference, updated
from embedded.mongodb.values import identity, order
from embedded.mongodb.wire import OP_MSG, Request, reply_to

Record = dict[str, Any]
# Seconds, far beyond what any machine needs.
PATIENCE = 60
NOON = datetime(2024, 5, 1, 12, 0, 0, 123000, tzinfo=UTC)
OBJECT_ID = ObjectId("66322d00a1b2c3d4e5f60718")


class Running:
    """A server process on a free port over a directory, which outlives it."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.directory = directory
        self.options = options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        arguments = ["--port", str(self.port), "--directory", str(self.directory), *self.options]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "embedded.mongodb", *arguments], stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 10
        while True:
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self.process.poll() is None, "the server ended"
            assert time.monotonic() < deadline, "the server does not answer"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(timeout=10)

    def client(self, **options: Any) -> MongoClient[Record]:
        settings = {"tz_aware": True, "serverSelectionTimeoutMS": 10_000, **options}
        return MongoClient(connection_string(self.port), **settings)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    server = Running(tmp_path_factory.mktemp("mongodb"))
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def client(running: Running) -> Iterator[MongoClient[Record]]:
    with running.client() as connected:
        yield connected


@pytest.fixture
def db(client: MongoClient[Record], request: pytest.FixtureRequest) -> Iterator[Database[Record]]:
    name = "t" + str(abs(hash(request.node.name)))
    yield client[name]
    client.drop_database(name)


@pytest.fixture
def documents(db: Database[Record]) -> Collection[Record]:
    return db["documents"]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Running]:
    """A server of the test's own, to be killed and started again."""
    server = Running(tmp_path / "state")
    yield server
    server.kill()


def drain(stream: Any, number: int, seconds: float = 5.0) -> list[Record]:
    """The next `number` events of a stream."""
    events: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(events) < number and time.monotonic() < deadline:
        event = stream.try_next()
        if event is not None:
            events.append(event)
    return events


def retryable(command: Record, db: str, number: int) -> Record:
    """A write as a driver sends it, whose session and number the test chooses."""
    return {**command, "$db": db, "lsid": {"id": Binary(b"s" * 16, 4)}, "txnNumber": Int64(number)}


def ask(port: int, command: Record) -> Record:
    """The reply to a command sent without a driver, which would put its own session in."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(reply_to(Request(0, OP_MSG, {}, True), command))
        with connection.makefile("rb") as answers:
            (length,) = struct.unpack("<i", answers.read(4))
            return decode(answers.read(length - 4)[17:])


# --- greeting ---


def test_a_driver_finds_the_primary_of_a_replica_set(running: Running, client: MongoClient[Record]) -> None:
    hello = client.admin.command("hello")
    assert hello["setName"] == "rs0"
    assert hello["isWritablePrimary"]
    assert hello["hosts"] == [hello["primary"]] == [hello["me"]] == [f"127.0.0.1:{running.port}"]
    assert hello["logicalSessionTimeoutMinutes"] == 30
    assert client.topology_description.topology_type_name == "ReplicaSetWithPrimary"


def test_every_reply_carries_the_time_of_the_last_write(db: Database[Record]) -> None:
    with db.watch() as stream:
        for number in range(3):
            db.documents.insert_one({"_id": number})
        events = drain(stream, 3)
    hello = db.client.admin.command("hello")
    last = events[-1]["clusterTime"]
    assert isinstance(last, Timestamp)
    assert hello["operationTime"] >= last
    assert hello["$clusterTime"]["clusterTime"] >= last
    assert hello["lastWrite"]["opTime"]["ts"] >= last
    moment = hello["lastWrite"]["lastWriteDate"].replace(tzinfo=UTC)
    assert abs(moment - datetime.now(UTC)) < timedelta(seconds=60)


def test_a_database_is_listed_once_it_has_a_collection(db: Database[Record]) -> None:
    assert db.name not in db.client.list_database_names()
    db.documents.insert_one({})
    db.create_collection("empty")
    assert db.name in db.client.list_database_names()
    assert sorted(db.list_collection_names()) == ["documents", "empty"]
    with pytest.raises(CollectionInvalid):
        db.create_collection("empty")
    db.drop_collection("empty")
    assert db.list_collection_names() == ["documents"]


@pytest.mark.parametrize(
    "command",
    [
        {"aggregate": "a", "pipeline": [{"$out": "b"}], "cursor": {}},
        {"renameCollection": "t.a", "to": "t.b"},
        {"mapReduce": "a"},
        {"create": "c", "capped": True, "size": 10},
        {"find": "a", "tailable": True},
        {"find": "a", "filter": {"$where": "true"}},
        {"find": "a", "collation": {"locale": "de"}},
        {"update": "a", "updates": [{"q": {}, "u": [{"$set": {"a": 1}}]}]},
        {"createIndexes": "a", "indexes": [{"key": {"a": "text"}, "name": "a"}]},
        {"createIndexes": "a", "indexes": [{"key": {"a": 1}, "name": "a", "expireAfterSeconds": 1}]},
    ],
    ids=lambda command: next(iter(command)),
)
def test_what_it_cannot_do_is_refused_by_name(db: Database[Record], command: Record) -> None:
    db.a.insert_one({"_id": 1})
    reply = db.command(command, check=False)
    failure = reply if not reply["ok"] else reply["writeErrors"][0]
    assert failure["code"] == 115
    assert "not supported by the embedded MongoDB" in failure["errmsg"]


def test_a_transaction_is_refused_and_leaves_nothing(documents: Collection[Record]) -> None:
    with documents.database.client.start_session() as session:
        session.start_transaction()
        with pytest.raises(OperationFailure, match="a transaction is not supported"):
            documents.insert_one({"_id": 1}, session=session)
        session.abort_transaction()
    assert documents.count_documents({}) == 0


def test_an_unknown_command_is_an_error(db: Database[Record]) -> None:
    with pytest.raises(OperationFailure) as failure:
        db.command("frobnicate")
    assert failure.value.code == 59


# --- values ---

VALUES = [
    5,
    Int64(5),
    2**40,
    -1,
    1.0,
    0.1,
    float("inf"),
    "",
    "text\x00 with ümläut 𝕳",
    b"\x00\xff",
    Binary(b"x" * 16, 4),
    None,
    Binary(b"md5", 5),
    True,
    OBJECT_ID,
    NOON,
    datetime(1, 1, 1, tzinfo=UTC),
    Decimal128("1.10"),
    Decimal128("1E+6000"),
    Regex("^a.b", "im"),
    Timestamp(7, 9),
    MinKey(),
    MaxKey(),
    [],
    [1, [2.0, {"a": None}]],
    {},
    {"a": {"b": {"c": [NOON]}}},
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: f"{type(value).__name__}:{value!r}"[:40])
def test_a_value_comes_back_bit_by_bit(documents: Collection[Record], value: Any) -> None:
    raw = documents.with_options(codec_options=CodecOptions(document_class=RawBSONDocument))
    documents.insert_one({"_id": "inserted", "value": value})
    documents.replace_one({"_id": "replaced"}, {"value": value}, upsert=True)
    documents.update_one({"_id": "set"}, {"$set": {"value": value}}, upsert=True)
    found = {bytes(document.raw)[-40:] for document in raw.find({}, {"_id": 0})}  # type: ignore[attr-defined]
    assert len(found) == 1
    assert documents.count_documents({"value": {"$eq": value} if not isinstance(value, Regex) else value}) == 3


@pytest.mark.parametrize(
    "name",
    ["s1", "7", "a" * 24, OBJECT_ID, 7, Int64(2**40), 1.5, NOON, {"a": 1, "b": "x"}, b"bytes", True, None],
    ids=repr,
)
def test_an_id_keeps_its_type(documents: Collection[Record], name: Any) -> None:
    with documents.watch() as stream:
        documents.replace_one({"_id": name}, {"n": 1}, upsert=True)
        documents.update_one({"_id": name}, {"$inc": {"n": 1}}, upsert=True)
        keys = [event["documentKey"]["_id"] for event in drain(stream, 2)]
    found = documents.find_one({"_id": name})
    assert found == {"_id": name, "n": 2}
    assert keys == [name, name]
    assert {type(key) for key in keys} == {type(found["_id"])}


def test_an_id_of_another_type_is_another_document(documents: Collection[Record]) -> None:
    name = "6" * 24
    documents.insert_many([{"_id": 7}, {"_id": "7"}, {"_id": name}, {"_id": ObjectId(name)}])
    assert documents.count_documents({}) == 4
    with pytest.raises(DuplicateKeyError):
        documents.insert_one({"_id": 7.0})
    assert documents.delete_many({"_id": {"$in": ["7", ObjectId(name)]}}).deleted_count == 2
    assert {document["_id"] for document in documents.find()} == {7, name}


def test_a_document_over_16_mb_is_refused_as_a_server_does(documents: Collection[Record]) -> None:
    largest = 16 * 1024 * 1024
    overhead = 25
    assert documents.insert_one({"_id": 1, "text": "x" * (largest - overhead)}).inserted_id == 1
    with pytest.raises(OperationFailure) as refused:
        documents.insert_one({"_id": 2, "text": "x" * (largest - overhead + 1)})
    assert refused.value.code == 10334
    with pytest.raises(OperationFailure) as grown:
        documents.update_one({"_id": 1}, {"$set": {"more": "y"}})
    assert grown.value.code == 17419
    assert documents.find_one({"_id": 1}, {"more": 1}) == {"_id": 1}


# --- queries ---

PEOPLE = [
    {"_id": "a", "n": 1, "name": "Ada", "at": NOON, "tags": ["x", "y"], "m": {"k": 1}, "points": [{"p": 1, "q": 2}]},
    {"_id": "b", "n": 2.5, "name": "bob", "at": NOON + timedelta(days=1), "tags": [], "m": {"k": None}},
    {"_id": "c", "n": Int64(3), "name": "Cy\nAda", "at": NOON + timedelta(days=2), "tags": "x", "m": {}},
    {"_id": "d", "n": "4", "name": None, "points": [{"p": 1, "q": 3}, {"p": 2, "q": 2}]},
    {"_id": "e"},
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "abcde"),
        ({"n": 1}, "a"),
        ({"n": 1.0}, "a"),
        ({"n": {"$gt": 1}}, "bc"),
        ({"n": {"$gte": 1, "$lt": 3}}, "ab"),
        ({"n": {"$in": [3, "4"]}}, "cd"),
        ({"n": {"$nin": [3, "4"]}}, "abe"),
        ({"n": {"$ne": 1}}, "bcde"),
        ({"n": None}, "e"),
        ({"n": {"$exists": True}}, "abcd"),
        ({"n": {"$exists": False}}, "e"),
        ({"n": {"$type": "number"}}, "abc"),
        ({"name": {"$regex": "^ada", "$options": "i"}}, "a"),
        ({"name": re.compile("^ada", re.I | re.M)}, "ac"),
        ({"name": {"$not": {"$regex": "a"}}}, "bde"),
        ({"name": {"$in": [re.compile("^b"), None]}}, "bde"),
        ({"name": {"$regex": r"^\QAda\E$"}}, "a"),
        ({"at": {"$gt": NOON}}, "bc"),
        ({"at": {"$lt": NOON + timedelta(days=2)}}, "ab"),
        ({"at": {"$gte": NOON, "$lte": NOON}}, "a"),
        ({"tags": "x"}, "ac"),
        ({"tags": ["x", "y"]}, "a"),
        ({"tags": {"$size": 0}}, "b"),
        ({"tags": {"$all": ["x", "y"]}}, "a"),
        ({"tags": {"$ne": "x"}}, "bde"),
        ({"m.k": 1}, "a"),
        ({"m.k": None}, "bcde"),
        ({"m": {"k": 1}}, "a"),
        ({"points.p": 2}, "d"),
        ({"points.0.q": 2}, "a"),
        ({"points": {"$elemMatch": {"p": 1, "q": 3}}}, "d"),
        ({"points.p": 1, "points.q": 2}, "ad"),
        ({"$or": [{"n": 1}, {"_id": "e"}]}, "ae"),
        ({"$nor": [{"n": 1}, {"_id": "e"}]}, "bcd"),
        ({"$and": [{"n": {"$gt": 0}}, {"tags": "x"}]}, "ac"),
        ({"_id": {"$in": ["b", "nobody", "a"]}}, "ab"),
        ({"_id": {"$gt": "b"}}, "cde"),
        ({"_id": "a", "n": 2}, ""),
        ({"n": {"$mod": [2, 1]}}, "ac"),
        ({"$expr": {"$gt": ["$n", 2]}}, "bcd"),
    ],
    ids=repr,
)
def test_a_filter_finds_what_a_server_finds(documents: Collection[Record], query: Record, expected: str) -> None:
    documents.insert_many(PEOPLE)
    assert "".join(sorted(document["_id"] for document in documents.find(query))) == expected
    assert documents.count_documents(query) == len(expected)


@pytest.mark.parametrize(
    "query", [{"n": {"$foo": 1}}, {"$foo": 1}, {"n": {"$in": 1}}, {"$or": []}, {"n": {"$regex": "("}}], ids=repr
)
def test_a_filter_that_makes_no_sense_is_an_error(documents: Collection[Record], query: Record) -> None:
    with pytest.raises(OperationFailure):
        list(documents.find(query))


@pytest.mark.parametrize(
    ("projection", "expected"),
    [
        ({"n": 1}, {"_id": "a", "n": 1}),
        ({"n": 1, "_id": 0}, {"n": 1}),
        ({"m.k": 1}, {"_id": "a", "m": {"k": 1}}),
        ({"at": 0, "tags": 0, "points": 0, "m": 0}, {"_id": "a", "n": 1, "name": "Ada"}),
        ({"_id": 1}, {"_id": "a"}),
        ({"points.p": 1}, {"_id": "a", "points": [{"p": 1}]}),
        (
            {"points.p": 0, "m.k": 0, "at": 0, "tags": 0},
            {"_id": "a", "n": 1, "name": "Ada", "m": {}, "points": [{"q": 2}]},
        ),
        ({"nothing": 1}, {"_id": "a"}),
    ],
    ids=repr,
)
def test_a_projection_keeps_what_was_asked(documents: Collection[Record], projection: Record, expected: Record) -> None:
    documents.insert_many(PEOPLE)
    assert documents.find_one({"_id": "a"}, projection) == expected


def test_sorting_orders_types_as_a_server_does(documents: Collection[Record]) -> None:
    values = [None, float("nan"), -5, 2.5, Int64(3), "", "a", "ä", {"a": 1}, [], b"x", ObjectId(), False, True, NOON]
    mixed = random.Random(4).sample(list(enumerate(values)), len(values))
    documents.insert_many({"_id": place, "v": value} for place, value in mixed)
    places = [document["_id"] for document in documents.find().sort([("v", 1)])]
    assert [place for place in places if place != 9] == [place for place in range(len(values)) if place != 9]
    descending = [document["_id"] for document in documents.find({"v": {"$type": "number"}}).sort("v", DESCENDING)]
    assert descending == [4, 3, 2, 1]


def test_sort_skip_limit_and_small_batches_meet(documents: Collection[Record]) -> None:
    documents.insert_many({"_id": str(number), "n": number % 7, "m": number} for number in range(500))
    expected = sorted(range(500), key=lambda number: (-(number % 7), number))
    found = documents.find({}, {"m": 1}, batch_size=9).sort([("n", DESCENDING), ("m", ASCENDING)]).skip(20).limit(300)
    assert [document["m"] for document in found] == expected[20:320]
    assert [document["m"] for document in documents.find(batch_size=3)] == list(range(500))


def test_a_large_result_comes_in_many_messages(documents: Collection[Record]) -> None:
    documents.insert_many({"_id": number, "text": str(number) * 1_000_000} for number in range(40))
    found = {document["_id"]: len(document["text"]) for document in documents.find(batch_size=1000)}
    assert found == {number: len(str(number)) * 1_000_000 for number in range(40)}


def test_a_document_that_stays_is_seen_once_while_others_come_and_go(documents: Collection[Record]) -> None:
    documents.insert_many({"_id": number} for number in range(600))
    cursor = documents.find(batch_size=50)
    seen = [next(cursor)["_id"] for _ in range(60)]
    documents.delete_many({"_id": {"$in": list(range(300, 400))}})
    documents.update_many({"_id": {"$gte": 400}}, {"$set": {"text": "x" * 1000}})
    seen += [document["_id"] for document in cursor]
    assert seen == sorted(set(seen))
    assert {*range(300), *range(400, 600)} <= set(seen)


def test_counts_and_distinct_values_are_right(documents: Collection[Record]) -> None:
    documents.insert_many(PEOPLE)
    assert documents.estimated_document_count() == 5
    assert documents.count_documents({"n": {"$gt": 0}}, skip=1) == 2
    assert documents.distinct("tags") == ["x", "y"]
    assert documents.distinct("at", {"n": {"$lt": 3}}) == [NOON, NOON + timedelta(days=1)]
    assert documents.distinct("m.k") == [1, None]


def test_an_aggregation_groups_and_counts(documents: Collection[Record]) -> None:
    documents.insert_many({"author": "ab"[number % 2], "n": number, "tags": ["t"] * number} for number in range(5))
    grouped = documents.aggregate(
        [
            {"$match": {"n": {"$gt": 0}}},
            {
                "$group": {
                    "_id": "$author",
                    "sum": {"$sum": "$n"},
                    "ones": {"$sum": 1},
                    "max": {"$max": "$n"},
                    "avg": {"$avg": "$n"},
                }
            },
            {"$sort": {"_id": -1}},
        ]
    )
    assert list(grouped) == [
        {"_id": "b", "sum": 4, "ones": 2, "max": 3, "avg": 2.0},
        {"_id": "a", "sum": 6, "ones": 2, "max": 4, "avg": 3.0},
    ]
    assert list(documents.aggregate([{"$unwind": "$tags"}, {"$count": "tags"}])) == [{"tags": 10}]


def test_a_unique_index_holds_over_every_kind_of_write(documents: Collection[Record]) -> None:
    documents.insert_many([{"_id": 1, "url": "a", "n": 1}, {"_id": 2, "url": "b", "n": 1}])
    documents.create_index("url", unique=True)
    documents.create_index([("n", 1), ("url", -1)])
    for write in (
        lambda: documents.insert_one({"_id": 3, "url": "a"}),
        lambda: documents.update_one({"_id": 2}, {"$set": {"url": "a"}}),
        lambda: documents.replace_one({"_id": 9}, {"url": "b"}, upsert=True),
        lambda: documents.find_one_and_update({"_id": 2}, {"$set": {"url": "a"}}),
    ):
        with pytest.raises(DuplicateKeyError, match="index: url_1"):
            write()
    with pytest.raises(DuplicateKeyError):
        documents.create_index("n", unique=True)
    assert set(documents.index_information()) == {"_id_", "url_1", "n_1_url_-1"}
    documents.delete_one({"_id": 1})
    documents.update_one({"_id": 2}, {"$set": {"url": "a"}})
    assert [document["_id"] for document in documents.find({"url": "a"})] == [2]
    assert list(documents.find({"url": "b"})) == []
    documents.drop_index("url_1")
    documents.insert_one({"_id": 3, "url": "a"})
    assert documents.count_documents({"url": "a"}) == 2


# --- writes ---


@pytest.mark.parametrize(
    ("before", "change", "after"),
    [
        ({"n": 1}, {"$set": {"m.k": 2}}, {"n": 1, "m": {"k": 2}}),
        ({"n": 1, "m": {"k": 1, "l": 2}}, {"$unset": {"m.k": ""}}, {"n": 1, "m": {"l": 2}}),
        ({"n": 1}, {"$inc": {"n": 2, "new": 5}}, {"n": 3, "new": 5}),
        ({"n": 1}, {"$inc": {"n": 0.5}}, {"n": 1.5}),
        ({"n": 3}, {"$mul": {"n": 2, "z": 3}}, {"n": 6, "z": 0}),
        ({"n": 1}, {"$min": {"n": 0}, "$max": {"m": 4}}, {"n": 0, "m": 4}),
        ({"n": 1}, {"$setOnInsert": {"n": 9}}, {"n": 1}),
        ({"a": 1}, {"$rename": {"a": "b.c"}}, {"b": {"c": 1}}),
        ({"l": [1]}, {"$push": {"l": {"$each": [2, 3], "$slice": -2}}}, {"l": [2, 3]}),
        ({"l": [1]}, {"$addToSet": {"l": {"$each": [1, 2]}}}, {"l": [1, 2]}),
        ({"l": [1, 2, 1]}, {"$pull": {"l": 1}}, {"l": [2]}),
        ({"l": [{"a": 1}, {"a": 2}]}, {"$pull": {"l": {"a": {"$gt": 1}}}}, {"l": [{"a": 1}]}),
        ({"l": [1, 2]}, {"$pop": {"l": 1}}, {"l": [1]}),
        ({"l": [1, 2]}, {"$set": {"l.1": 9, "l.3": 8}}, {"l": [1, 9, None, 8]}),
        ({}, {"$push": {"l": 1}}, {"l": [1]}),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_an_update_operator_changes_what_it_says(
    documents: Collection[Record], before: Record, change: Record, after: Record
) -> None:
    documents.insert_one({"_id": 1, **before})
    documents.update_one({"_id": 1}, change)
    assert documents.find_one() == {"_id": 1, **after}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"$set": {"_id": 2}}, 66),
        ({"$foo": {"a": 1}}, 9),
        ({"$set": {"a.b": 1}}, 28),
        ({"$inc": {"s": 1}}, 14),
        ({"$set": {"n": 1}, "$inc": {"n": 1}}, 40),
        ({"$set": {"l.$": 1}}, 115),
        ({"$push": {"s": 1}}, 2),
    ],
    ids=repr,
)
def test_an_update_that_cannot_be_leaves_the_document(documents: Collection[Record], change: Record, code: int) -> None:
    documents.insert_one({"_id": 1, "a": 5, "s": "text", "l": [1]})
    with pytest.raises(OperationFailure) as refused:
        documents.update_one({"_id": 1}, change)
    assert refused.value.code == code
    assert documents.find_one() == {"_id": 1, "a": 5, "s": "text", "l": [1]}


def test_an_upsert_begins_with_the_filter(documents: Collection[Record]) -> None:
    result = documents.update_one(
        {"_id": "x", "kind": {"$eq": "k"}, "n": {"$gt": 5}},
        {"$set": {"a": 1}, "$setOnInsert": {"made": NOON}},
        upsert=True,
    )
    assert (result.upserted_id, result.matched_count, result.modified_count) == ("x", 0, 0)
    assert documents.find_one() == {"_id": "x", "kind": "k", "a": 1, "made": NOON}
    again = documents.update_one({"_id": "x"}, {"$set": {"a": 1}, "$setOnInsert": {"made": None}}, upsert=True)
    assert (again.upserted_id, again.matched_count, again.modified_count) == (None, 1, 0)
    made = documents.update_one({"kind": "other"}, {"$inc": {"n": 1}}, upsert=True).upserted_id
    assert isinstance(made, ObjectId)


def test_an_unordered_bulk_goes_on_after_an_error(documents: Collection[Record]) -> None:
    operations = [
        InsertOne({"_id": 1}),
        InsertOne({"_id": 1}),
        ReplaceOne({"_id": 2}, {"n": 2}, upsert=True),
        UpdateOne({"_id": 1}, {"$set": {"n": 1}}),
        DeleteOne({"_id": 2}),
        UpdateOne({"_id": 3}, {"$inc": {"n": 1}}, upsert=True),
    ]
    with pytest.raises(BulkWriteError) as failure:
        documents.bulk_write(operations, ordered=False)
    details = failure.value.details
    assert [error["index"] for error in details["writeErrors"]] == [1]
    assert (details["nInserted"], details["nModified"], details["nRemoved"]) == (1, 1, 1)
    assert [entry["_id"] for entry in details["upserted"]] == [2, 3]
    assert sorted(documents.find(), key=lambda document: document["_id"]) == [{"_id": 1, "n": 1}, {"_id": 3, "n": 1}]
    documents.delete_many({})
    with pytest.raises(BulkWriteError):
        documents.insert_many([{"_id": 1}, {"_id": 1}, {"_id": 2}])
    assert documents.count_documents({}) == 1


def test_find_one_and_gives_the_version_that_was_asked(documents: Collection[Record]) -> None:
    documents.insert_many([{"_id": 1, "n": 1}, {"_id": 2, "n": 5}])
    assert documents.find_one_and_update({}, {"$inc": {"n": 1}}, sort=[("n", -1)]) == {"_id": 2, "n": 5}
    after = ReturnDocument.AFTER
    assert documents.find_one_and_update({"_id": 2}, {"$inc": {"n": 1}}, {"n": 1, "_id": 0}, return_document=after) == {
        "n": 7
    }
    assert documents.find_one_and_update({"_id": 9}, {"$set": {"n": 1}}) is None
    assert documents.find_one_and_update({"_id": 9}, {"$set": {"n": 1}}, upsert=True) is None
    assert documents.find_one_and_replace({"_id": 9}, {"z": 1}, return_document=after) == {"_id": 9, "z": 1}
    assert documents.find_one_and_delete({"_id": 9}) == {"_id": 9, "z": 1}
    assert documents.find_one_and_delete({"_id": 9}) is None


def test_concurrent_increments_are_all_counted(running: Running, documents: Collection[Record]) -> None:
    documents.insert_one({"_id": 1, "n": 0})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: documents.update_one({"_id": 1}, {"$inc": {"n": 1}}), range(200)))
    assert documents.find_one() == {"_id": 1, "n": 200}


def test_a_retried_write_is_applied_once(running: Running, documents: Collection[Record]) -> None:
    documents.insert_one({"_id": 1, "n": 0})

    def increment(number: int) -> Record:
        statement = {"q": {"_id": 1}, "u": {"$inc": {"n": 1}}}
        command = {"update": documents.name, "updates": [statement]}
        return ask(running.port, retryable(command, documents.database.name, number))

    first, again = increment(1), increment(1)
    assert (first["n"], first["nModified"]) == (again["n"], again["nModified"]) == (1, 1)
    assert documents.find_one() == {"_id": 1, "n": 1}
    increment(2)
    assert documents.find_one() == {"_id": 1, "n": 2}
    assert increment(1)["code"] == 225
    assert documents.find_one() == {"_id": 1, "n": 2}


def test_an_unacknowledged_write_arrives(documents: Collection[Record]) -> None:
    documents.with_options(write_concern=WriteConcern(w=0)).insert_one({"_id": 1})
    deadline = time.monotonic() + 5
    while documents.count_documents({}) == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert documents.find_one() == {"_id": 1}


def test_a_write_for_more_nodes_than_there_are_says_so(documents: Collection[Record]) -> None:
    reply = documents.database.command(
        {"insert": "documents", "documents": [{"_id": 1}], "writeConcern": {"w": 2}}, check=False
    )
    assert reply["writeConcernError"]["code"] == 100
    assert documents.with_options(write_concern=WriteConcern(w="majority", j=True)).insert_one({"_id": 2}).acknowledged


# --- change streams ---


def test_a_stream_tells_every_kind_of_change_in_order(db: Database[Record]) -> None:
    before = time.time() * 1000 - 1000
    with db.watch(full_document="updateLookup", max_await_time_ms=100) as stream:
        db.documents.insert_one({"_id": "a", "n": 1, "gone": 1, "at": NOON})
        db.documents.update_one({"_id": "a"}, {"$set": {"n": 2, "m.k": 3}, "$unset": {"gone": 1}})
        db.documents.update_one({"_id": "a"}, {"$set": {"n": 2}})
        db.documents.replace_one({"_id": "a"}, {"z": 1})
        db.documents.delete_one({"_id": "a"})
        db.other.insert_one({"_id": 1})
        events = drain(stream, 5)
        assert stream.try_next() is None
    kinds = [event["operationType"] for event in events]
    assert kinds == ["insert", "update", "replace", "delete", "insert"]
    assert [event.get("fullDocument") for event in events] == [
        {"_id": "a", "n": 1, "gone": 1, "at": NOON},
        {"_id": "a", "n": 2, "at": NOON, "m": {"k": 3}},
        {"_id": "a", "z": 1},
        None,
        {"_id": 1},
    ]
    assert events[1]["updateDescription"] == {
        "updatedFields": {"n": 2, "m": {"k": 3}},
        "removedFields": ["gone"],
        "truncatedArrays": [],
    }
    assert "fullDocument" not in events[3]
    assert {event["ns"]["coll"] for event in events[:4]} == {"documents"}
    assert [event["documentKey"]["_id"] for event in events] == ["a", "a", "a", "a", 1]
    times = [event["clusterTime"] for event in events]
    assert times == sorted(set(times))
    walls = [event["wallTime"].timestamp() * 1000 for event in events]
    assert walls == sorted(walls)
    assert before < walls[0] < time.time() * 1000 + 1000
    # Debezium orders by (wall time in ms, increment).
    versions = [(wall, moment.inc) for wall, moment in zip(walls, times, strict=True)]
    assert versions == sorted(set(versions))


def test_a_collection_stream_tells_of_its_collection_only(db: Database[Record]) -> None:
    with db.documents.watch() as stream:
        db.other.insert_one({"_id": 1})
        db.documents.insert_one({"_id": 2})
        db.documents.update_one({"_id": 2}, {"$set": {"n": 1}})
        events = drain(stream, 2)
    assert [event["documentKey"]["_id"] for event in events] == [2, 2]
    assert "fullDocument" not in events[1]


def test_writes_in_bulk_tell_each_document(documents: Collection[Record]) -> None:
    with documents.watch() as stream:
        documents.insert_many({"_id": number, "n": 0} for number in range(300))
        documents.bulk_write([ReplaceOne({"_id": number}, {"n": 1}, upsert=True) for number in range(200, 400)])
        documents.update_many({"_id": {"$lt": 10}}, {"$inc": {"n": 1}})
        documents.delete_many({"_id": {"$in": list(range(0, 400, 2))}})
        events = drain(stream, 710)
    kinds = [event["operationType"] for event in events]
    assert kinds == ["insert"] * 300 + ["replace"] * 100 + ["insert"] * 100 + ["update"] * 10 + ["delete"] * 200
    assert [event["documentKey"]["_id"] for event in events[510:]] == list(range(0, 400, 2))


def test_a_stream_takes_the_pipelines_of_connectors(db: Database[Record]) -> None:
    names = {"event": "$$ROOT", "namespace": {"$concat": ["$ns.db", ".", "$ns.coll"]}}
    wanted = [
        {"namespace": {"$regex": rf"^\Q{db.name}\E\.documents$"}},
        {"event.operationType": {"$in": ["insert", "delete"]}},
    ]
    pipeline = [
        {"$replaceRoot": {"newRoot": names}},
        {"$match": {"$and": wanted}},
        {"$replaceRoot": {"newRoot": "$event"}},
    ]
    with db.watch(pipeline, full_document="updateLookup") as stream:
        db.other.insert_one({"_id": 0})
        db.documents.insert_one({"_id": 1})
        db.documents.update_one({"_id": 1}, {"$set": {"n": 1}})
        db.documents.delete_one({"_id": 1})
        events = drain(stream, 2)
    assert [event["operationType"] for event in events] == ["insert", "delete"]
    with pytest.raises(OperationFailure, match=r"\$group in a change stream is not supported"):
        db.watch([{"$group": {"_id": None}}])


@pytest.mark.parametrize("option", ["resume_after", "start_after"])
def test_a_stream_resumes_after_any_event(documents: Collection[Record], option: Any) -> None:
    with documents.watch() as stream:
        documents.insert_many({"_id": number} for number in range(20))
        events = drain(stream, 20)
    for position in (0, 7, 19):
        with documents.watch(max_await_time_ms=100, **{option: events[position]["_id"]}) as resumed:
            assert [event["_id"] for event in drain(resumed, 19 - position)] == [
                event["_id"] for event in events[position + 1 :]
            ]
            assert resumed.try_next() is None
    with documents.watch(start_at_operation_time=events[5]["clusterTime"]) as timed:
        assert [event["_id"] for event in drain(timed, 15)] == [event["_id"] for event in events[5:]]


def test_a_stream_resumes_from_where_nothing_happened(db: Database[Record]) -> None:
    with db.documents.watch(max_await_time_ms=100) as stream:
        assert stream.try_next() is None
        db.other.insert_one({})
        assert stream.try_next() is None
        token = stream.resume_token
    db.documents.insert_one({"_id": 1})
    with db.documents.watch(resume_after=token) as resumed:
        assert [event["documentKey"] for event in drain(resumed, 1)] == [{"_id": 1}]


def test_a_dropped_collection_ends_its_stream(db: Database[Record]) -> None:
    db.documents.insert_one({"_id": 1})
    with db.documents.watch() as stream, db.watch() as wide:
        db.documents.insert_one({"_id": 2})
        db.documents.drop()
        events = drain(stream, 3)
        assert [event["operationType"] for event in events] == ["insert", "drop", "invalidate"]
        assert events[0]["fullDocument"] == {"_id": 2}
        assert not stream.alive
        db.documents.insert_one({"_id": 3})
        assert [event["operationType"] for event in drain(wide, 3)] == ["insert", "drop", "insert"]
    with pytest.raises(OperationFailure):
        db.documents.watch(resume_after=events[2]["_id"])
    with db.documents.watch(start_after=events[2]["_id"]) as again:
        assert [event["fullDocument"] for event in drain(again, 1)] == [{"_id": 3}]


class Asked(CommandListener):
    """The names of the commands that a client has sent."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def started(self, event: CommandStartedEvent) -> None:
        self.names.append(event.command_name)

    def succeeded(self, event: CommandSucceededEvent) -> None:
        """Only what was asked counts."""

    def failed(self, event: CommandFailedEvent) -> None:
        """Only what was asked counts."""


def test_a_stream_is_answered_when_something_happens_and_not_asked_for_again_and_again_before(own: Running) -> None:
    asked = Asked()
    with own.client(event_listeners=[asked]) as client, ThreadPoolExecutor(1) as pool:
        documents = client.twin.documents
        # So long that a stream which is not woken fails the test.
        with documents.watch(max_await_time_ms=600_000) as stream:
            for number in range(10):
                event = pool.submit(stream.next)
                time.sleep(0.05)
                documents.insert_one({"_id": number})
                assert event.result(PATIENCE)["documentKey"]["_id"] == number
    # One more may cross with the write that answers it.
    assert asked.names.count("getMore") <= 20


def test_a_stream_without_news_is_answered_after_its_time(documents: Collection[Record]) -> None:
    with documents.watch(max_await_time_ms=100) as stream:
        assert stream.try_next() is None


def test_waiting_streams_do_not_hold_up_others(running: Running, documents: Collection[Record]) -> None:
    documents.insert_many({"_id": number, "text": "x" * 2000} for number in range(2000))
    streams = [documents.watch(max_await_time_ms=600_000) for _ in range(4)]
    threads = [threading.Thread(target=stream.try_next) for stream in streams]
    for thread in threads:
        thread.start()
    assert sum(1 for _ in documents.find({}, {"_id": 1})) == 2000
    assert all(thread.is_alive() for thread in threads)
    documents.insert_one({"_id": -1})
    for thread in threads:
        thread.join()
    for stream in streams:
        stream.close()


def test_a_killed_stream_answers_its_waiting_reader(db: Database[Record]) -> None:
    reply = db.command({"aggregate": 1, "pipeline": [{"$changeStream": {}}], "cursor": {}})
    number = reply["cursor"]["id"]
    answers: list[Record] = []
    ask = {"getMore": number, "collection": "$cmd.aggregate", "maxTimeMS": 8000}
    waiting = threading.Thread(target=lambda: answers.append(db.command(ask, check=False)))
    waiting.start()
    time.sleep(0.1)
    killed = db.command({"killCursors": "$cmd.aggregate", "cursors": [number, Int64(1)]})
    waiting.join(timeout=5)
    assert killed["cursorsKilled"] == [number]
    assert killed["cursorsNotFound"] == [1]
    assert answers[0]["code"] == 43


@pytest.mark.parametrize("token", [{"_data": "82" + "0" * 16}, {"_data": "no"}, {"other": 1}], ids=str)
def test_a_token_that_is_none_is_refused(documents: Collection[Record], token: Record) -> None:
    with pytest.raises(OperationFailure) as refused:
        documents.watch(resume_after=token)
    assert refused.value.code == 260


def test_a_token_of_another_store_says_that_its_history_is_lost(documents: Collection[Record]) -> None:
    with documents.watch() as stream:
        documents.insert_one({})
        token = drain(stream, 1)[0]["_id"]["_data"]
    for foreign in (token[:18] + "F" * 16 + token[34:], token[:2] + "7" + token[3:]):
        with pytest.raises(OperationFailure) as refused:
            documents.watch(resume_after={"_data": foreign})
        assert refused.value.code == 286


def test_history_is_kept_to_its_limit(tmp_path: Path) -> None:
    running = Running(tmp_path, "--history", "100")
    try:
        with running.client() as client:
            documents = client.twin.documents
            with documents.watch() as stream:
                documents.insert_one({"_id": -1})
                old = drain(stream, 1)[0]
            for number in range(200):
                documents.insert_one({"_id": number})
            for resume in ({"resume_after": old["_id"]}, {"start_at_operation_time": old["clusterTime"]}):
                with pytest.raises(OperationFailure) as lost:
                    documents.watch(**resume)
                assert lost.value.code == 286
            with documents.watch() as stream:
                documents.insert_one({"_id": 1000})
                token = drain(stream, 1)[0]["_id"]
            documents.insert_many({"_id": 2000 + number} for number in range(100))
            with documents.watch(resume_after=token) as stream:
                assert len(drain(stream, 100)) == 100
    finally:
        running.kill()


# --- faults ---


def test_a_kill_loses_no_acknowledged_write_and_streams_resume(own: Running) -> None:
    with own.client(serverSelectionTimeoutMS=500) as client:
        documents = client.twin.documents
        with documents.watch() as stream:
            documents.insert_one({"_id": -1})
            token = drain(stream, 1)[0]["_id"]
        clock = client.admin.command("hello")["operationTime"]

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(insert_until_it_fails, documents)
            time.sleep(0.5)
            own.kill()
    acknowledged = writing.result()
    own.start()
    with own.client() as client:
        documents = client.twin.documents
        kept = {document["_id"] for document in documents.find({}, {"_id": 1})}
        assert len(acknowledged) > 50
        assert set(acknowledged) <= kept
        documents.insert_one({"_id": "after"})
        with documents.watch(resume_after=token) as stream:
            events = drain(stream, len(kept))
        told = [event["documentKey"]["_id"] for event in events]
        assert told[-1] == "after"
        assert len(told) == len(kept)
        assert set(told[:-1]) == kept - {-1}
        times = [event["clusterTime"] for event in events]
        assert times == sorted(set(times))
        assert clock < times[0]


def test_a_stream_that_is_open_outlives_a_restart(own: Running) -> None:
    with own.client() as client, client.twin.watch(max_await_time_ms=100) as stream:
        client.twin.documents.insert_one({"_id": 1})
        assert drain(stream, 1)[0]["documentKey"] == {"_id": 1}
        own.kill()
        own.start()
        client.twin.documents.insert_one({"_id": 2})
        assert [event["documentKey"] for event in drain(stream, 1)] == [{"_id": 2}]


def test_a_retry_after_a_kill_is_answered_from_before(own: Running) -> None:
    command = retryable({"insert": "documents", "documents": [{"_id": 1}]}, "twin", 1)
    assert ask(own.port, command)["n"] == 1
    own.kill()
    own.start()
    again = ask(own.port, command)
    assert again["n"] == 1
    assert "writeErrors" not in again


def test_it_ends_cleanly_under_load(own: Running) -> None:
    with own.client(serverSelectionTimeoutMS=500) as client, ThreadPoolExecutor(3) as pool:
        documents = client.twin.documents
        stream = client.twin.watch(max_await_time_ms=600_000)
        pool.submit(stream.try_next)
        acknowledged = pool.submit(insert_until_it_fails, documents)
        pool.submit(insert_until_it_fails, documents)
        time.sleep(0.3)
        assert own.stop() == 0
    own.start()
    with own.client() as client:
        kept = set(client.twin.documents.distinct("_id"))
    assert acknowledged.result()
    assert set(acknowledged.result()) <= kept


def insert_until_it_fails(documents: Collection[Record]) -> list[Any]:
    """The ids of the documents that were acknowledged."""
    acknowledged = []
    with suppress(PyMongoError):
        while True:
            acknowledged.append(documents.insert_one({"text": "x" * 1000}).inserted_id)
    return acknowledged


def test_a_taken_port_and_a_taken_directory_are_one_sentence(own: Running, tmp_path: Path) -> None:
    for port, directory in ((own.port, tmp_path / "other"), (0, own.directory)):
        started = subprocess.run(
            [sys.executable, "-m", "embedded.mongodb", "--port", str(port), "--directory", str(directory)],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
        assert started.returncode == 1
        assert started.stderr.count("\n") == 1
        assert "in use" in started.stderr


def test_bytes_that_are_no_message_harm_nobody(running: Running, documents: Collection[Record]) -> None:
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 64,
        b"\x20\0\0\0" + b"\0" * 28,
        b"\x15\0\0\0\1\0\0\0\0\0\0\0\xdd\x07\0\0\0\0\0\0\7",
    ):
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.sendall(garbage)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100) == b""
    assert documents.insert_one({"_id": 1}).acknowledged


def test_a_document_nested_without_end_is_refused_and_the_server_goes_on(
    running: Running, documents: Collection[Record]
) -> None:
    body = b""
    for _ in range(3000):
        body = struct.pack("<i", len(body) + 8) + b"\x03a\0" + (body or struct.pack("<i", 5) + b"\0") + b"\0"
        body = struct.pack("<i", len(body)) + body[4:]
    command = {"insert": documents.name, "documents": [RawBSONDocument(body)], "$db": documents.database.name}
    # The connection is closed without an answer.
    with pytest.raises(struct.error):
        ask(running.port, command)
    assert documents.insert_one({"_id": 1}).acknowledged


def test_the_clock_never_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moment = 2_000_000_000.9
    positions: list[tuple[int, int]] = []
    for shift in (0.0, 0.05, 0.2, -100.0, -100.0, 0.3):
        monkeypatch.setattr("embedded.mongodb.store.time.time", lambda shift=shift: moment + shift)
        store = Store(tmp_path)
        for _ in range(3):
            with store.writing() as writer:
                writer.insert(writer.create("twin", "documents"), {"_id": len(positions)})
            positions.append((store.latest_wall, store.latest & 0xFFFFFFFF))
        store.close()
    assert positions == sorted(set(positions))


def test_the_work_of_a_scan_grows_with_the_collection_only(tmp_path: Path) -> None:
    store = Store(tmp_path)
    instructions: list[int] = []

    def read(target: Any) -> tuple[int, int]:
        """How many documents a scan reads, and how many thousand instructions of SQLite it takes."""
        instructions.clear()
        store.reader().set_progress_handler(lambda: instructions.append(1), 1000)
        found = sum(1 for _ in scan(store.reader, target, {}))
        store.reader().set_progress_handler(None, 0)
        return found, len(instructions)

    with store.writing() as writer:
        small, large = writer.create("twin", "small"), writer.create("twin", "large")
        for number in range(2_000):
            writer.insert(small, {"_id": number})
        for number in range(16_000):
            writer.insert(large, {"_id": number})
    found, few = read(small)
    assert found == 2_000
    found, many = read(large)
    assert found == 16_000
    assert many < 12 * few
    store.release()
    store.close()


def test_a_store_in_the_history_gives_room_back(tmp_path: Path) -> None:
    store = Store(tmp_path, history=1000, history_bytes=200_000)
    with store.writing() as writer:
        target = writer.create("twin", "documents")
        writer.insert(target, {"_id": 1, "text": ""})
    for number in range(60):
        with store.writing() as writer:
            (version,) = scan(lambda writer=writer: writer.connection, target, {"_id": 1})  # type: ignore[misc]
            writer.change(version, {"_id": 1, "text": str(number % 10) * 10_000}, "replace", None)
    (kept,) = store.reader().execute("SELECT sum(length(body)) FROM changes").fetchone()
    assert 100_000 < kept <= 200_000
    store.release()
    store.close()


# --- properties ---

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=4)
    | st.integers(-5, 5).map(Int64)
    | st.integers(-50, 50).map(lambda n: Decimal128(str(n / 4)))
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=5,
)


@settings(deadline=None, max_examples=300)
@given(values, values)
def test_two_values_are_one_key_exactly_when_they_are_equal(left: Any, right: Any) -> None:
    assert (identity(left) == identity(right)) == (order(left) == order(right))
    assert identity(left) == identity(left)
    assert sum((order(left) < order(right), order(left) == order(right), order(left) > order(right))) == 1


@settings(deadline=None, max_examples=200)
@given(values.filter(lambda value: not isinstance(value, dict)), values)
def test_a_value_is_found_by_equality_and_by_no_other_range(stored: Any, asked: Any) -> None:
    document = {"f": stored}
    assert matcher({"f": {"$eq": stored}})(document)
    assert matcher({"f": {"$in": [stored]}})(document)
    assert matcher({"f": {"$eq": asked}})(document) != matcher({"f": {"$ne": asked}})(document)
    assert matcher({"f": {"$eq": asked}})(document) == matcher({"f": {"$in": [asked]}})(document)


fields = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@settings(deadline=None, max_examples=200)
@given(fields, fields)
def test_the_description_of_an_update_leads_from_one_version_to_the_next(before: Record, after: Record) -> None:
    told = difference(before, after)
    change = {"$set": told["updatedFields"], "$unset": dict.fromkeys(told["removedFields"], "")}
    again = updated(before, change, inserting=False)
    assert order_free(again) == order_free(after)
    assert difference(after, after) == {"updatedFields": {}, "removedFields": [], "truncatedArrays": []}


def order_free(document: Record) -> bytes:
    """The BSON of a document with the fields sorted, those of embedded documents too."""
    inner = {name: sorted_fields(value) for name, value in sorted(document.items())}
    return encode(inner)


def sorted_fields(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: sorted_fields(item) for name, item in sorted(value.items())}
    return [sorted_fields(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("seed", range(6))
def test_random_operations_equal_a_plain_dict_and_its_history(documents: Collection[Record], seed: int) -> None:
    chance = random.Random(seed)
    model: dict[Any, Record] = {}
    told: list[tuple[str, Any, Record | None]] = []
    names = ["a", "b", 1, ObjectId(b"o" * 12), "c" * 24]

    def put(kind: str, name: Any, record: Record) -> None:
        # The order of the fields is part of a document.
        if name in model and encode(model[name]) == encode(record):
            return
        told.append((kind if name in model else "insert", name, record))
        model[name] = record

    def drop(name: Any) -> None:
        if model.pop(name, None) is not None:
            told.append(("delete", name, None))

    def replace(name: Any, number: int) -> ReplaceOne[Record]:
        put("replace", name, {"_id": name, "n": number, "m": {"k": number}})
        return ReplaceOne({"_id": name}, {"n": number, "m": {"k": number}}, upsert=True)

    with documents.watch(full_document="updateLookup", max_await_time_ms=100) as stream:
        for _ in range(120):
            name, number = chance.choice(names), chance.randrange(3)
            action = chance.randrange(6)
            if action == 0:
                if name in model:
                    with pytest.raises(DuplicateKeyError):
                        documents.insert_one({"_id": name, "n": number})
                else:
                    documents.insert_one({"_id": name, "n": number})
                    put("insert", name, {"_id": name, "n": number})
            elif action == 1:
                documents.bulk_write([replace(name, number)])
            elif action == 2:
                documents.update_one({"_id": name}, {"$set": {"m.k": number}, "$inc": {"n": 1}}, upsert=True)
                old = model.get(name, {"_id": name})
                put("update", name, {**old, "m": {**old.get("m", {}), "k": number}, "n": old.get("n", 0) + 1})
            elif action == 3:
                documents.bulk_write([replace(other, number) for other in chance.sample(names, 3)], ordered=True)
            elif action == 4:
                chosen = chance.sample(names, 2)
                assert documents.delete_many({"_id": {"$in": chosen}}).deleted_count == len(set(chosen) & set(model))
                for other in chosen:
                    drop(other)
            else:
                query = {"n": {"$gte": number}}
                found = {document["_id"]: document for document in documents.find(query)}
                assert found == {key: record for key, record in model.items() if record["n"] >= number}
        assert {document["_id"]: document for document in documents.find()} == model
        events = drain(stream, len(told))
        assert stream.try_next() is None
    assert [
        (event["operationType"], event["documentKey"]["_id"], event.get("fullDocument")) for event in events
    ] == told
