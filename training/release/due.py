"""When to train again: a rule that says so with its reasons. Whoever schedules only asks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from training.release.gate import DueRules
from training.release.registry import ModelVersion, Registry

if TYPE_CHECKING:
    from corpus.history import History
    from corpus.warehouse import Warehouse

DRIFT = "drift.json"


class UnreadableDrift(ValueError):
    """The drift report cannot be read; the message says what to do."""


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """`drift.json` of the home, as whoever watches the features writes it."""

    drift: bool
    at: datetime
    reason: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What the rule looks at.

    `champion`: its id; `measured`: the version since whose datasets is counted, the champion or a later one that awaits
    a decision; `waiting`: that one; `documents`: how many there are; `new`,
    `changed`, `gone`: since then; `feedback`: lines since then; `stale`: why the champion may not be kept, `free`: a
    later candidate that need not go for that; `drift`: the last report, `built_at`: when the newest dataset of
    `measured` was, which has seen what drifted before.
    """

    champion: str | None
    measured: str | None
    waiting: str | None
    documents: int
    new: int = 0
    changed: int = 0
    gone: int = 0
    feedback: int = 0
    stale: str | None = None
    free: str | None = None
    drift: Drift | None = None
    built_at: datetime | None = None


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """Whether to train, the reasons for it, and what is no reason yet."""

    due: bool
    reasons: tuple[str, ...]
    not_due: tuple[str, ...]


def due(facts: Facts, rules: DueRules) -> Due:
    """Decide from the facts. Without documents nothing is due, whatever else speaks for it."""
    reasons: list[str] = []
    not_due: list[str] = []

    def say(speaks: bool, told: str) -> None:
        (reasons if speaks else not_due).append(told)

    if not facts.documents:
        return Due(due=False, reasons=(), not_due=("there are no documents to train on: `twin ingest`",))
    if facts.champion is None:
        told = "there is no champion yet"
        say(facts.waiting is None, f"{told}, and {facts.waiting} awaits a decision" if facts.waiting else told)
    if facts.measured is not None:
        altered = facts.new + facts.changed + facts.gone
        share = altered / max(facts.documents, 1)
        enough = altered >= rules.documents and share >= rules.share
        say(
            enough,
            f"{facts.new} documents are new, {facts.changed} changed and {facts.gone} gone since the dataset of "
            f"{facts.measured}: {share:.1%} of {facts.documents} "
            f"(due from {rules.documents} and {rules.share:.1%} on)",
        )
        say(
            facts.feedback >= rules.feedback,
            f"{facts.feedback} lines of feedback since then (due from {rules.feedback} on)",
        )
    if facts.champion is not None:
        told = facts.stale or f"nothing that {facts.champion} rests on has been erased"
        told += f"; {facts.free} does not rest on it and awaits a decision" if facts.stale and facts.free else ""
        say(facts.stale is not None and facts.free is None, told)
    if facts.drift is None:
        not_due.append("nobody reports on drift")
    else:
        seen = facts.drift.drift and facts.built_at is not None and _utc(facts.drift.at) <= _utc(facts.built_at)
        why = f" ({facts.drift.reason})" if facts.drift.reason else ""
        why += f", before the dataset of {facts.measured} was built" if seen else ""
        told = f"{'drift' if facts.drift.drift else 'no drift'} at {facts.drift.at:%Y-%m-%d %H:%M}{why}"
        say(facts.drift.drift and not seen, told)
    return Due(due=bool(reasons), reasons=tuple(reasons), not_due=tuple(not_due))


def facts(home: Path, registry: Registry, warehouse: Warehouse, history: History) -> Facts:
    """Find them. Raises WarehouseUnavailable, HistoryUnavailable and UnreadableDrift."""
    history.refresh()
    held = {id: row for id, row in history.held().items() if not row.gone}
    versions = registry.versions()
    champion = registry.champion()
    measured = _measured(versions, champion)
    waiting = measured.id if measured is not None and measured.state == "candidate" else None
    known = Facts(
        champion=champion.id if champion else None,
        measured=measured.id if measured else None,
        waiting=waiting,
        documents=len(held),
        drift=_drift(home),
    )
    if champion is not None and (found := registry.stale(champion)) is not None:
        told = f"{champion.id} rests on document {found[0]}, which was erased on {found[1].erased_at:%Y-%m-%d}"
        later = (each for each in versions if each.number > champion.number and each.state == "candidate")
        free = next((each.id for each in later if registry.stale(each) is None), None)
        known = msgspec.structs.replace(known, stale=told, free=free)
    if measured is None:
        return known
    records = [record for id in measured.datasets for record in warehouse.built("datasets", id)]
    built_at = max((record["created_at"] for record in records), default=None)
    latest = _latest(records)
    before = _before(history, latest)
    now = {id: row.content_hash for id, row in held.items()}
    before = now if before is None else before
    # An erasure leaves no row of the history: only the record knows of what it took.
    known_then = {*before, *(latest["document_ids"] if latest is not None else ())}
    return msgspec.structs.replace(
        known,
        new=len(set(now) - set(before)),
        changed=sum(now[id] != before[id] for id in set(now) & set(before)),
        gone=len(known_then - set(now)),
        feedback=_since(warehouse.feedback(), built_at),
        built_at=built_at,
    )


def _utc(at: datetime) -> datetime:
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _measured(versions: Sequence[ModelVersion], champion: ModelVersion | None) -> ModelVersion | None:
    """The champion, or what has been trained since and awaits a decision, which has seen what is new since; without a
    champion the newest that was not rejected."""
    kept = [version for version in versions if version.state != "rejected"]
    if champion is not None:
        kept = [version for version in kept if version.number >= champion.number]
    return max(kept, key=lambda version: version.number, default=None)


def _latest(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    built = [record for record in records if "sequence" in record]
    return max(built, key=lambda record: int(record["sequence"]), default=None)


def _before(history: History, latest: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Content hashes of the documents that the dataset was built from, those without a sample too; None where nothing
    has been recorded since, which reads no text."""
    if latest is None:
        return {}
    if latest.get("as_of") is None and history.last() <= int(latest["sequence"]):
        return None
    then = history.documents(
        as_of=latest.get("as_of"), sequence=int(latest["sequence"]), generation=str(latest["generation"])
    )
    return {document.document_id: document.content_hash for document in then}


def _since(feedback: Iterable[Mapping[str, Any]], at: datetime | None) -> int:
    """Counted by when it was taken in, which may be long after it was said, or said anew."""
    told = [
        max(_utc(msgspec.convert(row[name], datetime)) for name in ("at", "kept_at") if name in row)
        for row in feedback
        if "at" in row
    ]
    return sum(at is None or each > _utc(at) for each in told)


def _drift(home: Path) -> Drift | None:
    path = home / DRIFT
    try:
        return msgspec.json.decode(path.read_bytes(), type=Drift)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise UnreadableDrift(f"{path} cannot be read ({error}): write it anew, or remove it") from error
