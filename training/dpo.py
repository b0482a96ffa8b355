"""Direct preference optimisation: a model learns which of two answers the author would rather give.

    twin train dpo --config FILE
    python -m training.dpo --config FILE --set lora.rank=8
    accelerate launch --config_file training/configs/accelerate-fsdp.yaml -m training.dpo --config FILE

`model` of FILE is the folder of the SFT run (or any model). The reference, which the model is held near to, is what
SFT made and not the base below it: an adapter of SFT is in the weights of the run's `model/` by now, a new adapter
begins as nothing, and with it switched off the model is the reference. A run of method `full` loads the same model a
second time for it. Killed and run again it goes on from its last whole checkpoint; SIGTERM or Ctrl-C lets it save one
first.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from corpus import settings
from training.configuration import InvalidConfiguration, TrainingConfiguration, load
from training.inputs import UnusableInput, dataset_version, model_folder, rows, tokenizer_of
from training.merging import write_results
from training.runs import RunRecord, TrainingFailed, quiet, running
from training.steps import guarded, must_fit, room_for_results, watching


def train(
    configuration: TrainingConfiguration,
    *,
    datasets: Path,
    generation: str | None = None,
    anew: bool = False,
    say: Callable[[str], None],
) -> RunRecord:
    """Run, or go on with, the optimisation that `configuration` describes; how it ended, as in its `run.json`.

    `datasets`: the folder of the dataset versions; `generation`: the one that the dataset must be of (None: any);
    `anew`: a former run in the same output is removed. Logged of each step: `rewards/margins` (beta times how much
    more the model than the reference prefers the chosen answer) and `rewards/accuracies` (the share of pairs where it
    does). Raises InvalidConfiguration, UnusableInput, TrainingFailed, and DoesNotFit before any weight is loaded.
    """
    quiet()
    import torch
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PrinterCallback
    from trl import DPOConfig, DPOTrainer

    if configuration.packing:
        raise InvalidConfiguration("packing: DPO compares whole answers and packs none: leave it out")

    # What goes in.
    version = dataset_version(configuration.dataset, datasets, "preferences", generation)
    base = model_folder(configuration.model)
    tokenizer = tokenizer_of(configuration, base)
    samples = {
        split: Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["prompt"]}],
                    "chosen": [{"role": "assistant", "content": row["chosen"]}],
                    "rejected": [{"role": "assistant", "content": row["rejected"]}],
                }
                for row in rows(version, split)
            ]
        )
        for split in ("train", "validation")
    }
    if len(samples["train"]) == 0:
        raise UnusableInput(f"dataset {version.id} has no rows to train on: build one of more preferences")
    must_fit(configuration, base, "dpo", say)

    # Where it runs, and in which precision.
    gpu, fsdp = torch.cuda.is_available(), "ACCELERATE_USE_FSDP" in os.environ
    place = PartialState(cpu=not gpu)
    bf16 = configuration.precision == "bf16" or (
        configuration.precision == "auto" and gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    computed = torch.bfloat16 if bf16 else torch.float32
    optimiser = configuration.optimiser
    if optimiser == "auto":
        optimiser = "paged_adamw_8bit" if configuration.method == "qlora" and gpu else "adamw_torch"
    evaluated = configuration.evaluate_every is not None and len(samples["validation"]) > 0

    with ExitStack() as stack:
        with place.main_process_first():
            run = stack.enter_context(
                running(
                    configuration,
                    "dpo",
                    version,
                    anew=anew,
                    main=place.is_main_process,
                    devices=place.num_processes,
                    device=torch.cuda.get_device_name() if gpu else "cpu",
                    say=say if place.is_main_process else lambda line: None,
                )
            )
        if run.finished:
            return run.record

        if not run.trained:
            run.say(f"loading {base}, to train on {len(samples['train']):,} rows")
            # The model: weights in fp32 where they are trained themselves, in the computed precision or NF4 else.
            quantised = adapter = None
            if configuration.method == "qlora":
                quantised = BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type=configuration.qlora.quant_type,
                    bnb_4bit_use_double_quant=configuration.qlora.double_quant,
                    bnb_4bit_compute_dtype=computed,
                    # FSDP shards only what is stored in the type of the rest.
                    bnb_4bit_quant_storage=computed if fsdp else torch.uint8,
                )
            if configuration.method != "full":
                from peft import LoraConfig

                chosen = configuration.lora.target_modules
                adapter = LoraConfig(
                    task_type="CAUSAL_LM",
                    r=configuration.lora.rank,
                    lora_alpha=configuration.lora.alpha,
                    lora_dropout=configuration.lora.dropout,
                    target_modules=chosen if isinstance(chosen, str) else list(chosen),
                    use_rslora=configuration.lora.rslora,
                    use_dora=configuration.lora.dora,
                )

            def loaded() -> Any:
                return AutoModelForCausalLM.from_pretrained(
                    base,
                    dtype=torch.float32 if configuration.method == "full" else computed,
                    quantization_config=quantised,
                    device_map={"": place.local_process_index} if quantised is not None and gpu and not fsdp else None,
                    local_files_only=True,
                )

            model = loaded()
            apart = configuration.method == "full" and not configuration.dpo.precompute_reference
            reference = loaded() if apart else None

            # The trainer.
            arguments = DPOConfig(
                output_dir=str(run.checkpoints),
                max_length=configuration.max_length,
                beta=configuration.dpo.beta,
                loss_type=[configuration.dpo.loss_type],
                label_smoothing=configuration.dpo.label_smoothing,
                precompute_ref_log_probs=configuration.dpo.precompute_reference,
                learning_rate=configuration.rate("dpo"),
                lr_scheduler_type=configuration.scheduler,
                warmup_steps=configuration.warmup,
                num_train_epochs=configuration.epochs,
                max_steps=configuration.max_steps or -1,
                per_device_train_batch_size=configuration.batch_size,
                per_device_eval_batch_size=configuration.batch_size,
                gradient_accumulation_steps=configuration.gradient_accumulation,
                activation_checkpointing=configuration.gradient_checkpointing,
                weight_decay=configuration.weight_decay,
                max_grad_norm=configuration.max_gradient_norm,
                optim=optimiser,
                bf16=bf16,
                use_cpu=not gpu,
                dataloader_pin_memory=gpu,
                ddp_find_unused_parameters=False,
                logging_steps=configuration.log_every,
                logging_nan_inf_filter=False,
                save_strategy="steps",
                save_steps=configuration.checkpoint_every,
                # Older ones are removed by the run, and only once the new one is whole.
                save_total_limit=None,
                eval_strategy="steps" if evaluated else "no",
                eval_steps=configuration.evaluate_every,
                seed=configuration.seed,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = guarded(DPOTrainer, run, configuration.keep)(
                model=model,
                ref_model=reference,
                args=arguments,
                train_dataset=samples["train"],
                eval_dataset=samples["validation"] if evaluated else None,
                processing_class=tokenizer,
                peft_config=adapter,
                callbacks=[watching(run)],
            )
            trainer.remove_callback(PrinterCallback)
            if len(trainer.train_dataset) == 0:
                raise UnusableInput(f"no prompt is shorter than max_length {configuration.max_length}: raise it")

            # Train.
            if run.checkpoint is not None:
                trainer._total_train_tokens = run.checkpoint.manifest.tokens
            trainer.train(resume_from_checkpoint=str(run.checkpoint.folder) if run.checkpoint else None)
            if trainer.state.global_step < trainer.state.max_steps:
                run.write("stopped")
                run.say(f"stopped at step {trainer.state.global_step}; run again to go on")
                return run.record
            del model, reference, trainer
            gc.collect()
            if gpu:
                torch.cuda.empty_cache()

        # Save what it is for.
        if run.main and run.checkpoint is not None:
            with room_for_results(run):
                write_results(configuration, base, run.checkpoint.folder, run.folder, tokenizer, computed)
                run.write("finished")
        return run.record


def main() -> int:
    """Train from a file; 0 when finished or stopped by SIGTERM, 1 when it failed, 2 for a wrong file or setting."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    parser = argparse.ArgumentParser(prog="python -m training.dpo", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--config", required=True, type=Path, metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="instead of what FILE says")
    parser.add_argument("--generation", metavar="ID", help="refuse a dataset of another generation")
    parser.add_argument("--anew", action="store_true", help="remove a former run in the same output")
    asked = parser.parse_args()
    try:
        record = train(
            load(asked.config, asked.set),
            datasets=settings.load().home / "datasets",
            generation=asked.generation,
            anew=asked.anew,
            say=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
        )
    except (InvalidConfiguration, settings.InvalidSettings, UnusableInput, TrainingFailed) as error:
        sys.stderr.write(f"twin: {error}\n")
        return 2 if isinstance(error, InvalidConfiguration | settings.InvalidSettings) else 1
    # Of several processes the first one knows how it ended.
    if record.state != "running":
        sys.stderr.write(f"{record.state} at step {record.step} of {record.steps}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
