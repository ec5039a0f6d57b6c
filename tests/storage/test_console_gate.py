"""The console reads the lake's tables and nothing else, and says so."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from lake_rows import ledger, rollouts

from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake

HOSTILE = {
    "COPY rollouts TO '{out}'": "only reads.*COPY",
    "COPY (SELECT 1) TO '{out}' (FORMAT parquet)": "only reads.*COPY",
    "COPY rollouts FROM '{file}'": "only reads.*COPY",
    "ATTACH '{out}' AS x": "only reads.*ATTACH",
    "ATTACH 'sqlite:{catalog}' AS x": "only reads.*ATTACH",
    "SELECT * FROM read_csv('{file}')": "table function read_csv",
    "SELECT * FROM read_csv_auto('{file}')": "table function read_csv_auto",
    "SELECT * FROM read_text('{file}')": "table function read_text",
    "SELECT * FROM read_blob('{file}')": "table function read_blob",
    "SELECT * FROM read_json('{file}')": "table function read_json",
    "SELECT * FROM read_parquet('{file}')": "table function read_parquet",
    "SELECT * FROM parquet_scan(['{file}'])": "table function parquet_scan",
    "SELECT * FROM parquet_metadata('{file}')": "table function parquet_metadata",
    "SELECT * FROM parquet_schema('{file}')": "table function parquet_schema",
    "SELECT * FROM sniff_csv('{file}')": "table function sniff_csv",
    "SELECT * FROM glob('/*')": "table function glob",
    "SELECT * FROM sqlite_scan('{catalog}', 'ducklake_snapshot')": "table function sqlite_scan",
    "SELECT * FROM read_duckdb('{file}')": "table function read_duckdb",
    "SELECT * FROM '{file}'": "no table",
    'SELECT * FROM "{file}"': "no table",
    "DESCRIBE '{file}'": "no table",
    "SUMMARIZE '{file}'": "no table",
    "SELECT (SELECT max(x) FROM '{file}' t(x))": "no table",
    "WITH a AS (SELECT * FROM glob('/*')) SELECT * FROM a": "table function glob",
    "SELECT * FROM rollouts WHERE rollout_id IN (SELECT size FROM read_text('{file}'))": "table function read_text",
    "FROM rollouts r, LATERAL (SELECT * FROM read_text(r.prompt))": "table function read_text",
    "SELECT * FROM query('SELECT 1')": "table function query",
    "SELECT * FROM query_table('rollouts')": "table function query_table",
    "SELECT * FROM json_execute_serialized_sql('{{}}')": "table function json_execute_serialized_sql",
    "SELECT * FROM enable_logging()": "table function enable_logging",
    "SELECT * FROM duckdb_secrets()": "table function duckdb_secrets",
    "SELECT * FROM duckdb_settings()": "table function duckdb_settings",
    "SELECT * FROM pragma_table_info('{file}')": "table function pragma_table_info",
    "SELECT getenv('HOME')": "function getenv",
    "SELECT write_log('x')": "function write_log",
    "INSTALL httpfs": "only reads.*INSTALL",
    "LOAD '{file}'": "only reads.*LOAD",
    "SET enable_external_access = true": "only reads.*SET",
    "RESET memory_limit": "only reads.*RESET",
    "PRAGMA database_list": "no table|only reads",
    "PRAGMA enable_profiling": "only reads",
    "CREATE TABLE t AS SELECT 1": "only reads.*CREATE",
    "CREATE OR REPLACE VIEW rollouts AS SELECT 1": "only reads.*CREATE",
    "CREATE MACRO m() AS 1": "only reads.*CREATE",
    "INSERT INTO rollouts (problem_id) VALUES (1)": "only reads.*INSERT",
    "UPDATE policies SET status = 'champion'": "only reads.*UPDATE",
    "DELETE FROM rollouts": "only reads.*DELETE",
    "DROP VIEW rollouts": "only reads.*DROP",
    "TRUNCATE rollouts": "only reads.*TRUNCATE",
    "EXPORT DATABASE '{out}'": "only reads.*EXPORT",
    "IMPORT DATABASE '{out}'": "only reads",
    "CALL pragma_version()": "only reads.*CALL",
    "CHECKPOINT": "only reads.*CHECKPOINT",
    "BEGIN": "only reads.*BEGIN",
    "PREPARE p AS SELECT 1": "only reads.*PREPARE",
    "EXPLAIN ANALYZE SELECT 1": "only reads.*EXPLAIN",
    "SELECT 1; SELECT 2": "got 2 statements",
    "SELECT 1; DROP VIEW rollouts": "got 2 statements",
    "": "got 0 statements",
    "-- nothing": "got 0 statements",
    "SELEC 1": "not SQL that DuckDB understands",
    "SELECT * FROM rollout": "did you mean 'rollouts'",
    "SELECT * FROM other.rollouts": "no table 'other.rollouts'",
    "SELECT * FROM rollouts AT (VERSION => 1)": "--as-of",
    "SELECT nope FROM rollouts": "nope",
}
HARMLESS = (
    "SELECT count(*) FROM rollouts",
    "FROM rollouts SELECT problem_id, max(n_tokens) GROUP BY ALL",
    "SELECT * FROM Rollouts r JOIN main.problems p USING (problem_id)",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n",
    "WITH rates AS MATERIALIZED (SELECT * FROM v_pass_rates) SELECT * FROM rates",
    "SELECT * FROM range(3), unnest([1, 2]) u(x), generate_series(1, 2)",
    "SELECT unnest(token_ids) FROM rollouts",
    "SELECT * FROM (VALUES (1), (2)) t(x) UNION SELECT rollout_id FROM rollouts",
    "FROM rollouts PIVOT (count(*) FOR split IN ('train', 'heldout'))",
    "DESCRIBE rollouts",
    "SUMMARIZE SELECT problem_id FROM rollouts",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SELECT table_name FROM information_schema.tables",
    "SELECT column_name FROM duckdb_columns() WHERE table_name = 'rollouts'",
    "SELECT 'COPY rollouts TO ''/x''; DROP TABLE y' AS text;",
)


def test_hostile_and_mistaken_statements_are_refused_with_a_reason(lake: Lake, tmp_path: Path) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(2)})
    file = tmp_path / "secret.csv"
    file.write_text("x\n1\n")
    places = {"file": file, "out": tmp_path / "out", "catalog": lake.root / "catalog.sqlite"}
    with open_console(lake.root) as console:
        for sql, reason in HOSTILE.items():
            with pytest.raises(LakeError, match=f"(?is){reason}"):
                console.query(sql.format(**places))
        assert console.query("SELECT count(*) FROM rollouts").rows == [(2,)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lake", "secret.csv"]


def test_ordinary_questions_pass(lake: Lake) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(2, token_ids=[1, 2])})
    with open_console(lake.root) as console:
        for sql in HARMLESS:
            assert console.query(sql).columns, sql


def test_behind_the_gate_there_is_a_second_wall(lake: Lake, tmp_path: Path) -> None:
    """Were the gate to miss something, DuckDB itself may open the snapshot's files and nothing else."""
    lake.commit(ledger(), rows={"rollouts": rollouts(2)})
    (tmp_path / "secret.csv").write_text("x\n1\n")
    with open_console(lake.root) as console:
        for sql in (
            f"SELECT * FROM read_csv('{tmp_path}/secret.csv')",
            f"SELECT * FROM read_text('{lake.root}/catalog.sqlite')",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            f"ATTACH '{tmp_path}/out.db' AS x",
            "LOAD sqlite_scanner",
            "SET enable_external_access = true",
            "SET allowed_paths = ['/']",
            "SET memory_limit = '1TB'",
        ):
            with pytest.raises(duckdb.Error):
                console._connection.execute(sql)
    assert not (tmp_path / "out.csv").exists()


def test_a_query_that_takes_too_long_is_stopped(lake: Lake) -> None:
    with open_console(lake.root) as console:
        with pytest.raises(LakeError, match=r"longer than 0\.1 s"):
            console.query("SELECT count(*) FROM range(100000000000) WHERE range % 7 = 3", timeout_s=0.1)
        assert console.query("SELECT 1").rows == [(1,)]


def test_a_query_that_takes_too_much_memory_is_stopped(lake: Lake) -> None:
    with (
        open_console(lake.root, memory_gb=0.1) as console,
        pytest.raises(LakeError, match="too much memory"),
    ):
        console.query("SELECT list(range) FROM range(100000000)")
