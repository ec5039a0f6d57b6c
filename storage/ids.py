"""Deterministic ids: a retry of a shard writes the same ids, and min/max statistics prune files by them.

An id is `(shard number << 20) | i`: the shard number is a hash of run, round, stage and shard index, and i counts
the rows of every table of that shard together, so that an id names one row of the lake, whatever its table.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from strop.storage.tables import Row

ROWS_PER_SHARD = 1 << 20


def digest(*parts: object, size: int = 16) -> str:
    """Hex BLAKE2b of the parts, each written as its repr, so that ('a', 'bc') and ('ab', 'c') differ."""
    return hashlib.blake2b("\x1f".join(map(repr, parts)).encode(), digest_size=size).hexdigest()


def in_file_name(text: str) -> str:
    """A name as part of a path: what file systems and object stores may not take is an underscore; never empty."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", text) or "_"


def shard_number(run_id: str, round: int, stage: str, shard: int) -> int:
    """43-bit number of a shard, so that every id is a positive BIGINT."""
    return int(digest("shard", run_id, round, stage, shard, size=8), 16) & ((1 << 43) - 1)


def stage_run_of(row_id: int) -> int:
    """The `stage_run_id` of the shard that wrote the row."""
    return row_id >> 20


def stamp(
    rows: Mapping[str, Sequence[Row]], *, run_id: str, round: int, stage_run_id: int, first: int = 0
) -> dict[str, list[Row]]:
    """The rows with run, round, stage run and ids filled in; ids count on from `first` in the order given.

    A row that already has an id keeps it (a re-written policy, say).
    Raises ValueError when a shard has more rows than ids.
    """
    index = first
    stamped: dict[str, list[Row]] = {}
    for table, members in rows.items():
        out = []
        for row in members:
            fields: dict[str, Any] = {"run_id": run_id, "round": round, "stage_run_id": stage_run_id}
            if row.ID is not None and not getattr(row, row.ID):
                fields[row.ID] = (stage_run_id << 20) | index
                index += 1
            out.append(dataclasses.replace(row, **fields))
        stamped[table] = out
    if index > ROWS_PER_SHARD:
        raise ValueError(f"a shard holds at most {ROWS_PER_SHARD} rows, this one has {index}: use smaller shards")
    return stamped
