"""The console reads the lake's tables and nothing else, and says so.

`hostile.json` has the statements: the idea or origin of each, what the console says, and, for those that only the gate
stops, what they would do behind it. `{file}` is a file outside, `{out}` one that must not appear, `{data}` a file of
the lake.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from lake_rows import ledger, rollouts

from strop.storage import gate
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake
from strop.storage.tables import BY_NAME

HOSTILE = json.loads(Path(__file__).with_name("hostile.json").read_text())
DEEP = {
    "deep_list": "[" * 600 + "1" + "]" * 600,
    "deep_parentheses": "(" * 100_000 + "1" + ")" * 100_000,
    "deep_not": "NOT " * 20_000 + "true",
}
MISTAKEN = {
    "": "got 0 statements",
    "-- nothing": "got 0 statements",
    "SELEC 1": "got SELEC; did you mean 'SELECT'",
    "SELECT 'open": "not SQL that DuckDB understands",
    "SELECT '\udcff'": "valid Unicode",
    "SELECT * FROM rollout": "did you mean 'rollouts'",
    "SELECT nope FROM rollouts": "nope",
    "WITH a AS (SELECT 1) SELECT * FROM b": "no table 'b'",
}
HARMLESS = (
    "SELECT count(*) FROM rollouts",
    "FROM rollouts SELECT problem_id, max(n_tokens) GROUP BY ALL;",
    "SELECT * FROM Rollouts r JOIN main.problems p USING (problem_id)",
    "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n WHERE i < 5) SELECT * FROM n",
    "WITH rates AS MATERIALIZED (SELECT * FROM v_pass_rates) SELECT * FROM rates",
    "WITH a AS (SELECT 1), b AS (SELECT * FROM a) SELECT * FROM b WHERE 1 IN (SELECT * FROM a)",
    "WITH rollouts AS (SELECT * FROM rollouts WHERE round = 1) SELECT count(*) FROM rollouts",
    "WITH a AS (WITH a AS (SELECT 2 AS x) SELECT * FROM a) SELECT * FROM a UNION SELECT * FROM a",
    "WITH tables AS (SELECT 1) SELECT * FROM information_schema.tables, tables",
    "SELECT * FROM range(3), unnest([1, 2]) u(x), generate_series(1, 2)",
    "SELECT unnest(token_ids) FROM rollouts",
    "SELECT * FROM (VALUES (1), (2)) t(x) UNION SELECT rollout_id FROM rollouts",
    "(SELECT 1) UNION ALL (SELECT 2)",
    "/* a comment; */ TABLE rollouts -- another;",
    "FROM rollouts PIVOT (count(*) FOR split IN ('train', 'heldout'))",
    "DESCRIBE rollouts",
    "SUMMARIZE SELECT problem_id FROM rollouts",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SELECT table_name FROM information_schema.tables",
    "SELECT relname FROM pg_catalog.pg_class",
    "SELECT column_name FROM duckdb_columns() WHERE table_name = 'rollouts'",
    "SELECT 'COPY rollouts TO ''/x''; DROP TABLE y; é' AS text;",
)


@pytest.fixture
def places(lake: Lake, tmp_path: Path) -> dict[str, str]:
    """What the names in braces stand for; the lake has two rollouts."""
    lake.commit(ledger(), rows={"rollouts": rollouts(2)})
    data = next((lake.root / "data" / "main" / "rollouts").rglob("*.parquet"))
    file = tmp_path / "secret.csv"
    file.write_text("x\n1\n")
    found = {"file": file, "out": tmp_path / "out", "lake": lake.root, "catalog": lake.root / "catalog.sqlite"}
    found |= {"data": data, "data_name": data.relative_to(lake.root)}
    return {name: str(path) for name, path in found.items()} | DEEP


def filled(places: dict[str, str]) -> Iterator[tuple[dict[str, str], str]]:
    """The hostile statements, each with its text for these places."""
    for entry in HOSTILE:
        yield entry, re.sub(r"\{(\w+)\}", lambda name: places[name[1]], entry["sql"])


def files(folder: Path) -> dict[str, str]:
    """Hash of every file; but of SQLite's lock table, which readers write."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".sqlite-shm" and (path.suffix != ".sqlite-wal" or path.stat().st_size)
    }


def test_hostile_statements_are_refused_and_leave_no_trace(lake: Lake, places: dict[str, str], tmp_path: Path) -> None:
    assert len({entry["sql"] for entry in HOSTILE}) == len(HOSTILE) >= 200
    before = files(tmp_path)
    with open_console(lake.root) as console:
        for entry, sql in filled(places):
            with pytest.raises(LakeError, match=f"(?is){entry['says']}"):
                console.query(sql)
        assert console.query("SELECT count(*) FROM rollouts").rows == [(2,)]
        assert {row[0] for row in console.query("SHOW TABLES").rows} >= set(BY_NAME)
    assert files(tmp_path) == before


def test_the_gate_alone_refuses_them_all(places: dict[str, str], tmp_path: Path) -> None:
    """On a connection that DuckDB does not lock down at all."""
    before = files(tmp_path)
    with duckdb.connect() as connection:
        for entry, sql in filled(places):
            with pytest.raises(LakeError, match=f"(?is){entry['says']}"):
                gate.check(connection, sql, BY_NAME)
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
    assert files(tmp_path) == before


def test_the_connection_alone_stops_all_but_those_the_list_names(
    lake: Lake, places: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a gate that lets everything through."""
    before = files(tmp_path)
    with open_console(lake.root) as console:
        console.query("SHOW TABLES")
        monkeypatch.setattr(gate, "check", lambda connection, sql, tables: gate.Question(set(), {}))
        for entry, sql in filled(places):
            if "behind the gate" not in entry:
                with pytest.raises(LakeError):
                    console.query(sql)
                assert console.query("SELECT count(*) FROM rollouts").rows == [(2,)], sql
    assert files(tmp_path) == before


def test_a_mistake_is_named(lake: Lake) -> None:
    with open_console(lake.root) as console:
        for sql, reason in MISTAKEN.items():
            with pytest.raises(LakeError, match=f"(?is){reason}"):
                console.query(sql)


def test_ordinary_questions_pass(lake: Lake) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(2, token_ids=[1, 2])})
    with open_console(lake.root) as console:
        for sql in HARMLESS:
            assert console.query(sql).columns, sql


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
