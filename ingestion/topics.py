"""The topics that capture writes and the dataflow reads and writes: their names, their settings, their creation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from corpus.documents import LARGEST_MESSAGE
from corpus.settings import Settings, without_password

if TYPE_CHECKING:
    from confluent_kafka.admin import AdminClient

DOCUMENTS, WATERMARKS = "documents", "watermarks"
TOPIC_ALREADY_EXISTS = 36
HOUR, DAY = 3_600_000, 86_400_000


class TopicsFailed(RuntimeError):
    """The topics cannot be made or used as they are; the message is one sentence for a person."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Names of the topics.

    `documents`, `watermarks`: the captured collections, key = `_id` in Debezium's form, value = its envelope;
    `heartbeat`: one message a second while capture streams; `feature_documents`, `feature_chunks`: what the dataflow
    publishes, key = document id; `dead_letters`: what it could not process, key = letter id, a tombstone once settled;
    `erasures`: what was erased for good, key = document id.
    """

    documents: str
    watermarks: str
    heartbeat: str
    feature_documents: str
    feature_chunks: str
    dead_letters: str
    erasures: str


def topics(settings: Settings) -> Topics:
    """The names for these settings. Debezium names its topics `<prefix>.<database>.<collection>` itself."""
    prefix, database = settings.topic_prefix, settings.database
    return Topics(
        documents=f"{prefix}.{database}.{DOCUMENTS}",
        watermarks=f"{prefix}.{database}.{WATERMARKS}",
        heartbeat=f"__debezium-heartbeat.{prefix}",
        feature_documents=settings.feature_documents_topic,
        feature_chunks=f"{prefix}.features.chunks",
        dead_letters=settings.dead_letters_topic,
        erasures=f"{prefix}.features.erasures",
    )


def topic_settings(settings: Settings) -> dict[str, tuple[int, dict[str, str]]]:
    """Partitions and Kafka settings by topic; equal partition counts keep a document's id in the same partition."""
    named = topics(settings)
    large = {"max.message.bytes": str(LARGEST_MESSAGE)}
    # Tombstones stay for a week: a dataflow that slept over a weekend still sees every delete. What they end is gone a
    # day later: without the longest lag, a topic in which little happens would keep erased values for as long as it is.
    compacted = {
        "cleanup.policy": "compact",
        "delete.retention.ms": str(7 * DAY),
        "max.compaction.lag.ms": str(DAY),
        **large,
    }
    passing = {"cleanup.policy": "delete", "retention.ms": str(HOUR), "segment.ms": str(HOUR // 6)}
    return {
        named.documents: (settings.partitions, compacted),
        named.watermarks: (1, passing),
        named.heartbeat: (1, passing),
        named.feature_documents: (settings.partitions, compacted),
        named.feature_chunks: (settings.partitions, compacted),
        named.dead_letters: (1, compacted),
        named.erasures: (1, compacted),
    }


def admin_client(bootstrap: str) -> AdminClient:
    """A client for the log's administration that keeps quiet about a broker that is not there; its calls tell."""
    from confluent_kafka.admin import AdminClient

    return AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.connection.setup.timeout.ms": 5_000})


def create_topics(bootstrap: str, settings: Settings, timeout: float = 15.0) -> None:
    """Create what is missing; leave what is there as it is.

    Raises TopicsFailed when the log does not answer within `timeout` seconds, or when a topic that exists already has
    another cleanup policy or fewer partitions than it must have: data may depend on them, so a person decides.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import NewTopic  # type: ignore[attr-defined]

    wanted = topic_settings(settings)
    admin = admin_client(bootstrap)
    new = [
        NewTopic(name, count, settings.replication_factor, config=config) for name, (count, config) in wanted.items()
    ]
    existing = []
    for name, outcome in admin.create_topics(new, operation_timeout=timeout, request_timeout=timeout).items():
        try:
            outcome.result()
        except KafkaException as error:
            if error.args[0].code() != TOPIC_ALREADY_EXISTS:
                raise TopicsFailed(
                    f"Topic {name} cannot be created at {without_password(bootstrap)}: {error.args[0].str()}."
                ) from error
            existing.append(name)
    if existing:
        _check(admin, bootstrap, {name: wanted[name] for name in existing}, timeout)


def _check(admin: AdminClient, bootstrap: str, wanted: dict[str, tuple[int, dict[str, str]]], timeout: float) -> None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ConfigResource  # type: ignore[attr-defined]

    try:
        found = admin.list_topics(timeout=timeout).topics
        described = admin.describe_configs(
            [ConfigResource(ConfigResource.Type.TOPIC, name) for name in wanted], request_timeout=timeout
        )
        configs = {resource.name: outcome.result() for resource, outcome in described.items()}
    except KafkaException as error:
        raise TopicsFailed(
            f"The topics at {without_password(bootstrap)} cannot be read: {error.args[0].str()}."
        ) from error
    for name, (partitions, config) in wanted.items():
        policy, count = configs[name].get("cleanup.policy"), len(found[name].partitions)
        # A broker that made the topic by itself may name no policy at all; such a one removes nothing.
        if policy is not None and policy.value != config["cleanup.policy"]:
            raise TopicsFailed(
                f"Topic {name} has cleanup.policy={policy.value} and must have {config['cleanup.policy']}: "
                "set it, or choose another TWIN_TOPIC_PREFIX."
            )
        if count < partitions:
            raise TopicsFailed(
                f"Topic {name} has {count} partitions, fewer than TWIN_PARTITIONS={partitions}: "
                "lower the setting, or choose another TWIN_TOPIC_PREFIX."
            )
