"""The catalog against itself, against the files it names and against today's tables."""

from __future__ import annotations

import datetime
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from strop.storage import seals
from strop.storage.catalog import read_catalog
from strop.storage.catalog_db import CatalogDb, CatalogRow, open_catalog_db
from strop.storage.checksums import StoredFile, are_kept, stored_files
from strop.storage.place import Place
from strop.storage.tables import BY_NAME, columns

SNAPSHOTS = """
SELECT n.snapshot_id, n.snapshot_time, n.next_file_id, c.snapshot_id AS changes, c.changes_made, c.commit_extra_info
FROM ducklake_snapshot n LEFT JOIN ducklake_snapshot_changes c ON c.snapshot_id = n.snapshot_id
ORDER BY n.snapshot_id"""
STRAY = """
SELECT snapshot_id FROM ducklake_snapshot_changes
WHERE snapshot_id NOT IN (SELECT snapshot_id FROM ducklake_snapshot)"""
FILES = """
SELECT data_file_id AS id, table_id, begin_snapshot, end_snapshot, path, row_id_start + record_count AS next_row_id,
  row_id_start, record_count, file_size_bytes FROM ducklake_data_file ORDER BY data_file_id"""
DELETES = """
SELECT d.delete_file_id AS id, d.data_file_id, d.begin_snapshot, d.end_snapshot, d.delete_count, d.table_id, d.path,
  f.record_count, f.table_id AS file_table FROM ducklake_delete_file d
LEFT JOIN ducklake_data_file f ON f.data_file_id = d.data_file_id"""
TOTALS = "SELECT table_id, record_count, next_row_id, file_size_bytes FROM ducklake_table_stats"
DOOMED = "SELECT path FROM ducklake_files_scheduled_for_deletion"
STRAY_STATISTICS = """
SELECT s.data_file_id, s.column_id, count(*) AS n FROM ducklake_file_column_stats s
LEFT JOIN ducklake_data_file f ON f.data_file_id = s.data_file_id AND f.table_id = s.table_id
LEFT JOIN ducklake_column c ON c.column_id = s.column_id AND c.table_id = s.table_id
WHERE f.data_file_id IS NULL OR c.column_id IS NULL GROUP BY s.data_file_id, s.column_id"""
LATER = {"token_logps": ("rollouts", "min_p"), "train_metrics": ("examples", "stratum")}
"""Tables that came with a schema version, and a column that came with it: a lake that lacks both is an older one."""
EXPECTED = {"version": "1.0", "encrypted": "false", "data_inlining_row_limit": "0"}


def problems(place: Place, *, quick: bool) -> Iterator[str]:
    """What is wrong with the catalog; each one sentence without a full stop."""
    kept = are_kept(place)
    with open_catalog_db(place, write=False) as db:
        if not place.catalog:
            yield from _pages(db, quick=quick)
        if kept:
            yield from seals.broken(db)
        snapshots = {row["snapshot_id"]: row for row in db.execute(SNAPSHOTS)}
        yield from _snapshots(db, snapshots)
        yield from _files(db, snapshots)
        yield from _settings(db)
    yield from _tables(place)


def _pages(db: CatalogDb, *, quick: bool) -> Iterator[str]:
    """SQLite's own look at its pages."""
    for row in db.execute("PRAGMA quick_check" if quick else "PRAGMA integrity_check"):
        said = row["quick_check" if quick else "integrity_check"]
        if said != "ok":
            yield str(said)


def _snapshots(db: CatalogDb, snapshots: Mapping[int, CatalogRow]) -> Iterator[str]:
    before = None
    for number, row in snapshots.items():
        at = row["snapshot_time"]
        at = datetime.datetime.fromisoformat(at) if isinstance(at, str) else at
        if before is not None and at < before:
            yield f"snapshot {number} is older than the one before it: {at}"
        before = at
        if row["changes"] is None:
            yield f"snapshot {number} does not say what it changed"
        if row["commit_extra_info"] is not None:
            json.loads(row["commit_extra_info"])
    for row in db.execute(STRAY):
        yield f"changes of snapshot {row['snapshot_id']}, which there is not"


def _files(db: CatalogDb, snapshots: Mapping[int, CatalogRow]) -> Iterator[str]:
    newest = max(snapshots)
    files, deletes = db.execute(FILES), db.execute(DELETES)
    for row in files:
        yield from _span(row, snapshots, newest, row["table_id"])
    for row in deletes:
        yield from _span(row, snapshots, newest, row["table_id"])
        if row["file_table"] != row["table_id"]:
            yield f"the delete file {row['path']} is of no file of its table"
        elif row["delete_count"] > row["record_count"]:
            yield f"the delete file {row['path']} deletes {row['delete_count']} of {row['record_count']} rows"
    ids = [row["id"] for row in (*files, *deletes)]
    if ids and max(ids) >= snapshots[newest]["next_file_id"]:
        yield f"file id {max(ids)} is given already, and the next one is {snapshots[newest]['next_file_id']}"
    yield from _totals(db, files)
    known = {file.path for file in stored_files(db, kept=False)}
    for row in db.execute(DOOMED):
        if row["path"] in known:
            yield f"{row['path']} is needed, and is to be deleted"
    for row in db.execute(STRAY_STATISTICS):
        yield f"statistics of column {row['column_id']} of file {row['data_file_id']}, which there is not"


def _span(row: CatalogRow, snapshots: Mapping[int, CatalogRow], newest: int, table: int) -> Iterator[str]:
    """From when to when a file counts."""
    begin, end = row["begin_snapshot"], row["end_snapshot"]
    if begin > newest or (end is not None and not begin < end <= newest):
        yield f"{row['path']} counts from snapshot {begin} to {end}, the newest is {newest}"
    elif end in snapshots and f"deleted_from_table:{table}" not in snapshots[end]["changes_made"].split(","):
        yield f"{row['path']} counts to snapshot {end}, which deleted nothing from its table"


def _totals(db: CatalogDb, files: list[CatalogRow]) -> Iterator[str]:
    """Numbers that DuckLake keeps of a whole table."""
    by_table: dict[int, list[CatalogRow]] = defaultdict(list)
    for row in files:
        by_table[row["table_id"]].append(row)
    totals = {row["table_id"]: row for row in db.execute(TOTALS)}
    for table, rows in by_table.items():
        if table not in totals:
            yield f"table {table} has files and no statistics"
            continue
        given = max((row["next_row_id"] for row in rows if row["row_id_start"] is not None), default=0)
        if totals[table]["next_row_id"] < given:
            yield f"row id {given - 1} of table {table} is given, and the next one is {totals[table]['next_row_id']}"
    for table, count in Counter(row["table_id"] for row in db.execute(TOTALS)).items():
        if count > 1:
            yield f"table {table} has its statistics {count} times"


def _settings(db: CatalogDb) -> Iterator[str]:
    rows = db.execute("SELECT key, value FROM ducklake_metadata WHERE scope IS NULL")
    settings = {row["key"]: row["value"] for row in rows}
    for key, value in EXPECTED.items():
        if settings.get(key) != value:
            yield f"the setting {key} is {settings.get(key)!r}, it was {value!r}"


def _tables(place: Place) -> Iterator[str]:
    """The tables and columns of the newest snapshot against those this Strop knows."""
    catalog = read_catalog(place.root)
    for name, row in BY_NAME.items():
        if name not in catalog.tables:
            table, beside = LATER.get(name, ("", ""))
            if table not in catalog.tables or beside in {c.name for c in catalog.tables[table].columns}:
                yield f"there is no table {name}"
            continue
        known = {c.name: c.sql_type for c in columns(row)}
        for column in catalog.tables[name].columns:
            if known.get(column.name) != column.sql_type:
                yield f"{name}.{column.name} is {column.sql_type}, Strop's is {known.get(column.name)}"
        paths = Counter(str(file.path) for file in catalog.tables[name].files)
        for path, count in paths.items():
            if count > 1:
                yield f"{path} is registered {count} times: its rows count {count} times"


def content(file: StoredFile) -> str:
    """What is lost with a file, as far as its name tells."""
    parts = file.path.split("/")
    what: dict[str, Any] = {"table": file.table}
    if len(parts) == 5:
        stage = parts[4].rsplit("-", 3)[0]
        return f"it holds {what['table']} of {stage} in round {parts[3][1:]} of run {parts[2]}"
    return f"it holds {file.table} of several stages" + ("" if file.live else ", which only old snapshots need")
