"""What is read of a file or a page, and its text and times, from bytes and words alone."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from email.utils import parsedate_to_datetime
from typing import Any

# UTF-32 first: its little-endian mark begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
BINARY_PROBE = 8_192


class Unreadable(ValueError):
    """A file whose text cannot be had; the message completes "FILE ..."."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read of a file. None: it does not say."""

    text: str
    title: str | None = None
    author: str | None = None
    published_at: datetime | None = None
    language: str | None = None
    canonical_url: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def decode(content: bytes) -> str:
    """UTF-8, or what the byte order mark says. Raises Unreadable with the place of the first byte that is wrong."""
    encoding = next((name for mark, name in MARKS if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content[:BINARY_PROBE]:
        raise Unreadable("is binary, not text")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        # One of the codecs counts from behind the mark.
        offset = error.start + len(content) - len(error.object)
        wrong = f"byte 0x{content[offset]:02x} at offset {offset}"
        raise Unreadable(f"is not valid {encoding.removesuffix('-sig').upper()}: {wrong}") from error


def moment(value: object) -> datetime | None:
    """A time as files and pages give it (ISO 8601, RFC 5322, a YAML date), in UTC where it names no zone."""
    if isinstance(value, datetime):
        return _in_utc(value)
    if isinstance(value, date):
        return datetime.combine(value, time(), UTC)
    if not isinstance(value, str):
        return None
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        try:
            return _in_utc(parse(value.strip()))
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _in_utc(value: datetime) -> datetime | None:
    try:
        return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)
    except OverflowError:
        # The first and the last hours that there are have no name in other zones.
        return None
