"""A run and its folder: it can be killed at any moment, and run again it goes on from the last whole checkpoint.

The folder holds `configuration.yaml` (with every default), `run.json` (RunRecord), `metrics.jsonl` (one line a logged
step), `checkpoints/`, and in the end `adapter/` (LoRA, QLoRA) and `model/`.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import msgspec

from corpus.files import replace_file
from training.checkpoints import Checkpoint, last_whole, seal
from training.configuration import InvalidConfiguration, Stage, TrainingConfiguration, dump, load
from training.evaluation.figures import UnreadableFigures, weights_digest
from training.inputs import DatasetVersion, model_folder, source_dataset

CONFIGURATION, RECORD, METRICS, CHECKPOINTS = "configuration.yaml", "run.json", "metrics.jsonl", "checkpoints"
MODEL = "model"
OURS = (CONFIGURATION, RECORD, METRICS, CHECKPOINTS, "adapter", "adapter.part", MODEL, f"{MODEL}.part", "lock")
# What others make of a run lies beside it.
OF_A_RUN = ("evaluation", "sent.json")
LIBRARIES = ("torch", "transformers", "trl", "peft")


class TrainingFailed(RuntimeError):
    """A run that could not start or go on; the message says what was kept, and what to do."""


class RunRefused(TrainingFailed):
    """The folder holds another run, a run under way, or something else."""


class LossNotFinite(TrainingFailed):
    """The loss or its gradient is no finite number: the step is not taken."""


class DiskFull(TrainingFailed):
    """There was no room for a checkpoint or for the model."""


class RunRecord(msgspec.Struct, kw_only=True):
    """`run.json`. `seconds` and `tokens`: of training alone, over every start of the run; `documents`: how many
    documents the dataset was made of; `base_run`: the folder of the run that made the base model, if one did;
    `base_dataset`: the dataset whose texts a base of `twin train base` was made of; `base_weights`: SHA-256 of the
    base's weights as the run began; dates are ISO 8601."""

    state: Literal["running", "stopped", "failed", "finished"]
    stage: Stage
    method: str
    base_model: str
    base_run: str | None
    dataset: str
    generation: str
    documents: int
    rows: int
    seed: int
    devices: int
    device: str
    code_revision: str | None
    versions: dict[str, str]
    started_at: str
    ended_at: str | None = None
    step: int = 0
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    reason: str | None = None
    base_dataset: str | None = None
    base_weights: str | None = None


def read_record(folder: Path) -> RunRecord | None:
    """The record of the run in `folder`; None if there is none. Raises RunRefused."""
    try:
        return msgspec.json.decode((folder / RECORD).read_bytes(), type=RunRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RunRefused(f"{folder / RECORD} cannot be read ({error}): start the run --anew") from error


def run_of(model: Path) -> Path | None:
    """The folder of the run that made the model in this folder, which is the run's own, its `model/` or one of its
    checkpoints; None where no run did."""
    place = model.resolve()
    places = [place]
    if place.name == MODEL:
        places.append(place.parent)
    if place.parent.name == CHECKPOINTS:
        places.append(place.parents[1])
    return next((each for each in places if (each / RECORD).exists()), None)


def quiet() -> None:
    """Let the libraries keep to errors: what is worth telling, the run tells."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # peft and TRL still call what transformers has renamed.
    warnings.filterwarnings("ignore", message=r".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    import datasets
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()


class Run:
    """A run under way. Of several processes only the `main` one writes."""

    def __init__(self, folder: Path, record: RunRecord, main: bool, say: Callable[[str], None]) -> None:
        self.folder = folder
        self.record = record
        self.main = main
        self.say = say
        self.checkpoint: Checkpoint | None = None
        self.stopping = False
        self._line: dict[str, Any] = {}
        self._lock: IO[str] | None = None
        self._before = 0.0
        self._since: float | None = None

    @property
    def checkpoints(self) -> Path:
        return self.folder / CHECKPOINTS

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do: the model may have been removed since it was written."""
        return self.record.state == "finished" and _has_model(self.folder)

    @property
    def trained(self) -> bool:
        """Whether the last whole checkpoint is of the last step, so that only the results are to be written."""
        return self.checkpoint is not None and self.checkpoint.manifest.step >= self.checkpoint.manifest.steps

    def begin(self) -> None:
        """The first step of this start comes now."""
        self._since = time.monotonic()

    def seconds(self) -> float:
        return self._before + (time.monotonic() - self._since if self._since is not None else 0.0)

    def note(self, step: int, values: Mapping[str, float]) -> None:
        """Metrics of a step; those of its evaluation join its line. Written when the next step comes, or a save."""
        if self._line.get("step") != step:
            self.flush()
            self._line = {"step": step}
        self._line |= {key: value for key, value in values.items() if key not in ("step", "total_flos")}
        self._line["seconds"] = round(self.seconds(), 3)

    def flush(self) -> None:
        if self._line and self.main:
            with (self.folder / METRICS).open("ab") as metrics:
                metrics.write(msgspec.json.encode(self._line) + b"\n")
                metrics.flush()
                os.fsync(metrics.fileno())
        self._line = {}

    def seal(self, folder: Path, step: int, steps: int, tokens: int) -> None:
        """A checkpoint's files are written: bring it and the metrics to disk, then drop those before it."""
        self.flush()
        self.checkpoint = seal(folder, step=step, steps=steps, tokens=tokens, seconds=self.seconds())

    def write(self, state: Literal["running", "stopped", "failed", "finished"], reason: str | None = None) -> None:
        """Bring `run.json` up to date. Raises OSError."""
        record = self.record
        record.state, record.reason = state, reason
        record.ended_at = None if state == "running" else _now()
        if self.checkpoint is not None:
            manifest = self.checkpoint.manifest
            record.step, record.steps, record.tokens = manifest.step, manifest.steps, manifest.tokens
            record.seconds = round(manifest.seconds, 3)
            record.tokens_per_second = round(manifest.tokens / manifest.seconds, 1) if manifest.seconds else 0.0
        if self.main:
            replace_file(self.folder / RECORD, msgspec.json.format(msgspec.json.encode(record)), lasting=True)

    def last_good(self) -> str:
        """What was kept, in words."""
        return (
            f"the checkpoint of step {self.checkpoint.manifest.step} is kept" if self.checkpoint else "no step is kept"
        )


@contextmanager
def running(
    configuration: TrainingConfiguration,
    stage: Stage,
    version: DatasetVersion,
    *,
    anew: bool = False,
    main: bool = True,
    devices: int = 1,
    device: str = "cpu",
    say: Callable[[str], None],
) -> Iterator[Run]:
    """The run that this configuration describes, new or to be gone on with; how it ends is written to its record.

    `anew`: what the folder holds of a former run is removed. SIGTERM or Ctrl-C lets the step in progress end, saves a
    checkpoint and stops. Raises RunRefused.
    """
    folder = Path(configuration.output)
    strange = folder.is_dir() and any(path.name not in (*OURS, *OF_A_RUN) for path in folder.iterdir())
    if strange and not (folder / RECORD).exists():
        raise RunRefused(f"{folder} holds something else: name an empty or a new folder as output")
    with _locked(folder, main), _terminated() as asked:
        if anew and main:
            _remove(folder)
        before = None if anew else read_record(folder)
        # A run that has kept nothing yet may begin as something else.
        if before is not None and (before.state == "finished" or last_whole(folder / CHECKPOINTS)[0] is not None):
            _refuse_another(before, configuration, stage, version, folder)
        base = _base(configuration, before, main)
        if before is not None and last_whole(folder / CHECKPOINTS)[0] is not None:
            _refuse_another_base(before, base, devices, folder)
        record = RunRecord(
            state="running",
            stage=stage,
            method=configuration.method,
            base_model=configuration.model,
            base_run=base.run,
            dataset=version.id,
            generation=version.generation,
            documents=len(set(version.document_ids)),
            rows=version.splits.get("train", 0),
            seed=configuration.seed,
            devices=devices,
            device=device,
            code_revision=code_revision(),
            versions={name: installed(name) for name in LIBRARIES},
            started_at=before.started_at if before is not None else _now(),
            base_dataset=base.dataset,
            base_weights=base.weights,
        )
        finished = before if before is not None and before.state == "finished" else None
        if finished is not None and not _has_model(folder):
            if last_whole(folder / CHECKPOINTS)[0] is None:
                raise RunRefused(
                    f"the run in {folder} finished, but its model and its checkpoints are gone: start it --anew, or "
                    "name another output"
                )
            finished = None
        run = Run(folder, finished or record, main, say)
        if run.finished:
            run.say(f"finished already: {folder / MODEL}")
            yield run
            return
        _prepare(run, configuration)
        asked(run)
        try:
            yield run
        except BaseException as error:
            with suppress(OSError):
                run.flush()
                run.write("stopped" if isinstance(error, KeyboardInterrupt) else "failed", str(error))
            raise


class _Base(NamedTuple):
    """What is known of the model that a run begins with, as in RunRecord."""

    run: str | None
    dataset: str | None
    weights: str | None


def _base(configuration: TrainingConfiguration, before: RunRecord | None, main: bool) -> _Base:
    """Of several processes the others read what the first has found: weights of many gigabytes are read once."""
    if before is not None and not main:
        return _Base(before.base_run, before.base_dataset, before.base_weights)
    folder = model_folder(configuration.model)
    made_by = run_of(folder)
    weights = None
    # Weights of a kind that no digest is taken of are not watched.
    with suppress(UnreadableFigures):
        weights = weights_digest(folder)
    return _Base(None if made_by is None else str(made_by), source_dataset(folder), weights)


def _has_model(folder: Path) -> bool:
    return (folder / MODEL / "config.json").exists()


def _prepare(run: Run, configuration: TrainingConfiguration) -> None:
    """Find where to go on; metrics of steps that no checkpoint kept are cut off, since they are taken again."""
    run.checkpoint, passed = last_whole(run.checkpoints)
    if run.main:
        for path, told in passed.items():
            run.say(f"{path.name} is passed over: {told}")
            shutil.rmtree(path)
        replace_file(run.folder / CONFIGURATION, dump(configuration).encode(), lasting=True)
        cut_metrics(run.folder / METRICS, run.checkpoint.manifest.step if run.checkpoint else 0)
        run.write("running")
    if run.checkpoint is not None:
        run._before = run.checkpoint.manifest.seconds
        run.say(f"going on after step {run.checkpoint.manifest.step} of {run.checkpoint.manifest.steps}")


def cut_metrics(path: Path, step: int) -> None:
    """Leave the lines of steps up to `step`; what a crash cut off in the middle of a line goes too."""
    kept = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            if msgspec.json.decode(line)["step"] > step:
                break
        except (msgspec.DecodeError, KeyError, TypeError):
            break
        kept.append(line)
    replace_file(path, b"".join(line + b"\n" for line in kept))


def _refuse_another(
    before: RunRecord, configuration: TrainingConfiguration, stage: Stage, version: DatasetVersion, folder: Path
) -> None:
    """A run goes on as what it was begun as, or not at all."""
    hint = "name another output, or start --anew, which removes what is there"
    if (before.stage, before.dataset) != (stage, version.id):
        raise RunRefused(f"{folder} holds a run of {before.stage} on dataset {before.dataset}: {hint}")
    try:
        former = msgspec.to_builtins(load(folder / CONFIGURATION))
    except InvalidConfiguration as error:
        raise RunRefused(f"the run in {folder} is not whole ({error}): {hint}") from error
    now = msgspec.to_builtins(configuration)
    changed = [key for key in now if now[key] != former[key]]
    if changed:
        told = ", ".join(f"{key} was {former[key]} and is {now[key]}" for key in changed)
        raise RunRefused(f"the run in {folder} was begun with another configuration ({told}): {hint}")


def _refuse_another_base(before: RunRecord, base: _Base, devices: int, folder: Path) -> None:
    """What the name of the model does not tell: other weights lie under it now, or a batch is of another size."""
    hint = "name another output, or start --anew, which removes what is there"
    if None not in (before.base_weights, base.weights) and before.base_weights != base.weights:
        raise RunRefused(
            f"the run in {folder} was begun with other weights than those that {before.base_model} has now: put them "
            f"back, {hint}"
        )
    if before.state != "finished" and before.devices != devices:
        raise RunRefused(
            f"the run in {folder} was begun on {before.devices} devices and would go on with {devices}, so that a step "
            f"would see other samples: take as many, {hint}"
        )


@contextmanager
def _locked(folder: Path, main: bool) -> Iterator[None]:
    if not main:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("a")
    except OSError as error:
        raise RunRefused(f"{folder} cannot be written to ({error.strerror}): name another output") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunRefused(f"a run is under way in {folder}: let it end, or name another output") from error
        yield


@contextmanager
def _terminated() -> Iterator[Callable[[Run], None]]:
    """Within, SIGTERM and Ctrl-C ask the run that was named to stop after its step; a second Ctrl-C ends it at once."""
    runs: list[Run] = []
    told: list[int] = []

    def name(run: Run) -> None:
        runs.append(run)
        run.stopping = run.stopping or bool(told)

    def terminated(number: int, frame: object) -> None:
        if number == signal.SIGINT:
            if told:
                raise KeyboardInterrupt
            # Straight to the terminal: the step may be writing to a stream of Python's own.
            os.write(2, b"stopping after this step, with a checkpoint; Ctrl-C again to end at once\n")
        told.append(number)
        for run in runs:
            run.stopping = True

    if threading.current_thread() is not threading.main_thread():
        yield name
        return
    former = {number: signal.signal(number, terminated) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield name
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _remove(folder: Path) -> None:
    for name in (*OURS, *OF_A_RUN):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        elif name != "lock":
            path.unlink(missing_ok=True)


def code_revision() -> str | None:
    """The commit that this program is of, with a `+` where it was changed since; None outside a Git repository."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    found = []
    for arguments in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        try:
            told = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True, timeout=20)
        except (OSError, subprocess.SubprocessError):
            return None
        found.append(told.stdout.strip())
    return f"{found[0]}{'+' if found[1] else ''}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
