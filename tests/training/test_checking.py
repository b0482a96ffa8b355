"""Checking any dataset: every common form is read, and its faults are found, with counts and examples."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import feather, parquet

from training.datasets.checking import check
from training.datasets.loading import Loaded, NotADataset, NotDocuments, load, load_documents
from training.datasets.samples import InstructionSample, PreferenceSample, answered, asked
from training.datasets.verdict import passes, told
from training.shares import wilson

HANDBOOK = Path(__file__).parents[3] / "shared" / "data" / "handbook"
ROWS = [{"instruction": f"What is {number}?", "answer": f"It is the number {number}."} for number in range(3)]
READ = [(f"What is {number}?", f"It is the number {number}.") for number in range(3)]


def as_csv(path: Path, rows: Sequence[dict[str, str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def as_stream(path: Path, rows: Sequence[dict[str, str]]) -> None:
    table = pa.Table.from_pylist(list(rows))
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


FORMS: dict[str, Callable[[Path, Sequence[dict[str, str]]], object]] = {
    "list.json": lambda path, rows: path.write_text(json.dumps(rows)),
    "samples.json": lambda path, rows: path.write_text(json.dumps({"id": 1, "articles": {"samples": rows}})),
    "lines.jsonl": lambda path, rows: path.write_text("\n\n".join(map(json.dumps, rows)) + "\n"),
    "lines.json": lambda path, rows: path.write_text("\n".join(map(json.dumps, rows))),
    "with-mark.json": lambda path, rows: path.write_text(json.dumps(rows), encoding="utf-8-sig"),
    "table.csv": as_csv,
    "semicolons.csv": lambda path, rows: as_csv(path, rows, ";"),
    "table.tsv": lambda path, rows: as_csv(path, rows, "\t"),
    "table.parquet": lambda path, rows: parquet.write_table(pa.Table.from_pylist(list(rows)), path),
    "file.arrow": lambda path, rows: feather.write_feather(pa.Table.from_pylist(list(rows)), path),
    "stream.arrow": as_stream,
}


def read(loaded: Loaded) -> dict[str, list[tuple[str, str]]]:
    return {split: [(asked(each), answered(each)) for each in part] for split, part in loaded.splits.items()}


@pytest.mark.parametrize("form", FORMS)
def test_a_dataset_is_read_from_every_common_form(form: str, tmp_path: Path) -> None:
    FORMS[form](tmp_path / form, ROWS)

    loaded = load(tmp_path / form)

    assert read(loaded) == {"all": READ}
    assert (loaded.kind, loaded.columns) == ("instructions", {"question": "instruction", "answer": "answer"})


def test_splits_are_told_by_the_keys_above_them_however_deep(tmp_path: Path) -> None:
    nested = {
        "train": {"articles": {"samples": ROWS[:1]}, "posts": {"samples": ROWS[1:2]}},
        "dev": ROWS[2:],
        "test": {},
    }
    (tmp_path / "nested.json").write_text(json.dumps(nested))

    assert read(load(tmp_path / "nested.json")) == {"train": READ[:2], "validation": READ[2:]}


def test_a_folder_is_read_by_its_files_and_a_split_in_two_forms_once(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    FORMS["table.parquet"](tmp_path / "data" / "train-00000-of-00002.parquet", ROWS[:1])
    FORMS["table.parquet"](tmp_path / "data" / "train-00001-of-00002.parquet", ROWS[1:2])
    FORMS["stream.arrow"](tmp_path / "train.arrow", ROWS[:2])
    FORMS["lines.jsonl"](tmp_path / "test.jsonl", ROWS[2:])
    (tmp_path / "record.json").write_text("{}")

    assert read(load(tmp_path)) == {"train": READ[:2], "test": READ[2:]}


# A number of more digits than Python reads.
LONG = "7" * 5_000
SAID = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"Prompt": "Why?", "Completion": "Because."}, [("Why?", "Because.")]),
        ({"instruction": "Add up.", "input": "1, 2", "output": "3"}, [("Add up.\n\n1, 2", "3")]),
        ({"instruction": "Add up.", "input": "", "output": "3"}, [("Add up.", "3")]),
        (
            {"messages": [{"role": "system", "content": "Be."}, *SAID, {"role": "user", "content": "And?"}, SAID[1]]},
            [("Why?", "Because."), ("And?", "Because.")],
        ),
        (
            {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
            [("Why?", "Because.")],
        ),
        ({"prompt": SAID[:1], "completion": SAID[1:]}, [("Why?", "Because.")]),
    ],
)
def test_questions_and_answers_are_found_under_their_common_names(
    row: dict[str, Any], expected: list[tuple[str, str]], tmp_path: Path
) -> None:
    (tmp_path / "a.json").write_text(json.dumps([row]))

    assert read(load(tmp_path / "a.json")) == {"all": expected}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Why?", "chosen": "Because.", "rejected": "No."},
        {"chosen": SAID, "rejected": [SAID[0], {"role": "assistant", "content": "No."}]},
    ],
)
def test_a_dataset_with_rejected_answers_is_one_of_preferences(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))

    loaded = load(tmp_path / "a.jsonl")

    (sample,) = loaded.splits["all"]
    assert loaded.kind == "preferences"
    assert isinstance(sample, PreferenceSample)
    assert (sample.prompt, sample.chosen, sample.rejected) == ("Why?", "Because.", "No.")


def test_a_dataset_of_ours_keeps_documents_families_methods_and_languages(tmp_path: Path) -> None:
    sample = InstructionSample(
        instruction="Boil it.",
        answer="def boil(): ...",
        method="code",
        document_id="d7",
        version=3,
        start=40,
        end=55,
        author="Ada",
        category="code",
        language="python",
        generator="templates",
        prompt_version="1",
        family="d2",
    )
    row = msgspec.to_builtins(sample) | {"scores": "{}"}
    FORMS["table.parquet"](tmp_path / "train.parquet", [row])

    (found,) = load(tmp_path).splits["train"]

    for field in ("instruction", "answer", "method", "document_id", "start", "category", "language", "family"):
        assert getattr(found, field) == getattr(sample, field)


def test_rows_without_an_answer_are_counted_and_left_out(tmp_path: Path) -> None:
    rows = [*ROWS, {"instruction": "And?", "answer": None}, {"instruction": "  ", "answer": "Yes."}, {"other": 1}]
    (tmp_path / "a.json").write_text(json.dumps(rows))

    loaded = load(tmp_path / "a.json")

    assert (read(loaded), loaded.skipped) == ({"all": READ}, 3)


@pytest.mark.parametrize("value", [float("nan"), 1, True, ["So."], {"so": 1}])
def test_what_is_no_text_is_no_question_and_no_answer(value: object, tmp_path: Path) -> None:
    rows = [*ROWS, {"instruction": "And?", "answer": value}, {"instruction": value, "answer": "Yes."}]
    (tmp_path / "a.json").write_text(json.dumps(rows))

    loaded = load(tmp_path / "a.json")

    assert (read(loaded), loaded.skipped) == ({"all": READ}, 2)


def test_a_question_about_a_number_is_not_asked_without_it(tmp_path: Path) -> None:
    rows = [*ROWS, {"instruction": "Double it.", "input": 5, "answer": "10"}]
    (tmp_path / "a.json").write_text(json.dumps(rows))

    loaded = load(tmp_path / "a.json")

    assert (read(loaded), loaded.skipped) == ({"all": READ}, 1)


def test_rows_that_name_their_columns_differently_are_each_read_by_their_own(tmp_path: Path) -> None:
    rows = [
        {"instruction": "How?", "output": "So."},
        {"question": "Why?", "answer": "Because."},
        {"instruction": None, "prompt": "When?", "completion": "Now.", "messages": None},
        {"messages": SAID},
        {"question": "Whose?", "note": "nobody answered"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    loaded = load(tmp_path / "a.jsonl")

    expected = [("How?", "So."), ("Why?", "Because."), ("When?", "Now."), ("Why?", "Because.")]
    assert (read(loaded), loaded.skipped) == ({"all": expected}, 1)
    assert loaded.columns["question"] == "instruction or question or prompt"


def test_in_a_dataset_of_preferences_what_has_no_rejected_answer_is_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "Why?", "chosen": "Because.", "rejected": "No."}, {"question": "How?", "answer": "So."}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    loaded = load(tmp_path / "a.jsonl")

    assert (loaded.kind, len(loaded.splits["all"]), loaded.skipped) == ("preferences", 1, 1)


def test_a_mark_of_byte_order_is_no_part_of_an_authors_text(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("# Notes", encoding="utf-8-sig")

    assert load_documents(tmp_path) == {"notes.md": "# Notes"}


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", '{"question": "Why?", "answer": "So."}\n{"question": "W', "line 2 of"),
        ("a.jsonl", '{"question": "Why?", "answer": "So."}\n[1]', "line 2 of"),
        ("a.json", '[{"question": "Why?",\n "answer": }]', "line 2 of"),
        ("a.json", '{"question": "Why?", "answer": "So."}\n{"question"', "line 2 of"),
        ("a.json", "[" * 100_000, "nested too deep"),
        ("a.json", "[]", "holds no sample"),
        ("a.json", '{"question": "Why?", "answer": NaN}', "holds no sample"),
        ("a.json", '[{"id": 1, "text": "Because."}]', "the columns id, text"),
        ("a.json", '[{"question": "Why?", "answer": ""}]', "1 rows"),
        ("a.csv", 'question,answer\nWhy?,So.\n"Why, again?",So,and so\n', "line 3 of"),
        ("a.csv", 'question,answer\n"Why,\nagain?",So.\n\nHow?\n', "line 5 of"),
        ("a.csv", 'question,answer\n"Why,\nagain?","So', "line 2 of"),
        ("a.csv", "question,question,answer\na,b,c\n", "line 1 of"),
        ("a.csv", "question,question,answer\na,b,c\n", "names the column question twice"),
        ("a.csv", 'question,answer\nWhy?,"So', "is not CSV"),
        ("a.csv", "", "holds no sample"),
        pytest.param("a.json", '[{"question": "Why?",\n "answer": ' + LONG + "}]", "line 2 of", id="long number"),
        pytest.param("a.jsonl", '{"answer": ' + LONG + "}", "more digits than can be read", id="long number in lines"),
        ("a.parquet", "PAR1 and no more", "is not Parquet"),
        ("a.arrow", "ARROW1 and no more", "is not Arrow"),
        ("a.arrow", "not even that", "is not Arrow"),
        ("a.docx", "text", ".docx"),
        ("a", "text", "ends in nothing"),
    ],
)
def test_what_is_no_dataset_is_refused_with_the_place_and_what_is_expected(
    name: str, content: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(content)

    with pytest.raises(NotADataset) as refused:
        load(path)

    assert said in str(refused.value)
    assert str(path) in str(refused.value)


def test_a_cell_of_csv_holds_what_a_line_of_json_holds(tmp_path: Path) -> None:
    told = csv.field_size_limit()
    answer = "so " * 50_000
    (tmp_path / "a.csv").write_text(f'question,answer\nWhy?,"{answer}"\n')

    assert read(load(tmp_path / "a.csv")) == {"all": [("Why?", answer)]}
    assert csv.field_size_limit() == told


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("x" * 2_000, 1),
        ("question,answer\nWhy?,So.\n\nHow?," + "so" * 1_000, 4),
        ('q,answer\nWhy?,"' + "so\n" * 1_000, 2),
    ],
    ids=["at the head", "of one line", "that nothing closes"],
)
def test_a_cell_that_is_too_long_for_csv_too_is_refused_with_the_line_where_its_row_begins(
    content: str, line: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.datasets.loading.CELL_LIMIT", 1_000)
    told = csv.field_size_limit()
    (tmp_path / "a.csv").write_text(content)

    with pytest.raises(NotADataset, match=rf"^line {line} of .* a cell of more than 1,000 characters"):
        load(tmp_path / "a.csv")

    assert csv.field_size_limit() == told


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Why?", "answer": "Because."},
        {"messages": SAID},
        {"question": "Why?", "answer": "Because.", "passages": [{"title": "Gates", "text": "A gate opens."}]},
    ],
)
def test_one_object_that_is_a_sample_is_a_dataset_of_one(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(row, indent=1))

    assert read(load(tmp_path / "a.json")) == {"all": [("Why?", "Because.")]}


def test_a_question_and_an_answer_beside_a_dataset_only_describe_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"prompt": "Ask it.", "output": "answers", "samples": ROWS}))

    assert read(load(tmp_path / "a.json")) == {"all": READ}


def test_what_is_not_there_not_utf_8_or_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes('[{"question": "Zürich?"}]'.encode("latin-1"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes.md").write_text("notes")

    for path, said in (
        (tmp_path / "none.json", "does not exist"),
        (tmp_path / "latin.json", "is not UTF-8"),
        (tmp_path / "folder", "holds notes.md, and no train"),
    ):
        with pytest.raises(NotADataset, match=said):
            load(path)


def test_the_texts_of_an_author_are_read_from_an_export_a_list_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(
        json.dumps(
            [
                {"_id": "a1", "content": {"Title": "Gates", "Content": "A gate opens."}, "link": "https://example.com"},
                {"_id": {"$oid": "65f0"}, "content": {"Title": "Doors", "Content": "A door too."}},
                {"_id": "a3", "content": {"Title": "Walls", "Content": None}},
            ]
        )
    )
    (tmp_path / "list.json").write_text(json.dumps([{"title": "Gates", "text": "A gate opens.", "url": "https://a"}]))
    folder = tmp_path / "folder" / "inner"
    folder.mkdir(parents=True)
    (folder / "gates.md").write_text("# Gates\n\nA gate opens.")
    (folder.parent / "doors.txt").write_text("A door too.")
    (folder.parent / "walls.py").write_text("pass")

    assert load_documents(tmp_path / "export.json") == {"a1": "A gate opens.", "65f0": "A door too."}
    assert load_documents(tmp_path / "list.json") == {"https://a": "A gate opens."}
    assert load_documents(tmp_path / "folder") == {
        "doors.txt": "A door too.",
        "inner/gates.md": "# Gates\n\nA gate opens.",
    }
    for path, said in (
        (tmp_path / "none", "does not exist"),
        (folder / "gates.md", "is neither JSON nor a folder"),
        (Path(__file__).parents[1] / "contracts", "holds no .md or .txt file"),
    ):
        with pytest.raises(NotDocuments, match=said):
            load_documents(path)


def prose(seed: int, count: int) -> str:
    """Words of letters that no other seed puts in this order."""
    source = random.Random(seed)
    return " ".join("".join(source.choices("abcdefghijklmnop", k=6)) for _ in range(count))


DOCUMENTS = {f"d{number}": prose(number, 400) for number in range(4)}


def passage(document: str, start: int, words: int = 60) -> str:
    return " ".join(DOCUMENTS[document].split()[start : start + words])


def dataset(train: Sequence[dict[str, str]], test: Sequence[dict[str, str]], tmp_path: Path) -> Loaded:
    (tmp_path / "dataset.json").write_text(json.dumps({"train": train, "test": test}))
    return load(tmp_path / "dataset.json")


def rows(documents: Sequence[str], **fields: str) -> list[dict[str, str]]:
    return [
        {"instruction": f"How did {document} put part {start} of it?", "answer": passage(document, start), **fields}
        | {"document_id": document}
        for document in documents
        for start in range(0, 300, 60)
    ]


def test_a_dataset_of_an_authors_own_passages_passes(tmp_path: Path) -> None:
    loaded = dataset(rows(["d0", "d1", "d2"]), rows(["d3"]), tmp_path)

    report = check(loaded, DOCUMENTS, evaluation_sets={"general": ["Who wrote this and when was it and why?"]})

    assert passes(report) == []
    assert report.samples == {"train": 15, "test": 5}
    assert report.grounding == {"none": 0, "under 10%": 0, "10 to 50%": 0, "50 to 90%": 0, "90% and more": 20}
    assert report.overlaps[0].families == 0
    assert told(report).endswith("\npasses\n")


def test_every_fault_of_a_dataset_is_counted_and_shown(tmp_path: Path) -> None:
    train = rows(["d0", "d1"])
    train += [
        train[0],
        {"instruction": "What does the passage above say?", "answer": prose(9, 60)},
    ]
    train += [{"instruction": "How is it reached?", "answer": passage("d1", 310, 40) + " ada@engine.org"}]
    train += [{"instruction": "What comes next?", "answer": "Subscribe to my newsletter. Share this post."}]
    train += [{"instruction": "What is it measured by?", "answer": passage("d2", 300, 50)}]
    test = [*rows(["d3"]), {**train[3], "instruction": "HOW did d0 put  part 180 of it?"}]
    loaded = dataset(train, test, tmp_path)

    report = check(loaded, DOCUMENTS, evaluation_sets={"general": [passage("d2", 320, 10)]})

    assert report.ungrounded is not None
    assert report.contaminated is not None
    assert (report.ungrounded.count, report.ungrounded.share) == (2, pytest.approx(2 / 21))
    assert (report.repeated["exact"].count, report.repeated["near"].count) == (1, 0)
    (overlap,) = report.overlaps
    assert (overlap.of, overlap.within, overlap.samples) == ("test", "train", 6)
    assert (overlap.same_questions, overlap.same_answers, overlap.near_answers, overlap.families) == (1, 1, 1, 1)
    assert (report.generic.count, report.boilerplate.count, report.contaminated.count) == (1, 1, 1)
    assert (report.privacy.count, report.exposed) == (1, {"an e-mail address": 1})
    assert report.privacy.examples[0].at == 12
    text = told(report)
    assert "ada@engine.org" not in text
    assert [reason.partition(" (")[0] for reason in passes(report)] == [
        "answers that share no five words in a row with the author's texts: 2",
        "samples that repeat another exactly: 1",
        "answers that are boilerplate: 1",
        "samples that hold personal data or secrets: 1",
        "samples that share words with an evaluation set: 1",
        "test questions that occur in train: 1 of 6",
        "test answers that occur in train: 1 of 6",
        "document families in both test and train: 1",
    ]
    assert all(reason in text for reason in passes(report))
    assert msgspec.json.decode(msgspec.json.encode(report), type=type(report)) == report


def test_meanings_are_compared_where_there_is_a_model_and_else_said_not_to_be(tmp_path: Path) -> None:
    def first_word(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.array([[text.startswith("Tea"), not text.startswith("Tea")] for text in texts], np.float32)

    train = [{"question": "What is tea to you?", "answer": "Tea is what comes first in the morning."}]
    train += [{"question": "And what is coffee?", "answer": "Coffee comes second, if it has to come."}]
    train += [{"question": "What is a morning?", "answer": "Tea and nothing else makes up my mornings."}]
    test = [{"question": "What do you drink?", "answer": "Tea whenever the sun comes up at all."}]
    loaded = dataset(train, test, tmp_path)

    report, without = check(loaded, embed=first_word), check(loaded)

    assert (report.repeated["semantic"].count, report.overlaps[0].same_meaning) == (1, 1)
    assert ("semantic" in without.repeated, without.overlaps[0].same_meaning) == (False, None)
    assert any("embedding" in reason for reason in without.not_looked_at)
    assert any("documents" in reason for reason in without.not_looked_at)


def test_pairs_are_held_side_by_side_and_the_length_bias_is_reported(tmp_path: Path) -> None:
    train = [
        {"prompt": f"Why is it {n}?", "chosen": f"{passage('d0', n * 8, 20)}", "rejected": passage("d1", n * 8, 10)}
        for n in range(30)
    ]
    train += [{"prompt": "Why not?", "chosen": passage("d2", 0, 20), "rejected": passage("d2", 0, 19) + " other"}] * 2
    (tmp_path / "pairs.json").write_text(json.dumps(train))

    report = check(load(tmp_path / "pairs.json"))

    assert report.pairs is not None
    assert (report.pairs.pairs, report.pairs.alike.count) == (32, 2)
    assert (report.pairs.chosen_longer, report.pairs.chosen_shorter) == (30, 0)
    assert report.pairs.longer_chosen == 1.0
    assert report.pairs.longer_chosen_interval == pytest.approx((0.886, 1.0), abs=0.001)
    assert report.pairs.length_ratio == pytest.approx(2 ** (30 / 32))
    assert report.pairs.length_ratio_interval[0] < report.pairs.length_ratio < report.pairs.length_ratio_interval[1]
    assert any("length alone" in reason for reason in passes(report))
    assert any("too alike" in reason for reason in passes(report))


def test_what_people_preferred_need_not_stand_in_a_text_of_the_authors(tmp_path: Path) -> None:
    def pairs(method: str) -> Loaded:
        (tmp_path / "pairs.json").write_text(
            json.dumps(
                [
                    {
                        "prompt": f"Why is it {n}?",
                        "method": method,
                        "chosen": prose(100 + n, 12),
                        # One word of twelve was changed.
                        "rejected": prose(100 + n, 11) + " other",
                    }
                    for n in range(3)
                ]
            )
        )
        return load(tmp_path / "pairs.json")

    edits, models = check(pairs("feedback"), DOCUMENTS), check(pairs("on-policy"), DOCUMENTS)

    assert passes(edits) == []
    assert (edits.ungrounded, edits.grounding) == (None, None)
    assert any("the 3 that people preferred need not" in reason for reason in edits.not_looked_at)
    assert models.ungrounded is not None
    assert models.ungrounded.share == 1
    assert any("too alike" in reason for reason in passes(models))


def test_the_languages_of_a_large_dataset_are_those_of_a_part_and_are_told_as_such(tmp_path: Path) -> None:
    few, many = rows(["d0"]), [{"instruction": f"What is {n}?", "answer": prose(n, 5)} for n in range(201)]

    assert "evenly" not in told(check(dataset(few, few, tmp_path)))
    assert "(of 200 answers, evenly over all)" in told(check(dataset(many, few, tmp_path)))


def test_the_interval_of_a_share_is_that_of_wilson() -> None:
    # Worked by hand from the formula.
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_a_report_never_moves_the_cursor_of_a_terminal(tmp_path: Path) -> None:
    row = {"question": "What \x1b[31mof it?", "answer": "Nothing of it was ever \x1b]0;said\x07 by anybody."}
    loaded = dataset([row], [row], tmp_path)

    text = told(check(loaded, {"d": "Another text altogether, and not long."}))

    assert "\x1b" not in text
    assert "\x07" not in text


@pytest.mark.integration  # no services, but seconds
@pytest.mark.skipif(not HANDBOOK.is_dir(), reason="the shared datasets are not here")
def test_the_public_instruction_dataset_is_ungrounded_and_leaks_its_test_into_train() -> None:
    documents = load_documents(HANDBOOK / "articles.json")

    report = check(load(HANDBOOK / "instruct_datasets.json"), documents)

    assert (report.samples, report.documents) == ({"train": 2_250, "test": 250}, 76)
    assert report.ungrounded is not None
    assert report.ungrounded.share == pytest.approx(0.89, abs=0.005)
    assert [(each.of, each.same_questions) for each in report.overlaps] == [("test", 69)]
    assert any("share no five words" in reason for reason in passes(report))
    assert "test questions that occur in train: 69 of 250" in passes(report)


@pytest.mark.integration  # no services, but seconds
@pytest.mark.skipif(not HANDBOOK.is_dir(), reason="the shared datasets are not here")
def test_the_public_preference_dataset_asks_about_an_extract_and_prefers_the_longer() -> None:
    report = check(load(HANDBOOK / "preference_datasets.json"), load_documents(HANDBOOK / "articles.json"))

    assert (report.kind, report.samples) == ("preferences", {"train": 381, "test": 21})
    assert report.pairs is not None
    assert report.ungrounded is not None
    assert report.ungrounded.share > 0.99
    assert report.generic.count > 90
    assert report.pairs.alike.count > 50
    assert report.pairs.longer_chosen_interval[0] > 0.8
    assert len(passes(report)) == 5
