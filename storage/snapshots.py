"""Snapshots that nobody wants to read back any more."""

from __future__ import annotations

import contextlib
import datetime

import duckdb

from strop.storage.catalog_db import CatalogDb

ALL = "SELECT snapshot_id, snapshot_time FROM ducklake_snapshot ORDER BY snapshot_id"
EXPIRE = "CALL ducklake_expire_snapshots('lake', versions => {versions}::UBIGINT[])"


def expired(db: CatalogDb, keep: int | datetime.timedelta | None, now: datetime.datetime) -> list[int]:
    """The snapshots that need not be kept: all but the newest so many, or all but those of so long."""
    rows = db.execute(ALL)[:-1]
    if keep is None:
        return []
    if isinstance(keep, int):
        return [row["snapshot_id"] for row in rows[: max(0, len(rows) - max(keep - 1, 0))]]
    return [row["snapshot_id"] for row in rows if _at(row["snapshot_time"]) < now - keep]


def _at(said: str | datetime.datetime) -> datetime.datetime:
    return datetime.datetime.fromisoformat(said) if isinstance(said, str) else said


def expire(connection: duckdb.DuckDBPyConnection, ids: list[int]) -> None:
    """Forget snapshots, in one transaction; files that only they needed are removed later. The caller has the lock."""
    if not ids:
        return
    connection.execute("BEGIN")
    try:
        connection.execute(EXPIRE.format(versions=ids)).fetchall()
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):
            connection.execute("ROLLBACK")
        raise
