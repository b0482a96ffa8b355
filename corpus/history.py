"""The document history: every cleaned version of every document, in an append-only Delta Lake table.

A row is one version as downstream was told of it, or the end of a document. `sequence` numbers the rows in the order in
which they were recorded, so what the history said at any time can be read again whatever is recorded later; erasing a
document takes its rows out of the files as well. Every commit carries its last number as a Delta transaction, so of two
writers that start from the same state one is refused, and nothing is recorded twice.
Source: the Delta transaction protocol, "Transaction Identifiers"; `deltalake`'s own documentation.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

if TYPE_CHECKING:
    from arro3.core import Schema, Table
    from deltalake import CommitProperties, DeltaTable

    from corpus.settings import Settings

WRITER, LOCK = "sequence", "history.lock"
# A commit makes a file; so many are joined to one, and what a reader may still have open is kept for this long.
FILES_TOGETHER, READERS_HOURS = 100, 1
# Of each document the newest row for which `where` holds, found without its text: to sort texts takes their room again.
NEWEST = """
select {columns} from history
where sequence in (select max(sequence) from history where {where} group by document_id)"""
NEVER = "1970-01-01T00:00:00+00:00"


class HistoryUnavailable(RuntimeError):
    """The history cannot be read or written; the message says what to do."""


class Overtaken(RuntimeError):
    """Another process recorded something meanwhile; read again where it is and go on from there."""


class DocumentState(msgspec.Struct, frozen=True, kw_only=True):
    """A document after cleaning, as the feature topic tells it (docs/contracts/features.documents.v1.json); it may tell
    more. `text`: the cleaned text; dates are ISO 8601 in UTC."""

    document_id: str
    version: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)]
    generation: str
    category: str
    platform: str
    author: str
    author_id: str
    url: str
    title: str
    language: str | None
    published_at: str | None
    crawled_at: str
    crawl_id: str
    content_hash: str
    text: str


class DocumentVersion(DocumentState, frozen=True, kw_only=True):
    """A state in the history. `sequence`: its place there, rising without regard to documents; `recorded_at`: when the
    topic took it."""

    sequence: int
    recorded_at: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """What the topic said of a document at `at`: its whole state, or (`state` is None) that it is gone."""

    document_id: str
    at: datetime
    state: Mapping[str, Any] | None


class Held(msgspec.Struct, frozen=True):
    """The newest row of a document, without its text; `version` counts from the source, `gone`: it ended there."""

    sequence: int
    version: int
    generation: str
    content_hash: str
    gone: bool


def open_history(settings: Settings) -> History:
    """The history of this home; its table is made if there is none. Raises HistoryUnavailable."""
    from deltalake import DeltaTable

    path = settings.home / "history"
    with _translated(path):
        if not DeltaTable.is_deltatable(str(path)):
            path.mkdir(parents=True, exist_ok=True)
            # Statistics would put the first words of titles and ids into the log, which outlives what they are of.
            DeltaTable.create(
                str(path),
                schema=_schema(),
                mode="ignore",
                name="document history",
                configuration={
                    "delta.dataSkippingStatsColumns": "sequence",
                    "delta.logRetentionDuration": "interval 0 days",
                    "delta.deletedFileRetentionDuration": f"interval {READERS_HOURS} hours",
                },
            )
        return History(path, DeltaTable(str(path)))


class History:
    """An open history. Every method raises HistoryUnavailable when its files cannot be read or written."""

    def __init__(self, path: Path, table: DeltaTable) -> None:
        self._path, self._table = path, table

    def refresh(self) -> None:
        """See what other processes recorded."""
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        with _translated(self._path):
            try:
                self._table.update_incremental()
            except DeltaError:
                # The entries of the log between then and now were joined to a checkpoint and removed.
                self._table = DeltaTable(str(self._path))

    def last(self) -> int:
        """The number of the newest row; 0 where nothing was ever recorded."""
        return self.position(WRITER) or 0

    def position(self, source: str) -> int | None:
        """How far this source was recorded; None where it never was."""
        from deltalake.exceptions import DeltaError

        with _translated(self._path):
            try:
                found = self._table.transaction_version(source)
            except DeltaError:
                self.refresh()
                found = self._table.transaction_version(source)
        return None if found is None else int(found)

    def versions(self) -> dict[tuple[str, int], int]:
        """The first row of every state that is there, by the document's id and version."""
        told = "select document_id, version, min(sequence) as first from history where not gone group by 1, 2"
        return {(row["document_id"], row["version"]): row["first"] for row in self._asked(told)}

    def begun(self) -> dict[str, datetime]:
        """When downstream was told of the first state of each document that is there."""
        told = "select document_id, min(recorded_at) as first from history where not gone group by 1"
        return {row["document_id"]: row["first"] for row in self._asked(told)}

    def bylines(self) -> list[tuple[str, str, str]]:
        """Id, author's id and author's name of every document that there ever was, once for each name."""
        rows = self._asked("select distinct document_id, author_id, author from history where not gone")
        return [(row["document_id"], row["author_id"], row["author"]) for row in rows]

    def held(self) -> dict[str, Held]:
        """The newest row of every document."""
        columns = "document_id, sequence, version, generation, content_hash, gone"
        newest: dict[str, Held] = {}
        for row in self._asked(NEWEST.format(columns=columns, where="true")):
            id = row.pop("document_id")
            newest[id] = Held(**row)
        return newest

    def record(self, told: Sequence[Told], positions: Mapping[str, int], held: dict[str, Held]) -> int:
        """Append what is new among what was told, in order, and how far each source has come; the number of rows.

        `held` is what `held()` said, and follows. A state that is the newest already is not recorded again.
        Raises Overtaken.
        """
        from deltalake import CommitProperties, Transaction

        rows, following = _new_rows(told, held, self.last())
        last = self.last() + len(rows)
        marks = [Transaction(WRITER, last), *(Transaction(name, at) for name, at in positions.items())]
        self._append(rows, CommitProperties(app_transactions=marks))
        held.update(following)
        if len(self._table.file_uris()) >= FILES_TOGETHER:
            with self._alone():
                self._tidy(READERS_HOURS)
        return len(rows)

    def documents(
        self, *, as_of: datetime | None = None, sequence: int | None = None, generation: str | None = None
    ) -> list[DocumentVersion]:
        """The documents as they were at a time, by id: of each the newest version that was told until `as_of` and
        recorded up to `sequence`, unless it was gone by then.

        `generation`: of these recipes alone; None: of those that made the most documents, of equal ones the newest:
        while a new generation is told for the first time it has a part of them.
        """
        conditions = []
        if sequence is not None:
            conditions.append(f"sequence <= {sequence}")
        if as_of is not None:
            conditions.append(f"recorded_at <= to_timestamp_micros({round(as_of.timestamp() * 1_000_000)})")
        then = " and ".join(conditions) or "true"
        if generation is None:
            generation = self._complete(then)
        told = f"{then} and (gone or generation = {_quoted(generation)})"
        columns = ", ".join((*DocumentVersion.__struct_fields__, "gone"))
        found = []
        for row in self._asked(NEWEST.format(columns=columns, where=told) + " and not gone"):
            del row["gone"]
            found.append(DocumentVersion(**{**row, "recorded_at": row["recorded_at"].isoformat()}))
        return sorted(found, key=lambda version: version.document_id)

    def _complete(self, then: str) -> str:
        """The generation with the most documents that are not gone, among the rows for which this holds."""
        live: dict[str, dict[str, int]] = {}
        order = "select document_id, sequence, generation, gone from history where {} order by sequence"
        for row in self._asked(order.format(then)):
            if row["gone"]:
                for documents in live.values():
                    documents.pop(row["document_id"], None)
            else:
                live.setdefault(row["generation"], {})[row["document_id"]] = row["sequence"]
        return max(live, key=lambda name: (len(live[name]), max(live[name].values(), default=0)), default="")

    def count(self, meant: Callable[[str, datetime], bool]) -> int:
        """How many rows are meant, by the document's id and when it was read (the end of a document is of 1970), and
        files that no row is known of."""
        with self._alone():
            self.refresh()
            return len(self._meant(meant)) + len(self._unknown_files())

    def erase(self, meant: Callable[[str, datetime], bool]) -> int:
        """Take the rows that are meant out of the files for good; how many there were.

        Whoever reads older files at this moment fails, and reads again.
        """
        with self._alone():
            self.refresh()
            found = self._meant(meant)
            if found:
                with _translated(self._path):
                    self._table.delete(f"sequence in ({', '.join(map(str, found))})")
            self._tidy(0)
        return len(found)

    def _meant(self, meant: Callable[[str, datetime], bool]) -> list[int]:
        rows = self._asked("select document_id, sequence, crawled_at from history")
        return [row["sequence"] for row in rows if meant(row["document_id"], datetime.fromisoformat(row["crawled_at"]))]

    def _append(self, rows: Sequence[Mapping[str, Any]], properties: CommitProperties) -> None:
        from deltalake import write_deltalake
        from deltalake.exceptions import CommitFailedError

        table = _as_table(rows)
        with self._alone(), _translated(self._path):
            try:
                write_deltalake(self._table, table, mode="append", commit_properties=properties)
            except CommitFailedError as error:
                self._table.update_incremental()
                raise Overtaken("another process recorded something meanwhile") from error
            self._table.update_incremental()

    def _tidy(self, hours: int) -> None:
        """Join the files, and remove those that nothing needs any more and the log's entries of them, also those that a
        crash or a refused commit left, which no entry names. Only alone: another's commit may be about to name one."""
        self.refresh()
        with _translated(self._path):
            self._table.optimize.compact()
            self._table.vacuum(retention_hours=hours, enforce_retention_duration=False, dry_run=False, full=True)
            self._table.create_checkpoint()
            self._table.cleanup_metadata()
        self.refresh()

    def _unknown_files(self) -> list[Path]:
        """Data files that are no part of the table as it is."""
        with _translated(self._path):
            known = {Path(file).name for file in self._table.file_uris()}
        return [path for path in self._path.glob("*.parquet") if path.name not in known]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Nobody else writes to the files meanwhile; readers go on."""
        try:
            with (self._path.parent / LOCK).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise HistoryUnavailable(f"{self._path} cannot be locked ({error.strerror}): mend its rights") from error

    def _asked(self, question: str) -> Iterator[dict[str, Any]]:
        """The rows that answer a question in SQL to the table `history`, a batch in memory at a time."""
        from deltalake import QueryBuilder

        with _translated(self._path):
            for batch in QueryBuilder().register("history", self._table).execute(question):
                names = batch.schema.names
                columns = [batch.column(name).to_pylist() for name in names]
                for values in zip(*columns, strict=True):
                    yield dict(zip(names, values, strict=True))


def _schema() -> Schema:
    from arro3.core import DataType, Field, Schema

    kinds = {
        "version": DataType.int64(),
        "sequence": DataType.int64(),
        "recorded_at": DataType.timestamp("us", tz="UTC"),
    }
    fields = [
        Field(name, kinds.get(name, DataType.utf8()), nullable=True) for name in DocumentVersion.__struct_fields__
    ]
    return Schema([*fields, Field("gone", DataType.bool(), nullable=True)])


def _as_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows as Arrow. (pyarrow would take the app 80 MB for no more than this.)"""
    from arro3.core import Array, DataType, Table

    def column(name: str, kind: DataType) -> Array:
        if name == "recorded_at":
            moments = [round(row[name].timestamp() * 1_000_000) for row in rows]
            return Array(moments, DataType.int64()).cast(kind)
        return Array([row[name] for row in rows], kind)

    schema = _schema()
    return Table.from_arrays([column(name, schema.field(name).type) for name in schema.names], schema=schema)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _new_rows(
    told: Sequence[Told], held: Mapping[str, Held], last: int
) -> tuple[list[dict[str, Any]], dict[str, Held]]:
    """The rows that say something new, and what is the newest of their documents then."""
    rows: list[dict[str, Any]] = []
    following: dict[str, Held] = {}
    for each in told:
        id, state = each.document_id, each.state
        known = following.get(id) or held.get(id)
        if state is None:
            if known is None or known.gone:
                continue
            new = Held(last + len(rows) + 1, known.version, known.generation, "", True)
            fields: Mapping[str, Any] = {"crawled_at": NEVER}
        else:
            new = Held(last + len(rows) + 1, state["version"], state["generation"], state["content_hash"], False)
            if known is not None and msgspec.structs.replace(new, sequence=known.sequence) == known:
                continue
            fields = state
        empty = dict.fromkeys(DocumentVersion.__struct_fields__, "")
        row = {**empty, "language": None, "published_at": None, **fields}
        rows.append(
            {
                **{name: row[name] for name in empty},
                "document_id": id,
                "version": new.version,
                "generation": new.generation,
                "sequence": new.sequence,
                "recorded_at": each.at.astimezone(UTC),
                "gone": new.gone,
            }
        )
        following[id] = new
    return rows, following


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    from deltalake.exceptions import DeltaError

    try:
        yield
    except (DeltaError, OSError) as error:
        raise HistoryUnavailable(
            f"the document history in {path} cannot be used ({str(error)[:200]}): check the disk's space and rights"
        ) from error
