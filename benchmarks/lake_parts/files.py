"""What grows with the number of files: the catalog, opening a console, looking up a row, a commit.

The commits of a long run are made up: two commits are real, the rows of the second in the catalog are copied under new
numbers, and its files linked under new names. Their Parquet is small and always the same, so that what is measured is
the price of a file and not of its rows; DuckDB and DuckLake still have to open, or to leave out, each of them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

from lake_parts import append, rows
from lake_parts.clock import Cost, timed

from strop.storage.console import open_console
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import write_table
from strop.storage.tables import BY_NAME

LINKS = 30_000
"""Names of one file; a file system has a limit."""
WANTED = 8
LOOK_UP = f"SELECT completion FROM rollouts WHERE rollout_id = {WANTED}"
SECOND = 200_000
"""First id of the commit that is copied."""
LAST = """
SELECT data_file_id, f.path, table_name FROM ducklake_data_file f JOIN ducklake_table USING (table_id)
WHERE f.begin_snapshot = :snapshot AND table_name IN ('rollouts', 'scores')"""


def many(folder: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """Lakes of more and more commits with a file of rollouts and one of scores each."""
    found: dict[str, object] = {}
    for commits in (50, 500) if chosen.quick else (500, 5_000, 50_000):
        root = folder / str(commits)
        with open_lake(root, create=True) as lake:
            _commit(lake, 0, 0)
            _multiply(root, _commit(lake, 1, SECOND), commits)
            _commit(lake, 2, 2 * SECOND)  # takes in what the copies left undone
            found[str(2 * commits)] = _figures(lake, root)
        shutil.rmtree(root)
    return found


def _commit(lake: Lake, index: int, first: int) -> int:
    made = {"rollouts": rows.rollouts(first, 100, narrow=True), "scores": rows.scores(first, 100)}
    files = {name: [write_table(lake.staging / f"{name}.parquet", BY_NAME[name], t)] for name, t in made.items()}
    snapshot = lake.commit(append.ledger(index), files=files)
    assert snapshot is not None
    return snapshot


def _multiply(root: Path, snapshot: int, commits: int) -> None:
    """As if that commit had been made again and again."""
    db = sqlite3.connect(root / "catalog.sqlite")
    db.row_factory = sqlite3.Row
    files = [dict(row) for row in db.execute(LAST, {"snapshot": snapshot})]
    newest = dict(db.execute("SELECT * FROM ducklake_snapshot WHERE snapshot_id = ?", (snapshot,)).fetchone())
    extra = dict(db.execute("SELECT * FROM ducklake_snapshot_changes WHERE snapshot_id = ?", (snapshot,)).fetchone())
    next_file = newest["next_file_id"]
    for file in files:
        place = root / "data/main" / file["table_name"]
        copied = dict(
            db.execute("SELECT * FROM ducklake_data_file WHERE data_file_id = ?", (file["data_file_id"],)).fetchone()
        )
        stats = db.execute("SELECT * FROM ducklake_file_column_stats WHERE data_file_id = ?", (file["data_file_id"],))
        known = [dict(row) for row in stats]
        for i in range(commits):
            if i % LINKS == 0:
                source = place / f"source-{i}.parquet"
                shutil.copyfile(place / file["path"], source)
            name = f"copy-{i}.parquet"
            os.link(source, place / name)
            at = {"data_file_id": next_file, "begin_snapshot": snapshot + 1 + i}
            _insert(db, "ducklake_data_file", {**copied, **at, "path": name})
            for row in known:
                _insert(db, "ducklake_file_column_stats", {**row, "data_file_id": next_file})
            path = f"main/{file['table_name']}/{name}"
            _insert(db, "strop_files", {"path": path, "bytes": copied["file_size_bytes"], "hash": "0" * 32})
            next_file += 1
    for i in range(commits):
        at = {"snapshot_id": snapshot + 1 + i}
        _insert(db, "ducklake_snapshot", {**newest, **at, "next_file_id": next_file})
        _insert(db, "ducklake_snapshot_changes", {**extra, **at, "commit_extra_info": f'{{"key": "copy-{i}"}}'})
        _insert(db, "strop_keys", {"key": f"copy-{i}", **at})
    db.commit()
    db.close()


def _insert(db: sqlite3.Connection, table: str, row: dict[str, object]) -> None:
    db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({', '.join('?' * len(row))})", tuple(row.values()))


def _figures(lake: Lake, root: Path) -> dict[str, float]:
    opened = _best(lambda: open_console(root).close())
    with open_console(root) as console:
        first, again = _twice(lambda: console.query(LOOK_UP).rows)
    lake_first, lake_again = _twice(lambda: lake.query(LOOK_UP))
    costs = []
    for index in range(3, 9):
        made = rows.rollouts(index * SECOND, 100, narrow=True)
        files = {"rollouts": [write_table(lake.staging / "next.parquet", BY_NAME["rollouts"], made)]}
        costs.append(timed(lambda: lake.commit(append.ledger(index), files=files)))  # noqa: B023
    return {
        "catalog_mb": (root / "catalog.sqlite").stat().st_size / 1e6,
        "open_console_ms": 1000 * opened.cpu_s,
        "look_up_ms": 1000 * first,
        "look_up_again_ms": 1000 * again,
        "ducklake_look_up_ms": 1000 * lake_first,
        "ducklake_look_up_again_ms": 1000 * lake_again,
        "commit_cpu_ms": 1000 * min(cost.cpu_s for cost in costs),
    }


def _best(work: Callable[[], object]) -> Cost:
    costs = [timed(work) for _ in range(5)]
    return Cost(min(cost.wall_s for cost in costs), min(cost.cpu_s for cost in costs))


def _twice(ask: Callable[[], list[object]]) -> tuple[float, float]:
    """CPU seconds of the first time and of the best of the next."""
    start = time.process_time()
    assert len(ask()) == 1
    first = time.process_time() - start
    return first, min(timed(ask).cpu_s for _ in range(3))
