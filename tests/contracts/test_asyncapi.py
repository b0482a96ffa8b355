"""The AsyncAPI document: of the specification's shape, about topics that exist, with examples that hold.

Source: AsyncAPI Specification 3.0.0 (fixed fields of each object), Kafka bindings 0.5.0.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from corpus.settings import load
from ingestion.topics import topic_settings, topics
from streaming.log import SCHEMA_VERSION

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
ABOUT = {"title", "summary", "description", "tags", "externalDocs", "bindings"}
# Of each object: the fields that it must have, and those that it may have.
OBJECTS: dict[str, tuple[set[str], set[str]]] = {
    "document": (
        {"asyncapi", "info"},
        {"id", "servers", "defaultContentType", "channels", "operations", "components"},
    ),
    "info": ({"title", "version"}, {"description", "termsOfService", "contact", "license", "tags", "externalDocs"}),
    "server": ({"host", "protocol"}, {"pathname", "protocolVersion", "variables", "security"} | ABOUT),
    "channel": (set(), {"address", "messages", "servers", "parameters"} | ABOUT),
    "operation": ({"action", "channel"}, {"messages", "reply", "traits", "security"} | ABOUT),
    "message": (set(), {"headers", "payload", "correlationId", "contentType", "name", "examples", "traits"} | ABOUT),
    "example": (set(), {"headers", "payload", "name", "summary"}),
    "channel binding": (set(), {"topic", "partitions", "replicas", "topicConfiguration", "bindingVersion"}),
    "message binding": (set(), {"key", "schemaIdLocation", "schemaIdPayloadEncoding", "schemaLookupStrategy"}),
}
DOCUMENT: dict[str, Any] = yaml.safe_load((CONTRACTS / "asyncapi.yaml").read_text())
CONTRACT = {
    "document": "features.documents",
    "chunks": "features.chunks",
    "erased": "features.erasures",
    "letter": "dead-letters",
    "documentGone": None,
    "letterSettled": None,
}
every_message = pytest.mark.parametrize("name", DOCUMENT["components"]["messages"])


def references(within: Any) -> Iterator[str]:
    if isinstance(within, dict):
        if "$ref" in within:
            yield within["$ref"]
        for value in within.values():
            yield from references(value)
    elif isinstance(within, list):
        for value in within:
            yield from references(value)


def resolved(reference: str) -> Any:
    """What a reference means: a place in the document, or a file beside it. KeyError and OSError if it is not there."""
    file, _, place = reference.partition("#")
    found = json.loads((CONTRACTS / file).read_bytes()) if file else DOCUMENT
    for part in filter(None, place.split("/")):
        found = found[part]
    return resolved(found["$ref"]) if isinstance(found, dict) and "$ref" in found else found


def objects() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the document whose fields the specification fixes."""
    yield "document", DOCUMENT
    yield "info", DOCUMENT["info"]
    yield from (("server", each) for each in DOCUMENT["servers"].values())
    for channel in DOCUMENT["channels"].values():
        yield "channel", channel
        yield "channel binding", channel["bindings"]["kafka"]
    yield from (("operation", each) for each in DOCUMENT["operations"].values())
    for message in DOCUMENT["components"]["messages"].values():
        yield "message", message
        yield from (("example", each) for each in message["examples"])
        yield "message binding", {key: value for key, value in message["bindings"]["kafka"].items() if key == "key"}


def test_every_object_has_the_fields_that_the_specification_gives_it() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert set(DOCUMENT["components"]) == {"messageTraits", "messages"}
    for kind, found in objects():
        required, allowed = OBJECTS[kind]
        assert required <= set(found) <= required | allowed, (kind, found)
    # A trait gives what a message has, without its payload.
    for trait in DOCUMENT["components"]["messageTraits"].values():
        assert set(trait) <= OBJECTS["message"][1] - {"payload", "traits"}


def test_every_reference_leads_somewhere() -> None:
    found = set(references(DOCUMENT))

    assert {each for each in found if each.endswith(".json")} == {path.name for path in CONTRACTS.glob("*.v*.json")}
    for each in found:
        assert resolved(each), each


def test_every_operation_sends_messages_of_its_channel_and_every_message_has_one() -> None:
    sent = set()
    for operation in DOCUMENT["operations"].values():
        assert operation["action"] == "send"
        channel = operation["channel"]["$ref"]
        for message in operation["messages"]:
            assert message["$ref"].startswith(f"{channel}/messages/")
            sent.add(message["$ref"])
    assert sent == {
        f"#/channels/{name}/messages/{message}"
        for name, channel in DOCUMENT["channels"].items()
        for message in channel["messages"]
    }
    named = {each["$ref"] for channel in DOCUMENT["channels"].values() for each in channel["messages"].values()}
    assert named == {f"#/components/messages/{name}" for name in DOCUMENT["components"]["messages"]}


def test_every_channel_is_a_topic_with_the_settings_that_the_program_gives_it() -> None:
    settings = load({})
    named = asdict(topics(settings))
    published = {named[name] for name in ("feature_documents", "feature_chunks", "erasures", "dead_letters")}

    assert {channel["address"] for channel in DOCUMENT["channels"].values()} == published
    for channel in DOCUMENT["channels"].values():
        binding = channel["bindings"]["kafka"]
        partitions, given = topic_settings(settings)[channel["address"]]
        assert binding["topic"] == channel["address"]
        told = {
            name: ",".join(value) if isinstance(value, list) else str(value)
            for name, value in binding["topicConfiguration"].items()
        }
        assert told == given, channel["address"]
        assert binding.get("partitions", partitions) == partitions
        assert binding.get("replicas", settings.replication_factor) == settings.replication_factor


@every_message
def test_its_examples_hold(name: str, promised: Callable[[str, Any], None]) -> None:
    message = DOCUMENT["components"]["messages"][name]
    headers = resolved(message["traits"][0]["$ref"])["headers"]
    Draft202012Validator.check_schema(headers)

    assert message["examples"]
    for example in message["examples"]:
        Draft202012Validator(headers).validate(example["headers"])
        contract = CONTRACT[name]
        if contract is None:
            assert message["payload"]["type"] == "null"
            assert example["payload"] is None
        else:
            promised(contract, example["payload"])
            schema = resolved(message["payload"]["schema"]["$ref"])
            assert schema["$id"] == f"urn:llm-twin:contract:{contract}:v{example['headers']['schema-version']}"
            assert set(example["payload"]) == set(schema["required"])


def test_the_header_is_the_one_that_is_sent() -> None:
    (name, header), *others = DOCUMENT["components"]["messageTraits"]["versioned"]["headers"]["properties"].items()

    assert (name, header["const"].encode(), others) == (*SCHEMA_VERSION, [])
