"""The tables and columns that DuckLake's catalog lists now, as a commit needs them, and rows inserted into it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from strop.storage.catalog_db import CatalogDb, CatalogRow
from strop.storage.errors import LakeError

FORMAT = "1.0"
"""Version of DuckLake's catalog this writes."""
SETTINGS = "SELECT key, value FROM ducklake_metadata WHERE scope IS NULL AND key IN ('version', 'encrypted')"
TABLES = """
SELECT t.table_id, t.table_name, t.path, t.path_is_relative,
  s.path AS schema_path, s.path_is_relative AS schema_relative, p.partition_id, g.record_count, g.next_row_id
FROM ducklake_table t JOIN ducklake_schema s USING (schema_id)
LEFT JOIN ducklake_partition_info p ON p.table_id = t.table_id AND p.end_snapshot IS NULL
LEFT JOIN ducklake_table_stats g ON g.table_id = t.table_id
WHERE s.schema_name = 'main' AND t.end_snapshot IS NULL AND s.end_snapshot IS NULL"""
COLUMNS = """
SELECT table_id, column_id, parent_column, column_name, column_type FROM ducklake_column
WHERE end_snapshot IS NULL AND table_id IN ({tables}) ORDER BY table_id, column_order"""


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One column; a list counts as one with its elements."""

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


@dataclass(frozen=True, slots=True)
class CatalogTable:
    """One table as it stands."""

    id: int
    name: str
    rows: int | None
    """Rows ever added; None while nothing was."""
    next_row: int
    columns: list[TableColumn]


def read_tables(db: CatalogDb, names: Collection[str] | None = None) -> dict[str, CatalogTable]:
    """These tables, or all, by name.

    Raises LakeError when one is missing, the catalog is of another format, or of a shape Strop never makes.
    """
    settings = {row["key"]: row["value"] for row in db.execute(SETTINGS)}
    version, encrypted = settings.get("version"), settings.get("encrypted", "false") != "false"
    if version != FORMAT or encrypted:
        raise LakeError(
            f"the catalog has {'encrypted files and ' if encrypted else ''}format {version}, this Strop writes format "
            f"{FORMAT} unencrypted: use the Strop that made it"
        )
    tables = {}
    for row in db.execute(TABLES):
        if names is None or row["table_name"] in names:
            _check_shape(row)
            tables[row["table_name"]] = CatalogTable(
                row["table_id"], row["table_name"], row["record_count"], row["next_row_id"] or 0, []
            )
    if lacking := sorted({*(names or ())} - {*tables}):
        raise LakeError(f"the lake has no table {lacking[0]!r}: it was made by an older Strop")
    _add_columns(db, {table.id: table for table in tables.values()})
    return tables


def _check_shape(row: CatalogRow) -> None:
    plain = row["schema_relative"] and row["path_is_relative"] and row["partition_id"] is None
    if not plain or row["schema_path"] + row["path"] != f"main/{row['table_name']}/":
        raise LakeError(
            f"table {row['table_name']!r} is partitioned or lies in another folder than data/main/"
            f"{row['table_name']}, which Strop cannot add to: undo what another program changed"
        )


def _add_columns(db: CatalogDb, tables: Mapping[int, CatalogTable]) -> None:
    rows = db.execute(COLUMNS.format(tables=id_list(tables)))
    elements = {(c["table_id"], c["parent_column"]): c for c in rows if c["parent_column"] is not None}
    for c in rows:
        if c["parent_column"] is None:
            inner = elements.get((c["table_id"], c["column_id"]))
            kind, element = (inner["column_type"], inner["column_id"]) if inner else (c["column_type"], None)
            tables[c["table_id"]].columns.append(TableColumn(c["column_id"], c["column_name"], kind, element))


def id_list(ids: Iterable[int]) -> str:
    """Numbers of the catalog's own as an SQL list."""
    return ", ".join(map(str, sorted(ids))) or "NULL"


def insert(db: CatalogDb, table: str, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows that have the same columns, in statements of many rows: each is a round trip where it is remote."""
    for first in range(0, len(rows), 500):
        some = rows[first : first + 500]
        names = list(some[0])
        values = ", ".join(f"({', '.join(f':{name}_{i}' for name in names)})" for i in range(len(some)))
        params = {f"{name}_{i}": row[name] for i, row in enumerate(some) for name in names}
        db.execute(f"INSERT INTO {table} ({', '.join(names)}) VALUES {values}", params)
