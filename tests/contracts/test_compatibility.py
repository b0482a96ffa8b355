"""A schema never breaks what was released: whatever is sent now, a consumer of any released revision can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

CONTRACTS = Path(__file__).parents[2] / "docs" / "contracts"
RELEASED = sorted((CONTRACTS / "released").glob("*.json"))
# Without effect on what is valid.
ANNOTATIONS = {"$schema", "$id", "title", "description", "deprecated"}
# May rise, may fall: each way fewer values are valid than before.
LOWER_BOUNDS = {"minimum", "exclusiveMinimum", "minLength", "minItems"}
UPPER_BOUNDS = {"maximum", "exclusiveMaximum", "maxLength", "maxItems"}
# Whether one of their values allows less than another cannot be said: they stay as they are.
EXACT = {"pattern", "format", "contentEncoding", "additionalProperties"}
NESTED = {"type", "enum", "const", "required", "properties", "items", "prefixItems"}
ANY = ("array", "boolean", "null", "number", "object", "string")


class UnknownKeyword(ValueError):
    """The comparison does not know what this keyword of JSON Schema does to a consumer."""


def breaks(released: Mapping[str, Any], present: Mapping[str, Any], path: str = "$") -> Iterator[str]:
    """What of `present` a consumer that was written for `released` cannot rely on any more, one sentence each.

    Consumers ignore fields that they do not know, so a new field breaks nothing, nor does a stricter rule.
    """
    known = ANNOTATIONS | LOWER_BOUNDS | UPPER_BOUNDS | EXACT | NESTED
    if unknown := (released.keys() | present.keys()) - known:
        raise UnknownKeyword(f"{path}: {', '.join(sorted(unknown))}")
    if "description" in released and not present.get("description"):
        yield f"{path}: it no longer says what it means"
    if more := _types(present) - _types(released):
        yield f"{path}: it may be of type {', '.join(sorted(more))}"
    values = _values(released)
    if values is not None:
        now = _values(present)
        if now is None:
            yield f"{path}: it may have any value"
        elif more_values := [value for value in now if value not in values]:
            yield f"{path}: it may be {', '.join(map(json.dumps, more_values))}"
    for keyword in sorted(EXACT & released.keys()):
        if present.get(keyword) != released[keyword]:
            yield f"{path}: {keyword} is not {json.dumps(released[keyword])} any more"
    for keyword in sorted(LOWER_BOUNDS & released.keys()):
        if present.get(keyword, float("-inf")) < released[keyword]:
            yield f"{path}: {keyword} is below {released[keyword]}"
    for keyword in sorted(UPPER_BOUNDS & released.keys()):
        if present.get(keyword, float("inf")) > released[keyword]:
            yield f"{path}: {keyword} is above {released[keyword]}"
    for name in sorted(set(released.get("required", ())) - set(present.get("required", ()))):
        yield f"{path}.{name}: it may be missing"
    yield from _nested(released, present, path)


def _nested(released: Mapping[str, Any], present: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, field in released.get("properties", {}).items():
        if name in present.get("properties", {}):
            yield from breaks(field, present["properties"][name], f"{path}.{name}")
        else:
            yield f"{path}.{name}: it is gone"
    if "items" in released:
        yield from breaks(released["items"], present.get("items", {}), f"{path}[]")
    before, now = released.get("prefixItems", ()), present.get("prefixItems", ())
    for place, item in enumerate(before):
        yield from breaks(item, now[place] if place < len(now) else {}, f"{path}[{place}]")


def _types(schema: Mapping[str, Any]) -> set[str]:
    """The types that are allowed; a whole number counts as what it is only where no other number is allowed."""
    given = schema.get("type", ANY)
    types = {given} if isinstance(given, str) else set(given)
    return types | {"integer"} if "number" in types else types


def _values(schema: Mapping[str, Any]) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


SCHEMA: dict[str, Any] = {
    "description": "A reading of a station.",
    "type": "object",
    "additionalProperties": True,
    "required": ["station", "degrees", "sky", "places"],
    "properties": {
        "station": {"description": "Its name.", "type": "string", "pattern": "^[a-z]+$", "maxLength": 9},
        "degrees": {"description": "In Celsius.", "type": "integer", "minimum": -90},
        "sky": {"description": "As seen.", "enum": ["clear", "grey"]},
        "read_at": {"description": "When.", "type": ["string", "null"], "format": "date-time"},
        "places": {
            "description": "Where.",
            "type": "array",
            "minItems": 1,
            "items": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}]},
        },
    },
}


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    schema = deepcopy(SCHEMA)
    change(schema)
    return schema


BREAKING: dict[str, Callable[[dict[str, Any]], Any]] = {
    "$.station: it is gone": lambda s: s["properties"].pop("station"),
    "$.degrees: it may be missing": lambda s: s["required"].remove("degrees"),
    "$.degrees: it may be of type null": lambda s: s["properties"]["degrees"].update(type=["integer", "null"]),
    "$.degrees: it may be of type number": lambda s: s["properties"]["degrees"].update(type="number"),
    "$.degrees: it may be of type string": lambda s: s["properties"]["degrees"].update(type="string"),
    "$.degrees: minimum is below -90": lambda s: s["properties"]["degrees"].update(minimum=-273),
    "$.station: maxLength is above 9": lambda s: s["properties"]["station"].pop("maxLength"),
    "$.station: pattern is not": lambda s: s["properties"]["station"].update(pattern="^[a-z ]+$"),
    "$.read_at: format is not": lambda s: s["properties"]["read_at"].pop("format"),
    '$.sky: it may be "green"': lambda s: s["properties"]["sky"]["enum"].append("green"),
    "$.sky: it may have any value": lambda s: s["properties"]["sky"].pop("enum"),
    "$.sky: it no longer says": lambda s: s["properties"]["sky"].pop("description"),
    "$.places: minItems is below 1": lambda s: s["properties"]["places"].update(minItems=0),
    "$.places[]: it may be of type": lambda s: s["properties"]["places"].pop("items"),
    "$.places[][1]: it may be of type": lambda s: s["properties"]["places"]["items"]["prefixItems"].pop(),
    "$: additionalProperties is not true": lambda s: s.update(additionalProperties=False),
}
HARMLESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "nothing": lambda s: None,
    "a new field": lambda s: s["properties"].update(wind={"description": "In metres a second.", "type": "number"}),
    "a new field that is always there": lambda s: (
        s["required"].append("wind"),
        s["properties"].update(wind={"description": "In metres a second.", "type": "number"}),
    ),
    "a field that is always there from now on": lambda s: s["required"].append("read_at"),
    "a field that is never null from now on": lambda s: s["properties"]["read_at"].update(type="string"),
    "a value that is not sent any more": lambda s: s["properties"]["sky"]["enum"].remove("grey"),
    "a narrower bound": lambda s: s["properties"]["degrees"].update(minimum=-60, maximum=60),
    "better words": lambda s: s["properties"]["sky"].update(description="As seen at noon."),
}


@pytest.mark.parametrize("said", BREAKING)
def test_a_breaking_change_is_named_with_its_place(said: str) -> None:
    found = list(breaks(SCHEMA, changed(BREAKING[said])))

    assert any(each.startswith(said) for each in found), found


@pytest.mark.parametrize("change", HARMLESS)
def test_what_a_consumer_can_ignore_breaks_nothing(change: str) -> None:
    assert list(breaks(SCHEMA, changed(HARMLESS[change]))) == []


def test_a_keyword_that_the_comparison_does_not_know_is_no_silent_pass() -> None:
    with pytest.raises(UnknownKeyword, match=r"\$\.sky: oneOf"):
        list(breaks(SCHEMA, changed(lambda schema: schema["properties"]["sky"].update(oneOf=[]))))


@pytest.mark.parametrize("path", RELEASED, ids=lambda path: path.name)
def test_the_present_schema_keeps_what_was_released(path: Path) -> None:
    name = path.stem.rpartition(".")[0]
    present = json.loads((CONTRACTS / f"{name}.json").read_bytes())

    assert list(breaks(json.loads(path.read_bytes()), present)) == []


@pytest.mark.parametrize("path", sorted(CONTRACTS.glob("*.v*.json")), ids=lambda path: path.name)
def test_the_newest_released_revision_is_the_present_schema(path: Path) -> None:
    revisions = [each for each in RELEASED if each.stem.rpartition(".")[0] == path.stem]

    newest = max(revisions, key=lambda each: int(each.stem.rpartition(".")[2]))
    assert json.loads(newest.read_bytes()) == json.loads(path.read_bytes())
