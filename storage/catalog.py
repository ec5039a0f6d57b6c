"""The lake's catalog read with the standard library alone: which files make up each table at one snapshot.

DuckLake's catalog is plain SQL tables; a file is live at snapshot S when it began at or before S and has not ended
by S. Deleted rows (an UPDATE is a delete and an insert) are listed by position in a delete file, which may carry
positions of later snapshots too. All of it is read in one SQLite transaction, so it is one moment of the lake.
Left out: renamed columns and inlined rows, which Strop never makes.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from strop.storage.errors import LakeError

T = TypeVar("T")

LIVE = "{0}.begin_snapshot <= :at AND ({0}.end_snapshot IS NULL OR {0}.end_snapshot > :at)"
NEWEST = "SELECT max(snapshot_id) FROM ducklake_snapshot"
EXISTS = "SELECT count(*) FROM ducklake_snapshot WHERE snapshot_id = :at"
TABLES = f"""
SELECT t.table_id, t.table_name,
  CASE t.path_is_relative WHEN 0 THEN t.path ELSE s.path || t.path END AS folder
FROM ducklake_table t JOIN ducklake_schema s USING (schema_id)
WHERE s.schema_name = 'main' AND {LIVE.format("t")} AND {LIVE.format("s")} ORDER BY t.table_id"""
COLUMNS = f"""
SELECT c.table_id, c.column_id, c.parent_column, c.column_name, c.column_type, c.begin_snapshot, c.initial_default
FROM ducklake_column c WHERE {LIVE.format("c")} ORDER BY c.table_id, c.column_order"""
FILES = f"""
SELECT f.table_id, f.path, f.path_is_relative, f.record_count, f.begin_snapshot,
  coalesce(f.partial_max, 0) > :at AS later_rows, f.partial_max IS NOT NULL AS merged,
  d.path AS deletes, d.path_is_relative AS deletes_relative, d.delete_count, d.partial_max IS NOT NULL AS dated
FROM ducklake_data_file f
LEFT JOIN ducklake_delete_file d ON d.data_file_id = f.data_file_id AND {LIVE.format("d")}
WHERE {LIVE.format("f")} ORDER BY f.table_id, f.data_file_id"""

COMMITS = """
SELECT snapshot_id, commit_extra_info FROM ducklake_snapshot_changes
WHERE commit_extra_info IS NOT NULL ORDER BY snapshot_id DESC"""

TYPES = {
    "boolean": "BOOLEAN",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "varchar": "VARCHAR",
    "timestamptz": "TIMESTAMPTZ",
}
"""DuckLake's names for types, where they differ from SQL's."""


@dataclass(frozen=True, slots=True)
class LiveColumn:
    """A column as it stands at the snapshot."""

    name: str
    sql_type: str
    since: int
    """Snapshot that added it: older files lack it."""
    default: str | None
    """What the rows of those files have instead, as text; None = null."""


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file with rows that are visible at the snapshot."""

    path: Path
    rows: int
    since: int
    merged: bool
    """Compaction made it from files of several snapshots: it can be newer than the columns say."""
    later_rows: bool
    """Some of its rows belong to later snapshots; `_ducklake_internal_snapshot_id` tells."""
    deletes: Path | None
    """Parquet file with the positions of deleted rows."""
    deleted: int
    deletes_dated: bool
    """The positions carry the snapshot that deleted them, in a column of that same name."""


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A table at the snapshot."""

    name: str
    columns: tuple[LiveColumn, ...]
    files: tuple[LiveFile, ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """Every table at one snapshot."""

    snapshot: int
    newest: int
    tables: dict[str, LiveTable]


def read_catalog(root: Path, snapshot: int | None = None) -> Catalog:
    """The lake's tables at a snapshot, by default the newest.

    Raises LakeError when there is no lake in the folder, no such snapshot, or the catalog cannot be read.
    """
    return _reading(root, lambda connection: _read(connection, root, snapshot))


def snapshot_of(root: Path, round: int, run_id: str | None = None) -> int:
    """The last snapshot that a round committed: of one run, or of whichever run got there last.

    Raises LakeError when no such round has committed anything.
    """
    rounds: dict[str, set[int]] = {}
    for snapshot, extra in _reading(root, lambda connection: connection.execute(COMMITS).fetchall()):
        made = json.loads(extra)
        if made.get("round") == round and run_id in (None, made.get("run")):
            return int(snapshot)
        rounds.setdefault(made.get("run", ""), set()).add(made.get("round", 0))
    there = "; ".join(f"{run} has rounds {min(found)} to {max(found)}" for run, found in sorted(rounds.items()))
    raise LakeError(
        f"no commit of round {round}{f' of {run_id}' if run_id else ''} in {root}: {there or 'it is empty'}"
    )


def _reading(root: Path, read: Callable[[sqlite3.Connection], T]) -> T:
    """Read the catalog in one transaction."""
    path = root / "catalog.sqlite"
    if not path.is_file():
        raise LakeError(
            f"there is no lake in {root} (no catalog.sqlite); `strop run --lake {root}` makes one, "
            f"and `--lake <folder>` names another"
        )
    try:
        connection = _open(path)
        try:
            connection.execute("BEGIN")
            return read(connection)
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise LakeError(f"cannot read the catalog {path}: {error}") from error


def _open(path: Path) -> sqlite3.Connection:
    """Open read-only; as an immutable file where the lock file beside it cannot be written (a read-only medium)."""
    for mode in ("mode=ro", "mode=ro&immutable=1"):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=10, isolation_level=None)
        connection.row_factory = sqlite3.Row
        try:
            connection.execute("SELECT 1 FROM ducklake_snapshot LIMIT 1")
            return connection
        except sqlite3.OperationalError as error:
            connection.close()
            if "unable to open" not in str(error) and "readonly" not in str(error):
                raise
    raise LakeError(f"cannot open the catalog {path}: no permission to read it")


def _read(connection: sqlite3.Connection, root: Path, snapshot: int | None) -> Catalog:
    newest = connection.execute(NEWEST).fetchone()[0]
    at = newest if snapshot is None else snapshot
    if not connection.execute(EXISTS, {"at": at}).fetchone()[0]:
        gone = "; older ones may have been taken out by `strop gc --keep-snapshots`" if at < newest else ""
        raise LakeError(f"the lake {root} has no snapshot {at}; the newest is {newest}{gone}")
    columns = _columns(connection.execute(COLUMNS, {"at": at}).fetchall())
    files: dict[int, list[sqlite3.Row]] = {}
    for file in connection.execute(FILES, {"at": at}):
        files.setdefault(file["table_id"], []).append(file)
    tables = {}
    for table in connection.execute(TABLES, {"at": at}):
        folder = root.absolute() / "data" / table["folder"]
        live = tuple(_live(folder, file) for file in files.get(table["table_id"], []))
        tables[table["table_name"]] = LiveTable(table["table_name"], columns[table["table_id"]], live)
    return Catalog(at, newest, tables)


def _columns(found: list[sqlite3.Row]) -> dict[int, tuple[LiveColumn, ...]]:
    """Columns by table; the element of a list is a row of its own, under its parent."""
    elements = {(c["table_id"], c["parent_column"]): c["column_type"] for c in found if c["parent_column"] is not None}
    tables: dict[int, list[LiveColumn]] = {}
    for c in found:
        if c["parent_column"] is not None:
            continue
        name = c["column_type"]
        listed = name == "list"
        if listed:
            name = elements[c["table_id"], c["column_id"]]
        sql_type = TYPES.get(name, name.upper()) + ("[]" if listed else "")
        column = LiveColumn(c["column_name"], sql_type, c["begin_snapshot"], c["initial_default"])
        tables.setdefault(c["table_id"], []).append(column)
    return {table: tuple(live) for table, live in tables.items()}


def _live(folder: Path, file: sqlite3.Row) -> LiveFile:
    deletes = file["deletes"]
    if deletes is not None:
        deletes = folder / deletes if file["deletes_relative"] else Path(deletes)
    return LiveFile(
        path=folder / file["path"] if file["path_is_relative"] else Path(file["path"]),
        rows=file["record_count"],
        since=file["begin_snapshot"],
        merged=bool(file["merged"]),
        later_rows=bool(file["later_rows"]),
        deletes=deletes,
        deleted=file["delete_count"] or 0,
        deletes_dated=bool(file["dated"]),
    )
