"""The schemas that downstream teams read: valid, explained field by field, and open to new fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker, ValidationError

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
PRESENT = sorted(CONTRACTS.glob("*.v*.json"))
SCHEMAS = [*PRESENT, *sorted((CONTRACTS / "released").glob("*.json"))]

every_schema = pytest.mark.parametrize("path", SCHEMAS, ids=lambda path: path.name)


def within(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema and every schema in it."""
    yield schema
    items = [schema["items"]] if "items" in schema else []
    for nested in (*schema.get("properties", {}).values(), *items, *schema.get("prefixItems", [])):
        yield from within(nested)


def test_there_is_one_schema_for_each_topic_that_is_published() -> None:
    names = {path.name for path in PRESENT}

    assert names == {
        *("features.documents.v1.json", "features.chunks.v1.json", "features.erasures.v1.json"),
        "dead-letters.v1.json",
    }


@every_schema
def test_it_is_a_json_schema_of_its_own_name(path: Path, formats: FormatChecker) -> None:
    schema = json.loads(path.read_bytes())

    Draft202012Validator.check_schema(schema)
    name, _, version = path.stem.partition(".v")
    major = version.partition(".")[0]
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert schema["$id"] == f"urn:llm-twin:contract:{name}:v{major}"
    assert schema["title"] == f"twin.{name}, version {major}"
    assert {each["format"] for each in within(schema) if "format" in each} <= set(formats.checkers)


@every_schema
def test_every_object_says_that_fields_may_be_added_and_every_field_what_it_means(path: Path) -> None:
    for schema in within(json.loads(path.read_bytes())):
        if schema.get("type") == "object":
            assert schema["additionalProperties"] is True
            assert set(schema["required"]) == set(schema["properties"])
            assert all(field["description"] for field in schema["properties"].values())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("failed_at", "yesterday"),
        ("failed_at", "2026-13-01T00:00:00Z"),
        ("failed_at", "2026-11-21T09:12:44"),
        ("value", "not base64!"),
        ("attempts", 0),
        ("step", "publish"),
        ("headers", [["name"]]),
        ("headers", [["name", None, "more"]]),
    ],
)
def test_what_a_letter_must_not_be_is_found(field: str, value: Any, formats: FormatChecker) -> None:
    letter = {
        "letter_id": "d",
        "document_id": "d",
        "version": 1,
        "step": "clean",
        "reason": "it is odd",
        "attempts": 1,
        "generation": "g",
        "failed_at": "2026-11-21T09:12:44.5Z",
        "topic": "t",
        "partition": 0,
        "offset": 0,
        "key": None,
        "value": "dmFsdWU=",
        "headers": [["name", None]],
        "a field of a later revision": 1,
    }
    schema = json.loads((CONTRACTS / "dead-letters.v1.json").read_bytes())
    checker = Draft202012Validator(schema, format_checker=formats)
    checker.validate(letter)

    with pytest.raises(ValidationError):
        checker.validate({**letter, field: value})
