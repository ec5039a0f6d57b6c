"""Upkeep: many small files become few, and what nobody can read any more is removed.

Every commit adds a file of a row or two to the ledger, and a query pays about a millisecond a file: 300 commits made
`v_rounds` take 0.5 s, merging them 0.02 s. Merging keeps history: each row remembers the snapshot that added it.
Rollouts stay as the workers wrote them until a sweep: they are wide, and DuckDB takes three times the work to write.
"""

from __future__ import annotations

import contextlib
import datetime
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb

from strop.storage.checksums import note
from strop.storage.durable import fsync
from strop.storage.errors import LakeError
from strop.storage.place import place_of
from strop.storage.tables import TABLES, Rollout

if TYPE_CHECKING:
    from strop.storage.lake import Lake

EVERY = 64
"""Merge after this many snapshots."""
SMALL = 1 << 20
"""Files of more bytes are left alone, so that no row is rewritten more than a few times."""
MERGE = "CALL ducklake_merge_adjacent_files('lake', '{table}', max_file_size => {small})"
FORGOTTEN = "FROM ducklake_cleanup_old_files('lake', older_than => ?::TIMESTAMPTZ)"
UNREGISTERED = "FROM ducklake_delete_orphaned_files('lake', older_than => ?::TIMESTAMPTZ)"


def merge_small_files(connection: duckdb.DuckDBPyConnection, root: Path, *, rollouts: bool = False) -> None:
    """Merge the small files of every table, of the rollouts only if asked, in one transaction under the lake's lock."""
    connection.execute("BEGIN")
    try:
        with synced(root) as written:
            for row in TABLES:
                if rollouts or row is not Rollout:
                    connection.execute(MERGE.format(table=row.TABLE, small=SMALL)).fetchall()
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise
    with contextlib.suppress(OSError, LakeError):  # the merge stands; a sweep catches up
        note(place_of(root), written)


@contextlib.contextmanager
def synced(root: Path, table: str = "*") -> Iterator[list[Path]]:
    """Flush to the disk what DuckDB itself writes for a table within: it never does, and the catalog relies on it.

    Yields a list that holds those files afterwards.
    """
    before = set(root.glob(f"data/main/{table}/*.parquet"))
    written: list[Path] = []
    yield written
    written += sorted(set(root.glob(f"data/main/{table}/*.parquet")) - before)
    for path in written:
        fsync(path)
    for folder in {path.parent for path in written}:
        fsync(folder)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    data_files: int
    """Files below `data/` that no snapshot needs: merged ones, and what killed commits left."""
    staged: int
    """Files and folders below `staging/` and `work/` that no run has touched for as long."""


def sweep(lake: Lake, older_than: datetime.timedelta = datetime.timedelta(days=1)) -> Swept:
    """Merge small files and remove what is not part of the lake and has not been touched for `older_than`.

    Snapshots are kept, all of them. Younger leftovers stay: a console may be open on merged files, and a run may be
    about to commit what is staged. Raises LakeError when the lake is read-only.
    """
    now = datetime.datetime.now(datetime.UTC)
    with lake.exclusive() as connection:
        merge_small_files(connection, lake.root, rollouts=True)
        removed = 0
        for query in (FORGOTTEN, UNREGISTERED):
            removed += len(connection.execute(query, [now - older_than]).fetchall())
    staged = 0
    for folder in ("staging", "work"):
        for path in (lake.root / folder).iterdir():
            if max(_touched(path)) < (now - older_than).timestamp():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                staged += 1
    return Swept(removed, staged)


def _touched(path: Path) -> Iterator[float]:
    yield path.lstat().st_mtime
    for below in path.rglob("*") if path.is_dir() else ():
        yield below.lstat().st_mtime
