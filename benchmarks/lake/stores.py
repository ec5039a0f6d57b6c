"""The lake beside what people keep rollouts in: JSON lines, a `datasets` folder, a SQLite table of compressed rows.

Each store gets the same rollouts with their verdict, in the way its own users write it, fsynced. Then: bytes, pass@1
per round, and one whole rollout by id.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import append
import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import rows
from clock import Cost, in_turns, timed

from strop.storage.console import open_console
from strop.storage.durable import fsync
from strop.storage.lake import open_lake
from strop.storage.parquet import write_table
from strop.storage.tables import Rollout, Score


@dataclass(frozen=True, slots=True)
class Store:
    """One way to keep rollouts."""

    append: Callable[[], object]
    """Adds all of them to an empty store, for good."""
    size: Callable[[], int]
    pass_rates: Callable[[], object]
    """(round, mean verdict) pairs."""
    one: Callable[[int], object]


def compared(folder: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """Every store in turn."""
    n = 2_000 if chosen.quick else 20_000
    verdicts = rows.scores(0, n)
    table = rows.rollouts(0, n)
    with_verdict = table.append_column("value", verdicts["value"])
    stores = {
        "lake": _lake(folder / "lake", table, verdicts),
        "jsonl": _jsonl(folder / "rollouts.jsonl", with_verdict),
        "datasets": _datasets(folder / "dataset", with_verdict),
        "sqlite_blobs": _sqlite(folder / "rollouts.sqlite", with_verdict),
    }
    appended = {name: timed(store.append) for name, store in stores.items()}
    rates = {name: dict(store.pass_rates()) for name, store in stores.items()}  # type: ignore[call-overload]
    wanted = rates["lake"]
    for name, found in rates.items():
        assert found.keys() == wanted.keys(), (name, found, wanted)
        assert all(abs(found[key] - wanted[key]) < 1e-9 for key in wanted), (name, found, wanted)
    repetitions = 2 if chosen.quick else 5
    rated = in_turns({name: store.pass_rates for name, store in stores.items()}, repetitions)
    fetched = in_turns({name: lambda s=store: s.one(n // 3) for name, store in stores.items()}, repetitions)  # type: ignore[misc]
    return {
        "rollouts": n,
        **{
            name: {
                "append": _ms(appended[name]),
                "bytes_per_rollout": store.size() / n,
                "pass_rates": _ms(rated[name]),
                "one_rollout": _ms(fetched[name]),
            }
            for name, store in stores.items()
        },
    }


def _ms(cost: Cost) -> dict[str, float]:
    return {name.replace("_s", "_ms"): 1000 * value for name, value in asdict(cost).items()}


def _lake(root: Path, table: pa.Table, verdicts: pa.Table) -> Store:
    lake = open_lake(root, create=True)

    def add() -> None:
        files = {
            "rollouts": [write_table(lake.staging / "r.parquet", Rollout, table)],
            "scores": [write_table(lake.staging / "s.parquet", Score, verdicts)],
        }
        lake.commit(append.ledger(0), files=files)

    def ask(sql: str) -> list[tuple[Any, ...]]:
        with open_console(root) as console:  # opened anew, as a script would
            return console.query(sql).rows

    return Store(
        add,
        lambda: sum(path.stat().st_size for path in root.rglob("*") if path.is_file()),
        lambda: ask("SELECT round, avg(value) FROM scores GROUP BY round"),
        lambda i: ask(f"SELECT * FROM rollouts JOIN scores ON subject_id = rollout_id WHERE rollout_id = {i}"),
    )


def _jsonl(path: Path, table: pa.Table) -> Store:
    def add() -> None:
        with path.open("a", encoding="utf-8") as file:
            for batch in table.to_batches(max_chunksize=1000):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
        fsync(path)

    def one(wanted: int) -> object:
        with path.open(encoding="utf-8") as file:
            return next(row for line in file if (row := json.loads(line))["rollout_id"] == wanted)

    sql = f"SELECT round, avg(value) FROM read_ndjson('{path}', columns = {{round: 'INT', value: 'DOUBLE'}}) GROUP BY 1"
    return Store(add, lambda: path.stat().st_size, lambda: duckdb.sql(sql).fetchall(), one)


def _datasets(path: Path, table: pa.Table) -> Store:
    import datasets

    datasets.disable_progress_bars()

    def add() -> None:
        datasets.Dataset(table).save_to_disk(path)
        for file in path.iterdir():
            fsync(file)

    def pass_rates() -> list[tuple[int, float]]:
        stored = datasets.load_from_disk(path).data.table
        grouped = stored.select(["round", "value"]).group_by("round").aggregate([("value", "mean")])
        return list(zip(grouped["round"].to_pylist(), grouped["value_mean"].to_pylist(), strict=True))

    def one(wanted: int) -> object:
        stored = datasets.load_from_disk(path)
        return stored[pc.index(stored.data.table["rollout_id"], wanted).as_py()]

    return Store(add, lambda: sum(f.stat().st_size for f in path.iterdir()), pass_rates, one)


def _sqlite(path: Path, table: pa.Table) -> Store:
    def add() -> None:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("CREATE TABLE rollouts (rollout_id INTEGER PRIMARY KEY, round INT, value REAL, row BLOB)")
            for batch in table.to_batches(max_chunksize=1000):
                db.executemany(
                    "INSERT INTO rollouts VALUES (?, ?, ?, ?)",
                    (
                        (row["rollout_id"], row["round"], row["value"], zlib.compress(json.dumps(row).encode(), 3))
                        for row in batch.to_pylist()
                    ),
                )
        db.close()

    def ask(sql: str) -> list[tuple[Any, ...]]:
        db = sqlite3.connect(path)
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def one(wanted: int) -> object:
        return json.loads(zlib.decompress(ask(f"SELECT row FROM rollouts WHERE rollout_id = {wanted}")[0][0]))

    return Store(
        add,
        lambda: path.stat().st_size,
        lambda: ask("SELECT round, avg(value) FROM rollouts GROUP BY round"),
        one,
    )
