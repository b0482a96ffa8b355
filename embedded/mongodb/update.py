"""Updates: what a replacement or update operators make of a document, and how the two versions differ.

Source: MongoDB manual, "Update Operators" and "Change Events" (`updateDescription`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any

from bson import DatetimeMS, Timestamp, encode

from embedded.mongodb.query import is_operators, matcher
from embedded.mongodb.values import (
    CODEC,
    MISSING,
    CommandFailed,
    add_numbers,
    identity,
    is_number,
    multiply_numbers,
    order,
    unsupported,
)


def is_replacement(change: Any) -> bool:
    """Whether an update statement gives a whole document. Raises CommandFailed for pipelines and mixtures."""
    if isinstance(change, list):
        raise unsupported("an update with an aggregation pipeline")
    if not isinstance(change, Mapping):
        raise CommandFailed(9, "Update argument must be either an object or an array")
    operators = [name for name in change if name.startswith("$")]
    if operators and len(operators) < len(change):
        raise CommandFailed(9, "an update has either operators or fields of a replacement, not both")
    return not operators


def updated(document: Mapping[str, Any], change: Mapping[str, Any], inserting: bool) -> dict[str, Any]:
    """A changed copy of the document; `inserting` lets `$setOnInsert` act. Raises CommandFailed."""
    result = deepcopy(dict(document))
    touched: list[str] = []
    for operator, fields in change.items():
        if operator == "$setOnInsert" and not inserting:
            continue
        if operator not in UPDATES:
            raise (
                unsupported(f"the update operator {operator}")
                if operator == "$bit"
                else CommandFailed(9, f"Unknown modifier: {operator}. Expected a valid update modifier")
            )
        if not isinstance(fields, Mapping):
            raise CommandFailed(9, f"Modifiers operate on fields but we found another type for {operator}")
        for name in sorted(fields):
            _claim(name, touched)
            if operator == "$rename":
                _claim(str(fields[name]), touched)
                _rename(result, name, str(fields[name]))
            else:
                UPDATES[operator](result, name.split("."), fields[name])
    if "_id" in document and identity(result.get("_id")) != identity(document["_id"]):
        raise CommandFailed(66, "Performing an update on the path '_id' would modify the immutable field '_id'")
    return result


def _claim(name: str, touched: list[str]) -> None:
    parts = name.split(".")
    if not all(parts):
        raise CommandFailed(2, f"The update path '{name}' contains an empty field name")
    if any(part.startswith("$") for part in parts):
        raise unsupported(f"the positional operator in '{name}'")
    for other in touched:
        if other == name or other.startswith(name + ".") or name.startswith(other + "."):
            raise CommandFailed(40, f"Updating the path '{name}' would create a conflict at '{other}'")
    touched.append(name)


def _parent(document: Any, path: Sequence[str], create: bool) -> Any:
    """The document or array that holds the last part of `path`; None when it is not there and may not be made."""
    for position, name in enumerate(path[:-1]):
        inner = _get(document, name)
        if inner is MISSING:
            if not create:
                return None
            inner = {}
            _put(document, name, inner)
        elif not isinstance(inner, dict | list):
            if not create:
                return None
            raise CommandFailed(28, f"Cannot create field '{path[position + 1]}' in element {{{name}: {inner!r}}}")
        document = inner
    if isinstance(document, list) and not path[-1].isdigit():
        if not create:
            return None
        raise CommandFailed(28, f"Cannot create field '{path[-1]}' in an array")
    return document


def _get(document: Any, name: str) -> Any:
    if isinstance(document, list):
        return document[int(name)] if name.isdigit() and int(name) < len(document) else MISSING
    return document.get(name, MISSING)


def _put(document: Any, name: str, value: Any) -> None:
    if not isinstance(document, list):
        document[name] = value
        return
    if not name.isdigit():
        raise CommandFailed(28, f"Cannot create field '{name}' in an array")
    index = int(name)
    if index > len(document) + 1_500_000:
        raise CommandFailed(2, f"cannot back-fill an array up to position {index}")
    document.extend([None] * (index + 1 - len(document)))
    document[index] = value


def _field(change: Callable[[Any, Any], Any]) -> Callable[[Any, Sequence[str], Any], None]:
    """An operator that computes the new value of a field from the old one (MISSING when absent) and its operand."""

    def apply(document: Any, path: Sequence[str], operand: Any) -> None:
        holder = _parent(document, path, create=True)
        _put(holder, path[-1], change(_get(holder, path[-1]), operand))

    return apply


def _unset(document: Any, path: Sequence[str], operand: Any) -> None:
    holder = _parent(document, path, create=False)
    if isinstance(holder, list):
        if int(path[-1]) < len(holder):
            holder[int(path[-1])] = None
    elif holder is not None:
        holder.pop(path[-1], None)


def _rename(document: dict[str, Any], source: str, target: str) -> None:
    path = source.split(".")
    holder = _parent(document, path, create=False)
    if isinstance(holder, list):
        raise CommandFailed(2, "The source field of $rename cannot be an array element")
    if holder is None or path[-1] not in holder:
        return
    value = holder.pop(path[-1])
    aim = target.split(".")
    _put(_parent(document, aim, create=True), aim[-1], value)


def _arithmetic(name: str, operation: Callable[[Any, Any], Any], empty: int) -> Callable[[Any, Any], Any]:
    def compute(old: Any, operand: Any) -> Any:
        if not is_number(operand):
            raise CommandFailed(14, f"Cannot {name} with non-numeric argument: {operand!r}")
        if old is MISSING:
            return operation(multiply_numbers(operand, 0), operand) if empty == 0 else multiply_numbers(operand, 0)
        if not is_number(old):
            raise CommandFailed(14, f"Cannot apply ${name} to a value of non-numeric type")
        return operation(old, operand)

    return compute


def _now(_: Any, operand: Any) -> Any:
    kind = operand.get("$type") if isinstance(operand, Mapping) else "date"
    moment = time.time()
    return Timestamp(int(moment), 1) if kind == "timestamp" else DatetimeMS(int(moment * 1000))


def _array(old: Any, operator: str) -> list[Any]:
    if old is MISSING:
        return []
    if not isinstance(old, list):
        raise CommandFailed(2, f"The field must be an array for {operator}")
    return old


def _push(old: Any, operand: Any) -> Any:
    items, modifiers = [operand], {}
    if isinstance(operand, Mapping) and "$each" in operand:
        items, modifiers = operand["$each"], {key: value for key, value in operand.items() if key != "$each"}
    if set(modifiers) - {"$slice", "$position"}:
        raise unsupported(f"$push with {sorted(set(modifiers) - {'$slice', '$position'})[0]}")
    result = list(_array(old, "$push"))
    position = int(modifiers.get("$position", len(result)))
    result[position:position] = items
    if "$slice" in modifiers:
        limit = int(modifiers["$slice"])
        result = result[:limit] if limit >= 0 else result[limit:]
    return result


def _add_to_set(old: Any, operand: Any) -> Any:
    items = operand["$each"] if isinstance(operand, Mapping) and "$each" in operand else [operand]
    result = list(_array(old, "$addToSet"))
    known = {identity(item) for item in result}
    for item in items:
        if identity(item) not in known:
            known.add(identity(item))
            result.append(item)
    return result


def _pull(document: Any, path: Sequence[str], operand: Any) -> None:
    if isinstance(operand, Mapping) and not is_operators(operand):
        whole = matcher(operand)

        def unwanted(item: Any) -> bool:
            return isinstance(item, Mapping) and whole(item)
    else:
        single = matcher({"item": operand})

        def unwanted(item: Any) -> bool:
            return single({"item": item})

    _remove(document, path, unwanted, "$pull")


def _pull_all(document: Any, path: Sequence[str], operand: Any) -> None:
    gone = {identity(item) for item in operand}
    _remove(document, path, lambda item: identity(item) in gone, "$pullAll")


def _remove(document: Any, path: Sequence[str], unwanted: Callable[[Any], bool], operator: str) -> None:
    holder = _parent(document, path, create=False)
    if holder is None or _get(holder, path[-1]) is MISSING:
        return
    items = _array(_get(holder, path[-1]), operator)
    _put(holder, path[-1], [item for item in items if not unwanted(item)])


def _pop(document: Any, path: Sequence[str], operand: Any) -> None:
    holder = _parent(document, path, create=False)
    if holder is None or _get(holder, path[-1]) is MISSING:
        return
    items = _array(_get(holder, path[-1]), "$pop")
    _put(holder, path[-1], items[1:] if operand == -1 else items[:-1])


UPDATES: dict[str, Callable[[Any, Sequence[str], Any], None]] = {
    "$set": _field(lambda old, operand: operand),
    "$setOnInsert": _field(lambda old, operand: operand),
    "$unset": _unset,
    "$inc": _field(_arithmetic("increment", add_numbers, 0)),
    "$mul": _field(_arithmetic("mul", multiply_numbers, 1)),
    "$min": _field(lambda old, operand: operand if old is MISSING or order(operand) < order(old) else old),
    "$max": _field(lambda old, operand: operand if old is MISSING or order(operand) > order(old) else old),
    "$currentDate": _field(_now),
    "$rename": _unset,
    "$push": _field(_push),
    "$addToSet": _field(_add_to_set),
    "$pull": _pull,
    "$pullAll": _pull_all,
    "$pop": _pop,
}


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The `updateDescription` of a change: fields set and removed, as dotted paths; a changed array counts whole."""
    changed: dict[str, Any] = {}
    removed: list[str] = []
    _differ(before, after, "", changed, removed)
    return {"updatedFields": changed, "removedFields": removed, "truncatedArrays": []}


def _differ(
    before: Mapping[str, Any], after: Mapping[str, Any], prefix: str, changed: dict[str, Any], removed: list[str]
) -> None:
    for name, value in after.items():
        old = before.get(name, MISSING)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            _differ(old, value, f"{prefix}{name}.", changed, removed)
        elif old is MISSING or encode({"": old}, codec_options=CODEC) != encode({"": value}, codec_options=CODEC):
            changed[prefix + name] = value
    removed.extend(prefix + name for name in before if name not in after)
