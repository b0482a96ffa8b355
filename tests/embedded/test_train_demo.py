"""Which model `make train-demo` ends with, the first time and again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedded import train_demo
from embedded.train_demo import StepFailed, released

Commands = list[tuple[str, ...]]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Commands]:
    """A `twin` that lists these versions, registers the run as twin-3, and approves it or not; what it was told."""

    def with_versions(*versions: dict[str, Any], approves: bool = True) -> Commands:
        told: Commands = []

        def run(*arguments: str) -> int:
            told.append(arguments)
            return int(arguments[:2] == ("model", "approve") and not approves)

        def printed(*arguments: str) -> Any:
            told.append(arguments)
            return list(versions) if arguments == ("model", "list") else {"id": "twin-3"}

        monkeypatch.setattr(train_demo, "run", run)
        monkeypatch.setattr(train_demo, "printed", printed)
        return told

    return with_versions


def test_the_first_model_must_be_better_than_its_base(terminal: Callable[..., Commands], tmp_path: Path) -> None:
    told = terminal()

    assert released(tmp_path / "run", tmp_path / "base", "d1") == "twin-3"

    evaluated = next(each for each in told if each[0] == "evaluate")
    assert evaluated[evaluated.index("--against") + 1] == str(tmp_path / "base")
    assert any(each[:3] == ("model", "approve", "twin-3") for each in told)


def test_a_first_model_that_is_no_better_ends_the_demo(terminal: Callable[..., Commands], tmp_path: Path) -> None:
    terminal(approves=False)

    with pytest.raises(StepFailed, match="model approve twin-3"):
        released(tmp_path / "run", tmp_path / "base", "d1")


@pytest.mark.parametrize(("approves", "ends_with"), [(True, "twin-3"), (False, "twin-1")])
def test_a_later_model_is_held_against_the_champion_which_stays_where_it_is_as_good(
    terminal: Callable[..., Commands], tmp_path: Path, approves: bool, ends_with: str
) -> None:
    # The newest in the list is neither the champion nor what is registered now.
    other, champion = (
        {"id": id, "state": state, "run": id} for id, state in (("twin-2", "candidate"), ("twin-1", "champion"))
    )
    told = terminal(other, champion, approves=approves)

    assert released(tmp_path / "run", tmp_path / "base", "d1") == ends_with

    evaluated = next(each for each in told if each[0] == "evaluate")
    assert evaluated[evaluated.index("--against") + 1] == "champion"


def test_a_run_that_is_the_champion_already_is_not_held_against_itself(
    terminal: Callable[..., Commands], tmp_path: Path
) -> None:
    told = terminal({"id": "twin-1", "state": "champion", "run": str(tmp_path / "run")})

    assert released(tmp_path / "run", tmp_path / "base", "d1") == "twin-1"
    assert told == [("model", "list")]
