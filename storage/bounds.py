"""The catalog's statistics of whole tables: how many rows, and between which bounds the values of each column lie.

DuckDB leaves out conditions that the bounds say can never hold, so a bound that is too narrow hides rows. DuckLake's
`ducklake_add_data_files` (1.5.5) makes such bounds: after a file of nulls, or one without bounds for a column, the next
file's stand for the whole table. Here a bound holds every file's values, or is unknown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from strop.storage.catalog_db import CatalogDb, CatalogRow
from strop.storage.ducklake_tables import CatalogTable, TableColumn, insert, read_tables
from strop.storage.footers import READ, ColumnFacts, Footer

BOUNDS = "SELECT table_id, column_id, contains_null, min_value, max_value FROM ducklake_table_column_stats"
FILE_FACTS = """
SELECT table_id, column_id, value_count, null_count, min_value, max_value FROM ducklake_file_column_stats"""
VALUED = """
SELECT count(*) AS n FROM ducklake_file_column_stats
WHERE table_id = :table AND column_id = :column AND (value_count IS NULL OR value_count > 0)"""
WIDEN = """
UPDATE ducklake_table_column_stats SET contains_null = :contains_null, min_value = :min_value, max_value = :max_value
WHERE table_id = :table AND column_id = :column"""


def widen(db: CatalogDb, table: CatalogTable, footers: Sequence[Footer]) -> None:
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
            fresh.append({"table_id": table.id, "column_id": column.leaf, **_merged(column.kind, None, facts)})
        elif column.leaf in now:  # a column added since has no row, which says that nothing is known of it
            _widen(db, table.id, column, now[column.leaf], facts)
    insert(db, "ducklake_table_column_stats", fresh)


def _widen(db: CatalogDb, table: int, column: TableColumn, now: CatalogRow, facts: Sequence[ColumnFacts]) -> None:
    """Let the table's bounds hold the new values too."""
    before: CatalogRow | None = now
    if now["min_value"] is None and now["max_value"] is None and any(of.low or of.high for of in facts):
        valued = db.execute(VALUED, {"table": table, "column": column.leaf})
        if valued[0]["n"] <= sum(1 for of in facts if of.values != 0):  # none before these, whose rows are in by now
            before = None
    wide = _merged(column.kind, before, facts)
    wide["contains_null"] = True if now["contains_null"] else wide["contains_null"]
    _set_bounds(db, table, column.leaf, now, wide)


def _set_bounds(db: CatalogDb, table: int, column: int, now: CatalogRow, wide: Mapping[str, Any]) -> None:
    if any(wide[name] != now[name] for name in wide):
        db.execute(WIDEN, {**wide, "table": table, "column": column})


def _merged(kind: str, now: CatalogRow | None, facts: Sequence[ColumnFacts]) -> dict[str, Any]:
    """Bounds of the files' values and of those the table's column had before; None = unknown, or there is no value."""
    valued = [of for of in facts if of.values != 0]
    nulls = [None if of.nulls is None else of.nulls > 0 for of in facts]
    merged: dict[str, Any] = {"contains_null": None if None in nulls else any(nulls)}
    merged["min_value"] = _furthest(kind, min, [of.low for of in valued] + ([now["min_value"]] if now else []))
    merged["max_value"] = _furthest(kind, max, [of.high for of in valued] + ([now["max_value"]] if now else []))
    return merged


def _furthest(kind: str, best: Callable[..., str], bounds: Sequence[str | None]) -> str | None:
    """The least or greatest bound; unknown when one of them is."""
    known = [bound for bound in bounds if bound is not None]
    return best(known, key=READ[kind]) if known and len(known) == len(bounds) else None


def mend(db: CatalogDb) -> None:
    """Set the bounds of every table's columns to those of its files: what DuckLake itself wrote there may be wrong."""
    kinds = {(t.id, column.leaf): column.kind for t in read_tables(db).values() for column in t.columns}
    facts: dict[tuple[int, int], list[ColumnFacts]] = defaultdict(list)
    for row in db.execute(FILE_FACTS):
        of = ColumnFacts(0, row["value_count"], row["null_count"], row["min_value"], row["max_value"])
        facts[row["table_id"], row["column_id"]].append(of)
    for now in db.execute(BOUNDS):
        at = now["table_id"], now["column_id"]
        if at in kinds:
            true = _merged(kinds[at], None, facts[at])
            true["contains_null"] = True if now["contains_null"] else true["contains_null"]
            _set_bounds(db, *at, now, true)
