"""The lake beside what people keep rollouts in: JSON lines, a `datasets` folder, a SQLite table of compressed rows.

Each store gets the same rollouts with their verdict as Python objects, which a program that samples text has, and
writes them in the way its own users do, fsynced. Then: bytes, pass@1 per round, and one whole rollout by id, each
opened anew.
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

import duckdb
import pyarrow.compute as pc
from lake_parts import append, rows
from lake_parts.clock import Cost, in_turns, timed

from strop.storage.console import open_console
from strop.storage.durable import fsync
from strop.storage.lake import open_lake
from strop.storage.parquet import from_arrow, write_rows
from strop.storage.tables import Rollout, Score

Dicts = list[dict[str, Any]]


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
    verdicts, table = rows.scores(0, n), rows.rollouts(0, n)
    dicts = table.append_column("value", verdicts["value"]).to_pylist()
    stores = {
        "lake": _lake(folder / "lake", from_arrow(Rollout, table), from_arrow(Score, verdicts)),
        "jsonl": _jsonl(folder / "rollouts.jsonl", dicts),
        "datasets": _datasets(folder / "dataset", dicts),
        "sqlite_blobs": _sqlite(folder / "rollouts.sqlite", dicts),
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


def _lake(root: Path, rollouts: list[Rollout], scores: list[Score]) -> Store:
    lake = open_lake(root, create=True)

    def add() -> None:
        files = {
            "rollouts": [write_rows(lake.staging / "r.parquet", Rollout, rollouts)],
            "scores": [write_rows(lake.staging / "s.parquet", Score, scores)],
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


def _jsonl(path: Path, dicts: Dicts) -> Store:
    def add() -> None:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in dicts)
        fsync(path)

    def one(wanted: int) -> object:
        with path.open(encoding="utf-8") as file:
            return next(row for line in file if (row := json.loads(line))["rollout_id"] == wanted)

    sql = f"SELECT round, avg(value) FROM read_ndjson('{path}', columns = {{round: 'INT', value: 'DOUBLE'}}) GROUP BY 1"
    return Store(add, lambda: path.stat().st_size, lambda: duckdb.sql(sql).fetchall(), one)


def _datasets(path: Path, dicts: Dicts) -> Store:
    import datasets

    datasets.disable_progress_bars()

    def add() -> None:
        datasets.Dataset.from_list(dicts).save_to_disk(path)
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


def _sqlite(path: Path, dicts: Dicts) -> Store:
    def add() -> None:
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA synchronous = FULL")
            db.execute("CREATE TABLE rollouts (rollout_id INTEGER PRIMARY KEY, round INT, value REAL, row BLOB)")
            db.executemany(
                "INSERT INTO rollouts VALUES (?, ?, ?, ?)",
                (
                    (row["rollout_id"], row["round"], row["value"], zlib.compress(json.dumps(row).encode(), 3))
                    for row in dicts
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
