"""`twin train tune`: try other numbers for a training run, and keep the best."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from corpus.terminal import bounded, print_json, printable

if TYPE_CHECKING:
    from corpus.settings import Settings

DESCRIPTION = """\
Run a configuration again and again with other numbers and write the one with the least validation loss to best.yaml in
its output. Runs that do worse than the others did by then are stopped early. The same command goes on with a study that
was stopped, and with more --trials it adds to one. A search space is a YAML file: keys, each with a list of choices, or
with low and high, and log: true for numbers that differ by their size. Without one, the learning rate, the adapter's
rank and alpha, and the gradient accumulation are searched."""


def register_tune(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `tune` to the verbs of `twin train`."""
    parser = actions.add_parser("tune", help="find better numbers for a training run", description=DESCRIPTION)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the run's configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="instead of what FILE says")
    parser.add_argument("--stage", choices=("sft", "dpo"), default="sft", help="which training it is (default sft)")
    many = bounded(int, 1, 10_000, "a number of trials")
    parser.add_argument("--trials", type=many, required=True, metavar="N", help="how many, with those that are there")
    parser.add_argument("--space", type=Path, metavar="FILE", help="what may be chosen (YAML)")
    parser.add_argument(
        "--pruner", choices=("median", "halving", "none"), default="median", help="how trials are stopped early"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON, and no progress")
    parser.set_defaults(handler=tune_training)


def tune_training(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin train tune`: 0 when the study has its trials, 1 when none came to an end, 2 for usage."""
    from training.configuration import InvalidConfiguration, load
    from training.runs import TrainingFailed
    from training.tune import read_space, tune

    # As Ctrl-C: the trial saves a checkpoint, and the same command takes it up again.
    former = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        space = None
        if namespace.space is not None:
            space = read_space(namespace.space, load(namespace.config, namespace.set))
        tuned = tune(
            namespace.config,
            namespace.set,
            namespace.trials,
            space=space,
            stage=namespace.stage,
            pruner=namespace.pruner,
            home=settings.home,
            say=lambda line: None if namespace.json else _say(line),
        )
    except InvalidConfiguration as error:
        return _told(error, 2)
    except TrainingFailed as error:
        return _told(error, 1)
    finally:
        signal.signal(signal.SIGTERM, former)
    if namespace.json:
        print_json(
            {
                "finished": tuned.finished,
                "pruned": tuned.pruned,
                "failed": tuned.failed,
                "loss": tuned.loss,
                "values": dict(tuned.values),
                "configuration": str(tuned.configuration),
            }
        )
    else:
        ended = f"{tuned.finished} finished, {tuned.pruned} stopped early, {tuned.failed} failed"
        told = f"{ended}: the least validation loss is {tuned.loss:.4f}, its configuration is {tuned.configuration}"
        sys.stdout.write(printable(told) + "\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(printable(line) + "\n")
    sys.stderr.flush()


def _told(error: Exception, code: int) -> int:
    sys.stderr.write(f"twin: {printable(str(error))}\n")
    return code
