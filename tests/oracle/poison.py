"""Two hundred messages and documents that are malformed or hostile, each with a name that a failure can be found by."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

HERE = "11111111-2222-4333-8444-555555555555"
MEGABYTE = 1 << 20
DATE = {"$date": 1_767_225_600_000}
SOURCE = {"ts_ms": 1_767_225_600_000, "ord": 1, "db": "twin", "collection": "documents"}
HEAVY = {
    *("text: sixteen megabytes", "text: 100,000 headings", "text: one line of a megabyte", "text: heading of 100 kB"),
    *("text: one word of a megabyte", "text: wide table", "text: sentences of one letter"),
}
REFUSED, IGNORED, INDEXED, ANY = "refused", "ignored", "indexed", "any"


@dataclass(frozen=True)
class Poison:
    """A message as it stands in the log.

    `becomes`: what becomes of it, where that is certain; `heavy`: takes seconds.
    """

    name: str
    key: bytes | None
    value: bytes | None
    becomes: str = ANY
    heavy: bool = False
    headers: tuple[tuple[str, bytes | None], ...] = (("twin.warehouse", HERE.encode()),)


def record(id: Any, **fields: Any) -> dict[str, Any]:
    """A good document's record in extended JSON, but for these fields; one that is `...` is left out."""
    good = {
        "_id": id,
        "category": "article",
        "platform": "example.org",
        "author_id": "a-1",
        "author_name": "Ada",
        "url": f"https://example.org/{id}",
        "title": f"About {id}",
        "text": f"# About {id}\n\nThe station of {id} reports amber, basin and cedar.",
        "published_at": None,
        "crawled_at": DATE,
        "crawl_id": "crawl",
        "content_hash": "0" * 64,
        "metadata": {},
    }
    return {name: value for name, value in {**good, **fields}.items() if value is not ...}


def key_of(id: Any) -> bytes:
    return json.dumps({"id": json.dumps(id)}).encode()


def envelope(after: Any, op: Any = "u", source: Any = None, **more: Any) -> bytes:
    """`after` as Debezium gives it: a string of JSON within the JSON."""
    plain = after if after is None or isinstance(after, str) else json.dumps(after)
    return json.dumps({"before": None, "after": plain, "op": op, "source": source or SOURCE, **more}).encode()


def poisons() -> list[Poison]:
    return [*_values(), *_keys(), *_envelopes(), *_headers(), *_fields(), *_texts(), *_extended(), *_ids()]


def hostile_texts() -> Iterator[tuple[str, str, str]]:
    """Name, text, and what may become of it: also to be written into a MongoDB."""
    yield "empty", "", REFUSED
    yield "spaces", " \t\n " * 50, REFUSED
    yield "zero width", "\u200b\u200c\u200d\ufeff\u2060" * 200, ANY
    yield "bidi", "\u202e\u2066evil\u2069\u202c station \u202a\u202b" * 40, INDEXED
    yield "control", "".join(map(chr, range(1, 32))) * 20 + " station", ANY
    yield "nul", "a\x00b station\x00" * 30, INDEXED
    yield "c1 control", "".join(map(chr, range(0x80, 0xA0))) * 20 + " station", ANY
    yield "private use", "\ue000\uf8ff\U000f0000" * 100, ANY
    yield "noncharacters", "\ufffe\uffff\U0001ffff word " * 50, ANY
    yield "combining", "a" + "\u0301" * 20_000, INDEXED
    yield "emoji family", "👨‍👩‍👧‍👦" * 2_000, INDEXED
    yield "one word of a megabyte", "a" * MEGABYTE, INDEXED
    yield "one line of a megabyte", "word " * (MEGABYTE // 5), INDEXED
    yield "100,000 headings", "\n".join(f"# {n}" for n in range(100_000)), ANY
    yield "deep headings", "\n\n".join("#" * (1 + n % 9) + f" Level {n}\n\ntext {n}" for n in range(2_000)), INDEXED
    yield "heading of 100 kB", "# " + "heading " * 12_500 + "\n\ntext below", INDEXED
    yield "wide table", "|" + "cell|" * 20_000 + "\n|" + "---|" * 20_000, ANY
    yield "long table", "|a|b|\n|-|-|\n" + "|1|2|\n" * 10_000, INDEXED
    yield "unclosed fence", "text before\n\n```python\n" + "x = 1\n" * 5_000, INDEXED
    yield "fences in fences", "\n".join("`" * (3 + n % 40) for n in range(5_000)), ANY
    yield "tildes and backticks", ("~~~\n```\n" * 5_000) + "end of it", ANY
    yield "nested quotes", ">" * 10_000 + " quoted", ANY
    yield "nested lists", "\n".join(" " * n + "- item" for n in range(1_000)), INDEXED
    yield "brackets", "[" * 50_000, ANY
    yield "half a link", "[a](" * 10_000, ANY
    yield "images", "![x](data:image/png;base64," + "A" * 200_000 + ")\n\ntext after it", ANY
    yield "html", "<div>" * 5_000 + "text" + "</div>" * 5_000, ANY
    yield "script", "<script>alert(1)</script>" * 1_000 + " text", ANY
    yield "comments", "<!--" * 10_000 + " text", ANY
    yield "entities", "&lt;&amp;&#0;&#x110000;&nbsp;" * 2_000, ANY
    yield "stars", "*" * 50_000, ANY
    yield "underscores", "_a" * 50_000, ANY
    yield "dashes", "---\n" * 10_000, ANY
    yield "equals", "a\n===\n" * 5_000, ANY
    yield "carriage returns", "a\rb\r\nc\n\rd station\r" * 2_000, INDEXED
    yield "line separators", "a\u2028b\u2029c\x85d\x0be\x0cf " * 2_000, INDEXED
    yield "byte order marks", "\ufeffword \ufeff" * 5_000, INDEXED
    yield "backslashes", "\\" * 50_000, ANY
    yield "full stops", "." * 50_000, ANY
    yield "sentences of one letter", "A. " * 50_000, INDEXED
    yield "base64", base64.b64encode(bytes(range(256)) * 1_000).decode(), INDEXED
    yield "minified", "function(a){return b.c(d,e)};" * 2_000, INDEXED
    yield "chinese without a space", "中文" * 50_000, INDEXED
    yield "thai", "ภาษาไทย" * 10_000, INDEXED
    yield "right to left", "שלום עולם " * 5_000, INDEXED
    yield "mathematical letters", "𝕬𝖇𝖈 " * 5_000, INDEXED
    yield "misread encoding", "â€œquotedâ€\x9d itâ€™s " * 5_000, INDEXED
    yield "replacement characters", "\ufffd" * 10_000, ANY
    yield "format strings", "%s%n{0}{__class__}${jndi:ldap://x} " * 2_000, INDEXED
    yield "json within", json.dumps({"op": "d", "after": None}) * 1_000, INDEXED
    yield "one letter", "a", INDEXED
    yield "one mark", "!", ANY


def _message(name: str, value: bytes | None, becomes: str = ANY, **fields: Any) -> Poison:
    return Poison(name, fields.pop("key", key_of(f"p-{name}")), value, becomes, **fields)


def _values() -> Iterator[Poison]:
    """What is no envelope at all."""
    for name, value in {
        "nothing": b"",
        "a word": b"hello",
        "null": b"null",
        "a number": b"1",
        "a list": b"[]",
        "an empty object": b"{}",
        "half an object": b'{"op":"u","source":{"ts_ms":1',
        "two objects": b'{"op":"u"}{"op":"u"}',
        "invalid UTF-8": b'{"op":"u\xff\xfe","source":{"ts_ms":1,"ord":1},"after":null}',
        "invalid UTF-8 within": b'{"op":"u","source":{"ts_ms":1,"ord":1},"after":"{\\"_id\\":\\"\xc3\x28\\"}"}',
        "UTF-16": '{"op":"u"}'.encode("utf-16"),
        "a byte order mark": b"\xef\xbb\xbf{}",
        "binary": bytes(range(256)),
        "avro": b"\x00\x00\x00\x00\x01\x02abc",
        "NaN": b'{"op":"u","source":{"ts_ms":NaN,"ord":1},"after":"{}"}',
        "infinity": b'{"op":"u","source":{"ts_ms":Infinity,"ord":1},"after":"{}"}',
        "deep nesting": b'{"op":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "deep nesting besides": b'{"op":"x","more":' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        "duplicate keys": b'{"op":"d","op":"zzz","source":{"ts_ms":1,"ord":1}}',
        "a lone surrogate in the envelope": b'{"op":"\\ud800","source":{"ts_ms":1,"ord":1},"after":null}',
        "NUL bytes": b"\x00" * 1_000,
        "sixteen megabytes of nothing": b" " * (16 * MEGABYTE),
    }.items():
        yield _message(f"value: {name}", value, REFUSED)
    yield _message("value: a tombstone", None, IGNORED)


def _keys() -> Iterator[Poison]:
    for name, key in {
        "none": None,
        "empty": b"",
        "a word": b"hello",
        "null": b"null",
        "a list": b"[]",
        "no id": b"{}",
        "id is null": b'{"id":null}',
        "id is a number": b'{"id":1}',
        "id is a list": b'{"id":[]}',
        "id is no JSON": b'{"id":"nope"}',
        "id is empty": b'{"id":""}',
        "id is half JSON": b'{"id":"{\\"$oid\\":"}',
        "id is a wrong ObjectId": b'{"id":"{\\"$oid\\":\\"xyz\\"}"}',
        "invalid UTF-8": b'{"id":"\xff"}',
        "deep nesting": b'{"id":"' + b"[" * 50_000 + b'"}',
        "a lone surrogate": b'{"id":"\\"\\ud800\\""}',
    }.items():
        yield _message(f"key: {name}", envelope(record(f"p-key-{name}")), ANY, key=key)


def _envelopes() -> Iterator[Poison]:
    good = record("p-envelope")
    for name, value in {
        "unknown operation": envelope(good, op="t"),
        "operation is null": envelope(good, op=None),
        "operation is a number": envelope(good, op=5),
        "operation of a megabyte": envelope(good, op="x" * MEGABYTE),
        "operation of another script": envelope(good, op="с"),
        "no operation": json.dumps({"after": "{}", "source": SOURCE}).encode(),
        "no source": json.dumps({"after": "{}", "op": "u"}).encode(),
        "source is a list": json.dumps({"after": "{}", "op": "u", "source": []}).encode(),
        "time is missing": envelope(good, source={"ord": 1}),
        "time is text": envelope(good, source={"ts_ms": "1", "ord": 1}),
        "time is below zero": envelope(good, source={"ts_ms": -1, "ord": 1}),
        "time is huge": envelope(good, source={"ts_ms": 10**30, "ord": 1}),
        "time is beyond the calendar": envelope(good, source={"ts_ms": 10**15, "ord": 1}),
        "time is a fraction": envelope(good, source={"ts_ms": 1.5, "ord": 1}),
        "order is text": envelope(good, source={"ts_ms": 1, "ord": "1"}),
        "wall time is text": envelope(good, source={**SOURCE, "wallTime": "now"}),
        "wall time is huge": envelope(good, source={**SOURCE, "wallTime": 10**18}),
        "after is an object": json.dumps({"op": "u", "after": good, "source": SOURCE}).encode(),
        "after is a number": json.dumps({"op": "u", "after": 5, "source": SOURCE}).encode(),
        "after is no JSON": envelope("{nope"),
        "after is a list": envelope("[]"),
        "after is text": envelope('"text"'),
        "after is null within": envelope("null"),
        "after is a number within": envelope("5"),
        "after is empty": envelope(""),
        "after is deep": envelope('{"_id":"x","metadata":' + '{"a":' * 20_000 + "1" + "}" * 20_000 + "}"),
        "after is an empty object": envelope({}),
    }.items():
        yield _message(f"envelope: {name}", value, REFUSED)
    for operation in "rcu":
        yield _message(f"envelope: {operation} without after", envelope(None, op=operation), IGNORED)
    yield _message("envelope: delete without order", envelope(None, op="d", source={"ts_ms": 1, "ord": -1}), REFUSED)
    yield _message("envelope: delete of what never was", envelope(None, op="d"), ANY)
    yield _message(
        "envelope: order below zero",
        envelope(record("p-low"), source={"ts_ms": 1, "ord": -9}),
        INDEXED,
        key=key_of("p-low"),
    )
    yield _message(
        "envelope: order is huge",
        envelope(record("p-huge"), source={"ts_ms": 1, "ord": 10**30}),
        INDEXED,
        key=key_of("p-huge"),
    )
    yield _message(
        "envelope: order is null",
        envelope(record("p-null"), source={"ts_ms": 1, "ord": None}),
        INDEXED,
        key=key_of("p-null"),
    )
    yield _message("envelope: NaN within", envelope('{"_id":"x","text":NaN}'), REFUSED)
    yield _message(
        "envelope: before is hostile", envelope(record("p-before"), before="[" * 10_000), ANY, key=key_of("p-before")
    )


def _headers() -> Iterator[Poison]:
    value = envelope(record("p-header"))
    for name, headers, becomes in (
        ("none", (), INDEXED),
        ("another warehouse", (("twin.warehouse", b"elsewhere"),), IGNORED),
        ("no value", (("twin.warehouse", None),), ANY),
        ("empty", (("twin.warehouse", b""),), IGNORED),
        ("invalid UTF-8", (("twin.warehouse", b"\xff\xfe"),), IGNORED),
        ("twice", (("twin.warehouse", b"elsewhere"), ("twin.warehouse", HERE.encode())), ANY),
        ("a megabyte", (("twin.warehouse", b"x" * MEGABYTE),), IGNORED),
        ("a thousand", tuple((f"h{n}", b"x") for n in range(1_000)), INDEXED),
        ("a name of another script", (("заголовок", b"x"),), INDEXED),
        ("a repair that is none", (("twin.repair", b"\xff"), ("twin.warehouse", HERE.encode())), INDEXED),
    ):
        yield _message(f"headers: {name}", value, becomes, headers=headers, key=key_of("p-header"))


def _fields() -> Iterator[Poison]:
    """Records with a field that is missing, of another type, or out of measure."""
    number = 0
    for name in ("category", "platform", "author_name", "url", "title", "text"):
        for wrong in (..., None, 5, ["x"], {"x": 1}, True):
            number += 1
            yield _document(f"field: {name} {wrong!r:.12} {number}", REFUSED, **{name: wrong})
    for name in ("published_at", "crawled_at"):
        for wrong in ("2026-01-01", 5, [], {"$date": "nonsense"}, {"$date": 10**18}, {"$date": {"$numberLong": "x"}}):
            number += 1
            yield _document(f"field: {name} {wrong!r:.30} {number}", REFUSED, **{name: wrong})
    for wrong in ("text", 5, ["x"]):
        yield _document(f"field: metadata {wrong!r}", REFUSED, metadata=wrong)
    yield _document("field: metadata of a megabyte", INDEXED, metadata={"x": "y" * MEGABYTE})
    yield _document("field: metadata of many keys", INDEXED, metadata={str(n): n for n in range(50_000)})
    yield _document("field: metadata nested", ANY, metadata=_nested(200))
    for language in (5, ["en"], {"a": 1}, "x" * 100_000, "\x00", True, 1e308, -0.0, "\u202een"):
        number += 1
        yield _document(f"field: language {language!r:.12} {number}", ANY, metadata={"language": language})
    yield _document("field: language is a lone surrogate", ANY, metadata={"language": "\ud800"})
    for name in ("title", "author_name", "platform", "url", "category", "text"):
        yield _document(f"field: {name} with a lone surrogate", REFUSED, **{name: "lone \ud800 surrogate"})
    yield _document("field: title of a megabyte", ANY, title="long " * (MEGABYTE // 5))
    yield _document("field: title is empty", ANY, title="")
    yield _document("field: title of control characters", ANY, title="\x00\x1b[31m\u202e")
    yield _document("field: url of a megabyte", ANY, url="https://example.org/" + "x" * MEGABYTE)
    yield _document("field: url is none", ANY, url="javascript:alert(1)")
    yield _document("field: url is broken", ANY, url="http://[::1")
    yield _document("field: author of a megabyte", ANY, author_name="a" * MEGABYTE)
    yield _document("field: author is empty", ANY, author_name="")
    yield _document("field: author id is an object", ANY, author_id={"x": 1})
    yield _document("field: crawl id is a list", ANY, crawl_id=[1])
    yield _document("field: hash is a number", ANY, content_hash=5)
    yield _document("field: hash is missing", ANY, content_hash=...)
    yield _document("field: category is unknown", REFUSED, category="poem")
    yield _document("field: category of a megabyte", REFUSED, category="x" * MEGABYTE)
    yield _document("field: date before the calendar", ANY, published_at={"$date": -(10**14)})
    yield _document("field: date of the year 1", ANY, published_at={"$date": "0001-01-01T00:00:00Z"})
    yield _document("field: date of the year 9999", ANY, published_at={"$date": "9999-12-31T23:59:59.999Z"})
    yield _document(
        "field: date with an offset over the edge", ANY, published_at={"$date": "9999-12-31T23:59:59-12:00"}
    )


def _texts() -> Iterator[Poison]:
    for name, text, becomes in hostile_texts():
        yield _document(f"text: {name}", becomes, text=text)
    yield _document("text: sixteen megabytes", INDEXED, text="The station reports amber and basin.\n\n" * 430_000)
    for name in ("unclosed fence", "tabs"):
        code = {"unclosed fence": "```\n" * 1_000 + "x = 1", "tabs": "\t" * 50_000 + "x"}[name]
        yield _document(f"code: {name}", ANY, category="code", text=code)


def _extended() -> Iterator[Poison]:
    """MongoDB's extended JSON where text or anything may stand."""
    odds = (
        {"$binary": {"base64": "AAAA", "subType": "00"}},
        {"$binary": {"base64": "***", "subType": "zz"}},
        {"$code": "function(){}"},
        {"$code": "f", "$scope": {}},
        {"$regularExpression": {"pattern": "(", "options": "zz"}},
        {"$oid": "short"},
        {"$numberDecimal": "NaN"},
        {"$numberDecimal": "nonsense"},
        {"$numberLong": "9" * 40},
        {"$numberDouble": "Infinity"},
        {"$numberInt": []},
        {"$timestamp": {"t": -1, "i": "x"}},
        {"$minKey": 1},
        {"$maxKey": 2},
        {"$undefined": True},
        {"$dbPointer": {"$ref": 1}},
        {"$uuid": "nope"},
    )
    for number, odd in enumerate(odds, 1):
        yield _document(f"extended: text {odd!r:.40} {number}", REFUSED, text=odd)
        yield _document(f"extended: metadata {odd!r:.40} {number}", ANY, metadata={"x": odd})
        yield _document(f"extended: language {odd!r:.40} {number}", ANY, metadata={"language": odd})


def _ids() -> Iterator[Poison]:
    for name, id in {
        "a number": 5,
        "a long": {"$numberLong": "5000000000"},
        "an ObjectId": {"$oid": "5f" * 12},
        "empty": "",
        "null": None,
        "a list": [1],
        "an object": {"a": 1},
        "a number with a fraction": 1.5,
        "true": True,
        "a date": DATE,
        "binary": {"$binary": {"base64": "AAAA", "subType": "00"}},
        "of a megabyte": "x" * MEGABYTE,
        "of control characters": "\x00\n\u202e",
        "of another document's point": "00000000-0000-0000-0000-000000000000",
    }.items():
        value = envelope(json.dumps(record("id", _id=id)))
        yield Poison(f"id: {name}", json.dumps({"id": json.dumps(id)}).encode(), value)
    yield Poison("id: not that of the key", key_of("p-one"), envelope(record("p-another")))


def _document(name: str, becomes: str, **fields: Any) -> Poison:
    id = f"p-{name}"
    return Poison(name, key_of(id), envelope(record(id, **fields)), becomes, name in HEAVY)


def _nested(depth: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for _ in range(depth):
        made = {"a": made}
    return made
