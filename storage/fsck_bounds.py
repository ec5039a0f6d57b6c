"""Statistics against footers: a bound that is too narrow makes a query skip a file, and rows go missing unseen.

Too wide a bound costs time and loses nothing, so that only the other kind is told.
"""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from strop.storage.catalog_db import CatalogDb, CatalogRow, open_catalog_db
from strop.storage.checksums import FULL_PATH
from strop.storage.data_files import LocalFiles, data_files
from strop.storage.place import Place

FILES = f"""
SELECT f.data_file_id, f.table_id, {FULL_PATH} AS path, f.record_count
FROM ducklake_data_file f JOIN ducklake_table t ON t.table_id = f.table_id
JOIN ducklake_schema s ON s.schema_id = t.schema_id ORDER BY f.data_file_id"""
BOUNDS = "SELECT data_file_id, column_id, value_count, null_count, min_value, max_value FROM ducklake_file_column_stats"
WHOLE = "SELECT table_id, column_id, contains_null, min_value, max_value FROM ducklake_table_column_stats"
COLUMNS = """
SELECT c.table_id, c.column_id, coalesce(p.column_name, c.column_name) AS name, c.column_type
FROM ducklake_column c LEFT JOIN ducklake_column p ON p.table_id = c.table_id AND p.column_id = c.parent_column
WHERE c.column_type <> 'list'"""
READ: dict[str, Callable[[str], Any]] = {
    "boolean": lambda text: {"true": True, "1": True, "false": False, "0": False}[text],
    "int32": int,
    "int64": int,
    "float32": lambda text: float(np.float32(text)),  # written as briefly as tells it from its neighbours
    "float64": float,
    "varchar": str,
    "timestamptz": datetime.datetime.fromisoformat,
}
"""How a bound is read, by DuckLake's name of the type."""
LONG = 64
"""Texts as long as this are left out: DuckDB keeps the beginnings of some, each writer in its own way."""


def problems(place: Place, skip: Collection[str], done: Callable[[int, int], None]) -> Iterator[str]:
    """Each file and column whose statistics leave out values that are there; but for the files in `skip`.

    Those are damaged, or may be: a footer that is not what pyarrow expects can end the process.
    """
    with open_catalog_db(place, write=False) as db:
        files, kinds = db.execute(FILES), _kinds(db)
        bounds: dict[int, dict[int, CatalogRow]] = defaultdict(dict)
        for row in db.execute(BOUNDS):
            bounds[row["data_file_id"]][row["column_id"]] = row
        whole = {(row["table_id"], row["column_id"]): row for row in db.execute(WHOLE)}
    store = data_files(place)
    opened = str if isinstance(store, LocalFiles) else lambda location: pa.BufferReader(store.read(location))
    for number, file in enumerate(files):
        done(number, len(files))
        if file["path"] in skip:
            continue
        footer = pq.read_metadata(opened(store.at(f"data/{file['path']}")))
        if footer.num_rows != file["record_count"]:
            yield f"data/{file['path']} has {footer.num_rows} rows, the catalog says {file['record_count']}"
        for column, (name, kind) in kinds.get(file["table_id"], {}).items():
            facts = _facts(footer, name)
            if facts is None:
                continue
            of_file, of_table = bounds[file["data_file_id"]].get(column), whole.get((file["table_id"], column))
            told = {
                "the file": of_file and (_too_narrow(of_file, kind, facts) or _nulls(of_file, facts)),
                "the table": of_table and (_too_narrow(of_table, kind, facts) or _no_nulls(of_table, facts)),
            }
            for of, problem in told.items():
                if problem:
                    yield f"the statistics of {name} of {of} are not true of data/{file['path']}: {problem}"


def _kinds(db: CatalogDb) -> Mapping[int, Mapping[int, tuple[str, str]]]:
    """Name and type of each column that has statistics."""
    found: dict[int, dict[int, tuple[str, str]]] = defaultdict(dict)
    for row in db.execute(COLUMNS):
        found[row["table_id"]][row["column_id"]] = row["name"], row["column_type"]
    return found


@dataclass(frozen=True, slots=True)
class Facts:
    """A column of a file, by its footer."""

    low: Any
    high: Any
    nulls: int


def _facts(footer: pq.FileMetaData, name: str) -> Facts | None:
    """Facts of a column; None when the footer does not tell."""
    index = next((i for i in range(footer.num_columns) if footer.schema.column(i).path.split(".")[0] == name), None)
    if index is None:
        return None
    groups = [footer.row_group(g).column(index) for g in range(footer.num_row_groups)]
    said = [group.statistics for group in groups]
    if any(statistics is None or not statistics.has_null_count for statistics in said):
        return None
    known = [statistics for statistics in said if statistics.has_min_max]
    low, high = (min(s.min for s in known), max(s.max for s in known)) if known else (None, None)
    return Facts(low, high, sum(s.null_count for s in said))


def _too_narrow(row: CatalogRow, kind: str, facts: Facts) -> str | None:
    """Why the bounds do not hold."""
    low, high = facts.low, facts.high
    try:
        least = None if row["min_value"] is None else READ[kind](row["min_value"])
        most = None if row["max_value"] is None else READ[kind](row["max_value"])
        if kind == "varchar" and max(len(text or "") for text in (least, most, low, high)) >= LONG:
            return None
        if low is not None and least is not None and least > low:
            return f"least {least!r}, there is {low!r}"
        if high is not None and most is not None and most < high:
            return f"greatest {most!r}, there is {high!r}"
    except (ValueError, TypeError, KeyError) as error:
        return f"{row['min_value']!r} to {row['max_value']!r} is no range of {kind} ({error})"
    return None


def _nulls(row: CatalogRow, facts: Facts) -> str | None:
    nulls = facts.nulls
    if row["null_count"] is not None and row["null_count"] != nulls:
        return f"{row['null_count']} nulls, there are {nulls}"
    return None


def _no_nulls(row: CatalogRow, facts: Facts) -> str | None:
    nulls = facts.nulls
    return f"no nulls, there are {nulls}" if nulls and row["contains_null"] in (0, False) else None
