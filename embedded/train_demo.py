"""`make train-demo`: from this project's own documents to an answer by a model that was trained on them, here.

Everything is real but the size: a model of some million parameters learns the path, not to write. What is measured is
that its fine-tuned form finds held-out documents likelier than its base does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

from corpus.settings import Settings, load
from embedded.demo import SOURCES, TWIN, asked, run, say

# A tiny model may have no word to say to one, and then the app quotes.
QUESTIONS = (
    "Where does a document become chunks?",
    "How is a document erased for good?",
    "What is kept of a document that was deleted?",
    "How do I start the services?",
)
TRAINING = Path(__file__).parents[1] / "training"
AUTHOR, APPROVER = "The LLM Twin authors", "train-demo"
# Enough for the base to know words, and for it to be far from the author's texts.
BASE_STEPS, PAIRS = "160", "120"
SHORT = {"max_length": 256, "max_steps": 60, "learning_rate": 1e-3}


class StepFailed(RuntimeError):
    """A command of the demo failed; it said why."""


def main() -> int:
    """Documents, datasets, base, SFT, DPO, evaluation, approval, deployment, answer; 0 when all was done."""
    start = time.monotonic()
    sys.stdout.write("All of it takes 6 to 10 minutes on two cores with nothing else to do.\n")
    # A model of this size goes on for ever; the app learns this when it starts.
    os.environ.setdefault("TWIN_LLM_MAX_TOKENS", "60")
    try:
        return demonstrate(load(), start)
    except StepFailed as error:
        sys.stderr.write(f"\ntrain-demo: `twin {error}` failed, see above; `make train-demo` starts again from here\n")
        return 1


def demonstrate(settings: Settings, start: float) -> int:
    """The steps in order. A run that was broken off goes on from its last checkpoint."""
    bases, runs = settings.home / "bases", settings.home / "runs"
    say("Starting the services, and bringing in this project's own documentation and code")
    step("up", "--detach")
    step("ingest", *(source for source in SOURCES if Path(source).exists()), "--author", AUTHOR)
    step("wait")
    say("Building a dataset of instructions: the answers are the author's own passages")
    instructions = dataset("--name", "demo-instructions")
    say("Making a tiny base model: a few million parameters, its tokenizer from the same texts")
    base = bases / instructions
    if not (base / "config.json").exists():
        shutil.rmtree(base, ignore_errors=True)
        step("train", "base", "--from", instructions, "--output", str(base), "--steps", BASE_STEPS)
    say("Fine-tuning it on the instructions (SFT of all weights: there are few)")
    tuned = runs / f"sft-on-{instructions}"
    step("train", "sft", *config("tiny-sft-full", model=base, dataset=instructions, output=tuned, **SHORT))
    say("Building a dataset of preferences: the author's text against the model's own answer")
    preferring = ("--kind", "preferences", "--model", str(tuned), "--size", PAIRS)
    preferences = dataset("--name", "demo-preferences", *preferring)
    say("Teaching it the preferences (DPO with LoRA)")
    preferred = runs / f"dpo-on-{preferences}"
    gently = {"max_length": 256, "learning_rate": 5e-5}
    step("train", "dpo", *config("tiny-dpo", model=tuned, dataset=preferences, output=preferred, **gently))
    version = released(preferred, base, instructions)
    say(f"Letting the app ask {version}")
    step("model", "deploy", version, "--start", "--share", "1")
    for question in QUESTIONS:
        say(f"Asking: {question}")
        answer = asked("ask", question)
        if answer["mode"] == "generated":
            break
        say(f"{version} had no word to say to that, so it was quoted from the sources")
    # It may be mostly blank lines.
    sys.stdout.write(f"{textwrap.shorten(answer['answer'], 300) or '(no word)'}\n\n")
    sys.stdout.writelines(f"[{each['n']}] {each['title']}  {each['url']}\n" for each in answer["citations"])
    address = next(part["address"] for part in asked("status")["parts"] if part["name"] == "app")
    say(f"Done in {time.monotonic() - start:.0f} s")
    sys.stdout.write(
        f"  answered by {answer['model']}, in mode {answer['mode']}. The text is poor: the model has a\n"
        "  thousandth of the size of one that writes. The path is the same for a large one: docs/training.md.\n"
        f"  the report:     {preferred / 'evaluation' / 'report.html'}\n"
        f"  the page:       {address}\n"
        "  go back to quotations: .venv/bin/twin model deploy --withdraw\n"
        "  stop everything:       make down\n"
    )
    return 0 if (answer["mode"], answer["model"]) == ("generated", version) else 1


def released(run_folder: Path, base: Path, instructions: str) -> str:
    """The version that is champion once this run was evaluated: its own, or the one before where that is as good.

    A first model must be better than its base, a later one better than the champion. Raises StepFailed.
    """
    champion = next((version for version in printed("model", "list") if version["state"] == "champion"), None)
    if champion is not None and Path(champion["run"]) == run_folder.resolve():
        say(f"It is the champion already, as {champion['id']}: there is nothing to evaluate")
        return str(champion["id"])
    if champion is None:
        say("Evaluating it against its base, on documents that neither was trained on")
    else:
        say(f"Evaluating it against the champion, {champion['id']}, on documents that neither was trained on")
    against = str(base) if champion is None else "champion"
    few = ("--questions", "12", "--max-tokens", "64")
    step("evaluate", str(run_folder), "--against", against, "--dataset", instructions, *few)
    say("Registering it, and approving it if it is better")
    version = str(printed("model", "register", str(run_folder))["id"])
    approve = ("model", "approve", version, "--by", APPROVER, "--rules", str(TRAINING / "release" / "tiny.yaml"))
    if champion is None:
        step(*approve)
    elif run(*approve) != 0:
        say(f"{version} is not surely better, so {champion['id']} stays champion: that is what the gate is for")
        return str(champion["id"])
    return version


def printed(*arguments: str) -> Any:
    """The JSON that a command of ours prints; what it complains of is seen in this terminal. Raises StepFailed."""
    done = subprocess.run([*TWIN, *arguments, "--json"], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise StepFailed(" ".join(arguments))
    return json.loads(done.stdout)


def step(*arguments: str) -> None:
    """A command of ours in this terminal. Raises StepFailed."""
    if run(*arguments) != 0:
        raise StepFailed(" ".join(arguments))


def dataset(*arguments: str) -> str:
    """Build a version and show it; its id. Raises StepFailed."""
    step("dataset", "build", "--no-embedding", *arguments)
    return str(asked("dataset", "show", arguments[1])["id"])


def config(name: str, **values: object) -> list[str]:
    settings = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
    return ["--config", str(TRAINING / "configs" / f"{name}.yaml"), *settings]


if __name__ == "__main__":
    sys.exit(main())
