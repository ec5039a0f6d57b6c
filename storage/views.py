"""The SQL behind the console's tables: a view for each table of the lake over the files of one snapshot.

Tables and columns that the snapshot lacks are empty and null, so that today's queries work on the lakes of older
Strops, and on any lake as it stood before a migration.
"""

from __future__ import annotations

import dataclasses

from strop.storage.catalog import Catalog, LiveColumn, LiveFile, LiveTable
from strop.storage.tables import TABLES, columns

SNAPSHOT_ID = "_ducklake_internal_snapshot_id"


def with_known_columns(catalog: Catalog) -> Catalog:
    """The catalog with every table and column that this Strop knows: what the snapshot lacks is empty, or null."""
    tables = dict(catalog.tables)
    for row in TABLES:
        there = tables.get(row.TABLE, LiveTable(row.TABLE, (), ()))
        names = {c.name for c in there.columns}
        later = (LiveColumn(c.name, c.sql_type, catalog.newest + 1, None) for c in columns(row) if c.name not in names)
        tables[row.TABLE] = dataclasses.replace(there, columns=(*there.columns, *later))
    return dataclasses.replace(catalog, tables=tables)


def view_sql(table: LiveTable, snapshot: int) -> str:
    """The query of a table at a snapshot: plain files in one scan, each file with deleted rows in a scan of its own."""
    plain: dict[tuple[str, ...], list[LiveFile]] = {}
    parts = []
    for file in table.files:
        if file.deletes is None and not file.later_rows:
            plain.setdefault(_selected(table, file), []).append(file)
        else:
            parts.append(_masked(table, file, snapshot))
    for selected, files in plain.items():
        parts.append(f"SELECT {', '.join(selected)} FROM read_parquet([{', '.join(literal(f.path) for f in files)}])")
    if not parts:
        empty = ", ".join(f'CAST(NULL AS {c.sql_type}) AS "{c.name}"' for c in table.columns)
        parts.append(f"SELECT {empty} WHERE false")
    return "\nUNION ALL ".join(parts)


def _masked(table: LiveTable, file: LiveFile, snapshot: int) -> str:
    """One file without its deleted rows and without those of later snapshots."""
    conditions = []
    if file.deletes is not None:
        dated = f" WHERE {SNAPSHOT_ID} <= {snapshot}" if file.deletes_dated else ""
        conditions.append(f"file_row_number NOT IN (SELECT pos FROM read_parquet({literal(file.deletes)}){dated})")
    if file.later_rows:
        conditions.append(f"{SNAPSHOT_ID} <= {snapshot}")
    return (
        f"SELECT {', '.join(_selected(table, file))} FROM read_parquet({literal(file.path)}, file_row_number = true) "
        f"WHERE {' AND '.join(conditions)}"
    )


def _selected(table: LiveTable, file: LiveFile) -> tuple[str, ...]:
    """The columns in the table's order; one added after the file was written has its default there."""
    return tuple(
        f'"{c.name}"' if c.since <= file.since else f'CAST({literal(c.default)} AS {c.sql_type}) AS "{c.name}"'
        for c in table.columns
    )


def literal(value: object) -> str:
    """A text or number as SQL; None is NULL."""
    if value is None or isinstance(value, int | float):
        return "NULL" if value is None else repr(value)
    return "'" + str(value).replace("'", "''") + "'"
