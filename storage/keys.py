"""The keys of committed shards in a table beside DuckLake's, so that the database itself keeps them unique.

A key enters in the transaction that registers its files. Where a Strop committed that did not know of this table, the
key is in the snapshot's `commit_extra_info`; it is taken from there before the next look-up.
"""

from __future__ import annotations

import json

import duckdb

from strop.storage.bounds import mend
from strop.storage.catalog_db import CatalogDb, open_catalog_db
from strop.storage.ducklake_tables import insert
from strop.storage.place import Place
from strop.storage.sole_use import through_duckdb

CREATE = "CREATE TABLE IF NOT EXISTS strop_keys (key VARCHAR PRIMARY KEY, snapshot_id BIGINT NOT NULL)"
INDEX = "CREATE INDEX IF NOT EXISTS strop_keys_snapshot ON strop_keys (snapshot_id)"
SINCE = """
SELECT snapshot_id, changes_made, commit_extra_info FROM ducklake_snapshot_changes
WHERE snapshot_id > (SELECT coalesce(max(snapshot_id), -1) FROM strop_keys)"""
FIND = "SELECT snapshot_id FROM strop_keys WHERE key = :key"
EVER = "SELECT key, snapshot_id FROM lake.stage_runs"
"""Of a lake that has no such table yet: DuckLake's virtual column says which snapshot brought a row."""


def keep_keys(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Make the table, where the lake has none, with every key committed so far; mend the statistics of its tables.

    The caller holds the commit lock.
    """
    with open_catalog_db(place, write=True) as db:
        db.execute(CREATE)
        db.execute(INDEX)
        if db.execute("SELECT 1 AS there FROM strop_keys LIMIT 1"):
            return
    with through_duckdb(place.root):
        ever = dict(connection.execute(EVER).fetchall())
    with open_catalog_db(place, write=True) as db:
        insert(db, "strop_keys", [{"key": key, "snapshot_id": snapshot} for key, snapshot in ever.items()])
        mend(db)


def find(db: CatalogDb, key: str) -> int | None:
    """The snapshot that committed the key, if one did."""
    catch_up(db)
    found = db.execute(FIND, {"key": key})
    return int(found[0]["snapshot_id"]) if found else None


def catch_up(db: CatalogDb) -> None:
    """Take in what others committed since the last key: their keys, and mended statistics of what they added."""
    fresh: dict[str, int] = {}
    added = False
    for row in db.execute(SINCE):
        added |= "inserted_into" in row["changes_made"]
        key = json.loads(row["commit_extra_info"] or "{}").get("key")
        if key is not None and not db.execute(FIND, {"key": key}):
            fresh[key] = row["snapshot_id"]
    insert(db, "strop_keys", [{"key": key, "snapshot_id": snapshot} for key, snapshot in fresh.items()])
    if added:
        mend(db)


def add(db: CatalogDb, key: str, snapshot: int) -> None:
    """Take the key. Raises the database's error when it is taken."""
    insert(db, "strop_keys", [{"key": key, "snapshot_id": snapshot}])
