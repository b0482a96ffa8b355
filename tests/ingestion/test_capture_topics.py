"""The topics: their names follow Debezium's and ours, and equal partition counts keep a document in its partition."""

from corpus.documents import LARGEST_CHANGE
from corpus.settings import Settings
from ingestion.topics import topic_settings, topics


def test_names_follow_prefix_and_database() -> None:
    named = topics(Settings(topic_prefix="p", database="d"))

    assert named.documents == "p.d.documents"
    assert named.watermarks == "p.d.watermarks"
    assert named.heartbeat == "__debezium-heartbeat.p"
    assert named.feature_documents == "p.features.documents"
    assert named.feature_chunks == "p.features.chunks"
    assert named.dead_letters == "p.dead-letters"


def test_documents_and_features_are_compacted_in_equally_many_partitions() -> None:
    settings = Settings(partitions=7)
    named, wanted = topics(settings), topic_settings(settings)

    for name in (named.documents, named.feature_documents, named.feature_chunks):
        partitions, config = wanted[name]
        assert partitions == 7
        assert config["cleanup.policy"] == "compact"


def test_dead_letters_stay_until_they_are_settled_and_only_marks_and_heartbeats_pass() -> None:
    settings = Settings()
    named, wanted = topics(settings), topic_settings(settings)
    retention = {name: int(config["retention.ms"]) for name, (_, config) in wanted.items() if "retention.ms" in config}

    assert set(retention) == {named.watermarks, named.heartbeat}
    partitions, config = wanted[named.dead_letters]
    assert (partitions, config["cleanup.policy"]) == (1, "compact")


def test_the_worst_document_fits_into_a_change() -> None:
    # NUL takes one byte in MongoDB, and backslash, u and four digits in JSON: the first doubled within a string.
    largest_record, worst_character = 16 * 1024 * 1024, 7

    assert largest_record * worst_character < LARGEST_CHANGE - 1_000_000
