"""Dead letters: what they hold, what settles them, and that a crash between an effect and its telling loses none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from confluent_kafka import Producer

from corpus.index import Failure, Record
from corpus.settings import Settings
from embedded.cli import main
from streaming import letters as letters_module
from streaming.changes import ATTEMPTS_HEADER, LETTER_HEADER, VERSION_HEADER, DeadLetter, Delete, Ignored, Message
from streaming.clients import LogFailed, producer
from streaming.indexing import Indexed, Outcome, Removed, Unchanged
from streaming.letters import Chosen, Letter, OpenLetters, letter_value, message_in, read_letter, replay_of, tombstone
from streaming.letters import values as values_of
from streaming.log import FeatureWriter, Log, Member, settled
from streaming.progress import Progress

NOW = datetime(2026, 5, 31, 12, tzinfo=UTC)
MESSAGE = Message("changes", 0, 7, b"key", b"value", (("h", b"1"), ("none", None)))
REFUSED = DeadLetter(MESSAGE, "clean", "nothing is left", "d", 4)


def sent(topic: str = "changes", offset: int = 0, **message: Any) -> Message:
    """What a consumer receives of what was produced."""
    return Message(topic, 0, offset, message["key"], message["value"], tuple(message["headers"]))


def replayed_from(refused: DeadLetter) -> Message:
    value = letter_value(refused, "g1", NOW)
    message = replay_of(read_letter("d", value, (0, 0)), value)
    assert message is not None
    return sent(**{**message, "offset": 90})


def indexed(message: Message, id: str = "d") -> Indexed:
    record = Record(document_id=id, seen=9, version=9)
    change = type("Change", (), {"message": message})()
    return Indexed(change, record, (), {}, 0, 0, 0)


# What a letter is


def test_a_letter_without_a_known_document_is_named_by_the_place_of_its_message() -> None:
    value = json.loads(letter_value(DeadLetter(MESSAGE, "decode", "odd"), "g1", NOW))

    assert (value["letter_id"], value["document_id"], value["attempts"]) == ("changes/0/7", None, 1)


def test_a_replayed_message_is_the_former_one_to_the_byte_and_its_letter_counts_the_attempts() -> None:
    again = replayed_from(REFUSED)

    assert (again.key, again.value, again.headers[:2]) == (MESSAGE.key, MESSAGE.value, MESSAGE.headers)
    value = letter_value(replace(REFUSED, message=again), "g1", NOW)
    assert (json.loads(value)["letter_id"], json.loads(value)["attempts"], json.loads(value)["offset"]) == ("d", 2, 90)
    assert message_in(value) == replace(MESSAGE, offset=90)
    third = replayed_from(replace(REFUSED, message=again))
    assert [name for name, _ in third.headers] == ["h", "none", LETTER_HEADER, ATTEMPTS_HEADER, VERSION_HEADER]
    assert dict(third.headers)[ATTEMPTS_HEADER] == b"2"


def test_a_message_of_unknown_document_keeps_its_letter_when_it_is_replayed() -> None:
    unknown = DeadLetter(MESSAGE, "decode", "odd")
    value = letter_value(unknown, "g1", NOW)
    message = replay_of(read_letter("changes/0/7", value, (0, 0)), value)
    assert message is not None

    again = letter_value(DeadLetter(sent(offset=8, **{**message, "topic": "changes"}), "decode", "odd"), "g1", NOW)

    assert (json.loads(again)["letter_id"], json.loads(again)["attempts"]) == ("changes/0/7", 2)


def test_a_message_that_is_too_large_for_a_letter_leaves_a_letter_that_cannot_be_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(letters_module, "LARGEST_LETTER", 5)

    value = letter_value(REFUSED, "g1", NOW)

    assert json.loads(value)["reason"] == "nothing is left (its message of 0.0 MB is too large for a letter)"
    assert replay_of(read_letter("d", value, (0, 0)), value) is None


@pytest.mark.parametrize("value", [b"{", b"[]", b'{"step": 5}', b"\xff", b"[" * 100_000])
def test_what_is_no_letter_of_ours_is_listed_all_the_same(value: bytes) -> None:
    letter = read_letter("k", value, (0, 3))

    assert (letter.letter_id, letter.step, letter.at) == ("k", "unknown", (0, 3))
    assert replay_of(letter, value) is None


@pytest.mark.parametrize(
    ("chosen", "holds"),
    [
        (Chosen(), True),
        (Chosen(step="clean", document_id="d", reason="NOTHING", since=NOW), True),
        (Chosen(step="split"), False),
        (Chosen(document_id="e"), False),
        (Chosen(reason="something"), False),
        (Chosen(since=datetime(2026, 6, 1, tzinfo=UTC)), False),
    ],
)
def test_letters_are_chosen_by_every_condition_that_is_given(chosen: Chosen, holds: bool) -> None:
    letter = Letter("d", "clean", "nothing is left", document_id="d", failed_at=NOW)

    assert chosen.holds(letter) is holds


# What settles one


def test_a_document_that_is_indexed_removed_or_the_same_settles_its_letter() -> None:
    assert settled(indexed(MESSAGE)) == {"d"}
    assert settled(Removed(Delete(MESSAGE, 9, "d", None), 3)) == {"d"}
    assert settled(Unchanged(MESSAGE, "same", "d")) == {"d"}
    told_again = replace(indexed(MESSAGE), record=Record(document_id="d", seen=9, failure=Failure(9, "clean", "")))
    assert settled(told_again) == set(), "a version before the one that was refused"
    assert settled(Unchanged(MESSAGE, "stale", "d", refused=True)) == settled(Ignored(MESSAGE, "foreign")) == set()


def test_whatever_becomes_of_a_replayed_message_settles_its_letter_but_another_failure_under_the_same_id() -> None:
    again = replayed_from(REFUSED)

    assert settled(Ignored(again, "foreign")) == settled(Unchanged(again, "stale", "d")) == {"d"}
    assert settled(Unchanged(again, "stale", "d", refused=True)) == set(), "what failed since has the same letter"
    assert settled(replace(REFUSED, message=again)) == set()
    assert settled(DeadLetter(again, "clean", "still", "of another id", 4)) == {"d"}


# In the log


@pytest.fixture
def cluster() -> Iterator[str]:
    """librdkafka's own broker, in this process."""
    keeper = Producer({"bootstrap.servers": "", "test.mock.num.brokers": 1, "log_level": 0})
    for topic in ("letters", "changes", "documents", "chunks"):
        (broker,) = keeper.list_topics(topic, timeout=10).brokers.values()
    yield f"{broker.host}:{broker.port}"
    keeper.flush()


@pytest.fixture
def writer(cluster: str) -> Iterator[Callable[[], FeatureWriter]]:
    """`writer()`: the dataflow's outlet, as it is after each start; the one before is gone without a farewell."""
    log = Log(cluster, "changes", "documents", "chunks", "letters", "an index", lambda: "")
    made: list[FeatureWriter] = []

    def make() -> FeatureWriter:
        progress = Progress()
        made.append(FeatureWriter(log, Member(log, progress, 0, 1), progress, "g1"))
        return made[-1]

    yield make
    for each in made:
        each.close()
        each._member.close()


def open_in(cluster: str) -> list[tuple[str, int]]:
    letters = OpenLetters(cluster, "letters")
    try:
        return [(letter.letter_id, letter.attempts) for letter in letters.found()]
    finally:
        letters.close()


def publish(cluster: str, *messages: dict[str, Any]) -> dict[int, int]:
    """Publish letters; the last offset of each partition that they came to."""
    outlet, came_to = producer(cluster), {}
    for message in messages:
        outlet.produce("letters", on_delivery=lambda _, it: came_to.update({it.partition(): it.offset()}), **message)
        outlet.flush()
    return came_to


def test_what_is_open_is_told_while_somebody_waits_for_the_log(cluster: str) -> None:
    message = {"key": b"d", "value": letter_value(DeadLetter(MESSAGE, "clean", "one", "d"), "g1", NOW)}
    ((partition, offset),) = publish(cluster, message).items()
    letters = OpenLetters(cluster, "letters")
    waiting = threading.Thread(target=letters.follow, args=[{partition: offset + 1}])
    try:
        waiting.start()
        # Nothing of that offset is there yet: who waits for it goes on, and others are answered meanwhile.
        letters.refresh()
        assert [letter.letter_id for letter in letters.found()] == ["d"]
        assert waiting.is_alive()
    finally:
        publish(cluster, message)
        waiting.join()
        letters.close()


def test_the_newest_letter_of_each_id_is_open_until_its_tombstone(cluster: str) -> None:
    first, second = (letter_value(DeadLetter(MESSAGE, "clean", reason, "d"), "g1", NOW) for reason in ("one", "two"))
    other = letter_value(DeadLetter(MESSAGE, "decode", "odd"), "g1", NOW)
    publish(
        cluster,
        {"key": b"d", "value": first},
        {"key": b"changes/0/7", "value": other},
        {"key": b"d", "value": second},
        {"value": b"of nobody"},
    )
    letters = OpenLetters(cluster, "letters")
    assert {letter.letter_id: letter.reason for letter in letters.found()} == {"changes/0/7": "odd", "d": "two"}
    # The originals are not kept: they are read again where they are asked for.
    assert {letter.letter_id: value for letter, value in values_of(cluster, "letters", letters.found())} == {
        "changes/0/7": other,
        "d": second,
    }

    letters.follow(publish(cluster, tombstone("changes/0/7", "resolved"), tombstone("d", "discarded")))

    assert letters.found() == []
    assert letters.discarded() == 1, "the other one was resolved"
    letters.close()
    assert open_in(cluster) == []


def test_a_log_that_does_not_answer_in_time_is_an_error_and_no_empty_list(
    cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters_module, "PATIENCE", -1.0)

    with pytest.raises(LogFailed, match="the log does not tell where letters ends"):
        OpenLetters(cluster, "letters")


def test_a_letter_stays_until_a_later_outcome_of_its_document(
    cluster: str, writer: Callable[[], FeatureWriter]
) -> None:
    outlet = writer()
    outlet.write_batch([REFUSED, DeadLetter(replace(MESSAGE, offset=8), "decode", "odd"), indexed(MESSAGE, "other")])
    assert open_in(cluster) == [("d", 1), ("changes/0/8", 1)]

    outlet.write_batch([indexed(replace(MESSAGE, offset=9))])

    assert open_in(cluster) == [("changes/0/8", 1)]
    assert outlet._progress.counted()["letters_resolved"] == 1
    assert outlet._progress.letters() == {"decode": 1}


def test_a_letter_that_is_resolved_in_the_batch_that_opened_it(
    cluster: str, writer: Callable[[], FeatureWriter]
) -> None:
    writer().write_batch([REFUSED, indexed(replace(MESSAGE, offset=8))])

    assert open_in(cluster) == []


@pytest.mark.parametrize(
    "again",
    [
        indexed(replace(MESSAGE, offset=8)),
        Unchanged(replace(MESSAGE, offset=8), "same", "d"),
        Unchanged(replace(MESSAGE, offset=8), "stale", "d"),
        Removed(Delete(replace(MESSAGE, offset=8), 9, "d", None), 3),
    ],
)
def test_a_crash_after_the_ledger_and_before_the_tombstone_is_finished_by_the_redelivery(
    cluster: str, writer: Callable[[], FeatureWriter], again: Outcome
) -> None:
    writer().write_batch([REFUSED])

    # The change that mends it was applied and the process killed: nothing of that is told. In the next life the
    # ledger knows of no failure any more.
    writer().write_batch([again])

    assert open_in(cluster) == []


def test_a_crash_after_the_tombstone_and_before_the_commit_opens_nothing(
    cluster: str, writer: Callable[[], FeatureWriter]
) -> None:
    batches: Sequence[list[Outcome]] = [[REFUSED], [indexed(replace(MESSAGE, offset=8))]]
    for batch in (*batches, *batches[1:]):
        writer().write_batch(batch)

    assert open_in(cluster) == []


def test_a_replay_that_fails_again_has_one_more_attempt_however_often_it_is_delivered(
    cluster: str, writer: Callable[[], FeatureWriter]
) -> None:
    again = replace(REFUSED, message=replayed_from(REFUSED))
    writer().write_batch([REFUSED])

    for _ in range(2):
        writer().write_batch([again])

    assert open_in(cluster) == [("d", 2)]
    assert writer()._progress.letters() == {"clean": 1}


def test_a_replay_that_does_not_fail_settles_its_letter(cluster: str, writer: Callable[[], FeatureWriter]) -> None:
    outlet = writer()
    outlet.write_batch([REFUSED])

    outlet.write_batch([Ignored(replayed_from(REFUSED), "foreign")])

    assert open_in(cluster) == []
    assert outlet._progress.counted()["letters_replayed"] == 1


# From a terminal


@pytest.fixture
def commands(
    cluster: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("TWIN_HOME", str(tmp_path))
    monkeypatch.setenv("TWIN_KAFKA_BOOTSTRAP_SERVERS", cluster)
    monkeypatch.setattr(Settings, "dead_letters_topic", "letters")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["dead-letters", *arguments])
        return (code, *capsys.readouterr())

    return run


def received(cluster: str, topic: str) -> list[Message]:
    reader = letters_module.consumer(cluster, "test", **letters_module.READING)
    parts = letters_module.partitions_of(reader, topic)
    reader.assign([letters_module.TopicPartition(topic, part, letters_module.OFFSET_BEGINNING) for part in parts])
    found: list[Message] = []
    ended = 0
    while ended < len(parts):
        message = reader.poll(10)
        assert message is not None
        if message.error() is not None:
            ended += 1
            continue
        headers = tuple((name, value) for name, value in message.headers() or ())
        found.append(Message(topic, 0, message.offset() or 0, message.key(), message.value(), headers))  # type: ignore[arg-type]
    reader.close()
    return found


def test_letters_are_listed_shown_replayed_and_discarded(
    cluster: str, writer: Callable[[], FeatureWriter], commands: Callable[..., tuple[int, str, str]]
) -> None:
    hostile = DeadLetter(replace(MESSAGE, offset=8, value=b"\x1b[2Jx" * 1000), "decode", "odd\x1b[31m")
    writer().write_batch([REFUSED, hostile])

    _, listed, _ = commands("list")
    assert [line.split()[:3] for line in listed.splitlines()[1:-1:2]] == [
        ["d", "clean", "1"],
        ["changes/0/8", "decode", "1"],
    ]
    assert listed.endswith("2 dead letters\n")
    assert "\x1b" not in listed
    code, chosen, _ = commands("list", "--step", "clean", "--reason", "nothing", "--document", "d", "--json")
    assert (code, [letter["letter_id"] for letter in json.loads(chosen)]) == (0, ["d"])
    assert commands("list", "--since", "2999-01-01")[1] == "nothing found\n"

    _, shown, _ = commands("show", "changes/0/8")
    assert "partition 0, offset 8 of changes" in shown
    assert "(5,000 bytes; --json has them all, in base64)" in shown
    assert "\x1b" not in shown
    assert message_in(commands("show", "changes/0/8", "--json")[1].encode()) == hostile.message
    assert commands("show", "e")[::2] == (
        1,
        "twin: no open dead letter has the id 'e': `twin dead-letters list` shows them\n",
    )

    assert commands("replay")[0] == commands("discard")[0] == 2
    assert {commands(verb, "--reason", "")[0] for verb in ("replay", "discard")} == {2}
    code, done, failed = commands("replay", "d", "e", "--json")
    assert (code, json.loads(done)) == (1, {"replayed": ["d"], "unknown": ["e"], "refused": {}})
    assert "'e'" in failed
    (message,) = received(cluster, "changes")
    assert (message.key, message.value) == (b"key", b"value")
    assert dict(message.headers) == {
        **dict(MESSAGE.headers),
        LETTER_HEADER: b"d",
        ATTEMPTS_HEADER: b"1",
        VERSION_HEADER: b"4",
    }
    assert len(open_in(cluster)) == 2, "a replay settles nothing before it has gone through the dataflow"

    assert commands("discard", "--step", "clean") == (0, "discarded 1 dead letter\n", "")
    assert commands("discard", "--all") == (0, "discarded 1 dead letter\n", "")
    assert commands("list") == (0, "no open dead letters\n", "")


def test_a_letter_without_its_message_is_not_replayed_and_said_so(
    cluster: str, commands: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(letters_module, "LARGEST_LETTER", 5)
    publish(cluster, {"key": b"d", "value": letter_value(REFUSED, "g1", NOW)})

    code, out, err = commands("replay", "--all")

    assert (code, out) == (1, "replayed 0 dead letters\n")
    assert err == "twin: d: its message was too large to be kept in the letter\n"


def test_without_a_log_the_commands_say_what_to_do(
    commands: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TWIN_KAFKA_BOOTSTRAP_SERVERS")

    code, _, told = commands("list")

    assert code == 1
    assert "run `twin up`" in told


def test_a_letter_tells_its_fields_as_they_are_promised() -> None:
    told = msgspec.json.decode(letter_value(REFUSED, "g1", NOW))

    assert {name: told[name] for name in ("letter_id", "document_id", "version", "step", "attempts", "generation")} == {
        "letter_id": "d",
        "document_id": "d",
        "version": 4,
        "step": "clean",
        "attempts": 1,
        "generation": "g1",
    }
