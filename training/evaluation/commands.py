"""`twin evaluate`: what a model does with held-out documents, and whether it does better than another."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from corpus.terminal import bounded, print_json

if TYPE_CHECKING:
    from corpus.history import DocumentVersion
    from corpus.settings import Settings
    from training.datasets.store import Record
    from training.datasets.wordsmith import Wordsmith

CHAMPION = "champion"
DESCRIPTION = """\
Evaluate a model on the test split of a dataset of instructions: how likely it finds the author's own answers, how like
the author its own are, how grounded they are in passages, and whether it still knows what its base knew. With --against
every figure is compared on the same samples. Writes evaluation.json and report.html, which needs nothing but a
browser."""


class NotComparable(RuntimeError):
    """There is no model to compare with; the message says what to do."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `evaluate`, which sets `handler`, a function of (arguments, settings) to the exit code."""
    parser = subparsers.add_parser(
        "evaluate", help="evaluate a model on held-out documents, and compare it", description=DESCRIPTION
    )
    parser.add_argument("model", metavar="MODEL", help="the folder of a run or of a model")
    parser.add_argument(
        "--against", metavar="MODEL", help=f"the model to compare with: a folder, or `{CHAMPION}` for the approved one"
    )
    parser.add_argument(
        "--dataset", metavar="ID", help="of instructions (default: the one that the model was fine-tuned on)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="where to write (default: evaluation, in the run's folder or here)"
    )
    for name, default, least, most, told in (
        ("--questions", None, 2, 100_000, "held-out questions that are answered at most (default 100)"),
        ("--max-tokens", None, 1, 32_768, "tokens of an answer at most (default 200)"),
        ("--seed", 7, 0, 2**32 - 2, "of the questions drawn and of the intervals (default 7)"),
    ):
        kind = bounded(int, least, most, f"a whole number from {least} to {most}")
        parser.add_argument(name, type=kind, default=default, metavar="N", help=told)
    parser.add_argument(
        "--judge-url", metavar="URL", help="a model that judges pairs of answers (default TWIN_LLM_URL)"
    )
    parser.add_argument("--judge-model", metavar="NAME", help="its name (default TWIN_LLM_MODEL)")
    parser.add_argument("--json", action="store_true", help="print the evaluation as JSON, and no progress")
    parser.set_defaults(handler=run)


def run(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin evaluate`: 0 when evaluated, well or badly; 1 when it cannot be, 2 where no dataset is named."""
    from corpus.terminal import teller
    from training.commands import installed

    installed()
    from training.evaluation import evaluating as evaluation
    from training.evaluation import held_out, report
    from training.evaluation.figures import model_folder
    from training.inputs import model_folder as known_model
    from training.runs import quiet

    say = teller(namespace.json)
    folder = model_folder(known_model(namespace.model))
    against = _against(namespace.against, settings)
    trained = held_out.trained_on(folder)
    seen = [held_out.version(id, settings.datasets_directory) for id in trained]
    evaluated = _dataset(namespace.dataset, seen, settings)
    if evaluated is None:
        sys.stderr.write(
            "twin: no run made this model, so nobody knows what it was trained on: name the dataset (--dataset ID); "
            "`twin dataset list` shows them\n"
        )
        return 2
    held_out.refuse_seen(evaluated, seen)
    if against is not None:
        # A comparison is fair where neither has seen the test.
        others = [held_out.version(id, settings.datasets_directory) for id in held_out.trained_on(against)]
        held_out.refuse_seen(evaluated, others)
    record, place = evaluated
    say("reading the held-out documents")
    chosen = held_out.held_out(
        record,
        place,
        _documents(record, settings),
        count=namespace.questions or evaluation.QUESTIONS,
        seed=namespace.seed,
    )
    quiet()
    found = evaluation.evaluate(
        folder,
        against,
        chosen,
        base=_base(folder) if against is None else None,
        judge=_judge(namespace, settings),
        max_tokens=namespace.max_tokens or evaluation.MAX_TOKENS,
        seed=namespace.seed,
        say=say,
    )
    found = msgspec.structs.replace(found, trained_on=tuple(trained))
    if not trained:
        note = "no run made this model: whether it was trained on these documents is not known"
        found = msgspec.structs.replace(found, notes={**found.notes, "trained on": note})
    path = report.write(found, namespace.output or _output(folder))
    if namespace.json:
        print_json(msgspec.to_builtins(found))
    else:
        sys.stdout.write(f"{report.told(found)}\n{path}\n")
    return 0


def _dataset(
    reference: str | None, seen: Sequence[tuple[Record, Path]], settings: Settings
) -> tuple[Record, Path] | None:
    """The dataset that is asked for, else the last one of instructions that the model was trained on."""
    from training.evaluation import held_out

    if reference is not None:
        return held_out.version(reference, settings.datasets_directory)
    return next((each for each in seen if each[0].kind == "instructions"), None)


def _against(reference: str | None, settings: Settings) -> Path | None:
    from training.evaluation.figures import model_folder
    from training.inputs import model_folder as known_model

    if reference is None:
        return None
    return model_folder(_champion(settings) if reference == CHAMPION else known_model(reference))


def _champion(settings: Settings) -> Path:
    """Where the champion's model lies. Raises NotComparable, WarehouseUnavailable."""
    from corpus.warehouse import connect
    from training.release.registry import Registry

    with connect(settings) as warehouse:
        champion = Registry(settings.home, warehouse, told=lambda versions: None, live=lambda: None).champion()
    if champion is None:
        raise NotComparable("there is no champion yet: compare with the base (--against FOLDER), or with nothing")
    if not (Path(champion.folder) / "config.json").is_file():
        raise NotComparable(
            f"the champion {champion.id} is not at {champion.folder} any more: put its folder back, or name another "
            "model to compare with (--against FOLDER)"
        )
    return Path(champion.folder)


def _base(folder: Path) -> Path | None:
    """The base of the run, if it is on this machine: the classifier of style can learn from its answers."""
    from training.evaluation import held_out
    from training.evaluation.figures import UnreadableFigures, model_folder
    from training.inputs import UnusableInput
    from training.inputs import model_folder as known_model

    name = held_out.base_of(folder)
    try:
        return model_folder(known_model(name)) if name is not None else None
    except (UnusableInput, UnreadableFigures):
        return None


def _documents(record: Record, settings: Settings) -> list[DocumentVersion]:
    """The documents as they were when the dataset was built; none where this home has no history."""
    from corpus.history import open_history

    if not (settings.home / "history").is_dir():
        return []
    history = open_history(settings)
    return history.documents(as_of=record.as_of, sequence=record.sequence, generation=record.generation)


def _judge(namespace: argparse.Namespace, settings: Settings) -> Wordsmith | None:
    from corpus.settings import key_for
    from training.datasets.wordsmith import ServedWordsmith

    url = namespace.judge_url or settings.llm_url
    if not url:
        return None
    chosen = msgspec.structs.replace(
        settings,
        llm_url=url,
        llm_model=namespace.judge_model or settings.llm_model,
        llm_api_key=key_for(settings, url),
    )
    return ServedWordsmith(chosen)


def _output(folder: Path) -> Path:
    """`evaluation` in the folder of the run that made the model; of any other model, in the working directory."""
    from training.runs import RECORD

    run = folder.parent
    return run / "evaluation" if folder.name == "model" and (run / RECORD).is_file() else Path("evaluation")
