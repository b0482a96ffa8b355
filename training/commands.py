"""`twin train`: make a base, fine-tune it, teach it preferences."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.terminal import bounded, print_json, teller
from training.planning.commands import register_plan
from training.release.due_command import register_due
from training.tune_command import register_tune

if TYPE_CHECKING:
    from corpus.settings import Settings

NEEDED = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes")
DATASET = "the id of a dataset version, or its folder"
ANY = "any"
SFT = """\
Fine-tune a model on a dataset of instructions. A run that was stopped or killed goes on from its last whole checkpoint
when the same command is given again; SIGTERM or Ctrl-C lets it save one first. For several GPUs: accelerate launch
--config_file training/configs/accelerate-fsdp.yaml -m training.sft --config FILE."""
DPO = """\
Teach a model which answers the author would rather give, by a dataset of preferences. The model is the folder of an SFT
run, which is also what it is held near to. A run that was stopped or killed goes on as `twin train sft` does."""
BASE = """\
Make a tiny base model for a machine without a GPU: the shape of Llama, with a tokenizer of its own, trained for a few
hundred steps to continue the texts. It shows the whole path in minutes and writes no sense."""


class TrainingNotInstalled(RuntimeError):
    """What training needs beyond the plain installation is missing."""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `train` and its verbs; each sets `handler`, a function of (arguments, settings) to the exit code."""
    parser = subparsers.add_parser("train", help="train a model on datasets")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, told, description, handler in (
        ("sft", "fine-tune a model on instructions", SFT, fine_tune),
        ("dpo", "teach a fine-tuned model preferences", DPO, prefer),
    ):
        verb = _verb(verbs, name, told, description, handler)
        verb.add_argument("--config", required=True, type=Path, metavar="FILE", help="what to train, on what, and how")
        verb.add_argument(
            *("--set",), action="append", default=[], metavar="KEY=VALUE", help="instead of what FILE says: lora.rank=8"
        )
        verb.add_argument(
            "--generation",
            metavar="NAME",
            help=f"which the dataset must be of (default: the live one; {ANY}: not checked)",
        )
        verb.add_argument("--anew", action="store_true", help="remove what a former run left in the same output")
    register_plan(verbs)
    register_tune(verbs)
    register_due(verbs)
    base = _verb(verbs, "base", "make a tiny base model", BASE, make_base)
    base.add_argument(
        "--from",
        dest="source",
        required=True,
        metavar="SOURCE",
        help=f"whose texts it is made of: {DATASET} (its answers to train on), or a folder of .md and .txt files",
    )
    base.add_argument("--output", required=True, type=Path, metavar="DIR", help="an empty or a new folder")
    for name, default, least, most, told in (
        ("--hidden", 256, 16, 4096, "width"),
        ("--layers", 6, 1, 64, "layers"),
        ("--heads", 8, 1, 64, "heads of attention"),
        ("--vocabulary", 4096, 300, 100_000, "tokens that the tokenizer knows, at most"),
        ("--steps", 300, 0, 1_000_000, "steps of training on the texts"),
        ("--seed", 0, 0, 2**32 - 1, "which random weights"),
    ):
        kind = bounded(int, least, most, f"a whole number from {least} to {most}")
        base.add_argument(name, type=kind, default=default, metavar="N", help=f"{told} (default {default})")


def _verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    told: str,
    description: str,
    handler: Callable[[argparse.Namespace, Settings], int],
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=told, description=description)
    verb.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    verb.set_defaults(handler=handler)
    return verb


def fine_tune(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin train sft`: 0 when finished, or stopped by SIGTERM; 1 when it failed, 2 for a wrong configuration."""
    installed()
    from training import sft

    return _train(sft.train, namespace, settings)


def prefer(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin train dpo`: as `twin train sft`."""
    installed()
    from training import dpo

    return _train(dpo.train, namespace, settings)


def _train(train: Callable[..., Any], namespace: argparse.Namespace, settings: Settings) -> int:
    import msgspec

    from training.configuration import InvalidConfiguration, load
    from training.release.tracking import tell

    say = teller(namespace.json)
    try:
        configuration = load(namespace.config, namespace.set)
        record = train(
            configuration,
            datasets=settings.home / "datasets",
            generation=_generation(namespace.generation, settings, say),
            anew=namespace.anew,
            say=say,
        )
    except InvalidConfiguration as error:
        sys.stderr.write(f"twin: {error}\n")
        return 2
    if record.state == "finished":
        tell(settings, say=say, also=Path(configuration.output))
    if namespace.json:
        print_json(msgspec.to_builtins(record))
    else:
        sys.stdout.write(told(record) + "\n")
        if record.state == "finished":
            model = Path(configuration.output) / "model"
            sys.stdout.write(f"the model is {model}; next: twin evaluate {configuration.output} --against MODEL\n")
    return 0


def told(record: Any) -> str:
    """How a run ended, in one line."""
    if record.state == "stopped":
        return f"stopped at step {record.step} of {record.steps}; run again to go on"
    return (
        f"{record.method} {record.stage.upper()} finished: {record.steps} steps, {record.tokens:,} tokens "
        f"in {record.seconds:.1f} s ({record.tokens_per_second:,.0f} tokens/s)"
    )


def make_base(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin train base`: 0 when made, 1 when it cannot be."""
    installed()
    from training import tiny
    from training.runs import quiet

    if namespace.output.exists() and any(namespace.output.iterdir()):
        sys.stderr.write(f"twin: {namespace.output} is not empty: name an empty or a new folder\n")
        return 2
    quiet()
    texts, dataset = _texts(namespace.source, settings.home / "datasets")
    parameters = tiny.make(
        texts,
        namespace.output,
        dataset=dataset,
        seed=namespace.seed,
        hidden=namespace.hidden,
        layers=namespace.layers,
        heads=namespace.heads,
        vocabulary=namespace.vocabulary,
        steps=namespace.steps,
        say=teller(namespace.json),
    )
    if namespace.json:
        print_json({"model": str(namespace.output), "parameters": parameters})
    else:
        sys.stdout.write(f"{parameters / 1e6:.1f} million parameters in {namespace.output}\n")
    return 0


def _texts(source: str, datasets: Path) -> tuple[Sequence[str], str | None]:
    """What is there to read at `source`, and the id of the dataset if it is one, of which only the split to train on is
    read."""
    from training.inputs import UnusableInput, dataset_version, rows

    folder = Path(source)
    if folder.is_dir() and not (folder / "record.json").exists():
        paths = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".txt"))
        if not paths:
            raise UnusableInput(f"there is no .md and no .txt file in {folder}")
        return [path.read_text(encoding="utf-8", errors="replace") for path in paths], None
    version = dataset_version(source, datasets, "instructions")
    return list(dict.fromkeys(row["answer"] for row in rows(version, "train"))), version.id


def _generation(asked: str | None, settings: Settings, say: Callable[[str], None]) -> str | None:
    """The generation that a dataset must be of: the one asked for, else the live one of this home."""
    from corpus.generations import aliases_of
    from corpus.points import IndexUnavailable

    if asked is not None:
        return None if asked == ANY else asked
    try:
        alias = aliases_of(settings).read()
    except IndexUnavailable as error:
        say(f"the dataset's generation is not checked: {error}")
        return None
    return alias.live.name if alias is not None else None


def installed() -> None:
    """Raises TrainingNotInstalled."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        hint = "pip install 'llm-twin[training]', or in a clone: scripts/setup training"
        raise TrainingNotInstalled(f"training needs {', '.join(missing)}: {hint}")
