"""Upkeep: many small files become few.

Every commit adds a file of a row or two to the ledger, and a query pays about a millisecond a file: 300 commits made
`v_rounds` take 0.5 s, merging them 0.02 s. Merging keeps history: each row remembers the snapshot that added it.
Rollouts stay as the workers wrote them until `strop gc`: they are wide, and DuckDB takes three times the work to write.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import duckdb

from strop.storage.checksums import next_file, note
from strop.storage.durable import fsync
from strop.storage.errors import LakeError
from strop.storage.place import Place
from strop.storage.tables import TABLES, Rollout

EVERY = 64
"""Merge after this many snapshots."""
SMALL = 1 << 20
"""Files of more bytes are left alone, so that no row is rewritten more than a few times."""
MERGE = "CALL ducklake_merge_adjacent_files('lake', '{table}', max_file_size => {small})"


def merge_small_files(connection: duckdb.DuckDBPyConnection, place: Place, *, rollouts: bool = False) -> None:
    """Merge the small files of every table, of the rollouts only if asked, in one transaction under the lake's lock."""
    mark = next_file(place)
    connection.execute("BEGIN")
    try:
        with synced(place):
            for row in TABLES:
                if rollouts or row is not Rollout:
                    connection.execute(MERGE.format(table=row.TABLE, small=SMALL)).fetchall()
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise
    with contextlib.suppress(OSError, LakeError):  # the merge stands; `strop gc` catches up
        note(place, mark)


@contextlib.contextmanager
def synced(place: Place, table: str = "*") -> Iterator[None]:
    """Flush to the disk what DuckDB itself writes for a table within: it never does, and the catalog relies on it."""
    pattern = f"data/main/{table}/*.parquet"
    before = set() if place.data else set(place.root.glob(pattern))
    yield
    written = set() if place.data else set(place.root.glob(pattern)) - before
    for path in written:
        fsync(path)
    for folder in {path.parent for path in written}:
        fsync(folder)
