"""Messages of MongoDB's wire protocol: OP_MSG, and OP_QUERY for the first greeting of a driver.

Source: MongoDB manual, "MongoDB Wire Protocol".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from bson import decode, decode_iter, encode
from bson.errors import BSONError

from embedded.mongodb.values import CODEC

MAX_MESSAGE_BYTES: Final = 48_000_000
HEADER: Final = struct.Struct("<iiii")
OP_REPLY, OP_QUERY, OP_MSG = 1, 2004, 2013
CHECKSUM_PRESENT, MORE_TO_COME = 1, 2

_numbers = count(1)


class InvalidMessage(ValueError):
    """Bytes that are no message of the protocol; the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class Request:
    """One command: `body` with document sequences merged in; `answered` False asks for no reply."""

    number: int
    opcode: int
    body: dict[str, Any]
    answered: bool


def read_request(read: Callable[[int], bytes]) -> Request | None:
    """The next request, None at the end of the connection. `read(n)` gives n bytes, or fewer at the end."""
    header = read(HEADER.size)
    if not header:
        return None
    if len(header) < HEADER.size:
        raise InvalidMessage("the connection ended within a header")
    length, number, _, opcode = HEADER.unpack(header)
    if not HEADER.size < length <= MAX_MESSAGE_BYTES:
        raise InvalidMessage(f"a message of {length} bytes")
    data = read(length - HEADER.size)
    if len(data) < length - HEADER.size:
        raise InvalidMessage("the connection ended within a message")
    try:
        if opcode == OP_MSG:
            return _message(number, data)
        if opcode == OP_QUERY:
            return _query(number, data)
    except (BSONError, struct.error, IndexError, ValueError, RecursionError) as error:
        raise InvalidMessage(f"a message that cannot be read: {error}") from error
    raise InvalidMessage(f"the operation code {opcode}")


def _message(number: int, data: bytes) -> Request:
    (flags,) = struct.unpack_from("<I", data)
    end = len(data) - (4 if flags & CHECKSUM_PRESENT else 0)
    body: dict[str, Any] = {}
    sequences: dict[str, list[dict[str, Any]]] = {}
    at = 4
    while at < end:
        kind = data[at]
        (size,) = struct.unpack_from("<i", data, at + 1)
        if size < 5 or at + 1 + size > end:
            raise InvalidMessage("a section that is longer than its message")
        section = data[at + 1 : at + 1 + size]
        if kind == 0:
            body = decode(section, codec_options=CODEC)
        elif kind == 1:
            name_end = section.index(b"\0", 4)
            sequences[section[4:name_end].decode()] = list(decode_iter(section[name_end + 1 :], codec_options=CODEC))
        else:
            raise InvalidMessage(f"a section of kind {kind}")
        at += 1 + size
    return Request(number, OP_MSG, {**body, **sequences}, not flags & MORE_TO_COME)


def _query(number: int, data: bytes) -> Request:
    name_end = data.index(b"\0", 4)
    body = decode(data[name_end + 9 :][: struct.unpack_from("<i", data, name_end + 9)[0]], codec_options=CODEC)
    db = data[4:name_end].decode().partition(".")[0]
    return Request(number, OP_QUERY, {**body.get("$query", body), "$db": db}, True)


def reply_to(request: Request, document: Mapping[str, Any]) -> bytes:
    """The bytes that answer a request with one document."""
    body = encode(document, codec_options=CODEC)
    if request.opcode == OP_MSG:
        data, opcode = b"\0\0\0\0\0" + body, OP_MSG
    else:
        data, opcode = struct.pack("<iqii", 8, 0, 0, 1) + body, OP_REPLY
    return HEADER.pack(HEADER.size + len(data), next(_numbers) & 0x7FFFFFFF, request.number, opcode) + data
