"""BSON values as the server sees them: their codec, their order, their identity; and the errors that a client sees.

Source: MongoDB manual, "Comparison/Sort Order"; error codes of its `error_codes.yml`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from bson import (
    Code,
    DatetimeMS,
    DBRef,
    Decimal128,
    Int64,
    MaxKey,
    MinKey,
    ObjectId,
    Regex,
    Timestamp,
    encode,
)
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions, DatetimeConversion
from bson.raw_bson import RawBSONDocument

MAX_DOCUMENT_BYTES: Final = 16 * 1024 * 1024

# Dates stay milliseconds and UUIDs stay binary, so that a value that goes through us comes out bit by bit.
CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    document_class=dict,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)
RAW_CODEC: Final[CodecOptions[RawBSONDocument]] = CodecOptions(
    document_class=RawBSONDocument,
    uuid_representation=UuidRepresentation.UNSPECIFIED,
    datetime_conversion=DatetimeConversion.DATETIME_MS,
)

CODES: Final = {
    1: "InternalError",
    2: "BadValue",
    9: "FailedToParse",
    13: "Unauthorized",
    14: "TypeMismatch",
    20: "IllegalOperation",
    22: "InvalidBSON",
    26: "NamespaceNotFound",
    27: "IndexNotFound",
    28: "PathNotViable",
    40: "ConflictingUpdateOperators",
    43: "CursorNotFound",
    48: "NamespaceExists",
    59: "CommandNotFound",
    66: "ImmutableField",
    72: "InvalidOptions",
    73: "InvalidNamespace",
    85: "IndexOptionsConflict",
    91: "ShutdownInProgress",
    100: "UnsatisfiableWriteConcern",
    115: "CommandNotSupported",
    225: "TransactionTooOld",
    260: "InvalidResumeToken",
    280: "ChangeStreamFatalError",
    286: "ChangeStreamHistoryLost",
    352: "UnsupportedOpQueryCommand",
    10334: "BSONObjectTooLarge",
    11000: "DuplicateKey",
    17419: "BSONObjectTooLarge",
    51091: "InvalidRegex",
}


class CommandFailed(Exception):
    """A command or a statement of it that is answered with an error: `code` of CODES, a message and details."""

    def __init__(self, code: int, message: str, **details: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details

    def reply(self) -> dict[str, Any]:
        """The fields of an error reply, or of one entry of `writeErrors`."""
        return {"code": self.code, "codeName": CODES[self.code], "errmsg": self.message, **self.details}


def unsupported(what: str) -> CommandFailed:
    """The refusal of something that a MongoDB server has and this one has not."""
    return CommandFailed(115, f"{what} is not supported by the embedded MongoDB")


class Missing:
    """The value of a field that is not there; it orders and compares as null."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = Missing()


def as_mapping(value: Any) -> Mapping[str, Any] | None:
    """The value as an embedded document, or None if it is none."""
    if isinstance(value, Mapping):
        return value
    return value.as_doc() if isinstance(value, DBRef) else None


def order(value: Any) -> tuple[int, Any]:
    """A key that sorts and compares as MongoDB does: the rank of the type first, then the value within it.

    Numbers of all types share a rank, so do null and a missing field.
    """
    if isinstance(value, Code):
        return (12, str(value))
    if isinstance(value, str):
        return (2, value.encode("utf-8", "surrogatepass"))
    if value is None or value is MISSING:
        return (0, 0)
    if isinstance(value, bool):
        return (7, value)
    if isinstance(value, int | float | Decimal128):
        number = value.to_decimal() if isinstance(value, Decimal128) else value
        return (1, (0, 0) if number != number else (1, number))
    if isinstance(value, DatetimeMS):
        return (8, int(value))
    if isinstance(value, ObjectId):
        return (6, value.binary)
    if isinstance(value, list):
        return (4, tuple(order(item) for item in value))
    if isinstance(value, bytes):
        return (5, (len(value), getattr(value, "subtype", 0), bytes(value)))
    if (document := as_mapping(value)) is not None:
        return (3, tuple((key[0], name, key[1]) for name, item in document.items() for key in (order(item),)))
    if isinstance(value, Timestamp):
        return (9, (value.time, value.inc))
    if isinstance(value, Regex):
        return (10, (str(value.pattern), value.flags))
    if isinstance(value, MinKey):
        return (-1, 0)
    if isinstance(value, MaxKey):
        return (127, 0)
    raise CommandFailed(2, f"a value of type {type(value).__name__} cannot be compared")


def identity(value: Any) -> bytes:
    """Bytes that are equal for two values exactly when MongoDB calls them equal (1, 1.0 and NumberLong(1) are)."""
    if isinstance(value, str) and not isinstance(value, Code):
        return b"s" + value.encode("utf-8", "surrogatepass")
    if isinstance(value, ObjectId):
        return b"o" + value.binary
    if value is None or value is MISSING:
        return b"0"
    if isinstance(value, int | float | Decimal128) and not isinstance(value, bool):
        number = value.to_decimal() if isinstance(value, Decimal128) else value
        if number != number:
            return b"nNaN"
        if isinstance(number, float | Decimal) and number in (float("inf"), float("-inf")):
            return b"n+" if number > 0 else b"n-"
        # Cutting sizes first keeps 1E6000 from becoming six thousand digits.
        if isinstance(number, Decimal) and abs(number.adjusted()) > 400:
            return b"N" + str(number.normalize()).encode()
        above, below = number.as_integer_ratio()
        return f"n{above}/{below}".encode()
    if isinstance(value, list):
        return b"[" + b"".join(_framed(identity(item)) for item in value)
    if (document := as_mapping(value)) is not None:
        return b"{" + b"".join(_framed(name.encode()) + _framed(identity(item)) for name, item in document.items())
    return b"v" + encode({"": value}, codec_options=CODEC)


def _framed(part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + part


def add_numbers(left: Any, right: Any) -> Any:
    """The sum, in the wider of the two types as MongoDB does. Raises CommandFailed on overflow of 64 bits."""
    return _computed(left, right, lambda a, b: a + b)


def multiply_numbers(left: Any, right: Any) -> Any:
    """The product, in the wider of the two types as MongoDB does. Raises CommandFailed on overflow of 64 bits."""
    return _computed(left, right, lambda a, b: a * b)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float | Decimal128) and not isinstance(value, bool)


def _computed(left: Any, right: Any, operation: Any) -> Any:
    if isinstance(left, Decimal128) or isinstance(right, Decimal128):
        return Decimal128(operation(_decimal(left), _decimal(right)))
    result = operation(left, right)
    if isinstance(result, float):
        return result
    if not -(2**63) <= result < 2**63:
        raise CommandFailed(2, f"the result {result} does not fit into 64 bits")
    return Int64(result) if isinstance(left, Int64) or isinstance(right, Int64) else result


def _decimal(value: Any) -> Decimal:
    return value.to_decimal() if isinstance(value, Decimal128) else Decimal(str(value))
