"""Dataset cards: what a version is, for a person and for a hub, in its README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from training.datasets.store import Record

TASKS = {"instructions": "text-generation", "preferences": "reinforcement-learning"}
PLACE = "PATH_OF_THIS_FOLDER"
# Of many authors or documents the card names so many.
SHOWN = 10


def card(record: Record, place: str = PLACE) -> str:
    """The card in Markdown, with the YAML head by which the `datasets` library finds the splits.

    `place`: the folder to load, in Python; a card that is copied with its folder cannot know it.
    Source: Gebru et al., Datasheets for Datasets (2018); the hub's dataset card format.
    """
    figures = record.statistics
    rows = [
        ("Samples", ", ".join(f"{split} {count:,}" for split, count in record.splits.items())),
        ("Documents", f"{len(record.document_ids):,} in {figures['families']:,} families, none of them divided"),
        ("Answers", "{all:,} words; {least:,} to {most:,}, median {median:,}".format(**figures["answer_words"])),
        *((name.capitalize(), _listed(figures[name])) for name in ("method", "author", "category", "language")),
        ("Written by", _listed(figures["generator"])),
        ("As of", record.as_of.isoformat() if record.as_of else f"{record.created_at.isoformat()} (when it was built)"),
        ("Generation", record.generation),
        ("Code", record.code_revision or "not known"),
        ("Hash of the samples", f"`{record.hash}`"),
    ]
    if "ungrounded" in figures:
        rows.append(("Ungrounded answers", f"{figures['ungrounded']:,}"))
    if "length_bias" in figures:
        bias = figures["length_bias"]
        low, high = bias["longer_interval"]
        rows.append(("Chosen is the longer answer", f"{bias['longer']:.0%} of pairs ({low:.0%} to {high:.0%})"))
    recipe = msgspec.yaml.encode(record.recipe).decode()
    return "\n".join(
        [
            _head(record),
            f"# {record.name} ({record.kind})\n",
            f"Version `{record.id}`: {_what(record)}\n",
            "| | |\n|---|---|",
            *(f"| {name} | {_cell(told)} |" for name, told in rows),
            "\n## Left out\n",
            _table(record.left_out, ("reason", "samples")),
            *(f"- {gate}: {note}" for gate, note in record.notes.items()),
            "\n## Recipe\n",
            f"```yaml\n{recipe}```\n",
            "## Use\n",
            f"```python\nfrom datasets import load_dataset\n\nload_dataset({place})\n```\n",
            "Each sample names its document, the version of it and the span of its cleaned text that it rests on. The "
            "texts belong to their authors: use them as far as these allow.",
            "",
        ]
    )


def _head(record: Record) -> str:
    files = [{"split": split, "path": f"{split}.parquet"} for split, count in record.splits.items() if count]
    head = {
        "pretty_name": record.name,
        "task_categories": [TASKS[record.kind]],
        "configs": [{"config_name": "default", "data_files": files}],
    }
    return f"---\n{msgspec.yaml.encode(head).decode()}---\n"


def _what(record: Record) -> str:
    if record.kind == "instructions":
        return (
            "instructions whose answers are the author's own passages, or were made from them and checked against them."
        )
    return "pairs of answers, of which the chosen one is the author's own or a person's choice."


def _listed(counts: Mapping[str, int]) -> str:
    parts = [f"{name} {count:,}" for name, count in list(counts.items())[:SHOWN]]
    return ", ".join(parts) + (f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else "")


def _table(counts: Mapping[str, int], heads: tuple[str, str]) -> str:
    if not counts:
        return "Nothing.\n"
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return "\n".join([f"| {heads[0]} | {heads[1]} |\n|---|---:|", *(f"| {_cell(n)} | {c:,} |" for n, c in ordered)])


def _cell(text: Any) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
