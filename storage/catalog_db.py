"""DuckLake's catalog tables through plain SQL: SQLite with the standard library, PostgreSQL with psycopg.

    with open_catalog_db(place, write=False) as db:
        rows = db.execute("SELECT path FROM ducklake_data_file WHERE table_id = :table", {"table": 3})
        rows[0]["path"]

The context is one transaction: of a reader one moment of the catalog, of a writer all or nothing. Statements must be in
the SQL both databases know; parameters are `:name` in both. A writer excludes every other one for as long as it is
open: on SQLite by BEGIN IMMEDIATE, on PostgreSQL by an advisory lock of its own transaction, so that what it looked
up still holds when it commits, even if another lock of its process was lost with a connection.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from strop.storage.errors import CatalogError, LakeError
from strop.storage.place import Place, no_lake
from strop.storage.sole_use import through_python

if TYPE_CHECKING:
    import psycopg

WRITERS = 0x5354524F_50000001
"""Key of the advisory lock that a writing transaction takes on PostgreSQL."""
BUSY_TIMEOUT_S = 10.0
PROBE = "SELECT 1 FROM ducklake_snapshot LIMIT 1"
TOKENS = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"|::|:(\w+)|%")
"""Texts and quoted names, which are left alone; casts; parameters; and what psycopg wants doubled."""


class CatalogRow(Protocol):
    """A row whose values are found by column name."""

    def __getitem__(self, name: str, /) -> Any: ...


class CatalogDb(Protocol):
    """The catalog within one transaction."""

    def execute(self, sql: str, params: Mapping[str, object] = ..., /) -> list[CatalogRow]:
        """Run one statement with `:name` parameters; its rows, none when it returns none."""


@contextlib.contextmanager
def open_catalog_db(place: Place, *, write: bool) -> Iterator[CatalogDb]:
    """Open the catalog of a lake for one transaction, committed at the end and rolled back on an exception.

    Raises LakeError when there is no catalog, and CatalogError when the database reports an error; after one at the
    commit nobody knows on which side it happened.
    """
    with _postgres(place, write=write) if place.catalog else _sqlite(place, write=write) as db:
        yield db


class _Sqlite:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, sql: str, params: Mapping[str, object] = {}, /) -> list[CatalogRow]:
        return self._connection.execute(sql, dict(params)).fetchall()


@contextlib.contextmanager
def _sqlite(place: Place, *, write: bool) -> Iterator[CatalogDb]:
    path = place.sqlite
    if not path.is_file():
        raise no_lake(place)
    try:
        with through_python(place.root):
            connection = _open(place, ("mode=rw",) if write else ("mode=ro", "mode=ro&immutable=1"))
            try:
                connection.execute("PRAGMA synchronous = FULL")
                connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
                yield _Sqlite(connection)
                connection.execute("COMMIT")
            finally:  # closing rolls back what was not committed
                connection.close()
    except sqlite3.Error as error:
        raise CatalogError(f"cannot {'write' if write else 'read'} the catalog {path}: {error}") from error


def _open(place: Place, modes: tuple[str, ...]) -> sqlite3.Connection:
    """Open in the first mode that works; as an immutable file where no lock file can be made (a read-only medium)."""
    for mode in modes:
        uri = f"{place.sqlite.as_uri()}?{mode}"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute(PROBE)
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if "unable to open" not in str(error) and "readonly" not in str(error):
                raise
    raise LakeError(f"cannot open the catalog {place.sqlite}: no permission to read it")


class _Postgres:
    def __init__(self, connection: psycopg.Connection[dict[str, Any]]) -> None:
        self._connection = connection

    def execute(self, sql: str, params: Mapping[str, object] = {}, /) -> list[CatalogRow]:
        found = self._connection.execute(_translated(sql).encode(), dict(params))
        return list(found) if found.description else []


@contextlib.contextmanager
def _postgres(place: Place, *, write: bool) -> Iterator[CatalogDb]:
    from strop.storage.postgres import psycopg_or_advice, said, session

    psycopg = psycopg_or_advice(place)
    try:
        with session(place) as connection, connection.transaction():
            if write:  # read committed: every statement after the lock sees what was committed before it was granted
                connection.execute("SELECT pg_advisory_xact_lock(%s)", [WRITERS])
            else:
                connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
            yield _Postgres(connection)
    except psycopg.errors.UndefinedTable as error:
        raise LakeError(
            f"there is no lake in the database {place.catalog}; `strop lake init {place}` makes one"
        ) from error
    except psycopg.Error as error:
        raise CatalogError(
            f"cannot {'write' if write else 'read'} the catalog {place.catalog}: {said(error)}"
        ) from error


@functools.lru_cache(maxsize=256)
def _translated(sql: str) -> str:
    """The statement with psycopg's parameters instead of `:name`."""

    def replaced(match: re.Match[str]) -> str:
        return f"%({match[1]})s" if match[1] else match[0].replace("%", "%%")

    return TOKENS.sub(replaced, sql)
