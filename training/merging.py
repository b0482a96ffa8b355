"""What a run leaves: an adapter, and a model that stands alone, with its tokenizer and chat template."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from training.configuration import TrainingConfiguration

ADAPTER, MODEL = "adapter", "model"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def write_results(
    configuration: TrainingConfiguration, base: Path, checkpoint: Path, run: Path, tokenizer: Any, dtype: Any
) -> Path:
    """Write `adapter/` (LoRA, QLoRA) and `model/` of a run from its last checkpoint; the folder of the model.

    A QLoRA adapter is merged into the base in its own precision, never into the 4-bit weights: there the sum would be
    rounded to 4 bits once more, and W + BA lose much of the BA that was learned. So the merged model differs from the
    one that was trained by the rounding of the base, and no more. Both folders appear whole or not at all.
    """
    from transformers import AutoModelForCausalLM

    if configuration.method == "full":
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
    else:
        with _appearing(run / ADAPTER) as folder:
            for name in ADAPTER_FILES:
                shutil.copy(checkpoint / name, folder / name)
        model = merged(base, run / ADAPTER, dtype)
    with _appearing(run / MODEL) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return run / MODEL


def merged(base: Path, adapter: Path, dtype: Any) -> Any:
    """The base with the adapter added to its weights, on the CPU; it needs no peft from here on."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype, local_files_only=True)
    # `safe_merge` looks for weights that are no numbers before they are written over the base's.
    return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)


@contextmanager
def _appearing(place: Path) -> Iterator[Path]:
    """A folder that is filled beside its place and moved there when it is complete."""
    beside = place.with_name(f"{place.name}.part")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        shutil.rmtree(place, ignore_errors=True)
        beside.rename(place)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
