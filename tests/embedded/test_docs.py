"""The documentation against the program: every setting, command and option is told of, and no others."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from corpus.settings import PREFIX, Settings
from embedded.cli import parser
from serving.metrics import Metrics
from streaming.lag import Probe
from streaming.log import Log
from streaming.metrics import BesideMetrics, StreamMetrics
from streaming.progress import Progress
from streaming.verify import Report

ROOT = Path(__file__).parents[2]
OPERATING = ROOT / "docs" / "operating.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTING = re.compile(r"^\| `(TWIN_\w+)` \| (?:`([^`]*)`)? ?\|", re.MULTILINE)
SECTION = re.compile(r"^### `twin ([^`]+)`\n\n([^\n]+)\n(.*?)(?=^#)", re.MULTILINE | re.DOTALL)
BULLET = re.compile(r"^- `([^`]+)`", re.MULTILINE)
METRIC = re.compile(r"^\| `(twin_\w+)` \| (\w+) \|", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)]*)?\)")


def commands(of: argparse.ArgumentParser, path: str = "", told: str = "") -> Iterator[tuple[str, str, set[str]]]:
    """Name, help and arguments of every command that does something."""
    nested = [action for action in of._actions if isinstance(action, argparse._SubParsersAction)]
    if not nested:
        named = {action.option_strings[-1] if action.option_strings else action.dest for action in of._actions}
        yield path, told, named - {"--help"}
    for action in nested:
        helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            yield from commands(child, f"{path} {name}".strip(), helps[name])


def default_of(value: Any) -> str:
    """A setting's default as a person would write it in the environment."""
    if value is None or value in ("", ()):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_the_table_of_settings_is_the_settings_with_their_defaults() -> None:
    told = dict(SETTING.findall(OPERATING.read_text()))

    fields = zip(Settings.__struct_fields__, Settings.__struct_defaults__, strict=True)
    assert told == {PREFIX + name.upper(): default_of(value) for name, value in fields}


def test_every_command_is_told_of_with_its_help_and_its_arguments() -> None:
    told = {
        name: (said.strip(" .").casefold(), set(BULLET.findall(body)))
        for name, said, body in SECTION.findall(OPERATING.read_text())
    }

    assert told == {name: (said.strip(" .").casefold(), named) for name, said, named in commands(parser())}


def test_the_table_of_metrics_is_what_the_app_exposes() -> None:
    told = METRIC.findall(OPERATING.read_text())
    progress, registry = Progress(), CollectorRegistry()
    progress.reads({0: 0})
    progress.searchable(datetime.now(UTC))
    progress.tells_letters(lambda: {"decode": 1})
    probe = Probe(Log("", "", "", "", "", "", lambda: ""))
    probe._looked = probe._moved = 1.0
    report = Report(1, 2, 0, 0, 0, 0, 0, 0, 0, None, "g", (), 0.1, datetime.now(UTC))
    registry.register(StreamMetrics(progress, lambda: report, probe))
    registry.register(BesideMetrics(lambda: ("candidate", progress)))
    Metrics(registry)

    exposed = re.findall(r"^# TYPE (\w+) (\w+)$", generate_latest(registry).decode(), re.MULTILINE)

    assert sorted(told) == sorted(each for each in exposed if not each[0].endswith("_created"))


def test_the_readme_names_every_command() -> None:
    readme = (ROOT / "README.md").read_text()

    assert [name for name, _, _ in commands(parser()) if not re.search(rf"\btwin {name}\b", readme)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    missing = [target for target in LINK.findall(page.read_text()) if not (page.parent / target).exists()]

    assert missing == []
