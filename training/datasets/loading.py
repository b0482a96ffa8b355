"""Any dataset from its file or folder: its samples by split and the columns they came from; and an author's texts."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from training.datasets.samples import InstructionSample, Method, PreferenceSample, Sample

Row = Mapping[str, Any]
# The split of samples whose file names none.
WHOLE = "all"
_SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "eval", "evaluation"), "test"),
}
# What a field is called elsewhere, the most telling name first.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "conversation": ("messages", "conversations", "conversation"),
    "question": ("instruction", "prompt", "question", "query", "input", "problem"),
    "answer": ("chosen", "answer", "output", "response", "completion", "target", "solution"),
    "rejected": ("rejected", "rejected_answer", "rejected_response", "dispreferred"),
    "document_id": ("document_id", "doc_id", "source_id", "article_id"),
    "language": ("language", "lang"),
    "category": ("category",),
    "family": ("family",),
    "method": ("method",),
    "start": ("start",),
}
# More digits than Python reads as a number.
LONG_NUMBER = re.compile(rf"\d{{{sys.int_info.default_max_str_digits + 1}}}")
NUMBER_TOO_LONG = "a number has more digits than can be read: write it as text, or leave it out"
# A cell may hold what a line of JSON may; more is rather a quotation mark that nothing closes.
CELL_LIMIT = 64 * 1024 * 1024
_ASKERS, _ANSWERERS = ("user", "human", "prompter"), ("assistant", "gpt", "model", "bot")
EXPECTED = (
    "a dataset is a JSON list of objects (or one object, or such lists under `samples` or the names of splits), JSON "
    "lines, CSV, Parquet, or Arrow, or a folder with train, validation and test files of these; its columns are named "
    "like instruction and answer, prompt, chosen and rejected, or messages"
)
EXPECTED_DOCUMENTS = (
    "documents are a JSON list (or JSON lines) of objects with `text` and `title`, or with `content` as an export of "
    "MongoDB has it, or a folder of .md and .txt files"
)


class NotADataset(ValueError):
    """A file or folder that no samples can be read from; the message says what was found and what is expected."""


class NotDocuments(ValueError):
    """A file or folder without an author's texts; the message says what was found and what is expected."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A dataset. `splits`: samples by split, `all` where none is named; `columns`: by what a sample needs, the column
    that it was read from, or those of several; `skipped`: rows without a question or an answer that is text."""

    source: str
    kind: Literal["instructions", "preferences"]
    splits: Mapping[str, tuple[Sample, ...]]
    columns: Mapping[str, str]
    skipped: int = 0


def load(path: Path) -> Loaded:
    """Read a dataset of any common form. Raises NotADataset."""
    rows = _folder(path) if path.is_dir() else _file(path)
    rows = {split: found for split, found in rows.items() if found}
    if not rows:
        raise NotADataset(f"{path} holds no sample: {EXPECTED}")
    names = {name for found in rows.values() for row in found for name in row}
    together = _columns(names)
    if not together:
        shown = ", ".join(sorted(names)[:20]) or "none"
        raise NotADataset(f"{path} has the columns {shown}, of which none hold question and answer: {EXPECTED}")
    wanted = PreferenceSample if "rejected" in together else InstructionSample
    splits: dict[str, list[Sample]] = {}
    skipped = 0
    # Rows of one file may name alike things differently: each is read by the columns that it has something in.
    forms: dict[frozenset[str], dict[str, str]] = {}
    read: dict[str, dict[str, None]] = {}
    for split, found in rows.items():
        splits[split] = []
        for row in found:
            own = frozenset(name for name, value in row.items() if value is not None)
            if own not in forms:
                forms[own] = _columns(own)
            made = [sample for sample in _samples(row, forms[own]) if isinstance(sample, wanted)]
            splits[split] += made
            skipped += not made
            for need, column in forms[own].items() if made else ():
                read.setdefault(need, {})[column] = None
    if not any(splits.values()):
        raise NotADataset(
            f"{path} has {skipped} rows, and none has text in both of its columns {_named(together)}: {EXPECTED}"
        )
    kind: Literal["instructions", "preferences"] = "preferences" if "rejected" in together else "instructions"
    columns = {need: " or ".join(names_of) for need, names_of in read.items()}
    return Loaded(str(path), kind, {split: tuple(found) for split, found in splits.items() if found}, columns, skipped)


def _columns(names: Iterable[str]) -> dict[str, str]:
    """By what a sample needs, its column; {} where no question and answer can be had. Names differ by case and by
    spaces in many files."""
    plain = {name.strip().lower().replace(" ", "_"): name for name in sorted(names)}
    found = {}
    for need, known in COLUMNS.items():
        name = next((plain[each] for each in known if each in plain), None)
        if name is not None:
            found[need] = name
    if "question" in found and "answer" in found:
        found.pop("conversation", None)
        # The task and what it is done to, as two columns.
        if "input" in plain and found["question"] != plain["input"]:
            found["input"] = plain["input"]
    elif not ("conversation" in found or ("answer" in found and "rejected" in found)):
        return {}
    return found


def _named(columns: Mapping[str, str]) -> str:
    return " and ".join(columns[need] for need in ("conversation", "question", "answer", "rejected") if need in columns)


def _samples(row: Row, columns: Mapping[str, str]) -> Iterator[Sample]:
    """What a row with these columns holds; nothing where it has none."""

    def at(need: str) -> Any:
        return row.get(columns[need]) if need in columns else None

    method = at("method")
    start = at("start")
    shared: dict[str, Any] = {
        "document_id": str(at("document_id") or ""),
        "version": 0,
        "start": start if isinstance(start, int) else 0,
        "end": 0,
        "author": "",
        "category": str(at("category") or ""),
        "language": str(at("language") or "") or None,
        "generator": "",
        "prompt_version": "",
        "family": str(at("family") or ""),
    }
    if "conversation" in columns:
        for asked, answered in _turns(_listed(at("conversation"))):
            yield InstructionSample(instruction=asked, answer=answered, method="question", **shared)
        return
    # A pair may hold the whole conversation twice, and no prompt of its own.
    question = _text(at("question"), _ASKERS) if "question" in columns else _text(at("answer"), _ASKERS)
    answer, rejected = _text(at("answer"), _ANSWERERS), _text(at("rejected"), _ANSWERERS)
    more = _text(at("input"), _ASKERS)
    if question is None or answer is None or rejected is None or more is None:
        return
    if more.strip():
        question = f"{question}\n\n{more}"
    if not question.strip() or not answer.strip():
        return
    if "rejected" not in columns:
        known: Method = method if method in get_args(Method) else "question"
        yield InstructionSample(instruction=question, answer=answer, method=known, **shared)
    elif rejected.strip():
        yield PreferenceSample(
            prompt=question,
            chosen=answer,
            rejected=rejected,
            method="feedback" if method == "feedback" else "on-policy",
            **shared,
        )


def _listed(value: Any) -> list[Row]:
    """Messages; those of a CSV file are JSON in a cell."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return []
    return [each for each in value if isinstance(each, Mapping)] if isinstance(value, Sequence) else []


def _said(message: Row) -> tuple[str, str]:
    role, text = message.get("role", message.get("from", "")), message.get("content", message.get("value", ""))
    return str(role).lower(), text if isinstance(text, str) else ""


def _turns(messages: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """Each answer with the question before it."""
    asked = ""
    for role, text in map(_said, messages):
        if role in _ASKERS:
            asked = text
        elif role in _ANSWERERS and asked.strip() and text.strip():
            yield asked, text


def _text(value: Any, roles: Sequence[str]) -> str | None:
    """A cell as text: of a conversation what these roles said last; None of what is no text, as a number."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, Sequence):
        said = [text for role, text in map(_said, _listed(value)) if role in roles]
        return said[-1] if said else ""
    return None


def _folder(path: Path) -> dict[str, list[Row]]:
    """The files of a folder or its `data` that begin with the name of a split; of one split in one form only."""
    files = [each for where in (path, path / "data") if where.is_dir() for each in sorted(where.iterdir())]
    rows: dict[str, list[Row]] = {}
    for suffix in READERS:
        found: dict[str, list[Row]] = {}
        for file in files:
            split = _SPLIT_NAMES.get(file.name.lower().partition(".")[0].partition("-")[0])
            if file.suffix.lower() == suffix and split is not None and split not in rows:
                for part in _file(file).values():
                    found.setdefault(split, []).extend(part)
        rows |= found
    if not rows:
        seen = ", ".join(each.name for each in files[:10]) or "nothing"
        raise NotADataset(f"the folder {path} holds {seen}, and no train, validation or test file: {EXPECTED}")
    return {split: rows[split] for split in ("train", "validation", "test") if split in rows}


def _file(path: Path) -> dict[str, list[Row]]:
    reader = READERS.get(path.suffix.lower())
    if not path.exists():
        raise NotADataset(f"{path} does not exist: name the file or folder of a dataset")
    if reader is None:
        raise NotADataset(f"{path} ends in {path.suffix or 'nothing'}, which is not known: {EXPECTED}")
    try:
        return reader(path)
    except OSError as error:
        raise NotADataset(f"{path} cannot be read: {error.strerror or 'it is damaged or of another form'}") from error
    except UnicodeDecodeError as error:
        raise NotADataset(f"{path} is not UTF-8 (byte {error.start}): write it anew in UTF-8") from error


def _json(path: Path) -> dict[str, list[Row]]:
    text = path.read_text("utf-8-sig")
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise NotADataset(f"{path} is nested too deep: {EXPECTED}") from error
    except json.JSONDecodeError as error:
        first = text.lstrip().partition("\n")[0].strip()
        if first.startswith("{") and first.endswith("}"):
            return _json_lines(path)
        raise NotADataset(f"line {error.lineno} of {path} is not JSON ({error.msg}): mend it there") from error
    except ValueError as error:
        long = LONG_NUMBER.search(text)
        line = text.count("\n", 0, long.start()) + 1 if long else 1
        raise NotADataset(f"line {line} of {path}: {NUMBER_TOO_LONG}") from error
    rows: dict[str, list[Row]] = {}
    for split, found in _lists(value, WHOLE):
        rows.setdefault(split, []).extend(found)
    # A question and an answer beside a dataset only describe it.
    inner = any(_columns(row) for found in rows.values() for row in found)
    if isinstance(value, dict) and not inner and any(_samples(value, _columns(value))):
        return {WHOLE: [value]}
    return rows


def _lists(value: Any, split: str) -> Iterator[tuple[str, list[Row]]]:
    """Every list of objects, however deep, with the split whose name stands above it."""
    if isinstance(value, list) and value and all(isinstance(each, dict) for each in value):
        yield split, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _lists(each, _SPLIT_NAMES.get(key.lower(), split))


def _json_lines(path: Path) -> dict[str, list[Row]]:
    rows: list[Row] = []
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                raise NotADataset(f"line {number} of {path} is not JSON: each line must be one object") from error
            except ValueError as error:
                raise NotADataset(f"line {number} of {path}: {NUMBER_TOO_LONG}") from error
            if not isinstance(row, dict):
                raise NotADataset(f"line {number} of {path} is no object: each line must be one")
            rows.append(row)
    return {WHOLE: rows}


def _csv(path: Path) -> dict[str, list[Row]]:
    limit = csv.field_size_limit(CELL_LIMIT)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return {WHOLE: list(_csv_rows(path, lines))}
    finally:
        csv.field_size_limit(limit)


def _csv_rows(path: Path, lines: TextIO) -> Iterator[Row]:
    head = lines.readline()
    lines.seek(0)
    reader = csv.reader(lines, delimiter=max(",;\t", key=head.count), strict=True)
    names: list[str] = []
    # A row may be of several lines: the first is where to look.
    begins = 1
    try:
        for cells in reader:
            if not names:
                names = cells
                twice = [name for name, count in Counter(names).items() if name and count > 1]
                if twice:
                    raise NotADataset(
                        f"line {begins} of {path} names the column {twice[0]} twice: give each column its own name"
                    )
            elif cells:
                if len(cells) != len(names):
                    raise NotADataset(
                        f"line {begins} of {path} has not as many cells as the {len(names)} "
                        "columns of the first line: quote cells that hold the separator or line ends"
                    )
                yield dict(zip(names, cells, strict=True))
            begins = reader.line_num + 1
    except csv.Error as error:
        if "field limit" in str(error):
            raise NotADataset(
                f"line {begins} of {path} has a cell of more than {CELL_LIMIT:,} characters, or a quotation mark that "
                "nothing closes: mend it there, or write it as JSON lines"
            ) from error
        raise NotADataset(f"line {begins} of {path} is not CSV ({error}): mend it there") from error


def _parquet(path: Path) -> dict[str, list[Row]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return {WHOLE: parquet.ParquetFile(path).read().to_pylist()}
    except pa.ArrowException as error:
        raise NotADataset(f"{path} is not Parquet, or was cut off: write it anew") from error


def _arrow(path: Path) -> dict[str, list[Row]]:
    import pyarrow as pa

    with path.open("rb") as opened:
        # The file form begins with its name; what `datasets` writes is the stream form.
        whole = opened.read(6) == b"ARROW1"
        opened.seek(0)
        try:
            reader = pa.ipc.open_file(opened) if whole else pa.ipc.open_stream(opened)
            return {WHOLE: reader.read_all().to_pylist()}
        except pa.ArrowException as error:
            raise NotADataset(f"{path} is not Arrow, or was cut off: write it anew") from error


# By the end of the name; of a folder that has a split in several forms the first is read.
READERS: Mapping[str, Callable[[Path], dict[str, list[Row]]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".feather": _arrow,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
}


def load_documents(path: Path) -> dict[str, str]:
    """The author's texts by id, from an export or a folder of .md and .txt files. Raises NotDocuments."""
    if path.is_dir():
        texts = {
            file.relative_to(path).as_posix(): file.read_text("utf-8-sig", errors="replace")
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in (".md", ".txt") and file.is_file()
        }
        expected = "no .md or .txt file"
    elif path.suffix.lower() in (".json", ".jsonl", ".ndjson"):
        try:
            rows = _file(path)
        except NotADataset as error:
            raise NotDocuments(str(error)) from error
        texts = dict(_documents([row for part in rows.values() for row in part]))
        expected = "no object with a text"
    else:
        raise NotDocuments(
            f"{path} is neither JSON nor a folder: {EXPECTED_DOCUMENTS}"
            if path.exists()
            else f"{path} does not exist: name the file or folder of the author's documents"
        )
    texts = {id: text for id, text in texts.items() if text.strip()}
    if not texts:
        raise NotDocuments(f"{path} holds {expected}: {EXPECTED_DOCUMENTS}")
    return texts


def _documents(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    for number, row in enumerate(rows):
        inner = row.get("content")
        found = inner if isinstance(inner, Mapping) else row
        text = next((found[name] for name in ("Content", "content", "text", "Text", "body") if found.get(name)), "")
        id = next((row[name] for name in ("_id", "document_id", "id", "link", "url") if row.get(name)), number)
        if isinstance(id, Mapping):
            # MongoDB's extended JSON writes an ObjectId so.
            id = id.get("$oid", number)
        if isinstance(text, str):
            yield str(id), text
