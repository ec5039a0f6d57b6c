"""A checksum of each row of the catalog that never changes: snapshots, files, and what the tables look like.

SQLite keeps none of its own, so that a byte that flips within a value would go unseen. A row is sealed in the
transaction that records a commit's checksums; rows that DuckLake itself wrote are sealed by the next one.
Not sealed, since DuckLake changes them: ends of files, statistics, files to be deleted. `fsck` compares those with
snapshots, footers and files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import xxhash

from strop.storage.catalog_db import CatalogDb, CatalogRow

CREATE = """
CREATE TABLE IF NOT EXISTS strop_seals (kind VARCHAR, id BIGINT, seal VARCHAR NOT NULL, PRIMARY KEY (kind, id))"""
SEALED = {
    "snapshot": """
SELECT n.snapshot_id AS id, n.snapshot_time, n.schema_version, n.next_catalog_id, n.next_file_id, c.changes_made,
  c.author, c.commit_message, c.commit_extra_info
FROM ducklake_snapshot n LEFT JOIN ducklake_snapshot_changes c ON c.snapshot_id = n.snapshot_id
WHERE n.snapshot_id > :after ORDER BY n.snapshot_id""",
    "data_file": """
SELECT data_file_id AS id, table_id, begin_snapshot, file_order, path, path_is_relative, file_format, record_count,
  file_size_bytes, footer_size, row_id_start, partition_id, encryption_key, mapping_id, partial_max
FROM ducklake_data_file WHERE data_file_id > :after ORDER BY data_file_id""",
    "delete_file": """
SELECT delete_file_id AS id, table_id, begin_snapshot, data_file_id, path, path_is_relative, format, delete_count,
  file_size_bytes, footer_size, encryption_key
FROM ducklake_delete_file WHERE delete_file_id > :after ORDER BY delete_file_id""",
    "column": """
SELECT t.table_id * 1000000 + c.column_id AS id, t.table_name, t.table_uuid, t.begin_snapshot AS made, t.schema_id,
  t.path, t.path_is_relative, s.schema_name, s.schema_uuid, s.begin_snapshot AS schema_made, s.path AS schema_path,
  s.path_is_relative AS schema_relative, c.begin_snapshot, c.column_order, c.column_name, c.column_type,
  c.initial_default, c.default_value, c.nulls_allowed, c.parent_column, c.default_value_type, c.default_value_dialect
FROM ducklake_column c JOIN ducklake_table t ON t.table_id = c.table_id JOIN ducklake_schema s USING (schema_id)
WHERE c.begin_snapshot > :after ORDER BY t.table_id, c.column_id, c.begin_snapshot""",
    "mapping": """
SELECT m.mapping_id * 1000000 + n.column_id AS id, m.table_id, m."type", n.source_name, n.target_field_id,
  n.parent_column, n.is_partition
FROM ducklake_column_mapping m JOIN ducklake_name_mapping n ON n.mapping_id = m.mapping_id
WHERE m.mapping_id > :after ORDER BY m.mapping_id, n.column_id""",
}
"""The rows of each kind, each with a number of its own; `after` leaves out those that are known to be sealed."""
COUNTED = {
    "column": "SELECT count(*) AS n FROM ducklake_column",
    "mapping": "SELECT count(*) AS n FROM ducklake_name_mapping",
}
"""Kinds with few rows, that are all looked at when there are more than seals."""
REMOVED = {
    "snapshot": "SELECT snapshot_id FROM ducklake_snapshot",
    "data_file": "SELECT data_file_id FROM ducklake_data_file",
    "delete_file": "SELECT delete_file_id FROM ducklake_delete_file",
}
"""Kinds whose rows DuckLake removes, and those that are left."""
MARKS = "SELECT kind, max(id) AS last, count(*) AS n FROM strop_seals GROUP BY kind"
INSERT = "INSERT INTO strop_seals (kind, id, seal) VALUES (:kind, :id, :seal) ON CONFLICT (kind, id) DO NOTHING"
FORGET = "DELETE FROM strop_seals WHERE kind = :kind AND id NOT IN ({left})"
NAMES = ("path", "table_name", "column_name", "source_name", "commit_message")
SEALS = "SELECT kind, id, seal FROM strop_seals"


def seal(db: CatalogDb) -> None:
    """Seal the rows that are new; `db` is writing."""
    db.execute(CREATE)
    marks = {row["kind"]: row for row in db.execute(MARKS)}
    for kind, sql in SEALED.items():
        after = marks[kind]["last"] if kind in marks else -1
        if kind in COUNTED:
            if kind in marks and db.execute(COUNTED[kind])[0]["n"] == marks[kind]["n"]:
                continue
            after = -1
        for row in db.execute(sql, {"after": after}):
            db.execute(INSERT, {"kind": kind, "id": row["id"], "seal": seal_of(row)})


def unseal(db: CatalogDb) -> None:
    """Forget the seals of rows that are gone: merged files, expired snapshots."""
    for kind, left in REMOVED.items():
        db.execute(FORGET.format(left=left), {"kind": kind})


def seal_of(row: CatalogRow) -> str:
    """The checksum of a row's names and values."""
    values = {name: _plain(value) for name, value in _named(row).items()}
    return xxhash.xxh3_64(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _named(row: Any) -> dict[str, Any]:
    return {name: row[name] for name in row.keys()}  # noqa: SIM118 - a row of SQLite is no mapping


def _plain(value: object) -> object:
    """Alike on SQLite, which has neither booleans nor times, and on PostgreSQL."""
    return int(value) if isinstance(value, bool) else value if isinstance(value, int | str | None) else str(value)


def broken(db: CatalogDb) -> Iterator[str]:
    """What is not as it was sealed, in words."""
    seals = {(row["kind"], row["id"]): row["seal"] for row in db.execute(SEALS)}
    for kind in sorted({kind for kind, _ in seals} - set(SEALED)):
        yield f"strop_seals has rows of a kind {kind!r}"
    sealed = max((id for of, id in seals if of == "snapshot"), default=-1)
    for kind, sql in SEALED.items():
        there = {row["id"]: row for row in db.execute(sql, {"after": -1})}
        last = max((id for of, id in seals if of == kind), default=-1)
        for id, row in there.items():
            if (kind, id) in seals and seal_of(row) != seals[kind, id]:
                yield f"{_name(kind, id, row)} is not what was written"
            elif kind == "column" and row["begin_snapshot"] > sealed:
                continue  # a migration that was killed before the seals: the next commit makes them
            elif (kind, id) not in seals and id < last:
                yield f"{_name(kind, id, row)} was written by nobody"
        if kind not in REMOVED:
            for id in sorted(id for of, id in seals if of == kind and id not in there):
                yield f"{kind} {id} is gone"


def _name(kind: str, id: int, row: CatalogRow) -> str:
    said = [repr(value) for name, value in _named(row).items() if name in NAMES and value]
    return f"the row of {kind.replace('_', ' ')} {id}" + (f" ({', '.join(said)})" if said else "")
