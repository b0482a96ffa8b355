"""Tracking: what runs did and which models there are, as MLflow shows it to people.

A run's own folder stays the source of truth, and the warehouse that of the models; MLflow is told, by default one in
the home (`mlflow/mlflow.db`), else the server of TWIN_MLFLOW_URI. What was told is noted in the run's `sent.json`, so
telling again tells only what is new, and a server that was away is told the next time.
"""

from __future__ import annotations

import hashlib
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from corpus.batches import batches
from corpus.files import replace_file
from corpus.settings import masked_text, without_password
from training import configuration
from training.evaluation.figures import EVALUATION, Evaluation, UnreadableFigures, read_evaluation
from training.runs import CONFIGURATION, METRICS, RECORD, RunRecord, RunRefused, read_record

if TYPE_CHECKING:
    from corpus.settings import Settings

EXPERIMENT = MODEL = "twin"
SENT = "sent.json"
# What people look at there; weights stay where they are, the record of a model says where.
FILES = (CONFIGURATION, METRICS, RECORD, f"evaluation/{EVALUATION}", "evaluation/report.html")
KEY, VERSION, STATE, FOLDER = "twin.run", "twin.version", "twin.state", "twin.folder"
# MLflow's own bounds of one request, and of a text in it.
PARAMETERS_TOGETHER, METRICS_TOGETHER, LONGEST = 100, 1_000, 5_000
STATUSES = {"running": "RUNNING", "stopped": "KILLED", "failed": "FAILED", "finished": "FINISHED"}
LIMIT_SECONDS = 10


class RegistryUnavailable(RuntimeError):
    """MLflow does not answer or cannot be used; nothing is lost, it is told the next time."""


class Sent(msgspec.Struct, frozen=True, kw_only=True):
    """What one MLflow has of a run: `key`, which run that was; `step`: its metrics up to there; `files`: SHA-256 of the
    files by name; `state`: of the run then."""

    key: str
    id: str
    step: int = 0
    files: dict[str, str] = {}
    state: str = ""


class Named(msgspec.Struct, frozen=True, kw_only=True):
    """A model version as MLflow is to show it. `run`: the folder of the run that made it; `aliases`: of the version."""

    id: str
    folder: str
    run: str
    state: str
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] = {}


def uri_of(settings: Settings) -> str:
    """Where MLflow is: TWIN_MLFLOW_URI, or the database of this home."""
    return settings.mlflow_uri or f"sqlite:///{settings.home / 'mlflow' / 'mlflow.db'}"


def send(folder: Path, uri: str, *, limit: int = LIMIT_SECONDS) -> Sent:
    """Tell MLflow of the run in `folder` what it has not been told yet; what it has now.

    Metrics go up to the last whole checkpoint, since later steps may be taken again. `limit`: seconds that a server
    may take to answer. Raises RegistryUnavailable, RunRefused.
    """
    record = _record(folder)
    sent = _sent(folder, uri)
    key = _key(folder, record)
    with _told(uri, limit) as client:
        if sent is None or sent.key != key or not _knows(client, sent.id):
            sent = Sent(key=key, id=_run(client, uri, folder, record, key))
            _parameters(client, sent.id, folder, record)
        sent = _note(folder, uri, msgspec.structs.replace(sent, step=_metrics(client, sent, folder, record)))
        files = dict(sent.files)
        for name, digest in _digests(folder).items():
            if files.get(name) != digest:
                parent = str(Path(name).parent)
                client.log_artifact(sent.id, str(folder / name), None if parent == "." else parent)
                files[name] = digest
                if name.endswith(EVALUATION):
                    _figures(client, sent.id, folder / name, record.step)
        ended = None if record.ended_at is None else _milliseconds(record.ended_at)
        client.set_tag(sent.id, "twin.reason", masked_text(record.reason or "")[:LONGEST])
        if record.state == "running":
            client.update_run(sent.id, STATUSES[record.state])
        else:
            client.set_terminated(sent.id, STATUSES[record.state], ended)
        return _note(folder, uri, msgspec.structs.replace(sent, files=files, state=record.state))


def is_sent(folder: Path, uri: str) -> bool:
    """Whether MLflow has been told all that there is to tell of this run; nobody is asked. Raises RunRefused."""
    record, sent = _record(folder), _sent(folder, uri)
    return sent is not None and (sent.key, sent.state, sent.step, sent.files) == (
        _key(folder, record),
        record.state,
        max((line["step"] for line in _lines(folder, record)), default=0),
        _digests(folder),
    )


def send_unsent(runs: Path, uri: str, *, say: Callable[[str], None], limit: int = LIMIT_SECONDS) -> list[str]:
    """Tell MLflow of every run in the folder `runs` whatever it was not told yet; the names of the runs it was told of.

    A run that cannot be read is told of to `say`, and passed over. Raises RegistryUnavailable.
    """
    found = []
    for record in sorted(runs.glob(f"*/{RECORD}")):
        folder = record.parent
        try:
            if not is_sent(folder, uri):
                send(folder, uri, limit=limit)
                found.append(folder.name)
        except RunRefused as error:
            say(f"{folder.name} is not sent to MLflow: {error}")
    return found


def tell(settings: Settings, *, say: Callable[[str], None], also: Path | None = None) -> None:
    """Tell MLflow of this home's runs, and of the run in the folder `also`; where it is away, say so and go on."""
    uri = uri_of(settings)
    try:
        if also is not None:
            try:
                if not is_sent(also, uri):
                    send(also, uri)
            except RunRefused as error:
                say(f"{also.name} is not sent to MLflow: {error}")
        send_unsent(settings.home / "runs", uri, say=say)
    except RegistryUnavailable as error:
        say(str(error))


def tell_versions(uri: str, versions: Sequence[Named], *, limit: int = LIMIT_SECONDS) -> None:
    """Let MLflow's registry show these versions of the model, their states and aliases. Raises RegistryUnavailable."""
    with _told(uri, limit) as client:
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL)
        there = {found.tags.get(VERSION): found for found in client.search_model_versions(f"name = '{MODEL}'")}
        numbers = {}
        for version in versions:
            found = there.get(version.id)
            if found is None:
                id = _run_id(Path(version.run), uri)
                # A server takes no folder of this machine as source, also of a version whose run it was never told of.
                source = f"{MODEL}:/{version.id}" if id is None else f"runs:/{id}"
                found = client.create_model_version(MODEL, source, id, {VERSION: version.id})
            numbers[version.id] = found.version
            for name, value in {STATE: version.state, FOLDER: version.folder, **version.tags}.items():
                if found.tags.get(name) != value:
                    client.set_model_version_tag(MODEL, found.version, name, value)
        wanted = {alias: numbers[version.id] for version in versions for alias in version.aliases}
        aliases = client.get_registered_model(MODEL).aliases
        for alias in set(aliases) - set(wanted):
            client.delete_registered_model_alias(MODEL, alias)
        for alias, number in wanted.items():
            if str(aliases.get(alias)) != str(number):
                client.set_registered_model_alias(MODEL, alias, number)


# What there is to tell


def _record(folder: Path) -> RunRecord:
    record = read_record(folder)
    if record is None:
        raise RunRefused(f"there is no run in {folder}: name the folder that `twin train` wrote to")
    return record


def _key(folder: Path, record: RunRecord) -> str:
    """Which run this is: one that was started anew in the same folder is another."""
    told = f"{folder.resolve().name} {record.stage} {record.started_at}"
    # MLflow's filters know no way to write an apostrophe.
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def _lines(folder: Path, record: RunRecord) -> Iterator[dict[str, Any]]:
    """The metrics of the steps that a checkpoint has kept."""
    path = folder / METRICS
    decoder = msgspec.json.Decoder(dict[str, Any])
    try:
        for raw in path.read_bytes().splitlines() if path.exists() else ():
            line = decoder.decode(raw)
            if isinstance(line.get("step"), int) and line["step"] <= record.step:
                yield line
    except msgspec.DecodeError:
        # The run is writing this line, or was cut off in it.
        return


def _digests(folder: Path) -> dict[str, str]:
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES if (folder / name).is_file()
    }


def _sent(folder: Path, uri: str) -> Sent | None:
    return _all_sent(folder).get(_place(uri))


def _all_sent(folder: Path) -> dict[str, Sent]:
    try:
        return msgspec.json.decode((folder / SENT).read_bytes(), type=dict[str, Sent])
    except (FileNotFoundError, msgspec.DecodeError):
        # MLflow finds the run by its key, and takes nothing twice.
        return {}


def _note(folder: Path, uri: str, sent: Sent) -> Sent:
    noted = {**_all_sent(folder), _place(uri): sent}
    replace_file(folder / SENT, msgspec.json.format(msgspec.json.encode(noted)))
    return sent


def _run_id(folder: Path, uri: str) -> str | None:
    sent = _sent(folder, uri)
    return None if sent is None else sent.id


# Telling it


def _run(client: Any, uri: str, folder: Path, record: RunRecord, key: str) -> str:
    """MLflow's id of this run, which is made if it has none; a crash may have come before it was noted."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    id = experiment.experiment_id if experiment else client.create_experiment(EXPERIMENT, _artefacts(uri))
    for found in client.search_runs([id], f"tags.`{KEY}` = '{key}'"):
        return str(found.info.run_id)
    tags = {
        KEY: key,
        "twin.folder": str(folder.resolve()),
        "twin.dataset": record.dataset,
        "twin.generation": record.generation,
        "twin.code_revision": record.code_revision or "unknown",
        "twin.base_run": record.base_run or "",
        "twin.device": f"{record.devices} x {record.device}",
        **{f"twin.version.{name}": version for name, version in record.versions.items()},
    }
    made = client.create_run(id, _milliseconds(record.started_at), tags, folder.resolve().name)
    return str(made.info.run_id)


def _knows(client: Any, id: str) -> bool:
    """Whether MLflow has this run; its database may be another one by now."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_run(id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise
    return True


def _parameters(client: Any, id: str, folder: Path, record: RunRecord) -> None:
    from mlflow.entities import Param

    told: dict[str, Any] = {name: getattr(record, name) for name in ("stage", "dataset", "rows", "documents")}
    try:
        told |= _flat(msgspec.to_builtins(configuration.load(folder / CONFIGURATION)))
    except configuration.InvalidConfiguration as error:
        raise RunRefused(f"the run in {folder} is not whole ({error})") from error
    parameters = [Param(name, str(value)[:LONGEST]) for name, value in told.items()]
    for part in batches(parameters, PARAMETERS_TOGETHER):
        client.log_batch(id, params=list(part))


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, Mapping) else {before + name: value}
    return found


def _metrics(client: Any, sent: Sent, folder: Path, record: RunRecord) -> int:
    """Send the metrics after `sent.step`, and what the run took; up to which step they are there then.

    The time of a metric is computed, so what a crash lets be sent again is the same and counts once.
    """
    from mlflow.entities import Metric

    began, step = _milliseconds(record.started_at), sent.step
    metrics = []
    for line in _lines(folder, record):
        if line["step"] <= sent.step:
            continue
        step = max(step, line["step"])
        at = began + round(1000 * float(line.get("seconds") or 0.0))
        metrics += [
            Metric(name, float(value), at, line["step"])
            for name, value in line.items()
            if name != "step" and isinstance(value, int | float) and not isinstance(value, bool)
        ]
    if record.state != "running" and (sent.state != record.state or step > sent.step):
        at = began + round(1000 * record.seconds)
        took = {"tokens_per_second": record.tokens_per_second, "seconds": record.seconds, "tokens": record.tokens}
        metrics += [Metric(f"system/{name}", float(value), at, record.step) for name, value in took.items()]
    for part in batches(metrics, METRICS_TOGETHER):
        client.log_batch(sent.id, metrics=list(part))
    return step


def _figures(client: Any, id: str, path: Path, step: int) -> None:
    from mlflow.entities import Metric

    try:
        evaluation = read_evaluation(path)
    except UnreadableFigures as error:
        raise RunRefused(str(error)) from error
    at = int(evaluation.created_at.timestamp() * 1000)
    metrics = [Metric(f"evaluation/{name}", value, at, step) for name, value in figures(evaluation).items()]
    for part in batches(metrics, METRICS_TOGETHER):
        client.log_batch(id, metrics=list(part))


def figures(evaluation: Evaluation) -> dict[str, float]:
    """Every figure of an evaluation with the ends of its interval, by name."""
    found: dict[str, float] = {}
    for metric in evaluation.metrics.values():
        found |= {metric.name: metric.value, f"{metric.name}.low": metric.low, f"{metric.name}.high": metric.high}
    for each in evaluation.comparisons.values():
        name = f"{each.name}.difference"
        found |= {name: each.difference, f"{name}.low": each.low, f"{name}.high": each.high}
    return found


# MLflow


def _artefacts(uri: str) -> str | None:
    """Where the files of runs go: beside a local database; a server knows its own place."""
    if not uri.startswith("sqlite:///"):
        return None
    return (Path(uri.removeprefix("sqlite:///")).absolute().parent / "artefacts").as_uri()


def _place(uri: str) -> str:
    return uri if uri.startswith("sqlite:///") else without_password(uri)


def _milliseconds(at: str) -> int:
    return int(datetime.fromisoformat(at).timestamp() * 1000)


@contextmanager
def _told(uri: str, limit: int) -> Iterator[Any]:
    """A client of MLflow that tells nobody else; what fails within is RegistryUnavailable.

    By default it would try again for minutes.
    """
    environment = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(limit),
        # What is printed is a command's result.
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with warnings.catch_warnings():
            # MLflow still calls what SQLAlchemy has renamed.
            warnings.simplefilter("ignore")
            yield _client(uri)
    except (RegistryUnavailable, RunRefused):
        raise
    except Exception as error:  # MLflow raises errors of its stores, of SQLAlchemy, of requests and of the disk
        told = next(takewhile(bool, masked_text(str(error)).splitlines()), type(error).__name__)[:200]
        raise RegistryUnavailable(
            f"MLflow at {_place(uri)} cannot be used ({told}): nothing is lost, it is told the next time; check "
            "TWIN_MLFLOW_URI"
        ) from error
    finally:
        for name, value in before.items():
            if name.startswith("MLFLOW_HTTP"):
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _client(uri: str) -> Any:
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise RegistryUnavailable(
            "MLflow is not installed, so nothing is told to it: pip install 'llm-twin[training]', or in a clone: "
            "scripts/setup training"
        ) from error
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    return MlflowClient(uri, uri)
