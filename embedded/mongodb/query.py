"""The query language: filters, projections, sorts, expressions and aggregation stages as plain functions.

Source: MongoDB manual, "Query and Projection Operators" and "Aggregation Stages".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from bson import Code, DatetimeMS, Decimal128, Int64, ObjectId, Regex, Timestamp

from embedded.mongodb.values import (
    MISSING,
    CommandFailed,
    add_numbers,
    as_mapping,
    identity,
    is_number,
    multiply_numbers,
    order,
    unsupported,
)

Document = Mapping[str, Any]
Predicate = Callable[[Any], bool]
Stage = Callable[[Any], Callable[[Iterable[Document]], Iterable[Document]]]

TYPES: dict[str, tuple[int, Predicate]] = {
    "double": (1, lambda value: isinstance(value, float)),
    "string": (2, lambda value: isinstance(value, str) and not isinstance(value, Code)),
    "object": (3, lambda value: as_mapping(value) is not None),
    "array": (4, lambda value: isinstance(value, list)),
    "binData": (5, lambda value: isinstance(value, bytes)),
    "objectId": (7, lambda value: isinstance(value, ObjectId)),
    "bool": (8, lambda value: isinstance(value, bool)),
    "date": (9, lambda value: isinstance(value, DatetimeMS)),
    "null": (10, lambda value: value is None),
    "regex": (11, lambda value: isinstance(value, Regex)),
    "int": (16, lambda value: isinstance(value, int) and not isinstance(value, bool | Int64)),
    "timestamp": (17, lambda value: isinstance(value, Timestamp)),
    "long": (18, lambda value: isinstance(value, Int64)),
    "decimal": (19, lambda value: isinstance(value, Decimal128)),
}


# --- filters ---


def matcher(query: Document) -> Callable[[Document], bool]:
    """The predicate over documents that `query` describes. Raises CommandFailed for what cannot be understood."""
    tests: list[Callable[[Document], bool]] = []
    for name, condition in query.items():
        if name in ("$and", "$or", "$nor"):
            tests.append(_logical(name, condition))
        elif name == "$expr":
            tests.append(lambda document, condition=condition: _truth(evaluate(condition, document)))  # type: ignore[misc]
        elif name == "$comment":
            continue
        elif name.startswith("$"):
            raise _unknown(name, "top level operator")
        else:
            tests.append(_field_test(name.split("."), condition))
    if len(tests) == 1:
        return tests[0]
    return lambda document: all(test(document) for test in tests)


def _unknown(name: str, kind: str) -> CommandFailed:
    if name in ("$where", "$text", "$jsonSchema", "$near", "$nearSphere", "$geoWithin", "$geoIntersects", "$function"):
        return unsupported(f"the operator {name}")
    return CommandFailed(2, f"unknown {kind}: {name}")


def _logical(name: str, clauses: Any) -> Callable[[Document], bool]:
    if not isinstance(clauses, list) or not clauses:
        raise CommandFailed(2, f"{name} must be a nonempty array")
    if not all(isinstance(clause, Mapping) for clause in clauses):
        raise CommandFailed(2, f"{name} argument's entries must be objects")
    tests = [matcher(clause) for clause in clauses]
    if name == "$and":
        return lambda document: all(test(document) for test in tests)
    if name == "$or":
        return lambda document: any(test(document) for test in tests)
    return lambda document: not any(test(document) for test in tests)


def is_operators(condition: Any) -> bool:
    """Whether a field's condition is made of operators (`{"$gt": 1}`) rather than a document to equal."""
    return isinstance(condition, Mapping) and next(iter(condition), "").startswith("$") and "$ref" not in condition


def _field_test(path: Sequence[str], condition: Any) -> Callable[[Document], bool]:
    test = _condition(condition)
    if len(path) == 1:
        name = path[0]
        return lambda document: test([document.get(name, MISSING)])
    return lambda document: test(list(reach(document, path)))


def reach(value: Any, path: Sequence[str]) -> Iterator[Any]:
    """Every value at `path`, entering arrays on the way; MISSING where a document lacks the field."""
    if not path:
        yield value
        return
    name = path[0]
    if isinstance(value, list):
        if name.isdigit() and int(name) < len(value):
            yield from reach(value[int(name)], path[1:])
        for item in value:
            if as_mapping(item) is not None:
                yield from reach(item, path)
        return
    document = as_mapping(value)
    if document is None or name not in document:
        yield MISSING
    else:
        yield from reach(document[name], path[1:])


def _condition(condition: Any) -> Callable[[list[Any]], bool]:
    """The test of a field's condition over all the values that were reached at its path."""
    if not is_operators(condition):
        return _any(_equal(condition))
    tests = []
    for name, operand in condition.items():
        if name == "$options":
            if "$regex" not in condition:
                raise CommandFailed(2, "$options needs a $regex")
        elif name == "$regex":
            tests.append(_any(_regex(operand, condition.get("$options"))))
        elif name in OPERATORS:
            tests.append(OPERATORS[name](operand))
        else:
            raise _unknown(name, "operator")
    if len(tests) == 1:
        return tests[0]
    return lambda values: all(test(values) for test in tests)


def _any(test: Predicate) -> Callable[[list[Any]], bool]:
    """A test that holds when one of the values, or one element of an array among them, passes."""
    return lambda values: any(
        test(value) or (isinstance(value, list) and any(test(item) for item in value)) for value in values
    )


def _equal(operand: Any) -> Predicate:
    if isinstance(operand, Regex):
        return _regex(operand, None)
    if isinstance(operand, str) and not isinstance(operand, Code):
        return lambda value: isinstance(value, str) and value == operand
    key = order(operand)
    return lambda value: order(value) == key


def _compare(holds: Callable[[Any, Any], bool]) -> Callable[[Any], Callable[[list[Any]], bool]]:
    def build(operand: Any) -> Callable[[list[Any]], bool]:
        rank, key = order(operand)

        def test(value: Any) -> bool:
            found = order(value)
            # NaN compares with nothing but itself.
            return found[0] == rank and (rank != 1 or found[1][0] == key[0]) and holds(found[1], key)

        return _any(test)

    return build


def _in(operand: Any) -> Callable[[list[Any]], bool]:
    if not isinstance(operand, list):
        raise CommandFailed(2, "$in needs an array")
    patterns = [_regex(item, None) for item in operand if isinstance(item, Regex)]
    keys = {identity(item) for item in operand if not isinstance(item, Regex)}
    return _any(lambda value: identity(value) in keys or any(test(value) for test in patterns))


def _not(operand: Any) -> Callable[[list[Any]], bool]:
    if not (isinstance(operand, Regex) or is_operators(operand)):
        raise CommandFailed(2, "$not needs a regex or a document")
    test = _condition(operand)
    return lambda values: not test(values)


def _negated(build: Callable[[Any], Callable[[list[Any]], bool]]) -> Callable[[Any], Callable[[list[Any]], bool]]:
    def negated(operand: Any) -> Callable[[list[Any]], bool]:
        test = build(operand)
        return lambda values: not test(values)

    return negated


def _exists(operand: Any) -> Callable[[list[Any]], bool]:
    wanted = bool(operand)
    return lambda values: any(value is not MISSING for value in values) == wanted


def _type(operand: Any) -> Callable[[list[Any]], bool]:
    tests: list[Predicate] = []
    for wanted in operand if isinstance(operand, list) else [operand]:
        if wanted == "number":
            tests.append(is_number)
            continue
        test = next((test for name, (code, test) in TYPES.items() if wanted in (name, code)), None)
        if test is None:
            raise CommandFailed(2, f"Unknown type name alias: {wanted}")
        tests.append(test)
    return _any(lambda value: any(test(value) for test in tests))


def _size(operand: Any) -> Callable[[list[Any]], bool]:
    if not is_number(operand) or operand < 0 or operand != int(operand):
        raise CommandFailed(2, "$size must be a whole number")
    return lambda values: any(isinstance(value, list) and len(value) == operand for value in values)


def _all(operand: Any) -> Callable[[list[Any]], bool]:
    if not isinstance(operand, list):
        raise CommandFailed(2, "$all needs an array")
    tests = [_condition(item) for item in operand]
    return lambda values: bool(tests) and all(test(values) for test in tests)


def _element(operand: Any) -> Callable[[list[Any]], bool]:
    if not isinstance(operand, Mapping):
        raise CommandFailed(2, "$elemMatch needs an Object")
    if is_operators(operand) and not set(operand) & {"$and", "$or", "$nor"}:
        condition = _condition(operand)
        return lambda values: any(
            isinstance(value, list) and any(condition([item]) for item in value) for value in values
        )
    test = matcher(operand)
    return lambda values: any(
        isinstance(value, list) and any(as_mapping(item) is not None and test(item) for item in value)
        for value in values
    )


def _mod(operand: Any) -> Callable[[list[Any]], bool]:
    if not (isinstance(operand, list) and len(operand) == 2 and all(map(is_number, operand)) and int(operand[0])):
        raise CommandFailed(2, "malformed mod, needs to be an array of two numbers, the divisor not 0")
    divisor, remainder = int(operand[0]), int(operand[1])
    return _any(lambda value: is_number(value) and _remainder(value, divisor) == remainder)


def _remainder(value: Any, divisor: int) -> int:
    number = int(value.to_decimal() if isinstance(value, Decimal128) else value)
    # The sign follows the dividend, as in C.
    return abs(number) % abs(divisor) * (1 if number >= 0 else -1)


OPERATORS: dict[str, Callable[[Any], Callable[[list[Any]], bool]]] = {
    "$eq": lambda operand: _any(_equal(operand)),
    "$ne": _negated(lambda operand: _any(_equal(operand))),
    "$gt": _compare(lambda value, key: bool(value > key)),
    "$gte": _compare(lambda value, key: bool(value >= key)),
    "$lt": _compare(lambda value, key: bool(value < key)),
    "$lte": _compare(lambda value, key: bool(value <= key)),
    "$in": _in,
    "$nin": _negated(_in),
    "$not": _not,
    "$exists": _exists,
    "$type": _type,
    "$size": _size,
    "$all": _all,
    "$elemMatch": _element,
    "$mod": _mod,
}

QUOTED = re.compile(r"\\Q(.*?)(?:\\E|$)", re.DOTALL)


def _regex(operand: Any, options: Any) -> Predicate:
    """The test of a string against a pattern; PCRE's `\\Q...\\E` and leading `(?i)` are understood."""
    if isinstance(operand, Regex):
        flags, source = operand.flags, operand.pattern
    elif isinstance(operand, str):
        flags, source = 0, operand
    else:
        raise CommandFailed(2, "$regex has to be a string")
    for option in options or "":
        if option not in "imsxu":
            raise CommandFailed(51091, f"invalid flag in regex options: {option}")
        flags |= getattr(re, option.upper())
    source = source.decode() if isinstance(source, bytes) else source
    try:
        pattern = re.compile(QUOTED.sub(lambda found: re.escape(found[1]), source), flags)
    except re.error as error:
        raise CommandFailed(51091, f"Regular expression is invalid: {error}") from error
    asked = order(operand) if isinstance(operand, Regex) else None
    return lambda value: (
        pattern.search(value) is not None
        if isinstance(value, str)
        else asked is not None and isinstance(value, Regex) and order(value) == asked
    )


def equalities(query: Document) -> dict[str, Any]:
    """The fields that a filter fixes to one value: what an upsert starts its new document from."""
    fixed: dict[str, Any] = {}
    for name, condition in query.items():
        if name == "$and":
            for clause in condition:
                fixed.update(equalities(clause))
        elif name.startswith("$"):
            continue
        elif not is_operators(condition):
            if not isinstance(condition, Regex):
                fixed[name] = condition
        elif "$eq" in condition:
            fixed[name] = condition["$eq"]
        elif isinstance(condition.get("$in"), list) and len(condition["$in"]) == 1:
            fixed[name] = condition["$in"][0]
    return fixed


def candidates(query: Document, name: str) -> list[Any] | None:
    """The only values that field `name` can have in a match, or None when the filter leaves it open."""
    if name not in query:
        for clause in query.get("$and") or ():
            if isinstance(clause, Mapping) and (found := candidates(clause, name)) is not None:
                return found
        return None
    condition = query[name]
    values: Any
    if not is_operators(condition):
        values = [condition]
    elif "$eq" in condition:
        values = [condition["$eq"]]
    else:
        values = condition.get("$in")
    # A regex matches many values, and null a field that is not there.
    if not isinstance(values, list) or any(isinstance(value, Regex) or value is None for value in values):
        return None
    return values


# --- sorting ---


def sorter(keys: Document) -> list[tuple[Callable[[Document], Any], bool]]:
    """For each field of a sort document: the key function and whether it is descending, the most significant first."""
    if not isinstance(keys, Mapping):
        raise CommandFailed(14, "Expected field sort to be of type object")
    parts = []
    for name, direction in keys.items():
        if not is_number(direction) or direction not in (1, -1):
            raise CommandFailed(2, f"$sort key ordering must be 1 or -1 (for {name})")
        parts.append((_sort_key(name.split("."), direction == -1), direction == -1))
    return parts


def _sort_key(path: Sequence[str], descending: bool) -> Callable[[Document], Any]:
    pick = max if descending else min

    def key(document: Document) -> Any:
        keys = [
            order(item) for value in reach(document, path) for item in (value if isinstance(value, list) else [value])
        ]
        return pick(keys, default=(0, 0))

    return key


def sort(documents: Iterable[Document], keys: Document) -> list[Document]:
    """The documents in the order that a sort document asks for; ties keep their order."""
    ordered = list(documents)
    for key, descending in reversed(sorter(keys)):
        ordered.sort(key=key, reverse=descending)
    return ordered


# --- projections ---


def projector(projection: Document) -> Callable[[Document], Document]:
    """The function that keeps or drops fields as `projection` says. Mixing the two raises CommandFailed."""
    kept: dict[str, Any] = {}
    dropped: dict[str, Any] = {}
    computed: dict[str, Any] = {}
    for name, wanted in flatten(projection):
        if name.endswith(".$") or (isinstance(wanted, Mapping) and set(wanted) & {"$slice", "$elemMatch", "$meta"}):
            raise unsupported(f"the projection of {name}")
        if not (isinstance(wanted, bool) or is_number(wanted)):
            computed[name] = wanted
        elif wanted:
            kept[name] = True
        elif name != "_id":
            dropped[name] = True
    if dropped and (set(kept) - {"_id"} or computed):
        raise CommandFailed(2, "Cannot do exclusion and inclusion of fields in one projection")
    identified = bool(projection.get("_id", True))
    including = bool(kept or computed) and not dropped
    if not including and not identified:
        dropped["_id"] = True
    kept_tree = _tree({**({"_id": True} if identified and "_id" not in computed else {}), **kept})
    dropped_tree = _tree(dropped)

    def project(document: Document) -> Document:
        if not including:
            return _without(document, dropped_tree)
        result = _only(document, kept_tree)
        for name, expression in computed.items():
            assign(result, name.split("."), evaluate(expression, document))
        return result

    return project


def flatten(projection: Document, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of a projection with nested documents spelled as dotted names."""
    for name, wanted in projection.items():
        if isinstance(wanted, Mapping) and wanted and not next(iter(wanted)).startswith("$"):
            yield from flatten(wanted, f"{prefix}{name}.")
        else:
            yield prefix + name, wanted


def _tree(names: Iterable[str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name in names:
        node, parts = tree, name.split(".")
        for part in parts[:-1]:
            node = node.setdefault(part, {}) if isinstance(node.get(part, {}), dict) else {}
        node[parts[-1]] = True
    return tree


def _only(document: Document, tree: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in document.items():
        wanted = tree.get(name)
        if wanted is True:
            kept[name] = value
        elif wanted is not None:
            part = _descend(value, wanted, _only, scalars=False)
            if part is not MISSING:
                kept[name] = part
    return kept


def _without(document: Document, tree: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value if name not in tree else _descend(value, tree[name], _without, scalars=True)
        for name, value in document.items()
        if tree.get(name) is not True
    }


def _descend(value: Any, tree: Mapping[str, Any], apply: Callable[..., dict[str, Any]], scalars: bool) -> Any:
    if isinstance(value, list):
        parts = (_descend(item, tree, apply, scalars) for item in value)
        return [part for part in parts if part is not MISSING]
    document = as_mapping(value)
    if document is not None:
        return apply(document, tree)
    return value if scalars else MISSING


def assign(document: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a computed field, making documents on the way; MISSING leaves or removes it."""
    for name in path[:-1]:
        inner = document.get(name)
        document[name] = dict(inner) if isinstance(inner, Mapping) else {}
        document = document[name]
    if value is MISSING:
        document.pop(path[-1], None)
    else:
        document[path[-1]] = value


# --- expressions ---


def evaluate(expression: Any, root: Document) -> Any:
    """The value of an aggregation expression for one document; MISSING when it names a field that is not there."""
    if isinstance(expression, str) and expression.startswith("$"):
        return _variable(expression, root)
    if isinstance(expression, list):
        return [None if value is MISSING else value for value in (evaluate(item, root) for item in expression)]
    if not isinstance(expression, Mapping):
        return expression
    name = next(iter(expression), "")
    if not name.startswith("$"):
        pairs = ((field, evaluate(item, root)) for field, item in expression.items())
        return {field: value for field, value in pairs if value is not MISSING}
    if len(expression) != 1:
        raise CommandFailed(2, "an expression has exactly one operator")
    operand = expression[name]
    if name == "$literal":
        return operand
    if name == "$cond":
        parts = operand if isinstance(operand, list) else [operand.get(part) for part in ("if", "then", "else")]
        return evaluate(parts[1] if _truth(evaluate(parts[0], root)) else parts[2], root)
    if name not in EXPRESSIONS:
        raise unsupported(f"the expression {name}")
    arguments = [evaluate(item, root) for item in operand] if isinstance(operand, list) else [evaluate(operand, root)]
    return EXPRESSIONS[name](arguments)


def _variable(expression: str, root: Document) -> Any:
    if not expression.startswith("$$"):
        return _resolve(root, expression[1:].split("."))
    name, _, path = expression[2:].partition(".")
    if name == "REMOVE":
        return MISSING
    if name not in ("ROOT", "CURRENT"):
        raise CommandFailed(2, f"Use of undefined variable: {name}")
    return _resolve(root, path.split(".")) if path else root


def _resolve(value: Any, path: Sequence[str]) -> Any:
    if not path:
        return value
    if isinstance(value, list):
        return [found for item in value if (found := _resolve(item, path)) is not MISSING]
    document = as_mapping(value)
    return MISSING if document is None or path[0] not in document else _resolve(document[path[0]], path[1:])


def _truth(value: Any) -> bool:
    return not (value is MISSING or value is None or value is False or (is_number(value) and order(value) == order(0)))


def _concat(values: list[Any]) -> Any:
    if any(value is None or value is MISSING for value in values):
        return None
    if not all(isinstance(value, str) for value in values):
        raise CommandFailed(14, "$concat only supports strings")
    return "".join(values)


def _arithmetic(operation: Callable[[Any, Any], Any]) -> Callable[[list[Any]], Any]:
    def compute(values: list[Any]) -> Any:
        if any(value is None or value is MISSING for value in values):
            return None
        if not all(map(is_number, values)):
            raise CommandFailed(14, "arithmetic only supports numbers")
        result = values[0]
        for value in values[1:]:
            result = operation(result, value)
        return result

    return compute


def _length(values: list[Any]) -> int:
    if not isinstance(values[0], list):
        raise CommandFailed(14, "The argument to $size must be an array")
    return len(values[0])


def _type_name(values: list[Any]) -> str:
    if values[0] is MISSING:
        return "missing"
    return next((name for name, (_, test) in TYPES.items() if test(values[0])), "unknown")


EXPRESSIONS: dict[str, Callable[[list[Any]], Any]] = {
    "$concat": _concat,
    "$ifNull": lambda values: next(
        (value for value in values if value is not None and value is not MISSING), values[-1]
    ),
    "$eq": lambda values: order(values[0]) == order(values[1]),
    "$ne": lambda values: order(values[0]) != order(values[1]),
    "$gt": lambda values: order(values[0]) > order(values[1]),
    "$gte": lambda values: order(values[0]) >= order(values[1]),
    "$lt": lambda values: order(values[0]) < order(values[1]),
    "$lte": lambda values: order(values[0]) <= order(values[1]),
    "$and": lambda values: all(map(_truth, values)),
    "$or": lambda values: any(map(_truth, values)),
    "$not": lambda values: not _truth(values[0]),
    "$in": lambda values: identity(values[0]) in {identity(item) for item in values[1]},
    "$size": _length,
    "$add": _arithmetic(add_numbers),
    "$subtract": _arithmetic(lambda left, right: add_numbers(left, multiply_numbers(right, -1))),
    "$multiply": _arithmetic(multiply_numbers),
    "$strLenCP": lambda values: len(values[0]),
    "$toLower": lambda values: str(values[0] or "").lower(),
    "$toUpper": lambda values: str(values[0] or "").upper(),
    "$type": _type_name,
}


# --- aggregation ---


def pipeline(
    stages: Sequence[Document], allowed: Iterable[str] | None = None
) -> Callable[[Iterable[Document]], Iterable[Document]]:
    """The function from documents to documents that a pipeline describes; `allowed` limits the stages' names."""
    steps = []
    names = set(STAGES if allowed is None else allowed)
    for stage in stages:
        if not isinstance(stage, Mapping) or len(stage) != 1:
            raise CommandFailed(2, "A pipeline stage specification object must contain exactly one field.")
        ((name, specification),) = stage.items()
        if name not in names:
            raise unsupported(f"the aggregation stage {name}" + ("" if allowed is None else " in a change stream"))
        steps.append(STAGES[name](specification))

    def run(documents: Iterable[Document]) -> Iterable[Document]:
        for step in steps:
            documents = step(documents)
        return documents

    return run


def _match(query: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    test = matcher(query)
    return lambda documents: (document for document in documents if test(document))


def _project(projection: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    apply = projector(projection)
    return lambda documents: (apply(document) for document in documents)


def _add_fields(fields: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    def add(document: Document) -> Document:
        result = dict(document)
        for name, expression in fields.items():
            assign(result, name.split("."), evaluate(expression, document))
        return result

    return lambda documents: (add(document) for document in documents)


def _unset(names: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    return _project(dict.fromkeys(names if isinstance(names, list) else [names], 0))


def _replace(expression: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    def replace(document: Document) -> Document:
        result = as_mapping(evaluate(expression, document))
        if result is None:
            raise CommandFailed(2, "'newRoot' expression must evaluate to an object")
        return result

    return lambda documents: (replace(document) for document in documents)


def _group(specification: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    fields = {name: wanted for name, wanted in specification.items() if name != "_id"}
    for name, wanted in fields.items():
        if not isinstance(wanted, Mapping) or len(wanted) != 1:
            raise CommandFailed(2, f"The field '{name}' must be an accumulator object")
        if next(iter(wanted)) not in ACCUMULATORS:
            raise unsupported(f"the accumulator {next(iter(wanted))}")

    def group(documents: Iterable[Document]) -> Iterable[Document]:
        groups: dict[bytes, tuple[Any, dict[str, list[Any]]]] = {}
        for document in documents:
            key = evaluate(specification.get("_id"), document)
            _, values = groups.setdefault(identity(key), (key, {name: [] for name in fields}))
            for name, wanted in fields.items():
                values[name].append(evaluate(next(iter(wanted.values())), document))
        for key, values in groups.values():
            computed = {name: ACCUMULATORS[next(iter(wanted))](values[name]) for name, wanted in fields.items()}
            yield {"_id": None if key is MISSING else key, **computed}

    return group


def _total(values: list[Any]) -> Any:
    total: Any = 0
    for value in values:
        if is_number(value):
            total = add_numbers(total, value)
    return total


def _average(values: list[Any]) -> Any:
    numbers = [value.to_decimal() if isinstance(value, Decimal128) else value for value in values if is_number(value)]
    return float(sum(numbers)) / len(numbers) if numbers else None


def _present(values: list[Any]) -> list[Any]:
    return [value for value in values if value is not None and value is not MISSING]


def _plain(value: Any) -> Any:
    return None if value is MISSING else value


ACCUMULATORS: dict[str, Callable[[list[Any]], Any]] = {
    "$sum": _total,
    "$avg": _average,
    "$count": len,
    "$min": lambda values: min(_present(values), key=order, default=None),
    "$max": lambda values: max(_present(values), key=order, default=None),
    "$first": lambda values: _plain(values[0]),
    "$last": lambda values: _plain(values[-1]),
    "$push": lambda values: [value for value in values if value is not MISSING],
    "$addToSet": lambda values: list({identity(value): value for value in values if value is not MISSING}.values()),
}


def _unwind(specification: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    options = {"path": specification} if isinstance(specification, str) else specification
    if set(options) - {"path", "preserveNullAndEmptyArrays"}:
        raise unsupported("$unwind with includeArrayIndex")
    path = options["path"].removeprefix("$").split(".")
    keep = bool(options.get("preserveNullAndEmptyArrays"))

    def unwind(documents: Iterable[Document]) -> Iterable[Document]:
        for document in documents:
            value = _resolve(document, path)
            for item in value if isinstance(value, list) else [] if value in (None, MISSING) else [value]:
                result = dict(document)
                assign(result, path, item)
                yield result
            if keep and value in (None, MISSING, []):
                result = dict(document)
                assign(result, path, MISSING if value == [] else value)
                yield result

    return unwind


def _count(name: Any) -> Callable[[Iterable[Document]], Iterable[Document]]:
    def count(documents: Iterable[Document]) -> Iterable[Document]:
        number = sum(1 for _ in documents)
        return [{name: number}] if number else []

    return count


STAGES: dict[str, Stage] = {
    "$match": _match,
    "$project": _project,
    "$addFields": _add_fields,
    "$set": _add_fields,
    "$unset": _unset,
    "$replaceRoot": lambda specification: _replace(specification.get("newRoot")),
    "$replaceWith": _replace,
    "$sort": lambda keys: lambda documents: sort(documents, keys),
    "$skip": lambda number: lambda documents: islice(documents, int(number), None),
    "$limit": lambda number: lambda documents: islice(documents, int(number)),
    "$count": _count,
    "$group": _group,
    "$unwind": _unwind,
}
CHANGE_STREAM_STAGES = ("$match", "$project", "$addFields", "$set", "$unset", "$replaceRoot", "$replaceWith")
