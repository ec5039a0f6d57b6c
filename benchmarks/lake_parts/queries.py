"""Questions to a lake of many rollouts, against DuckDB on the same Parquet files without a lake.

Three ways: the console that `strop sql` uses, the lake's own connection through DuckLake, and views over
`read_parquet([...])`. Each is open already; the console's opening and first query are measured in a fresh process.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
from lake_parts import append, rows
from lake_parts.clock import in_turns

from strop.storage.catalog import read_catalog
from strop.storage.console import Console, open_console
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import write_table
from strop.storage.tables import BY_NAME, Policy

CHUNK = 50_000
FIRST_QUERY = """
import sys, time
start = time.perf_counter()
from pathlib import Path
from strop.storage.console import open_console
with open_console(Path(sys.argv[1])) as console:
    console.query("SELECT count(*) FROM rollouts")
print(time.perf_counter() - start)
"""
PASS_AT_K = """
WITH counts AS (
  SELECT round, problem_id, count(*) AS n, count(*) FILTER (verdict = 'pass') AS c FROM scores
  WHERE scorer = 'answer' AND verdict IS NOT NULL GROUP BY ALL)
SELECT round, avg(c / n) AS pass_at_1,
  avg(1 - list_aggregate(list_transform(range(4), lambda i: greatest(n - c - i, 0) / (n - i)), 'product')) AS pass_at_4,
  avg((c > 0)::INT) AS pass_at_8
FROM counts GROUP BY round ORDER BY round"""
ROUND_TEXT = "SELECT count(*), sum(strlen(completion)), max(completion) FROM rollouts WHERE round = {round}"
SCORE_JOIN = """
SELECT r.round, s.verdict, count(*), avg(r.entropy) FROM rollouts r
JOIN scores s ON s.subject_kind = 'rollout' AND s.subject_id = r.rollout_id GROUP BY ALL ORDER BY ALL"""
POINT = "SELECT * FROM rollouts WHERE rollout_id = {id}"
THREE_TABLES = """
SELECT r.*, s.verdict, s.answer, p.reference FROM rollouts r
JOIN scores s ON s.subject_id = r.rollout_id JOIN problems p ON p.problem_id = r.problem_id
WHERE r.rollout_id = {id} AND s.subject_id = {id} AND p.problem_id = {problem}"""
LINEAGE = """
WITH RECURSIVE made AS MATERIALIZED (SELECT policy_id, parent_policy_id FROM policies),
line AS (
  SELECT policy_id, parent_policy_id, 0 AS steps FROM made WHERE policy_id = {policy}
  UNION ALL SELECT made.policy_id, made.parent_policy_id, steps + 1 FROM line JOIN made
  ON made.policy_id = line.parent_policy_id)
SELECT steps, count(*), count(DISTINCT e.problem_id), sum(r.n_tokens) FROM line
JOIN policy_examples pe USING (policy_id) JOIN examples e USING (example_id) JOIN rollouts r USING (rollout_id)
GROUP BY steps ORDER BY steps"""


def fill(lake: Lake, rollouts: int, *, narrow: bool) -> None:
    """Commits of 50,000 rollouts with their verdicts and examples, as a run of many rounds makes them."""
    chunk = min(CHUNK, rollouts // 2)
    files = {"problems": [write_table(lake.staging / "p.parquet", BY_NAME["problems"], rows.problems(chunk))]}
    rounds = range(rollouts // rows.PER_ROUND + 2)
    policies = [_policy(rows.POLICY + round, rows.POLICY + round - 1 if round else None, round) for round in rounds]
    lake.commit(append.ledger(0, 0), files=files, rows={"policies": policies})
    for index, first in enumerate(range(0, rollouts, chunk), 1):
        made = {"rollouts": rows.rollouts(first, chunk, narrow=narrow), "scores": rows.scores(first, chunk)}
        made |= rows.trained_on(first, chunk)
        files = {name: [write_table(lake.staging / f"{name}.parquet", BY_NAME[name], t)] for name, t in made.items()}
        lake.commit(append.ledger(index, first // rows.PER_ROUND), files=files)


def _policy(policy_id: int, parent: int | None, round: int) -> Policy:
    given = {"status": "candidate", "kind": "full", "path": "p", "content_hash": "h", "run_id": "bench-s0"}
    return Policy(policy_id=policy_id, parent_policy_id=parent, round=round, **given)


def bare(root: Path) -> duckdb.DuckDBPyConnection:
    """The same files without a lake."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")  # as the console has it
    for name, table in read_catalog(root).tables.items():
        if table.files:
            paths = ", ".join(f"'{file.path}'" for file in table.files)
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM read_parquet([{paths}])")
    return connection


def of_many(folder: Path, chosen: argparse.Namespace) -> dict[str, object]:
    """Fill a lake and ask it."""
    n = chosen.rollouts
    root = folder / "lake"
    start = time.perf_counter()
    with open_lake(root, create=True) as lake:
        fill(lake, n, narrow=chosen.narrow)
        filled = time.perf_counter() - start
        some = n * 2 // 3
        asked = {
            "pass_at_k": PASS_AT_K,
            "round_text": ROUND_TEXT.format(round=n // rows.PER_ROUND // 2),
            "score_join": SCORE_JOIN,
            "point": POINT.format(id=some),
            "point_three_tables": THREE_TABLES.format(
                id=some % CHUNK, problem=rows.PROBLEM + some % CHUNK // rows.PER_PROBLEM
            ),
            "lineage": LINEAGE.format(policy=rows.POLICY + max(n // rows.PER_ROUND // 2, 1)),
        }
        found: dict[str, object] = {"rollouts": n, "fill_s": filled, "bytes": _bytes(root)}
        with open_console(root) as console, bare(root) as connection:
            for name, sql in asked.items():
                repetitions = 3 if chosen.quick else 40 if "point" in name else 20
                found[name] = _ratios(lake, console, connection, sql, repetitions, name)
    return found


def _ratios(
    lake: Lake, console: Console, connection: duckdb.DuckDBPyConnection, sql: str, repetitions: int, name: str
) -> dict[str, float]:
    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: connection.execute(sql).fetchall(),
        "console": lambda: console.query(sql).rows,
        "ducklake": lambda: lake.query(sql),
    }
    wanted = ways["bare"]()
    assert wanted, name
    for way, ask in ways.items():
        assert _rounded(ask()) == _rounded(wanted), (name, way)
    costs = in_turns(ways, repetitions)
    tables = 3 if "three" in name else 1

    def above(way: str, kind: str) -> float:
        return float(1000 * (getattr(costs[way], kind) - getattr(costs["bare"], kind)) / tables)

    return {
        "bare_ms": 1000 * costs["bare"].wall_s,
        "console_ms": 1000 * costs["console"].wall_s,
        "ducklake_ms": 1000 * costs["ducklake"].wall_s,
        "console_ratio": costs["console"].wall_s / costs["bare"].wall_s,
        "console_cpu_ratio": costs["console"].cpu_s / costs["bare"].cpu_s,
        "ducklake_ratio": costs["ducklake"].wall_s / costs["bare"].wall_s,
        "ducklake_cpu_ratio": costs["ducklake"].cpu_s / costs["bare"].cpu_s,
        "console_ms_above_a_table": above("console", "wall_s"),
        "console_cpu_ms_above_a_table": above("console", "cpu_s"),
        "ducklake_ms_above_a_table": above("ducklake", "wall_s"),
    }


def _rounded(found: object) -> object:
    """Sums of floats differ in their last digits with the order of threads."""
    assert isinstance(found, list)
    return [tuple(round(v, 9) if isinstance(v, float) else v for v in row) for row in found]


def _bytes(root: Path) -> dict[str, int]:
    found = {
        table.name: sum(path.stat().st_size for path in (root / "data/main" / table.name).rglob("*.parquet"))
        for table in read_catalog(root).tables.values()
    }
    return {**{name: size for name, size in found.items() if size}, "catalog": (root / "catalog.sqlite").stat().st_size}


def console(folder: Path, chosen: argparse.Namespace) -> dict[str, float]:
    """A fresh process: import, open, first query, on a lake of a few commits."""
    with open_lake(folder / "lake", create=True) as lake:
        fill(lake, 2000, narrow=True)
    command = [sys.executable, "-c", FIRST_QUERY, str(folder / "lake")]
    seconds = [
        float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(3 if chosen.quick else 15)
    ]
    return {"first_query_s": min(seconds), "median_first_query_s": statistics.median(seconds)}
