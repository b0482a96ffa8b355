"""An erasure reaches every place, also when it breaks off after any step, and its receipt says so."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from bson import Decimal128, MinKey

from corpus.documents import Document, author_identity
from corpus.history import History, Told, open_history
from corpus.index import QdrantIndex, open_index
from corpus.settings import Settings, load
from corpus.warehouse import Warehouse, connect
from streaming import built, erase
from streaming.clients import LogFailed
from streaming.indexing import index_batch
from streaming.log import Log
from tests.streaming.samples import WordEmbedder, article, deleted, document, upserted

MARKER = "zqmarkerzq"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
STEPS = (
    *("names", "documents", "authors", "applied", "index", "generations", "tombstones", "history"),
    *("versions", "datasets", "log", "events", "files"),
)


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Topics:
    """The log in memory: by topic, keys and values in order."""

    held: dict[str, list[tuple[bytes, bytes | None]]] = field(default_factory=dict)
    policies: dict[str, str] = field(default_factory=dict)
    away: bool = False

    def read_of(self, _: str, topic: str, owner: Callable[[Any], str | None], ids: Collection[str]) -> erase._Topic:
        found = erase._Topic()
        for key, value in self.held.get(topic, []):
            found.open.discard(key)
            if value is not None and owner(Said(key, value)) in ids:
                found.values += 1
                found.open.add(key)
        return found

    def produce(self, _: str, messages: Iterable[tuple[str, bytes, bytes | None]]) -> None:
        if self.away:
            raise LogFailed("the log is away")
        for topic, key, value in messages:
            self.held.setdefault(topic, []).append((key, value))

    def newest(self, topic: str) -> dict[bytes, bytes | None]:
        return dict(self.held.get(topic, []))


@dataclass
class Said:
    """A message of the log."""

    _key: bytes
    _value: bytes | None

    def key(self) -> bytes:
        return self._key

    def value(self) -> bytes | None:
        return self._value


@dataclass
class System:
    """A warehouse, the index that follows it, and a log in memory."""

    home: Path
    warehouse: Warehouse
    index: QdrantIndex
    embedder: WordEmbedder
    log: Topics
    history: History
    renewable: bool = False
    indexed: set[str] = field(default_factory=set)
    version: int = 1 << 40

    def save(self, *documents: Document, told: datetime = NOW - timedelta(days=1), told_version: int = 1) -> None:
        self.warehouse.save(documents)
        self.version += 1
        index_batch([upserted(one, self.version) for one in documents], self.index, self.embedder)
        states = [{**state(one), "version": told_version} for one in documents]
        rows = [Told(document_id=one.id, at=told, state=each) for one, each in zip(documents, states, strict=True)]
        self.history.record(rows, {}, self.history.held())
        for one in documents:
            self.indexed.add(one.id)
            for topic in ("documents", "chunks"):
                self.log.produce("", [(topic, one.id.encode(), one.text.encode())])
            self.log.produce("", [("changes", changed(one.id), one.text.encode())])

    def build_dataset(self, id: str, *documents: str, **more: Any) -> None:
        """A dataset with its files, whose samples hold the marker if Mallory's document is among them."""
        record = {"_id": id, "document_ids": list(documents), **more}
        self.warehouse.record_built("datasets", record)
        folder = self.home / "datasets" / id
        folder.mkdir(parents=True)
        (folder / "record.json").write_text(json.dumps(record, default=str))
        text = MARKER if MALLORYS[0].id in documents else "of others"
        (folder / "train.parquet").write_text(text)
        evaluation = self.home / "runs" / f"on {id}" / "evaluation"
        evaluation.mkdir(parents=True, exist_ok=True)
        (evaluation / "evaluation.json").write_text(json.dumps({"dataset": id, "samples": [text]}))
        (evaluation / "report.html").write_text(text)

    def settle(self) -> None:
        """What the dataflow does: documents that the warehouse has no more leave the index and the features."""
        present = {stamp.id for stamp in self.warehouse.stamps()}
        for id in self.indexed - present:
            self.version += 1
            index_batch([deleted(replace(document("x", "x"), id=id), self.version)], self.index, self.embedder)
            messages = [("documents", id.encode(), None), ("chunks", id.encode(), None), ("changes", changed(id), None)]
            self.log.produce("", messages)
            self.history.record([Told(document_id=id, at=NOW, state=None)], {}, self.history.held())
        self.indexed &= present

    def renew(self) -> bool:
        if self.renewable:
            self.log.held.clear()
        return self.renewable

    @property
    def reach(self) -> erase.Reach:
        log = Log("", "changes", "documents", "chunks", "letters", "index", lambda: "")
        settings = load({"TWIN_HOME": str(self.home)})
        return erase.Reach(
            settings, self.warehouse, (self.index,), log, "erasures", self.settle, self.renew, lambda: self.history
        )

    def chosen(self, *documents: Document, author: str | None = None) -> erase.Chosen:
        return erase.choose(self.warehouse, self.index, [one.id for one in documents], author)

    def begun(self, *documents: Document, author: str | None = None) -> Any:
        return erase.begin(self.warehouse, str(uuid.uuid4()), self.chosen(*documents, author=author), NOW)

    def holding(self) -> list[str]:
        """Files below the home, and topics, that have the marker."""
        files = [path for path in self.home.rglob("*") if path.is_file() and MARKER.encode() in written(path)]
        topics = [
            topic
            for topic in self.log.held
            if any(value is not None and MARKER.encode() in value for value in self.log.newest(topic).values())
        ]
        return [*(str(path.relative_to(self.home)) for path in files), *topics]


def written(path: Path) -> bytes:
    """What a file holds, without its holes: the engine's files are large and hardly anything is written in them."""
    found = []
    with path.open("rb", buffering=0) as file:
        end, size = 0, path.stat().st_size
        while end < size:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # nothing but a hole follows
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            found.append(os.pread(file.fileno(), end - begin, begin))
    return b"".join(found)


def changed(id: str) -> bytes:
    return json.dumps({"id": json.dumps(id)}).encode()


def state(document: Document) -> dict[str, Any]:
    """What downstream is told of a document."""
    return {
        **{name: getattr(document, name) for name in ("category", "platform", "author_id", "url", "title", "text")},
        "author": document.author_name,
        "version": 1,
        "generation": "words-1",
        "language": None,
        "published_at": None,
        "crawled_at": document.crawled_at.isoformat(),
        "crawl_id": document.crawl_id,
        "content_hash": document.content_hash,
    }


def by(author: str, name: str, text: str) -> Document:
    return replace(document(name, text), author_name=author, author_id=f"id of {author}")


@pytest.fixture
def system(tmp_path: Path, mongodb_uri: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """Ada wrote two documents, Mallory two with the marker, of which one was refused."""
    log, embedder = Topics(), WordEmbedder()
    monkeypatch.setattr(erase, "read_of", log.read_of)
    monkeypatch.setattr(erase, "_produce", log.produce)
    monkeypatch.setattr(erase, "_settings_of", lambda _, topic: {"cleanup.policy": log.policies.get(topic, "compact")})
    index = open_index(load({"TWIN_HOME": str(tmp_path)}), "words-1", embedder.dimensions)
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "app.log").write_text(f"could not read {MARKER}\n")
    with connect(Settings(mongodb_uri=mongodb_uri, database=f"test-{uuid.uuid4()}")) as warehouse:
        found = System(tmp_path, warehouse, index, embedder, log, open_history(load({"TWIN_HOME": str(tmp_path)})))
        found.save(by("Ada", "alpha", article(["zqalpha"])), by("Ada", "bravo", article(["zqbravo"])))
        found.save(MALLORYS[0], MALLORYS[1])
        letter = json.dumps({"document_id": MALLORYS[1].id, "value": MARKER}).encode()
        log.produce("", [("letters", b"changes/0/7", letter), ("letters", b"changes/0/8", b'{"document_id":null}')])
        found.build_dataset("mixed", MALLORYS[0].id, "another")
        found.build_dataset("other", "another")
        warehouse.record_told("written", {"key": {"document_id": MALLORYS[1].id, "text": MARKER}})
        said = {"citations": [{"document_id": MALLORYS[0].id}], "answer": MARKER}
        warehouse.record_told("feedback", {"by a person": said, "of others": {"citations": []}})
        warehouse.record_crawl({"_id": "1", "sources": [MALLORYS[0].url, "notes"], "author": "Mallory", "failed": []})
        yield found
    index.close()


MALLORYS = (by("Mallory", "charlie", article([MARKER])), by("Mallory", "delta", article([MARKER, "zqdelta"])))


def places(receipt: dict[str, Any]) -> dict[str, tuple[int, int | None]]:
    return {place["place"]: (place["found"], place["left"]) for place in receipt["places"]}


def is_erased(system: System, receipt: dict[str, Any]) -> None:
    """Mallory and the marker are nowhere, Ada is whole."""
    assert system.holding() == []
    assert receipt["left"] == 0
    # Of the dataset there may be copies that nobody here can look at.
    (copies,) = [place for place in receipt["places"] if place["left"] != 0]
    assert (copies["place"], copies["left"]) == ("elsewhere: copies", None)
    assert "not checked: exports of the datasets under `stale`, evaluations" in copies["check"]
    found = {place: found for place, (found, _) in places(receipt).items()}
    assert (found["warehouse: documents"], found["warehouse: authors"], found["warehouse: crawls"]) == (2, 1, 1)
    assert (found["index: texts"], found["index: chunks"]) == (2, 3)
    assert sorted(system.warehouse.authors().values()) == ["Ada"]
    assert {stamp.author for stamp in system.warehouse.stamps()} == {"Ada"}
    assert {record.author for record in system.index.scan()} == {"Ada"}
    (crawl,) = system.warehouse.crawls()
    assert (crawl["sources"], crawl["author"]) == (["(erased)", "notes"], "(erased)")
    told = {key.decode(): json.loads(value or b"") for key, value in system.log.newest("erasures").items()}
    assert set(told) == {one.id for one in MALLORYS}
    assert all(event["erasure_id"] == receipt["erasure_id"] for event in told.values())
    assert system.warehouse.erasures({"state": "open"}) == []
    assert (found["history: versions"], found["files: datasets"], found["files: evaluations"]) == (4, 1, 1)
    assert found["warehouse: written and feedback"] == 2
    assert {version.author for version in system.history.documents()} == {"Ada"}
    assert [path.name for path in (system.home / "datasets").iterdir()] == ["other"]


@pytest.mark.parametrize("renewable", [False, True], ids=["a log that stays", "a log in memory"])
def test_everything_of_an_author_goes_and_the_other_stays(system: System, renewable: bool) -> None:
    system.renewable = renewable
    assert {name.split("/")[0] for name in system.holding()} == {
        *("index", "logs", "history", "datasets", "runs", "documents", "chunks", "changes", "letters")
    }

    receipt = erase.finish(system.reach, system.begun(author=" mallory "))

    is_erased(system, receipt)
    assert places(receipt)["log: letters"] == (1, 0)
    # A letter of another document is nobody's business here.
    assert renewable or system.log.newest("letters")[b"changes/0/8"] is not None


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_after_any_step_is_made_up_for(system: System, step: str) -> None:
    def crash(reached: str) -> None:
        if reached == step:
            raise Crash

    system.begun(author="Mallory")
    for _ in range(2):
        (begun,) = system.warehouse.erasures({"state": "open"})
        with pytest.raises(Crash):
            erase.finish(system.reach, begun, crash)
    (begun,) = system.warehouse.erasures({"state": "open"})

    is_erased(system, erase.finish(system.reach, begun))


def test_the_steps_that_are_tested_are_the_steps(system: System) -> None:
    reached: list[str] = []

    erase.finish(system.reach, system.begun(author="Mallory"), reached.append)

    assert tuple(reached) == STEPS
    assert tuple(erase.DOING) == ("", *STEPS)


def test_an_erasure_stays_open_while_the_log_is_away(system: System) -> None:
    begun = system.begun(author="Mallory")
    system.log.away = True
    with pytest.raises(LogFailed):
        erase.finish(system.reach, begun)
    (begun,) = system.warehouse.erasures({"state": "open"})
    system.log.away = False

    is_erased(system, erase.finish(system.reach, begun))


def test_one_document_of_two_leaves_its_author(system: System) -> None:
    receipt = erase.finish(system.reach, system.begun(MALLORYS[0]))

    assert (receipt["documents"], receipt["left"]) == ([MALLORYS[0].id], 0)
    assert sorted(system.warehouse.authors().values()) == ["Ada", "Mallory"]
    (crawl,) = system.warehouse.crawls()
    assert (crawl["sources"], crawl["author"]) == (["(erased)", "notes"], "Mallory")
    assert system.index.records([MALLORYS[1].id])[MALLORYS[1].id].version is not None


def test_what_is_ingested_again_is_another_document_and_stays(system: System) -> None:
    begun = system.begun(MALLORYS[0])
    erase.finish(system.reach, begun)
    system.save(replace(MALLORYS[0], crawled_at=NOW + timedelta(days=1)))

    # Both a second look and an erasure that was not finished yet leave it alone.
    for state in ("done", "open"):
        (found,) = system.warehouse.erasures({"_id": begun.id})
        receipt = erase.finish(system.reach, replace_state(found, state))
        assert (receipt["left"], receipt["ingested_again"]) == (0, [MALLORYS[0].id])
    assert MALLORYS[0].id in {stamp.id for stamp in system.warehouse.stamps()}


def test_a_date_of_the_future_is_the_limit_of_no_other_document(system: System) -> None:
    future = replace(by("Mallory", "echo", article(["zqecho"])), crawled_at=NOW + timedelta(days=365))
    system.save(future)
    meant, later = (MALLORYS[0], future), NOW + timedelta(days=1)
    begun = system.begun(*meant)
    receipt = erase.finish(system.reach, begun)
    assert (places(receipt)["warehouse: documents"], receipt["left"]) == ((2, 0), 0)

    # Either is read again at its time, which is before the date that one of them had.
    system.save(*(replace(one, crawled_at=later) for one in meant))

    for state in ("done", "open"):
        (found,) = system.warehouse.erasures({"_id": begun.id})
        receipt = erase.finish(system.reach, replace_state(found, state))
        assert (receipt["left"], set(receipt["ingested_again"])) == (0, {one.id for one in meant})


def test_what_an_ingest_of_before_wrote_meanwhile_is_left_and_goes_with_the_next_attempt(system: System) -> None:
    def write(step: str) -> None:
        if step == "files":
            system.warehouse.save([MALLORYS[0]])

    begun = system.begun(MALLORYS[0])
    receipt = erase.finish(system.reach, begun, write)
    assert (receipt["left"], places(receipt)["warehouse: documents"]) == (1, (1, 1))

    # Nobody tries by itself again and again what may never end well.
    (begun,) = system.warehouse.erasures({"state": "left"})
    assert erase.finish(system.reach, begun)["left"] == 0
    assert MALLORYS[0].id not in {stamp.id for stamp in system.warehouse.stamps()}


def test_a_change_that_a_repair_sent_after_the_deletion_gets_a_tombstone(system: System) -> None:
    def repair(step: str) -> None:
        if step == "generations":
            system.log.produce("", [("changes", changed(MALLORYS[0].id), MARKER.encode())])

    receipt = erase.finish(system.reach, system.begun(MALLORYS[0]), repair)

    assert places(receipt)["log: changes"][1] == 0
    assert system.log.newest("changes")[changed(MALLORYS[0].id)] is None


def test_a_topic_that_is_not_compacted_keeps_what_it_has(system: System) -> None:
    system.log.policies["letters"] = "delete"

    receipt = erase.finish(system.reach, system.begun(MALLORYS[1]))

    assert (receipt["left"], places(receipt)["log: letters"]) == (1, (1, 1))


@pytest.mark.parametrize("id", ["7", "", "running", 7])
def test_a_short_id_is_not_taken_for_a_part_of_another_text(system: System, id: object) -> None:
    capture = system.home / "capture"
    capture.mkdir()
    status = {"connector": "twin-7", "state": "running", "reason": None, "records": 7, "pid": 777}
    (capture / "status.json").write_text(json.dumps(status))
    (capture / "offsets-7").write_bytes(b'\0["twin-7",{"server_id":"7"}]{"sec":7,"ord":7,"resume_token":"N7A="}x')
    system.warehouse._database["documents"].insert_one({"_id": id, "author_name": "Trent"})

    def log(step: str) -> None:
        (system.home / "logs" / "app.log").write_text(f"17:07:07 {step} after 7 s; running\n")

    receipt = erase.finish(system.reach, system.begun(author="Trent"), log)

    assert [place for place, (_, left) in places(receipt).items() if left] == []


@pytest.mark.parametrize("id", ["7", "d66603e2-1c6d-5451-94aa-1529ff2afb2c"])
def test_what_names_a_document_in_a_log_or_in_the_state_of_capture_is_left(system: System, id: str) -> None:
    (system.home / "capture").mkdir()
    key = json.dumps({"id": json.dumps(id)})
    (system.home / "capture" / "status.json").write_text(json.dumps({"reason": f"cannot send {key}"}))
    system.warehouse._database["documents"].insert_one({"_id": id, "author_name": "Trent"})

    def log(step: str) -> None:
        (system.home / "logs" / "app.log").write_text(f"document {id!r} cannot be read\n")

    receipt = erase.finish(system.reach, system.begun(author="Trent"), log)

    assert (places(receipt)["files: logs"][1], places(receipt)["files: capture"][1]) == (1, 1)


@pytest.mark.parametrize("id", [7, 7.5, True, None, Decimal128("7.10"), b"seven", {"of": 7}], ids=repr)
def test_a_document_with_an_id_that_is_no_text_goes_with_its_author(system: System, id: object) -> None:
    documents = system.warehouse._database["documents"]
    documents.insert_one({"_id": id, "author_name": "Trent", "text": MARKER, "url": "https://example.org/odd"})

    chosen = system.chosen(author="Trent")
    receipt = erase.finish(system.reach, system.begun(author="Trent"))

    assert (set(chosen.documents), chosen.unknown) == ({str(id)}, ())
    assert (places(receipt)["warehouse: documents"], receipt["left"]) == ((1, 0), 0)
    assert documents.count_documents({"author_name": "Trent"}) == 0
    assert system.chosen(author="Trent").documents == {}


def test_no_author_is_nobody_of_that_name(system: System) -> None:
    documents = system.warehouse._database["documents"]
    documents.insert_many([{"_id": "without"}, {"_id": "null", "author_name": None}])
    documents.insert_one({"_id": "by id", "author_id": "trent-7"})

    for name in ("None", "none", "", " "):
        assert system.chosen(author=name) == erase.Chosen({}, {}, ())
    assert set(system.chosen(author="trent-7").documents) == {"by id"}


def test_a_document_of_an_author_that_nothing_finds_is_named(system: System) -> None:
    system.warehouse._database["documents"].insert_one({"_id": MinKey(), "author_name": "Trent"})

    assert system.chosen(author="Trent").unknown == ("MinKey()",)


def test_what_was_deleted_before_may_be_erased_and_what_nobody_knows_is_named(system: System) -> None:
    system.warehouse.delete([MALLORYS[0].id])
    system.settle()

    chosen = erase.choose(system.warehouse, system.index, [MALLORYS[0].id, "nobody's"], None)

    assert (set(chosen.documents), chosen.unknown) == ({MALLORYS[0].id}, ("nobody's",))
    assert erase.choose(system.warehouse, system.index, [], "Trent") == erase.Chosen({}, {}, ())


def test_an_author_is_found_by_id_and_by_name(system: System) -> None:
    ids = {one.id for one in MALLORYS}
    assert set(system.chosen(author="id of Mallory").documents) == ids
    assert set(system.chosen(author="MALLORY").documents) == ids
    assert system.chosen(author="mallory").authors == {"id of Mallory": "Mallory"}


def test_data_sets_and_models_made_from_the_documents_are_stale(system: System) -> None:
    made = system.warehouse._database
    made["models"].insert_one({"_id": "of old", "document_ids": [MALLORYS[0].id]})

    receipt = erase.finish(system.reach, system.begun(author="Mallory"))

    assert receipt["stale"] == {"datasets": ["mixed"], "models": ["of old"]}


NAMED = {
    "recipe": {"authors": ["Mallory", "Ada"], "size": 5},
    "statistics": {"author": {"Ada": 2, "mallory": 3, "Mallory": 1}, "families": 4},
}


def test_no_record_of_a_dataset_names_an_author_who_was_erased(system: System) -> None:
    system.build_dataset("of both", MALLORYS[0].id, **NAMED)
    # One that none of the documents is in, since people's feedback alone is of the author.
    system.build_dataset("of feedback", "another", **NAMED)
    system.build_dataset("of Ada", "another", recipe={"authors": ["Ada"]}, statistics={"author": {"Ada": 1}})

    receipt = erase.finish(system.reach, system.begun(author="Mallory"))

    records = {record["_id"]: record for record in system.warehouse.built("datasets")}
    for id in ("of both", "of feedback"):
        assert records[id]["recipe"] == {"authors": ["(erased)", "Ada"], "size": 5}
        assert records[id]["statistics"] == {"author": {"Ada": 2, "(erased)": 4}, "families": 4}
    assert records["of both"]["document_ids"] == [MALLORYS[0].id]
    assert records["of Ada"]["recipe"] == {"authors": ["Ada"]}
    assert (places(receipt)["warehouse: datasets"], places(receipt)["files: datasets"]) == ((2, 0), (3, 0))
    assert {path.name for path in (system.home / "datasets").iterdir()} == {"other", "of Ada"}
    # Built again from its record it names nobody, and stays.
    system.build_dataset("of feedback", "another", **{name: records["of feedback"][name] for name in NAMED})
    assert built.dataset_folders(system.reach.settings, system.warehouse, []) == []


def test_a_dataset_that_was_built_while_its_author_was_erased_does_not_keep_the_name(system: System) -> None:
    trent = replace(by("Trent", "foxtrot", article(["zqfoxtrot"])), author_id=author_identity("Trent"))
    system.save(trent)
    begun = system.begun(author="Trent")

    def build(step: str) -> None:
        if step == "versions":
            named = {"recipe": {"authors": ["Trent"]}, "statistics": {"author": {"Trent": 1}}}
            system.warehouse.record_built("datasets", {"_id": "late", "document_ids": [trent.id], **named})

    receipt = erase.finish(system.reach, begun, build)

    (record,) = system.warehouse.built("datasets", "late")
    assert (record["recipe"]["authors"], record["statistics"]["author"]) == (["(erased)"], {"(erased)": 1})
    assert places(receipt)["warehouse: datasets"] == (1, 0)


def test_an_author_with_a_document_left_stays_in_the_records_of_datasets(system: System) -> None:
    system.build_dataset("of both", MALLORYS[0].id, **NAMED)
    system.warehouse.record_told("feedback", {"uncited": {"author": "Mallory", "citations": [], "answer": MARKER}})

    receipt = erase.finish(system.reach, system.begun(MALLORYS[0]))

    (record,) = system.warehouse.built("datasets", "of both")
    assert (record["recipe"], record["statistics"]) == (NAMED["recipe"], NAMED["statistics"])
    assert "uncited" in {row["_id"] for row in system.warehouse.feedback()}
    (check,) = [place["check"] for place in receipt["places"] if place["place"] == "warehouse: written and feedback"]
    assert "feedback that cites no document is not known to rest on these" in check


def test_what_people_said_of_an_authors_answers_goes_with_the_author(system: System) -> None:
    rows = {
        "uncited": {"author": "MALLORY", "citations": [], "answer": MARKER},
        "Ada's": {"author": "Ada", "citations": [], "answer": "hers"},
    }
    system.warehouse.record_told("feedback", rows)

    receipt = erase.finish(system.reach, system.begun(author="Mallory"))

    assert {row["_id"] for row in system.warehouse.feedback()} == {"Ada's", "of others"}
    assert places(receipt)["warehouse: written and feedback"] == (3, 0)


def test_an_evaluation_that_cannot_be_read_is_left_and_named(system: System) -> None:
    broken = system.home / "runs" / "broken" / "evaluation.json"
    broken.parent.mkdir()
    broken.write_text(f'{{"dataset": "mixed", "samples": ["{MARKER}')

    receipt = erase.finish(system.reach, system.begun(author="Mallory"))

    assert (receipt["left"], places(receipt)["files: evaluations"]) == (1, (2, 1))
    (check,) = [place["check"] for place in receipt["places"] if place["place"] == "files: evaluations"]
    assert str(broken) in check
    assert "twin erase --resume" in check
    assert broken.exists()
    assert [erasure.id for erasure in system.warehouse.erasures({"state": "left"})] == [receipt["erasure_id"]]


def test_there_are_no_copies_elsewhere_of_a_document_that_no_dataset_was_built_from(system: System) -> None:
    assert places(erase.finish(system.reach, system.begun(MALLORYS[1])))["elsewhere: copies"] == (0, 0)


def test_what_rests_on_a_document_ingested_again_survives_its_erasure(system: System) -> None:
    id, later = MALLORYS[0].id, NOW + timedelta(days=1)
    lineage = [{"document_id": id, "version": 1}]
    system.build_dataset("before", id, documents=lineage, sequence=4, created_at=NOW - timedelta(hours=1))
    system.warehouse.record_built("models", {"_id": "old", "document_ids": [id], "datasets": ["before"]})
    begun = system.begun(MALLORYS[0])
    erase.finish(system.reach, begun)
    system.save(replace(MALLORYS[0], crawled_at=later, text=article(["zqagain"])), told=later, told_version=9)
    now = later + timedelta(hours=1)
    lineage = [{"document_id": id, "version": 9}]
    system.build_dataset("anew", id, documents=lineage, sequence=system.history.last(), created_at=now)
    system.build_dataset("citing", id, documents=[], sequence=system.history.last(), created_at=now)
    system.warehouse.record_built("models", {"_id": "new", "document_ids": [id], "datasets": ["anew"]})
    system.warehouse.record_told(
        "written",
        {
            "late": {"document_id": id, "text": MARKER, "kept_at": NOW},
            "new": {"document_id": id, "text": "new", "kept_at": now},
        },
    )
    system.warehouse.record_told(
        "feedback",
        {
            "of the former version": said(id, now, version=1),
            "before": said(id, NOW, version=0),
            "of the new version": said(id, now, version=9),
            "after": said(id, now, version=0),
        },
    )

    receipt = erase.finish(system.reach, reopened(system, begun.id))

    assert {path.name for path in (system.home / "datasets").iterdir()} == {"other", "anew", "citing"}
    assert (system.home / "runs" / "on anew" / "evaluation" / "evaluation.json").exists()
    kept = {text["_id"] for _, text in system.warehouse.told_of([id])}
    assert kept == {"new", "of the new version", "after"}
    assert receipt["stale"] == {"datasets": ["before", "mixed"], "models": ["old"]}
    assert (receipt["left"], receipt["ingested_again"]) == (0, [id])


def said(id: str, at: datetime, *, version: int) -> dict[str, Any]:
    return {"at": at.isoformat(), "citations": [{"document_id": id, "version": version}], "answer": "as it was"}


def test_the_record_of_an_erasure_names_nothing_but_ids(system: System) -> None:
    begun = system.begun(author="Mallory")
    erase.finish(system.reach, begun)

    (record,) = system.warehouse._database["erasures"].find()

    told = json.dumps(record, default=str)
    assert [
        word for word in ("Mallory", "About", "example.org", MARKER) if word in told.replace("id of Mallory", "")
    ] == []


@pytest.mark.parametrize(
    ("source", "kept"),
    [
        ("https://example.org/post", False),
        ("HTTPS://Example.org:443/post#part", False),
        ("cannot read https://example.org/post: 404", False),
        ("/home/ada/notes/my post.md", False),
        ("notes/my post.md", False),
        ("my post.md", False),
        ("/home/ada/notes", True),
        ("notes", True),
        ("https://example.org/", True),
        ("post.md", True),
        ("", True),
        ("http://[", True),
    ],
)
def test_a_crawl_is_told_without_the_addresses_of_what_was_erased(source: str, kept: bool) -> None:
    addresses = {"https://example.org/post", "file:///home/ada/notes/my%20post.md"}
    crawl = {"_id": "1", "sources": [source], "failed": [{"source": source, "reason": "is empty"}], "seen": 3}

    told = erase.without_names(crawl, addresses, {"mallory"})

    shown = source if kept else "(erased)"
    assert told == {**crawl, "sources": [shown], "failed": [{"source": shown, "reason": "is empty"}]}


def reopened(system: System, id: str) -> Any:
    """The erasure as if a crash had come before its end."""
    (found,) = system.warehouse.erasures({"_id": id})
    return replace_state(found, "open")


def replace_state(erasure: Any, state: str) -> Any:
    import msgspec

    return msgspec.structs.replace(erasure, state=state)
