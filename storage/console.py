"""Read-only SQL for people: views over the Parquet files of one snapshot, in core DuckDB, behind a gate.

    with open_console(Path("lake")) as console:
        result = console.query("SELECT run_id, round, pass_at_1 FROM v_rounds")

No extension is loaded, DuckLake the least: they bring functions that write and delete files (see `gate`). Only a lake
on S3 needs one, httpfs, which adds a file system and no function; it may open the snapshot's objects and no other.
Views are made when a query first names them, so that opening costs little however many tables there are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import duckdb

from strop.storage import gate
from strop.storage.catalog import Catalog, read_catalog
from strop.storage.catalog_db import open_catalog_db
from strop.storage.errors import LakeError
from strop.storage.narrowing import KINDS, MANY, Bounds, conditions, excluded, read_bounds
from strop.storage.patience import Patience
from strop.storage.place import Place, place_of
from strop.storage.reading import blame
from strop.storage.ready_views import READY
from strop.storage.tables import BY_NAME, SCHEMA_VERSION, Column, columns
from strop.storage.views import literal, view_sql, with_known_columns

if TYPE_CHECKING:
    import pyarrow as pa

TIMEOUT_S = 300.0
BATCH = 2048
"""Rows fetched at a time: DuckDB's own vector."""
ARROW_BATCH = 8192


@dataclass(frozen=True, slots=True)
class Result:
    """What a query returned, as values that JSON knows (and datetimes)."""

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class TableInfo:
    """A table or ready-made view one can select from."""

    name: str
    doc: str
    columns: tuple[Column, ...]
    rows: int | None
    """Visible rows; None for a view."""


class Stream:
    """The rows of a running query, fetched batch by batch, so that a result need not fit into memory."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, patience: Patience) -> None:
        self._connection = connection
        self._patience = patience
        described = connection.description or []
        self.columns = [str(column[0]) for column in described]
        self.types = [str(column[1]) for column in described]
        self.fetched = 0
        """Rows so far."""

    @property
    def seconds(self) -> float:
        """What the query has taken so far, without who reads its rows."""
        return self._patience.spent_s

    def batches(self, rows: int = BATCH) -> Iterator[list[tuple[Any, ...]]]:
        """Lists of at most `rows` rows, of values that JSON knows (and datetimes)."""
        while True:
            with self._patience.spending():
                found = self._connection.fetchmany(rows)
            if not found:
                return
            self.fetched += len(found)
            yield _plain(found, self.types)

    def arrow(self, rows: int = ARROW_BATCH) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The schema and the batches with DuckDB's own types. Imports pyarrow (0.2 s)."""
        with self._patience.spending():
            reader = self._connection.to_arrow_reader(rows)
        return reader.schema, self._arrow_batches(reader)

    def _arrow_batches(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        while True:
            with self._patience.spending():
                batch = next(reader, None)
            if batch is None:
                return
            self.fetched += batch.num_rows
            yield batch


class Console:
    """An open console on one snapshot."""

    def __init__(self, root: Path, catalog: Catalog, connection: duckdb.DuckDBPyConnection) -> None:
        self.root = root
        self.snapshot = catalog.snapshot
        self._catalog = catalog
        self._connection = connection
        self._made: dict[str, frozenset[int]] = {}
        """Views there are, and the files that each leaves out."""
        self._bounds: dict[tuple[str, str], Bounds] = {}

    def query(self, sql: str, *, timeout_s: float = TIMEOUT_S) -> Result:
        """Run one SELECT and fetch all of it. Raises LakeError when it is not allowed, wrong, too slow or too big.

        No parameters on purpose: binding one makes DuckDB import numpy, pandas and pyarrow (0.2 s); see `literal`.
        """
        patience = Patience(timeout_s, self._connection.interrupt, None)
        with patience.spending(), self._running(sql, patience, timeout_s) as found:
            return Result(found.columns, found.types, [row for rows in found.batches() for row in rows])

    @contextlib.contextmanager
    def stream(
        self, sql: str, *, timeout_s: float = TIMEOUT_S, stuck: Callable[[], None] | None = None
    ) -> Iterator[Stream]:
        """Run one SELECT whose rows are fetched as they are needed; the time limit counts the query's work alone.

        `stuck` is called when a query does not stop at the limit. Raises LakeError, also from the fetches.
        """
        with self._running(sql, Patience(timeout_s, self._connection.interrupt, stuck), timeout_s) as found:
            yield found

    @contextlib.contextmanager
    def _running(self, sql: str, patience: Patience, timeout_s: float) -> Iterator[Stream]:
        self._prepare(sql)
        # a wall of its own: in such a transaction DuckDB creates, changes and drops nothing but temporary things
        self._connection.execute("BEGIN TRANSACTION READ ONLY")
        try:
            with patience.spending():
                self._connection.execute(sql)
            yield Stream(self._connection, patience)
        except duckdb.InterruptException as error:
            if not patience.is_over:
                raise LakeError("the query was cancelled") from error
            raise LakeError(f"the query took longer than {timeout_s:g} s: narrow it by run_id and round") from error
        except (duckdb.OutOfMemoryException, MemoryError) as error:
            why = str(error).partition("\n")[0]  # then come settings to change, which nobody can here
            raise LakeError(f"the query needs too much memory: narrow it, or select fewer columns ({why})") from error
        except duckdb.Error as error:
            raise blame(self.root, error, self._made) or LakeError(f"the query failed: {error}") from error
        finally:
            with contextlib.suppress(duckdb.Error):  # a failed query may have ended the transaction
                self._connection.execute("ROLLBACK")

    def cancel(self) -> None:
        """Interrupt the query that another thread of this process runs; it raises LakeError there."""
        self._connection.interrupt()

    def _prepare(self, sql: str) -> None:
        """Let the query through the gate and make the views it reads."""
        names = {*self._catalog.tables, *READY}
        question = gate.check(self._connection, sql, names)
        wanted = names if question.reads is None else question.reads
        for name in sorted(wanted, key=lambda name: (name in READY, name)):  # those make the tables they need anew
            self._make(name, self._excluded(name, question))

    def _excluded(self, name: str, question: gate.Question) -> frozenset[int]:
        """Files of a table that the query cannot have rows from; none where it has too few files to care."""
        if name in READY or question.reads is None or len(self._catalog.tables[name].files) <= MANY:
            return frozenset()
        places = conditions(question.tree).get(name, [])
        types = {c.name: c.sql_type for c in self._catalog.tables[name].columns if c.sql_type in KINDS}
        asked = {c.column for place in places for c in place if c.column in types}
        if fresh := [column for column in sorted(asked) if (name, column) not in self._bounds]:
            with open_catalog_db(place_of(self.root), write=False) as db:
                for column in fresh:
                    self._bounds[name, column] = read_bounds(db, name, column, types[column])
        return excluded(places, {column: self._bounds[name, column] for column in asked})

    def tables(self) -> list[TableInfo]:
        """Everything one can select from, with what each column means."""
        found = []
        for name, table in self._catalog.tables.items():
            docs = {c.name: c.doc for c in columns(BY_NAME[name])} if name in BY_NAME else {}
            about = (BY_NAME[name].__doc__ or "").strip() if name in BY_NAME else ""
            live = tuple(Column(c.name, c.sql_type, docs.get(c.name, "")) for c in table.columns)
            found.append(TableInfo(name, about, live, sum(file.rows - file.deleted for file in table.files)))
        return found + [TableInfo(view.name, view.doc, view.columns, None) for view in READY.values()]

    def _make(self, name: str, without: frozenset[int] = frozenset()) -> None:
        """Make the view of a table, without some of its files, or a ready-made one with the tables it needs."""
        if name in READY:
            for needed in READY[name].needs:
                self._make(needed)
        if self._made.get(name) == without:
            return
        if name in READY:
            sql = READY[name].sql
        else:
            table = self._catalog.tables[name]
            files = tuple(file for file in table.files if file.id not in without)
            sql = view_sql(dataclasses.replace(table, files=files), self.snapshot)
        try:
            self._connection.execute(f'CREATE OR REPLACE VIEW "{name}" AS {sql}')
        except duckdb.Error as error:
            damage = blame(self.root, error, {name})
            raise damage or LakeError(f"cannot read table {name!r} of the lake {self.root}: {error}") from error
        self._made[name] = without

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Console:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_console(root: Path, *, snapshot: int | None = None, memory_gb: float | None = None) -> Console:
    """Open the console on a lake as it stands now, or stood at a snapshot.

    `memory_gb` limits what a query may use; the default is half of the machine's.
    Raises LakeError when there is no lake, no such snapshot, or when a newer Strop made it.
    """
    place = place_of(root)
    root = place.root
    catalog = read_catalog(root, snapshot)
    connection = duckdb.connect(
        config={
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
        }
    )
    console = Console(root, with_known_columns(catalog), connection)
    try:
        _lock_down(connection, place, catalog, memory_gb)
        _check_version(console, catalog)
    except duckdb.Error as error:
        connection.close()
        raise LakeError(f"cannot open a console on the lake {root}: {error}") from error
    except BaseException:
        connection.close()
        raise
    return console


def _lock_down(connection: duckdb.DuckDBPyConnection, place: Place, catalog: Catalog, memory_gb: float | None) -> None:
    """Let the connection open the snapshot's files and nothing else, for good."""
    paths = [path for table in catalog.tables.values() for f in table.files for path in (f.path, f.deletes) if path]
    if place.data:
        from strop.storage.extensions import load_s3

        load_s3(connection, place)
        connection.execute("SET enable_http_metadata_cache = true")  # registered files never change
    if memory_gb is None:
        memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**31
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")  # a lineage reads the same files many times
    connection.execute(f"SET memory_limit = '{max(memory_gb, 0.1):.2f}GB'")
    connection.execute("SET temp_directory = ''")
    connection.execute(f"SET allowed_paths = [{', '.join(map(literal, paths))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


def _check_version(console: Console, catalog: Catalog) -> None:
    if "schema_versions" not in catalog.tables and catalog.snapshot < catalog.newest:
        raise LakeError(f"at snapshot {catalog.snapshot} the lake {console.root} had no tables yet; name a later one")
    if "schema_versions" not in catalog.tables:
        raise LakeError(
            f"the lake {console.root} was never finished being made; `strop run --lake {console.root}` does"
        )
    version = console.query("SELECT max(version) FROM schema_versions").rows[0][0]
    if version is not None and version > SCHEMA_VERSION:
        raise LakeError(
            f"the lake {console.root} has schema version {version}, made by a newer Strop; this one knows versions up "
            f"to {SCHEMA_VERSION}. Upgrade: pip install --upgrade strop"
        )


def _plain(rows: list[tuple[Any, ...]], types: list[str]) -> list[tuple[Any, ...]]:
    """Rows whose values JSON knows: decimals as floats, identifiers as text, intervals as seconds."""
    known = ("VARCHAR", "BIGINT", "INTEGER", "DOUBLE", "FLOAT", "BOOLEAN", "TIMESTAMP", "HUGEINT", "UBIGINT")
    odd = [i for i, name in enumerate(types) if not name.removesuffix("[]").startswith(known)]
    if not odd:
        return rows
    return [tuple(_json(v) if i in odd else v for i, v in enumerate(row)) for row in rows]


def _json(value: Any) -> Any:
    match value:
        case decimal.Decimal():
            return float(value)
        case datetime.timedelta():
            return value.total_seconds()
        case bytes():
            return value.hex()
        case list() | tuple():
            return [_json(v) for v in value]
        case dict():
            return {str(k): _json(v) for k, v in value.items()}
        case None | bool() | int() | float() | str() | datetime.datetime():
            return value
    return str(value)
