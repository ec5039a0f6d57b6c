"""What the catalog says of a Parquet file, read from the file's footer: rows, sizes, and bounds of each column.

Bounds are texts in DuckDB's notation, as DuckLake keeps them; it casts them back to the column's type and skips files
that cannot hold what a query asks for. Where a row group with values states no bound, the file has none. Nor has a
column of long texts: they would never skip a file, and were up to 8 KB a column and file in the catalog.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

LONGEST = 64
"""Bytes of the longest text kept as a bound: ids, keys, hashes and labels are shorter."""
EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """One column of one file; of a list, its elements."""

    size_bytes: int
    """Compressed."""
    values: int | None
    """Values that are not null; None = the file does not say."""
    nulls: int | None
    low: str | None
    high: str | None


@dataclass(frozen=True, slots=True)
class Footer:
    """A whole file."""

    rows: int
    size_bytes: int
    footer_bytes: int
    schema: pa.Schema
    columns: dict[str, ColumnFacts]
    """By the name of the table's column."""


def read_footer(file: Path | bytes) -> Footer:
    """Read the footer of a file, or of its content. Raises OSError, or pyarrow's error when it is not a whole one."""
    if isinstance(file, bytes):
        metadata, size_bytes = pq.read_metadata(pa.BufferReader(file)), len(file)
    else:
        metadata, size_bytes = pq.read_metadata(file), file.stat().st_size
    schema = metadata.schema.to_arrow_schema()
    if metadata.num_columns != len(schema):
        raise pa.ArrowInvalid("the file has nested columns other than lists of plain values")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = {field.name: _facts(field.type, [g.column(i) for g in groups]) for i, field in enumerate(schema)}
    return Footer(metadata.num_rows, size_bytes, metadata.serialized_size, schema, columns)


def _facts(kind: pa.DataType, chunks: Sequence[Any]) -> ColumnFacts:
    """Facts of the column over all row groups."""
    size = sum(chunk.total_compressed_size for chunk in chunks)
    found = [(chunk.num_values, chunk.statistics) for chunk in chunks]
    if any(statistics is None or not statistics.has_null_count for _, statistics in found):
        return ColumnFacts(size, None, None, None, None)
    nulls = sum(statistics.null_count for _, statistics in found)
    values = sum(count for count, _ in found) - nulls
    valued = [statistics for count, statistics in found if count > statistics.null_count]
    text = WRITTEN.get(kind.value_type if pa.types.is_list(kind) else kind)
    if text is None or not valued or any(not statistics.has_min_max for statistics in valued):
        return ColumnFacts(size, values, nulls, None, None)
    low, high = min(s.min_raw for s in valued), max(s.max_raw for s in valued)
    return ColumnFacts(size, values, nulls, text(low), text(high))


def _short(value: bytes | str) -> str | None:
    """A text that is worth keeping; PostgreSQL cannot keep one with NUL in it."""
    if len(value) > LONGEST:
        return None
    text = value.decode() if isinstance(value, bytes) else value
    return None if "\x00" in text else text


def _number(value: float) -> str | None:
    return repr(value) if np.isfinite(value) else None


def _single(value: float) -> str | None:
    return repr(float(str(np.float32(value)))) if np.isfinite(value) else None


def _moment(microseconds: int) -> str:
    moment = EPOCH + datetime.timedelta(microseconds=microseconds)
    text = moment.replace(tzinfo=None).isoformat(sep=" ")
    return (text.rstrip("0") if "." in text else text) + "+00"


WRITTEN: dict[pa.DataType, Callable[[Any], str | None]] = {
    pa.bool_(): lambda value: "true" if value else "false",
    pa.int32(): str,
    pa.int64(): str,
    pa.float32(): _single,
    pa.float64(): _number,
    pa.string(): _short,
    pa.timestamp("us", tz="UTC"): _moment,
}
"""How a bound of each type is written; the types a table of the lake can have."""
READ: dict[str, Callable[[str], Any]] = {
    "boolean": str,
    "int32": int,
    "int64": int,
    "float32": float,
    "float64": float,
    "varchar": lambda text: text.encode(),
    "timestamptz": datetime.datetime.fromisoformat,
}
"""How a bound of each of DuckLake's types is read for a comparison."""
ARROW: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "varchar": pa.string(),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}
"""DuckLake's types as a file must have them."""
