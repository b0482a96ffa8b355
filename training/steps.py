"""What a run does at each step, whichever trainer takes it: what is looked at before, at, and after it."""

from __future__ import annotations

import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from training.checkpoints import disk_is_full, remove_all_but
from training.configuration import Stage, TrainingConfiguration
from training.runs import DiskFull, LossNotFinite, Run


def must_fit(configuration: TrainingConfiguration, base: Path, stage: Stage, say: Callable[[str], None]) -> None:
    """Before any weight is loaded. Raises DoesNotFit, with the numbers."""
    from training.planning.plan import refuse_if_too_large

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        refuse_if_too_large(msgspec.structs.replace(configuration, model=str(base)), stage=stage)
    for warning in told:
        say(str(warning.message))


def guarded(trainer: Any, run: Run, keep: int) -> Any:
    """`trainer`, a class of TRL's, that takes no step that is no number and whose checkpoints are whole or are none."""
    import torch

    class Guarded(trainer):  # type: ignore[misc]
        def training_step(self, *arguments: Any, **options: Any) -> Any:
            loss = super().training_step(*arguments, **options)
            if not torch.isfinite(loss).all():
                self._refuse("the loss", float(loss))
            return loss

        def _clip_grad_norm(self, model: Any) -> Any:
            norm = super()._clip_grad_norm(model)
            # Under FSDP each process holds its share of it.
            length = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
            if not math.isfinite(length):
                self._refuse("the gradient's length", length)
            return norm

        def _refuse(self, what: str, value: float) -> None:
            raise LossNotFinite(
                f"{what} is {value} at step {self.state.global_step + 1}, which is not taken; {run.last_good()} in "
                f"{run.checkpoints}: lower learning_rate or look at the samples, and start into another output"
            )

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            folder = run.checkpoints / f"checkpoint-{self.state.global_step}"
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if run.main:
                    run.seal(folder, self.state.global_step, self.state.max_steps, int(self._total_train_tokens))
                    remove_all_but(run.checkpoints, keep)
                    run.write("running")
            except Exception as error:
                if run.main and not (run.checkpoint and run.checkpoint.folder == folder):
                    shutil.rmtree(folder, ignore_errors=True)
                if not disk_is_full(error, run.folder):
                    raise
                raise DiskFull(
                    f"the disk of {run.folder} is full: the checkpoint of step {self.state.global_step} was not "
                    f"written; {run.last_good()}: make room, then run this again"
                ) from error

        def create_model_card(self, *arguments: Any, **options: Any) -> None:
            """The run's own record says what it is."""

        def _send_telemetry(self) -> None:
            """Nothing tells anybody that this ran."""

    Guarded.__name__ = trainer.__name__
    return Guarded


def watching(run: Run) -> Any:
    """A callback for the trainer that writes the metrics, tells of them, and stops when the run is asked to."""
    import torch
    from transformers import TrainerCallback

    class Watching(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            run.begin()

        def on_step_begin(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            run.flush()

        def on_step_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            if _any_process(run.stopping):
                control.should_save = control.should_training_stop = True
            # What lies between two logged steps is not kept over a restart: a checkpoint closes the line.
            control.should_log = control.should_log or control.should_save

        def on_log(self, arguments: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "train_runtime" not in logs:
                run.note(state.global_step, logs)
                run.say(_line(state.global_step, state.max_steps, logs))

        def on_train_end(self, arguments: Any, state: Any, control: Any, **_: Any) -> None:
            run.flush()

    def _any_process(asked: bool) -> bool:
        """Whether any of the processes was asked to stop: they stop after the same step or wait for each other."""
        if not torch.distributed.is_initialized():
            return asked
        told = torch.tensor(int(asked), device="cuda" if torch.cuda.is_available() else "cpu")
        torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
        return bool(told.item())

    return Watching()


# What a line on a terminal tells of a logged step, in this order.
TOLD = {
    "loss": "loss {:.4f}",
    "eval_loss": "validation loss {:.4f}",
    "rewards/margins": "margin {:+.4f}",
    "rewards/accuracies": "accuracy {:.2f}",
    "mean_token_accuracy": "token accuracy {:.3f}",
    "grad_norm": "gradient {:.2g}",
    "learning_rate": "rate {:.2e}",
}


def _line(step: int, steps: int, logs: Mapping[str, float]) -> str:
    told = [said.format(float(logs[key])) for key, said in TOLD.items() if key in logs]
    return f"step {step}/{steps}  {'  '.join(told)}"


@contextmanager
def room_for_results(run: Run) -> Iterator[None]:
    """Within, the model is written; raises DiskFull where there is no room for it."""
    try:
        yield
    except Exception as error:
        if not disk_is_full(error, run.folder):
            raise
        raise DiskFull(
            f"the disk of {run.folder} is full: the model was not written; {run.last_good()}: make room, then run "
            "this again, which trains nothing anew"
        ) from error
