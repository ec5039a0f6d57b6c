"""The lake's catalog read without DuckDB: which files make up each table at one snapshot.

DuckLake's catalog is plain SQL tables; a file is live at snapshot S when it began at or before S and has not ended
by S. Deleted rows (an UPDATE is a delete and an insert) are listed by position in a delete file, which may carry
positions of later snapshots too. All of it is read in one transaction, so it is one moment of the lake.
Left out: renamed columns and inlined rows, which Strop never makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from strop.storage.catalog_db import CatalogDb, CatalogRow, open_catalog_db
from strop.storage.errors import LakeError
from strop.storage.place import Place, place_of

LIVE = "{0}.begin_snapshot <= :at AND ({0}.end_snapshot IS NULL OR {0}.end_snapshot > :at)"
NEWEST = "SELECT max(snapshot_id) AS newest FROM ducklake_snapshot"
EXISTS = "SELECT 1 AS there FROM ducklake_snapshot WHERE snapshot_id = :at"
TABLES = f"""
SELECT t.table_id, t.table_name,
  CASE WHEN t.path_is_relative THEN s.path || t.path ELSE t.path END AS folder
FROM ducklake_table t JOIN ducklake_schema s USING (schema_id)
WHERE s.schema_name = 'main' AND {LIVE.format("t")} AND {LIVE.format("s")} ORDER BY t.table_id"""
COLUMNS = f"""
SELECT c.table_id, c.column_id, c.parent_column, c.column_name, c.column_type, c.begin_snapshot, c.initial_default
FROM ducklake_column c WHERE {LIVE.format("c")} ORDER BY c.table_id, c.column_order"""
FILES = f"""
SELECT f.table_id, f.data_file_id, f.path, f.path_is_relative, f.record_count, f.begin_snapshot,
  coalesce(f.partial_max, 0) > :at AS later_rows, f.partial_max IS NOT NULL AS merged,
  d.path AS deletes, d.path_is_relative AS deletes_relative, d.delete_count, d.partial_max IS NOT NULL AS dated
FROM ducklake_data_file f
LEFT JOIN ducklake_delete_file d ON d.data_file_id = f.data_file_id AND {LIVE.format("d")}
WHERE {LIVE.format("f")} ORDER BY f.table_id, f.data_file_id"""

HISTORY = """
SELECT s.snapshot_id, s.snapshot_time, c.commit_message, c.commit_extra_info, c.changes_made
FROM ducklake_snapshot s LEFT JOIN ducklake_snapshot_changes c ON c.snapshot_id = s.snapshot_id
ORDER BY s.snapshot_id"""

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

    path: str
    """Where DuckDB reads it: absolute, or a URL."""
    rows: int
    since: int
    merged: bool
    """Compaction made it from files of several snapshots: it can be newer than the columns say."""
    later_rows: bool
    """Some of its rows belong to later snapshots; `_ducklake_internal_snapshot_id` tells."""
    deletes: str | None
    """Parquet file with the positions of deleted rows."""
    deleted: int
    deletes_dated: bool
    """The positions carry the snapshot that deleted them, in a column of that same name."""
    id: int = 0
    """DuckLake's number of the file."""


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
    place = place_of(root)
    with open_catalog_db(place, write=False) as db:
        return _read(db, place, snapshot)


def newest_snapshot(root: Path) -> int:
    """Id of the newest snapshot. Raises LakeError when there is no lake."""
    with open_catalog_db(place_of(root), write=False) as db:
        return int(db.execute(NEWEST)[0]["newest"])


def history(root: Path) -> list[tuple[int, str, str | None, str | None, str | None]]:
    """Every snapshot that has not expired, oldest first: id, time, message, extra info, changes.

    `as_of` gives them meaning. Raises LakeError when there is no lake.
    """
    with open_catalog_db(place_of(root), write=False) as db:
        found = db.execute(HISTORY)
    columns = ("snapshot_id", "snapshot_time", "commit_message", "commit_extra_info", "changes_made")
    return [(row[columns[0]], *(row[name] for name in columns[1:])) for row in found]


def _read(db: CatalogDb, place: Place, snapshot: int | None) -> Catalog:
    newest = db.execute(NEWEST)[0]["newest"]
    at = newest if snapshot is None else snapshot
    if not db.execute(EXISTS, {"at": at}):
        gone = "; older ones may have been taken out by `strop gc --keep-snapshots`" if at < newest else ""
        raise LakeError(f"the lake {place} has no snapshot {at}; the newest is {newest}{gone}")
    columns = _columns(db.execute(COLUMNS, {"at": at}))
    files: dict[int, list[CatalogRow]] = {}
    for file in db.execute(FILES, {"at": at}):
        files.setdefault(file["table_id"], []).append(file)
    tables = {}
    for table in db.execute(TABLES, {"at": at}):
        folder = place.data_url + table["folder"]
        live = tuple(_live(folder, file) for file in files.get(table["table_id"], []))
        tables[table["table_name"]] = LiveTable(table["table_name"], columns[table["table_id"]], live)
    return Catalog(at, newest, tables)


def _columns(found: Sequence[CatalogRow]) -> dict[int, tuple[LiveColumn, ...]]:
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


def _live(folder: str, file: CatalogRow) -> LiveFile:
    """`folder` has a slash at its end, as every folder in the catalog."""
    deletes = file["deletes"]
    if deletes is not None and file["deletes_relative"]:
        deletes = folder + deletes
    return LiveFile(
        path=folder + file["path"] if file["path_is_relative"] else file["path"],
        rows=file["record_count"],
        since=file["begin_snapshot"],
        merged=bool(file["merged"]),
        later_rows=bool(file["later_rows"]),
        deletes=deletes,
        deleted=file["delete_count"] or 0,
        deletes_dated=bool(file["dated"]),
        id=file["data_file_id"],
    )
