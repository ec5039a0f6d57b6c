"""Records to files, batch by batch: JSON lines, or Parquet that other programs read without knowing Strop."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

CHUNK = 1 << 20


class Writer(Protocol):
    """An open file of records."""

    rows: int

    def write(self, batch: pa.RecordBatch) -> None:
        """Add the rows of a batch that has the file's schema."""

    def close(self) -> None:
        """Finish the file."""


class ParquetFile:
    """One Parquet file, a row group a batch."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=3)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch."""
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> None:
        """Write the footer."""
        self._writer.close()


class JsonLines:
    """One JSON object a line, null fields included, so that every line has the same keys."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = 0
        self._stream = path.open("w", encoding="utf-8", newline="\n")

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch."""
        for record in batch.to_pylist():
            self._stream.write(json.dumps(record, ensure_ascii=False, default=_plain) + "\n")
        self.rows += batch.num_rows

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def writer_for(path: Path) -> Callable[[Path, pa.Schema], Writer]:
    """The kind of file that a name's ending asks for."""
    return JsonLines if path.suffix == ".jsonl" else ParquetFile


def content_hash(path: Path) -> str:
    """Hex BLAKE2b of a file's bytes."""
    total = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    raise TypeError(f"no JSON for {type(value).__name__}")
