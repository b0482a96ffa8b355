"""`twin train plan`: what a training run would take, before anything is rented or loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from corpus.terminal import bounded, print_json, printable

if TYPE_CHECKING:
    from corpus.settings import Settings

DESCRIPTION = """\
Tell what a training run takes: memory on each device by part, steps, time, and the price of the time. No model is
loaded: its shape comes from its folder, or from those that are known. The tokens are estimated from the dataset unless
--tokens says them. The formulas are in docs/training.md."""
# What the configurations that come with the program name as their dataset.
PLACEHOLDER = "DATASET"
# English prose in the vocabularies of these families; the estimate of a dataset's tokens is no better than this.
CHARACTERS_A_TOKEN = 4


def register_plan(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the verbs of `twin train`."""
    parser = actions.add_parser("plan", help="tell memory, time and price of a training run", description=DESCRIPTION)
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="the run's configuration")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="instead of what FILE says")
    parser.add_argument("--stage", choices=("sft", "dpo"), default="sft", help="which training it is (default sft)")
    parser.add_argument("--gpu", metavar="NAME", help="such as H100 (default: all that are known, a line each)")
    whole = bounded(int, 1, 100_000, "a number of devices")
    parser.add_argument("--devices", type=whole, default=1, metavar="N", help="GPUs that share the model (default 1)")
    many = bounded(int, 1, 10**15, "a number of tokens")
    parser.add_argument("--tokens", type=many, metavar="N", help="tokens of the dataset (default: estimated from it)")
    share = bounded(float, 0.001, 1, "a share above 0 and up to 1")
    parser.add_argument("--utilisation", type=share, metavar="U", help="share of the peak (default 0.35)")
    price = bounded(float, 0, 1e6, "a price of a device for an hour")
    parser.add_argument("--price", type=price, metavar="X", help="of one --gpu for an hour, in any currency")
    parser.add_argument("--json", action="store_true", help="print the plans as JSON")
    parser.set_defaults(handler=plan_training)


def plan_training(namespace: argparse.Namespace, settings: Settings) -> int:
    """`twin train plan`: 0 when told, 1 when the model's shape is not known, 2 for usage."""
    import msgspec

    from training.configuration import InvalidConfiguration, load
    from training.inputs import UnusableInput
    from training.planning.architecture import UnknownShape, shape_of
    from training.planning.hardware import GPUS, UnknownGpu, gpu_named
    from training.planning.plan import UTILISATION, compared, plan, told

    if namespace.price is not None and namespace.gpu is None:
        return _told("--price is of one GPU: say with --gpu which", 2)
    try:
        configuration = load(namespace.config, namespace.set)
        gpus = list(GPUS.values()) if namespace.gpu is None else [gpu_named(namespace.gpu)]
        shape = shape_of(configuration.model)
        tokens, samples, whence = _size(namespace, configuration.dataset, settings.home / "datasets")
        plans = [
            plan(
                configuration,
                shape,
                gpu,
                tokens,
                samples=samples,
                stage=namespace.stage,
                devices=namespace.devices,
                utilisation=namespace.utilisation or UTILISATION,
                price=namespace.price,
            )
            for gpu in gpus
        ]
    except (InvalidConfiguration, UnknownGpu) as error:
        return _told(error, 2)
    except (UnknownShape, UnusableInput) as error:
        return _told(error, 1)
    if namespace.json:
        print_json([msgspec.to_builtins(found) for found in plans])
    elif len(plans) == 1:
        sys.stdout.write(printable(told(plans[0])) + "\n")
    else:
        sys.stdout.write(printable(compared(plans)) + "\n")
    if whence and not namespace.json:
        sys.stdout.write(printable(whence) + "\n")
    return 0


def _size(namespace: argparse.Namespace, dataset: str, datasets: Path) -> tuple[int | None, int | None, str | None]:
    """Tokens and samples of the dataset's training split, and where they are from."""
    from training.inputs import COLUMNS, UnusableInput, dataset_version, rows

    if namespace.tokens is not None:
        return namespace.tokens, None, None
    if dataset == PLACEHOLDER:
        return None, None, "steps and time follow from the tokens: name the dataset (--set dataset=ID), or --tokens"
    kind: Any = "preferences" if namespace.stage == "dpo" else "instructions"
    try:
        version = dataset_version(dataset, datasets, kind)
    except UnusableInput as error:
        return None, None, f"{error}; or say how much there will be with --tokens"
    found = rows(version, "train")
    asked, *answers = COLUMNS[version.kind]
    # Each answer is read with its prompt before it.
    characters = sum(len(row[asked]) + len(row[answer]) for row in found for answer in answers)
    tokens = characters // CHARACTERS_A_TOKEN
    told = f"{tokens:,} tokens of dataset {version.id} estimated as {characters:,} characters by {CHARACTERS_A_TOKEN}"
    return tokens or None, len(found) or None, told


def _told(error: Exception | str, code: int) -> int:
    sys.stderr.write(f"twin: {printable(str(error))}\n")
    return code
