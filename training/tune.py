"""Tuning: runs of one configuration with other numbers, of which the one with the least validation loss is kept.

Each trial is a run of training/sft.py or training/dpo.py in a process of its own; its losses are read from its
`metrics.jsonl`, and one that does worse than the others did by then is stopped. Numbers are proposed by the
tree-structured Parzen estimator (Bergstra et al., 2011), trials stopped by the median of the others (Golovin et al.,
2017) or by successive halving (Li et al., 2020), all by Optuna (Akiba et al., 2019). The study is a file in the output
folder, so that the same command goes on with it.
"""

from __future__ import annotations

import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from corpus.files import replace_file
from training.configuration import InvalidConfiguration, Stage, TrainingConfiguration, dump, load, parsed, read
from training.runs import CHECKPOINTS, METRICS, TrainingFailed, read_record

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

Pruner = Literal["median", "halving", "none"]
# Losses are compared at the same tenth of a run: a run with larger batches has fewer steps.
PARTS = 10
STUDY, BEST, TRIALS, LOCK, TAKEN_UP = "study.db", "best.yaml", "trials", "lock", "taken up"
STUDY_LOCK = "study.lock"


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Numbers from `low` to `high`; `log`: as many between 1 and 10 as between 10 and 100."""

    low: float
    high: float
    log: bool = False


Space = Mapping[str, Range | list[Any]]
SPACE: Space = {
    "learning_rate": Range(3e-5, 6e-4, log=True),
    "lora.rank": [8, 16, 32, 64],
    "lora.alpha": [16.0, 32.0, 64.0],
    "gradient_accumulation": [4, 8, 16],
}


class TuningFailed(TrainingFailed):
    """No trial came to an end, and the message has the reason of the last; or another command is at this study."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """How a study stands: trials by how they ended, and the best one's numbers, loss and configuration file."""

    finished: int
    pruned: int
    failed: int
    loss: float
    values: Mapping[str, Any]
    configuration: Path


def read_space(path: Path, configuration: TrainingConfiguration) -> Space:
    """A search space: for each key of a configuration a list of choices, or `low` and `high`.

    Raises InvalidConfiguration.
    """
    try:
        values = parsed(path.read_text(encoding="utf-8"), str(path))
        space = msgspec.convert(values, dict[str, Range | list[Any]])
    except (OSError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidConfiguration(f"{path}: a search space is keys with choices, or low and high: {error}") from error
    _check(space, configuration, str(path))
    return space


def tune(
    path: Path,
    overrides: Sequence[str],
    trials: int,
    *,
    space: Space | None = None,
    stage: Stage = "sft",
    pruner: Pruner = "median",
    program: Sequence[str] | None = None,
    home: Path | None = None,
    say: Callable[[str], None],
    wait: float = 1.0,
) -> Tuned:
    """Bring the study in the configuration's output to `trials` trials, and write the best one's configuration.

    `program`: what is run for a trial (default: this stage's script), with `home` as TWIN_HOME; `wait`: seconds between
    two looks at a trial. What is proposed follows from the seed; which trials are stopped, from how fast they are, too.
    Trials that a former command left under way are taken up where they were. Raises InvalidConfiguration, TuningFailed.
    """
    import optuna

    configuration = load(path, overrides)
    if configuration.evaluate_every is None:
        raise InvalidConfiguration(f"{path}: tuning compares validation losses: set evaluate_every")
    searched = SPACE if space is None else space
    if space is None and configuration.method == "full":
        searched = {key: values for key, values in SPACE.items() if not key.startswith("lora.")}
    _check(searched, configuration, str(path))
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder = Path(configuration.output)
    (folder / TRIALS).mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        study = _study(folder, configuration, pruner, stage)
        _begun_alike(study, configuration, searched)
        _take_up_again(study)
        command = list(program or (sys.executable, "-m", f"training.{stage}"))
        while len(_counted(study)) < trials:
            trial = study.ask()
            run = folder / TRIALS / str(trial.user_attrs.get("folder", f"{trial.number:04d}"))
            trial.set_user_attr("folder", run.name)
            values = {key: _suggested(trial, key, choices) for key, choices in searched.items()}
            say(f"trial {len(_counted(study)) + 1} of {trials}: {_shown(values)}")
            settings = [*overrides, *_overrides(values), f"output={run}"]
            options = [option for setting in settings for option in ("--set", setting)]
            say(_try(study, trial, [*command, "--config", str(path), *options], run, wait, home))
            _tidy(study, folder)
        return _told(study, folder, path, overrides)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One command at a time: another would take the trials under way for those of a command that was killed."""
    with (folder / STUDY_LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TuningFailed(f"a command is at the study in {folder}: let it end, or name another output") from error
        yield


def _study(folder: Path, configuration: TrainingConfiguration, pruner: Pruner, stage: Stage) -> Study:
    """The study in this folder, begun or gone on with; proposals depend on the seed and on how many there were."""
    import optuna

    pruners: Mapping[Pruner, Callable[[], optuna.pruners.BasePruner]] = {
        "median": lambda: optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=1),
        "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1),
        "none": optuna.pruners.NopPruner,
    }
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / STUDY).resolve()}",
        study_name=stage,
        load_if_exists=True,
        direction="minimize",
        pruner=pruners[pruner](),
    )
    study.sampler = optuna.samplers.TPESampler(seed=configuration.seed + len(study.trials))
    return study


def _take_up_again(study: Study) -> None:
    """Trials that were under way when the command was killed: asked for again, in their folders."""
    from optuna.trial import TrialState

    waiting = {trial.user_attrs.get("folder") for trial in study.get_trials(states=(TrialState.WAITING,))}
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.set_user_attr(TAKEN_UP, [*study.user_attrs.get(TAKEN_UP, []), trial.number])
        if trial.params and (name := trial.user_attrs.get("folder")) not in waiting:
            study.enqueue_trial(trial.params, user_attrs={"folder": name})
        study.tell(trial.number, state=TrialState.FAIL)


def _counted(study: Study) -> list[FrozenTrial]:
    """The trials that came to an end by themselves."""
    taken_up = study.user_attrs.get(TAKEN_UP, [])
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in taken_up]


def _begun_alike(study: Study, configuration: TrainingConfiguration, space: Space) -> None:
    """Losses of another configuration are no measure for this one. Raises InvalidConfiguration."""
    begun = dump(configuration) + msgspec.json.encode(space, order="sorted").decode()
    if study.user_attrs.setdefault("begun", begun) != begun:
        told = f"the study in {configuration.output} was begun with another configuration or search space"
        raise InvalidConfiguration(f"{told}: name another output, or remove it")
    study.set_user_attr("begun", begun)


def _alone(run: Path) -> None:
    """Wait for a trial that outlived the command that started it; it holds the lock of its run."""
    with (run / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


def _overrides(values: Mapping[str, Any]) -> list[str]:
    """As on a command line; JSON is YAML."""
    return [f"{key}={msgspec.json.encode(value).decode()}" for key, value in values.items()]


def _suggested(trial: Trial, key: str, choices: Range | list[Any]) -> Any:
    if isinstance(choices, Range):
        return trial.suggest_float(key, choices.low, choices.high, log=choices.log)
    return trial.suggest_categorical(key, choices)


def _try(study: Study, trial: Trial, command: list[str], run: Path, wait: float, home: Path | None) -> str:
    """Run one trial to its end and tell the study how it ended; a line about it."""
    from optuna.trial import TrialState

    if run.exists():
        _alone(run)
    log = run.with_suffix(".log")
    environment = dict(os.environ) if home is None else {**os.environ, "TWIN_HOME": str(home)}
    pruned, broken = False, None
    reported: set[int] = set()
    with log.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            while process.poll() is None:
                time.sleep(wait)
                if pruned or broken:
                    continue
                broken = _no_number(run)
                pruned = broken is None and _worse(trial, run, reported)
                if pruned or broken:
                    # The script saves what it has and ends; what it saves goes with the trial.
                    process.send_signal(signal.SIGTERM)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait()
    losses = _losses(run)
    if process.returncode == 2:
        study.tell(trial, state=TrialState.FAIL)
        raise InvalidConfiguration(_last_line(log))
    broken = broken or _no_number(run) or (_last_line(log) if process.returncode != 0 else None)
    if broken:
        trial.set_user_attr("reason", broken)
        study.tell(trial, state=TrialState.FAIL)
        return f"  failed: {broken}"
    if not pruned:
        _worse(trial, run, reported)
    record = read_record(run)
    if record is None or record.state != "finished":
        if not pruned:
            raise TuningFailed(f"the trial in {run} was stopped by somebody else: the same command goes on with it")
        study.tell(trial, state=TrialState.PRUNED)
        return f"  stopped early at validation loss {losses[-1][1]:.4f}"
    if not losses:
        study.tell(trial, state=TrialState.FAIL)
        raise InvalidConfiguration(
            "a trial ended without a validation loss: lower evaluate_every, or build the "
            "dataset with a validation split"
        )
    study.tell(trial, losses[-1][1])
    return f"  validation loss {losses[-1][1]:.4f}"


def _worse(trial: Trial, run: Path, reported: set[int]) -> bool:
    """Report the losses that are new; whether the trial should be stopped."""
    record = read_record(run)
    if record is None or not record.steps:
        return False
    for step, loss in _losses(run):
        part = PARTS * step // record.steps
        if part not in reported:
            reported.add(part)
            trial.report(loss, part)
    return bool(reported) and trial.should_prune()


def _losses(run: Path) -> list[tuple[int, float]]:
    """Steps and validation losses of a run until now; a line that is being written is left for later."""
    path = run / METRICS
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            values = msgspec.json.decode(line)
        except msgspec.DecodeError:
            break
        if "eval_loss" in values:
            # JSON has no word for what is no number, and has null instead.
            loss = values["eval_loss"]
            found.append((int(values["step"]), math.nan if loss is None else float(loss)))
    return found


def _no_number(run: Path) -> str | None:
    """Why the losses of this trial are no measure; None where they are."""
    step = next((step for step, loss in _losses(run) if not math.isfinite(loss)), None)
    return None if step is None else f"the validation loss is no number at step {step}: lower learning_rate"


def _tidy(study: Study, folder: Path) -> None:
    """Only the best trial keeps its weights: of the others stay the metrics and the record."""
    finished = [trial for trial in _counted(study) if trial.value is not None]
    best = min(finished, key=lambda trial: trial.value or 0.0).user_attrs["folder"] if finished else None
    for trial in _counted(study):
        if (name := trial.user_attrs["folder"]) != best:
            for part in (CHECKPOINTS, "adapter", "model"):
                rmtree(folder / TRIALS / name / part, ignore_errors=True)


def _told(study: Study, folder: Path, path: Path, overrides: Sequence[str]) -> Tuned:
    from optuna.trial import TrialState

    ended = _counted(study)
    finished = [trial for trial in ended if trial.state is TrialState.COMPLETE]
    if not finished:
        reasons = [trial.user_attrs["reason"] for trial in ended if "reason" in trial.user_attrs]
        raise TuningFailed(
            f"no trial in {folder} came to an end; the last said: {reasons[-1] if reasons else 'nothing'}"
        )
    best = study.best_trial
    chosen = load(path, [*overrides, *_overrides(best.params)])
    # Beside the study: a run in the study's own folder would be refused.
    chosen = msgspec.structs.replace(chosen, output=str(folder.with_name(f"{folder.name}-best")))
    replace_file(folder / BEST, dump(chosen).encode())
    return Tuned(
        finished=len(finished),
        pruned=sum(trial.state is TrialState.PRUNED for trial in ended),
        failed=sum(trial.state is TrialState.FAIL for trial in ended),
        loss=float(study.best_value),
        values=best.params,
        configuration=folder / BEST,
    )


def _check(space: Space, configuration: TrainingConfiguration, source: str) -> None:
    """Every value of the space must be one that a configuration may have; the ends of a range stand for it."""
    if not space:
        raise InvalidConfiguration(f"{source}: the search space is empty: name a key and its choices")
    for key, choices in space.items():
        ends = [choices.low, choices.high] if isinstance(choices, Range) else choices
        if not ends or (isinstance(choices, Range) and not choices.low < choices.high):
            raise InvalidConfiguration(f"{source}: {key}: there is nothing to choose from")
        if isinstance(choices, Range) and choices.log and choices.low <= 0:
            raise InvalidConfiguration(f"{source}: {key}: a range with log begins above 0")
        for value in ends:
            values = msgspec.to_builtins(configuration)
            *sections, last = key.split(".")
            inner = values
            for section in sections:
                inner = inner.get(section) if isinstance(inner.get(section), dict) else inner.setdefault(section, {})
            inner[last] = value
            read(values, f"{source}: search space")


def _shown(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
    )


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].removeprefix("twin: ") if lines else "it said nothing"
