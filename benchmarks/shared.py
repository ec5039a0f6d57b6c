"""A commit and a query on each kind of lake, side by side: PYTHONPATH=tests:tests/storage python benchmarks/shared.py

PostgreSQL (flushing to the disk) and moto's S3 run on loopback: no network, but a store that takes 4 ms of CPU for each
request. The kinds take turns, so that a busy machine slows all of them; printed are milliseconds.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import servers
from lake_rows import ledger, rollouts

from strop.storage.console import open_console
from strop.storage.joining import join
from strop.storage.lake import open_lake
from strop.storage.parquet import write_rows
from strop.storage.tables import Decision, Rollout, Score

ROWS = 1000
QUERY = "SELECT verdict, count(*) FROM rollouts r JOIN scores s ON s.subject_id = r.rollout_id GROUP BY 1"


def main(commits: int) -> None:
    """Commit 1000 rollouts with their scores and decisions, again and again; then open a console and ask it."""
    os.environ.update(servers.KEYS, PGPASSWORD=servers.PASSWORD)
    with tempfile.TemporaryDirectory() as folder, servers.postgres(durable=True) as uri, servers.s3() as endpoint:
        roots = {"local": Path(folder) / "local"}
        for name, parts in (("postgres", "c"), ("s3", "d"), ("postgres + s3", "cd")):
            keys: dict[str, str | None] = {}
            if "c" in parts:
                keys["catalog"] = servers.make_database(uri, f"lake{len(roots)}")
            if "d" in parts:
                keys["data"] = servers.make_bucket(endpoint, f"lake{len(roots)}") + "/p"
                keys["endpoint"] = endpoint
            roots[name] = join(Path(folder) / name, keys).place.root
        lakes = {name: open_lake(root, create=True) for name, root in roots.items()}
        print(f"{'':<14} {'commit':>15} {'console':>15}   ms: median, min")
        made: dict[str, list[float]] = {name: [] for name in roots}
        asked: dict[str, list[float]] = {name: [] for name in roots}
        for i in range(commits):
            for name, lake in lakes.items():
                rows = rollouts(ROWS, first=i * ROWS + 1)
                scores = [Score(score_id=r.rollout_id, subject_id=r.rollout_id, verdict="pass") for r in rows]
                kept = [Decision(decision_id=r.rollout_id, subject_id=r.rollout_id, keep=True) for r in rows]
                file = write_rows(lake.staging / "r.parquet", Rollout, rows)
                started = time.perf_counter()
                lake.commit(ledger(f"{i}"), files={"rollouts": [file]}, rows={"scores": scores, "decisions": kept})
                made[name].append((time.perf_counter() - started) * 1e3)
        for _ in range(min(commits, 20)):
            for name, root in roots.items():
                started = time.perf_counter()
                with open_console(root) as console:
                    assert console.query(QUERY).rows == [("pass", commits * ROWS)]
                asked[name].append((time.perf_counter() - started) * 1e3)
        for name, lake in lakes.items():
            lake.close()
            figures = [f"{statistics.median(times):.0f} {min(times):>6.0f}" for times in (made[name], asked[name])]
            print(f"{name:<14} {figures[0]:>15} {figures[1]:>15}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
