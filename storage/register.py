"""Files registered in DuckLake's catalog by its specification, in plain SQL, within one transaction of the catalog.

`ducklake_add_data_files` does the same in 25-40 ms a commit, this in 1-2. And its statistics of a whole table can be
wrong: after a file without a bound (a row group all null, a long text, an infinity) the next file's bounds stand for
the whole table, and DuckDB answers `WHERE` with too few rows. Here a bound once unknown stays unknown (see `mend`).

Only for catalogs of the format tested here; for others see `commit.commit_locked`.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from strop.storage.catalog_db import CatalogDb, CatalogRow
from strop.storage.errors import LakeError
from strop.storage.footers import ARROW, READ, ColumnFacts, Footer

FORMAT = "1.0"
"""Version of DuckLake's catalog this writes."""
SETTINGS = "SELECT key, value FROM ducklake_metadata WHERE scope IS NULL AND key IN ('version', 'encrypted')"
NEWEST = """
SELECT snapshot_id, schema_version, next_catalog_id, next_file_id FROM ducklake_snapshot
WHERE snapshot_id = (SELECT max(snapshot_id) FROM ducklake_snapshot)"""
TABLES = """
SELECT t.table_id, t.table_name, t.path, t.path_is_relative,
  s.path AS schema_path, s.path_is_relative AS schema_relative, p.partition_id, g.record_count, g.next_row_id
FROM ducklake_table t JOIN ducklake_schema s USING (schema_id)
LEFT JOIN ducklake_partition_info p ON p.table_id = t.table_id AND p.end_snapshot IS NULL
LEFT JOIN ducklake_table_stats g ON g.table_id = t.table_id
WHERE s.schema_name = 'main' AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL"""
COLUMNS = """
SELECT table_id, column_id, parent_column, column_name, column_type FROM ducklake_column
WHERE end_snapshot IS NULL ORDER BY table_id, column_order"""
MAPPINGS = """
SELECT m.mapping_id, m.table_id, n.source_name, n.target_field_id, n.parent_column
FROM ducklake_column_mapping m JOIN ducklake_name_mapping n USING (mapping_id)
WHERE m.type = 'map_by_name' ORDER BY m.mapping_id, n.column_id"""
BOUNDS = "SELECT table_id, column_id, contains_null, min_value, max_value FROM ducklake_table_column_stats"
UNBOUNDED = """
SELECT DISTINCT table_id, column_id FROM ducklake_file_column_stats
WHERE {bound} IS NULL AND (value_count IS NULL OR value_count > 0)"""


@dataclass(frozen=True, slots=True)
class Placed:
    """A file where it stays."""

    table: str
    path: str
    """Relative to the table's folder."""
    footer: Footer


@dataclass(frozen=True, slots=True)
class Signature:
    """What the snapshot says of itself."""

    author: str
    message: str
    extra: str


@dataclass(frozen=True, slots=True)
class _Column:
    id: int
    name: str
    kind: str
    """DuckLake's name of the type; of a list, of its elements."""
    element: int | None
    """Id of a list's elements; None = not a list."""

    @property
    def leaf(self) -> int:
        """The id that statistics go by."""
        return self.id if self.element is None else self.element


@dataclass(slots=True)
class _Table:
    id: int
    name: str
    rows: int | None
    """Rows ever added; None while nothing was."""
    next_row: int
    columns: list[_Column]


def can_register(db: CatalogDb) -> bool:
    """Whether the catalog is of the format that is written here, with no feature Strop never uses."""
    settings = {row["key"]: row["value"] for row in db.execute(SETTINGS)}
    if settings.get("version") != FORMAT or settings.get("encrypted", "false") != "false":
        return False
    return all(
        row["schema_path"] == "main/"
        and row["schema_relative"]
        and row["path"] == f"{row['table_name']}/"
        and row["path_is_relative"]
        and row["partition_id"] is None
        for row in db.execute(TABLES)
    )


def register(db: CatalogDb, files: Sequence[Placed], signature: Signature) -> int:
    """Add the files in a new snapshot; its id. Files without rows are left out.

    Raises LakeError when a file's columns are not those of its table.
    """
    newest = db.execute(NEWEST)[0]
    snapshot, next_id = newest["snapshot_id"] + 1, newest["next_file_id"]
    tables = _tables(db)
    by_table: dict[str, list[Placed]] = defaultdict(list)
    for file in files:
        if file.table not in tables:
            raise LakeError(f"the lake has no table {file.table!r}: it was made by an older Strop")
        _check(tables[file.table], file)
        if file.footer.rows:
            by_table[file.table].append(file)
    mappings, next_id = _mappings(db, [tables[name] for name in by_table], next_id)
    _insert_files(db, tables, by_table, mappings, snapshot, next_id)
    next_id += sum(map(len, by_table.values()))
    for name, placed in by_table.items():
        _update_statistics(db, tables[name], [file.footer for file in placed])
    _insert_snapshot(db, newest, snapshot, next_id, [tables[name].id for name in by_table], signature)
    return int(snapshot)


def _tables(db: CatalogDb) -> dict[str, _Table]:
    columns: dict[int, list[_Column]] = defaultdict(list)
    rows = db.execute(COLUMNS)
    elements = {(c["table_id"], c["parent_column"]): c for c in rows if c["parent_column"] is not None}
    for c in rows:
        if c["parent_column"] is None:
            inner = elements.get((c["table_id"], c["column_id"]))
            kind, element = (inner["column_type"], inner["column_id"]) if inner else (c["column_type"], None)
            columns[c["table_id"]].append(_Column(c["column_id"], c["column_name"], kind, element))
    return {
        t["table_name"]: _Table(
            t["table_id"], t["table_name"], t["record_count"], t["next_row_id"] or 0, columns[t["table_id"]]
        )
        for t in db.execute(TABLES)
    }


def _check(table: _Table, file: Placed) -> None:
    """Raises LakeError when the file has other columns than the table, or one of another type."""
    there = {field.name: field.type for field in file.footer.schema}
    for column in table.columns:
        found = there.pop(column.name, None)
        wanted = ARROW.get(column.kind)
        if wanted is not None and column.element is not None:
            wanted = pa.list_(pa.field("element", wanted))
        if found is None or wanted is None or not _same(found, wanted):
            raise LakeError(
                f"{file.path} cannot be added to {table.name!r}: column {column.name!r} must be "
                f"{wanted or column.kind}, {f'it is {found}' if found else 'the file has none'}; write files with "
                "strop.storage.parquet.write_table"
            )
    if there:
        raise LakeError(f"{file.path} cannot be added to {table.name!r}, which has no column {next(iter(there))!r}")


def _same(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Equal up to the name of a list's elements."""
    if pa.types.is_list(found) and pa.types.is_list(wanted):
        return bool(found.value_type == wanted.value_type)
    return bool(found == wanted)


def _mappings(db: CatalogDb, tables: Iterable[_Table], next_id: int) -> tuple[dict[int, int], int]:
    """For each table the mapping from names in files to its columns, made where there is none; and the next free id."""
    known: dict[tuple[int, int], list[tuple[str, int, int | None]]] = defaultdict(list)
    for row in db.execute(MAPPINGS):
        entry = (row["source_name"], row["target_field_id"], row["parent_column"])
        known[row["table_id"], row["mapping_id"]].append(entry)
    by_content = {(table, tuple(entries)): mapping for (table, mapping), entries in known.items()}
    chosen, fresh = {}, []
    for table in tables:
        entries: list[tuple[str, int, int | None]] = []
        for column in table.columns:
            entries.append((column.name, column.id, None))
            if column.element is not None:
                entries.append(("list", column.element, len(entries) - 1))
        found = by_content.get((table.id, tuple(entries)))
        if found is None:
            found, next_id = next_id, next_id + 1
            fresh.append((found, table.id, entries))
        chosen[table.id] = found
    insert(
        db,
        "ducklake_column_mapping",
        [{"mapping_id": mapping, "table_id": table, "type": "map_by_name"} for mapping, table, _ in fresh],
    )
    insert(
        db,
        "ducklake_name_mapping",
        [
            {
                "mapping_id": mapping,
                "column_id": index,
                "source_name": name,
                "target_field_id": target,
                "parent_column": parent,
                "is_partition": False,
            }
            for mapping, _, entries in fresh
            for index, (name, target, parent) in enumerate(entries)
        ],
    )
    return chosen, next_id


def _insert_files(
    db: CatalogDb,
    tables: Mapping[str, _Table],
    by_table: Mapping[str, Sequence[Placed]],
    mappings: Mapping[int, int],
    snapshot: int,
    next_id: int,
) -> None:
    files, facts = [], []
    for name, placed in by_table.items():
        table, first_row = tables[name], tables[name].next_row
        for file in placed:
            footer = file.footer
            files.append(
                {
                    "data_file_id": next_id,
                    "table_id": table.id,
                    "begin_snapshot": snapshot,
                    "path": file.path,
                    "path_is_relative": True,
                    "file_format": "parquet",
                    "record_count": footer.rows,
                    "file_size_bytes": footer.size_bytes,
                    "footer_size": footer.footer_bytes,
                    "row_id_start": first_row,
                    "mapping_id": mappings[table.id],
                }
            )
            for column in table.columns:
                of = footer.columns[column.name]
                facts.append(
                    {
                        "data_file_id": next_id,
                        "table_id": table.id,
                        "column_id": column.leaf,
                        "column_size_bytes": of.size_bytes,
                        "value_count": of.values,
                        "null_count": of.nulls,
                        "min_value": of.low,
                        "max_value": of.high,
                    }
                )
            first_row += footer.rows
            next_id += 1
    insert(db, "ducklake_data_file", files)
    insert(db, "ducklake_file_column_stats", facts)


def _update_statistics(db: CatalogDb, table: _Table, footers: Sequence[Footer]) -> None:
    """Widen the bounds of the table's columns by those of the new files."""
    rows, size = sum(footer.rows for footer in footers), sum(footer.size_bytes for footer in footers)
    if table.rows is None:
        insert(
            db,
            "ducklake_table_stats",
            [{"table_id": table.id, "record_count": rows, "next_row_id": rows, "file_size_bytes": size}],
        )
    else:
        db.execute(
            "UPDATE ducklake_table_stats SET record_count = record_count + :rows, next_row_id = next_row_id + :rows, "
            "file_size_bytes = file_size_bytes + :size WHERE table_id = :table",
            {"rows": rows, "size": size, "table": table.id},
        )
    now = {row["column_id"]: row for row in db.execute(f"{BOUNDS} WHERE table_id = :table", {"table": table.id})}
    fresh = []
    for column in table.columns:
        facts = [footer.columns[column.name] for footer in footers]
        if table.rows is None:
            fresh.append({"table_id": table.id, "column_id": column.leaf, **_merged(column.kind, None, facts, True)})
        elif column.leaf in now:  # a column added since has no row, which says that nothing is known of it
            _widen(db, table.id, column, now[column.leaf], facts)
    insert(db, "ducklake_table_column_stats", fresh)


def _widen(db: CatalogDb, table: int, column: _Column, now: CatalogRow, facts: Sequence[ColumnFacts]) -> None:
    at = {"table": table, "column": column.leaf}
    empty = False
    if now["min_value"] is None and now["max_value"] is None and any(of.low or of.high for of in facts):
        valued = db.execute(
            "SELECT count(*) AS n FROM ducklake_file_column_stats WHERE table_id = :table AND column_id = :column "
            "AND (value_count IS NULL OR value_count > 0)",
            at,
        )
        empty = valued[0]["n"] <= sum(1 for of in facts if of.values != 0)  # these files' own rows are in by now
    wide = _merged(column.kind, now, facts, empty)
    if any(wide[name] != now[name] for name in wide):
        db.execute(
            "UPDATE ducklake_table_column_stats SET contains_null = :contains_null, min_value = :min_value, "
            "max_value = :max_value WHERE table_id = :table AND column_id = :column",
            {**wide, **at},
        )


def _merged(kind: str, now: CatalogRow | None, facts: Sequence[ColumnFacts], empty: bool) -> dict[str, Any]:
    """Statistics of the table's column with these files; `empty`: it had no value before them."""
    valued = [of for of in facts if of.values != 0]
    nulls = [now["contains_null"] if now else False, *(None if of.nulls is None else of.nulls > 0 for of in facts)]
    merged: dict[str, Any] = {"contains_null": None if None in nulls else any(nulls)}
    for name, best, bounds in (
        ("min_value", min, [of.low for of in valued]),
        ("max_value", max, [of.high for of in valued]),
    ):
        if not empty:
            assert now is not None
            bounds.append(now[name])
        merged[name] = best(bounds, key=READ[kind], default=None) if None not in bounds else None  # type: ignore[type-var]
    return merged


def _insert_snapshot(
    db: CatalogDb, newest: CatalogRow, snapshot: int, next_file_id: int, tables: Sequence[int], signature: Signature
) -> None:
    insert(
        db,
        "ducklake_snapshot",
        [
            {
                "snapshot_id": snapshot,
                "snapshot_time": datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="microseconds")[:-3],
                "schema_version": newest["schema_version"],
                "next_catalog_id": newest["next_catalog_id"],
                "next_file_id": next_file_id,
            }
        ],
    )
    insert(
        db,
        "ducklake_snapshot_changes",
        [
            {
                "snapshot_id": snapshot,
                "changes_made": ",".join(f"inserted_into_table:{table}" for table in sorted(tables)),
                "author": signature.author,
                "commit_message": signature.message,
                "commit_extra_info": signature.extra,
            }
        ],
    )


def mend(db: CatalogDb) -> None:
    """Forget a table's bound where one of its files has values and none: DuckLake may have set a wrong one."""
    for bound in ("min_value", "max_value"):
        for row in db.execute(UNBOUNDED.format(bound=bound)):
            db.execute(
                f"UPDATE ducklake_table_column_stats SET {bound} = NULL "
                "WHERE table_id = :table AND column_id = :column",
                {"table": row["table_id"], "column": row["column_id"]},
            )


def insert(db: CatalogDb, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows that have the same columns, in statements of many rows: each is a round trip where it is remote."""
    for first in range(0, len(rows), 500):
        some = rows[first : first + 500]
        names = list(some[0])
        values = ", ".join(f"({', '.join(f':{name}_{i}' for name in names)})" for i in range(len(some)))
        params = {f"{name}_{i}": row[name] for i, row in enumerate(some) for name in names}
        db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES {values}", params)
