"""A commit written into DuckLake's catalog directly is the one DuckLake would have made, and its rows are all found."""

from __future__ import annotations

import dataclasses
import datetime
import re
import shutil
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_rows import NOON, ledger, one_of_each, rollouts

from strop.storage import commit as commit_module
from strop.storage.catalog_db import open_catalog_db
from strop.storage.commit import Commit
from strop.storage.data_files import data_files
from strop.storage.errors import CatalogError, LakeError
from strop.storage.footers import LONGEST, read_footer
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import to_arrow, write_rows
from strop.storage.tables import Example, Policy, Rollout, Row, Score, StageRun

FILES = """
SELECT f.path, t.table_name, f.record_count, f.file_size_bytes, f.footer_size, f.row_id_start, f.path_is_relative,
  f.file_format, f.partial_max, f.begin_snapshot, f.end_snapshot,
  (SELECT group_concat(e, ' ') FROM (
    SELECT n.column_id || ':' || n.source_name || ':' || n.target_field_id || ':' || coalesce(n.parent_column, '')
      || ':' || n.is_partition AS e
    FROM ducklake_name_mapping n WHERE n.mapping_id = f.mapping_id ORDER BY n.column_id)) AS mapping
FROM ducklake_data_file f JOIN ducklake_table t USING (table_id) WHERE f.begin_snapshot > 1 ORDER BY 2, 1"""
FILE_STATS = """
SELECT f.path, t.table_name, c.column_name, c.parent_column IS NULL, c.column_id, s.column_size_bytes, s.value_count,
  s.null_count, s.contains_nan, s.extra_stats, s.min_value, s.max_value
FROM ducklake_file_column_stats s JOIN ducklake_data_file f USING (data_file_id)
JOIN ducklake_table t ON t.table_id = s.table_id
JOIN ducklake_column c ON c.table_id = s.table_id AND c.column_id = s.column_id
WHERE f.begin_snapshot > 1 ORDER BY 2, 1, c.column_id"""
TABLE_STATS = """
SELECT t.table_name, g.record_count, g.next_row_id, g.file_size_bytes FROM ducklake_table_stats g
JOIN ducklake_table t USING (table_id) WHERE t.table_name <> 'schema_versions' ORDER BY 1"""
COLUMN_STATS = """
SELECT t.table_name, s.column_id, s.contains_null, s.contains_nan, s.min_value, s.max_value, s.extra_stats
FROM ducklake_table_column_stats s JOIN ducklake_table t USING (table_id)
WHERE t.table_name <> 'schema_versions' ORDER BY 1, 2"""
CHANGES = "SELECT snapshot_id, author, commit_message, commit_extra_info, changes_made FROM ducklake_snapshot_changes"
MOMENT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,6}\+00")
COUNTERS = "SELECT snapshot_id, schema_version, next_catalog_id, next_file_id FROM ducklake_snapshot ORDER BY 1"


def catalog(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(f"file:{lake.root}/catalog.sqlite?mode=ro", uri=True)
    try:
        return connection.execute(sql).fetchall()
    finally:
        connection.close()


def by_ducklake(lake: Lake, key: str, files: Mapping[str, Sequence[Path]], rows: Mapping[str, Sequence[Row]]) -> None:
    """The same commit through DuckLake's own call, as Strop made it before."""
    run = ledger(key)
    commit = Commit(run, files, {**rows, "stage_runs": [*rows.get("stage_runs", ()), run]}, {}, "")
    placed, _ = commit_module._place(data_files(lake.place), commit, [])
    signature = commit_module._signature(commit)
    lake._connection.execute("BEGIN")
    for table in {file.table for file in placed}:
        names = [f"{lake.root}/data/main/{table}/{file.path}" for file in placed if file.table == table]
        lake._connection.execute(f"CALL ducklake_add_data_files('lake', '{table}', ?::VARCHAR[])", [names])
    say = "CALL lake.set_commit_message(?, ?, extra_info => ?)"
    lake._connection.execute(say, [signature.author, signature.message, signature.extra])
    lake._connection.execute("COMMIT")


def floats(first: int) -> list[Row]:
    """Bounds of every kind: negative and signed zeros, large, tiny, lists of floats, a time before 1970."""
    values = [(-0.0, [-0.5, -1e-7]), (1e20, [0.1, 16777216.0]), (0.1, []), (None, None), (1e15, [1e16])]
    return [
        Rollout(rollout_id=first + i, problem_id=-i, completion="ü" * i, entropy=value, logps=logps, token_ids=[i, -i])
        for i, (value, logps) in enumerate(values)
    ]


COMMITS: list[dict[str, Sequence[Row]]] = [
    one_of_each(),  # type: ignore[list-item]
    {"rollouts": floats(10), "scores": [Score(score_id=9, subject_id=2**62, value=float("inf"))]},
    {"rollouts": rollouts(3, first=50)},
    {"rollouts": rollouts(20000, first=100), "problems": []},
    {"stage_runs": [ledger("x", started_at=NOON.replace(microsecond=120000)), ledger("y", started_at=None)]},
    {"stage_runs": [ledger("z", started_at=datetime.datetime(1969, 1, 2, tzinfo=datetime.UTC), seconds=1.5)]},
]


def test_the_catalog_is_the_one_ducklake_would_have_written(lake: Lake, empty_lake: Path, tmp_path: Path) -> None:
    shutil.copytree(empty_lake, tmp_path / "other")
    with open_lake(tmp_path / "other") as other:
        for i, given in enumerate(COMMITS):
            mine, theirs = (
                {"rollouts": [write_rows(one.staging / f"{i}.parquet", Rollout, rollouts(3, first=9 + i))]}
                for one in (lake, other)
            )
            lake.commit(ledger(f"k{i}"), files=mine, rows=given)
            by_ducklake(other, f"k{i}", theirs, {table: rows for table, rows in given.items() if rows})
        for sql in (FILES, FILE_STATS, TABLE_STATS, COUNTERS, CHANGES):
            assert told(lake, sql) == told(other, sql)
        mine, theirs = catalog(lake, COLUMN_STATS), catalog(other, COLUMN_STATS)
        assert [row[:4] for row in mine] == [row[:4] for row in theirs]
        kept = {(row[0], row[1]): row[4:6] for row in mine if row not in theirs}
        assert kept == {  # DuckLake has those of the last files there, or none
            ("rollouts", 14): ("-4", "2147483647"),
            ("rollouts", 20): ("0", "0"),
            ("rollouts", 24): ("", "user"),
        }
        for table in ("rollouts", "stage_runs", "examples"):
            sql = f"SELECT rowid, snapshot_id, * FROM {table} ORDER BY rowid"
            assert lake.query(sql) == other.query(sql)
        found = lake.query("SELECT snapshot_time FROM ducklake_snapshots('lake') ORDER BY snapshot_id DESC LIMIT 1")
        assert abs(found[0][0] - datetime.datetime.now(datetime.UTC)) < datetime.timedelta(minutes=1)
        noon = catalog(other, "SELECT snapshot_time FROM ducklake_snapshot")[-1][0]
        assert MOMENT.fullmatch(noon)
        assert MOMENT.fullmatch(catalog(lake, "SELECT snapshot_time FROM ducklake_snapshot")[-1][0])


def told(lake: Lake, sql: str) -> list[tuple[Any, ...]]:
    """The rows, with what a snapshot changed in an order of its own: DuckLake's is that of a hash."""
    return [tuple(sorted(v.split(",")) if "into_table:" in str(v) else v for v in row) for row in catalog(lake, sql)]


def test_ducklake_goes_on_where_a_direct_commit_stopped(lake: Lake) -> None:
    made = [lake.commit(ledger(f"k{i}"), rows={"scores": scores(10 * i, 10)}) for i in range(6)]
    con = lake._connection
    con.execute("INSERT INTO scores BY NAME SELECT 999 AS score_id, 5 AS subject_id, 0.25 AS value")
    con.execute("UPDATE scores SET value = 7 WHERE score_id = 11")
    con.execute("DELETE FROM scores WHERE score_id BETWEEN 20 AND 28")
    con.execute("ALTER TABLE scores ADD COLUMN extra BIGINT")
    assert lake.query("SELECT count(*), sum(score_id), max(value) FROM scores") == [(52, 999 + 1770 - 216, 7.0)]
    with pytest.raises(LakeError, match="'extra' must be int64, the file has none"):
        lake.commit(ledger("older"), rows={"scores": scores(70, 10)})
    con.execute("ALTER TABLE scores DROP COLUMN extra")
    lake.commit(ledger("after"), rows={"scores": scores(80, 10)})
    con.execute("CALL ducklake_merge_adjacent_files('lake')")
    con.execute("CALL ducklake_rewrite_data_files('lake', 'scores', delete_threshold => 0.1)")
    lake.commit(ledger("after the merge"), rows={"scores": scores(90, 10)})
    total = [(72, 999 + 1770 - 216 + 845 + 945, 7.0)]
    assert lake.query("SELECT count(*), sum(score_id), max(value) FROM scores") == total
    for i, snapshot in enumerate(made):
        assert lake.query(f"SELECT count(*) FROM scores AT (VERSION => {snapshot})") == [(10 * i + 10,)]
    con.execute("CALL ducklake_expire_snapshots('lake', versions => [2, 3, 4])")
    con.execute("CALL ducklake_cleanup_old_files('lake', cleanup_all => true)")
    con.execute("CALL ducklake_delete_orphaned_files('lake', cleanup_all => true)")
    assert lake.query("SELECT count(*), sum(score_id), max(value) FROM scores") == total
    assert lake.query("SELECT count(DISTINCT rowid) FROM scores") == [(72,)]
    assert lake.commit(ledger("k0"), rows={"scores": scores(0, 10)}) is None, "a key outlives its snapshot"
    assert lake.commit(ledger("last"), rows={"scores": scores(100, 5)}) is not None
    assert lake.query("SELECT count(*) FROM scores") == [(77,)]


def scores(first: int, n: int, **fields: Any) -> list[Score]:
    return [Score(score_id=first + i, subject_id=first + i, value=0.5, **fields) for i in range(n)]


def test_files_that_cannot_hold_what_is_asked_are_not_opened(lake: Lake) -> None:
    for i in range(8):
        lake.commit(ledger(f"k{i}"), rows={"scores": scores(10 * i, 10, scorer=f"s{i}")})
    for condition in ("score_id = 35", "scorer = 's3'", "score_id BETWEEN 31 AND 38"):
        plan = lake.query(f"EXPLAIN ANALYZE SELECT count(*) FROM scores WHERE {condition}")[0][1]
        assert "Total Files Read: 1 " in plan, plan


def grouped(lake: Lake, name: str, rows: Sequence[Score]) -> Path:
    """A worker's file with one row a row group."""
    path = lake.staging / name
    pq.write_table(to_arrow(Score, rows), path, row_group_size=1)
    return path


def test_no_row_is_hidden_by_statistics(lake: Lake) -> None:
    far, near = Score(score_id=1, subject_id=-5, value=-5.0, step_index=-5), Score(score_id=3, subject_id=9)
    infinite = Score(score_id=2, subject_id=2, value=float("-inf"), step_index=None)
    lake.commit(ledger("a"), files={"scores": [grouped(lake, "a.parquet", [far, infinite, near])]})
    for key, given in (("b", near), ("c", Score(score_id=4, subject_id=4, value=0.5, step_index=4))):
        lake.commit(ledger(key), rows={"scores": [given]})
    for condition, n in (("step_index < 0", 1), ("step_index = -5", 1), ("value < -9", 1), ("step_index IS NULL", 3)):
        assert lake.query(f"SELECT count(*) FROM scores WHERE {condition}") == [(n,)], condition


def test_wrong_statistics_of_an_older_lake_are_mended_by_the_next_commit(lake: Lake) -> None:
    rows = [Score(score_id=i, subject_id=i, step_index=-5 if i else None) for i in (0, 1)]
    by_ducklake(lake, "a", {"scores": [grouped(lake, "a.parquet", rows)]}, {})
    by_ducklake(lake, "b", {}, {"scores": [Score(score_id=3, subject_id=3, step_index=3)]})
    assert lake.query("SELECT count(*) FROM scores WHERE step_index < 0") == [(0,)], "DuckLake is mended: drop our own?"
    assert lake.commit(ledger("a")) is None, "keys are taken from the ledger"
    assert [key for key, _ in catalog(lake, "SELECT * FROM strop_keys ORDER BY key")] == ["a", "b"]
    lake.commit(ledger("c"))
    assert lake.query("SELECT count(*) FROM scores WHERE step_index < 0") == [(1,)]


def test_commits_of_a_strop_without_the_table_of_keys_are_known_and_mended(lake: Lake) -> None:
    lake.commit(ledger("a"), rows={"scores": scores(0, 3)})
    rows = [Score(score_id=i, subject_id=i, step_index=-5 if i else None) for i in (0, 1)]
    by_ducklake(lake, "b", {"scores": [grouped(lake, "b.parquet", rows)]}, {})
    by_ducklake(lake, "c", {}, {"scores": [Score(score_id=3, subject_id=3, step_index=3)]})
    assert lake.commit(ledger("b")) is None
    assert lake.commit(ledger("d")) is not None
    assert lake.query("SELECT count(*) FROM scores WHERE step_index < 0") == [(1,)]


def test_a_status_moves_a_policy_out_of_any_kind_of_file(lake: Lake) -> None:
    def policy(i: int) -> Policy:
        return Policy(policy_id=i, status="candidate", kind="full", path="p", content_hash="h", run_id="t-s0")

    lake.commit(ledger("a"), rows={"policies": [policy(1), policy(2)]})
    before = lake.commit(ledger("b"), rows={"policies": [policy(3)]}, policy_status={3: "champion"})
    lake._connection.execute("UPDATE policies SET status = 'rejected' WHERE policy_id = 2")  # leaves a delete file
    lake.commit(ledger("c"), policy_status={1: "retired"})
    lake._connection.execute("CALL ducklake_merge_adjacent_files('lake')")
    lake.commit(ledger("d"), policy_status={2: "champion", 3: "retired"})
    assert [(p.policy_id, p.status) for p in lake.rows(Policy)] == [(1, "retired"), (2, "champion"), (3, "retired")]
    assert lake.query(f"SELECT policy_id, status FROM policies AT (VERSION => {before}) ORDER BY 1") == [
        (1, "candidate"),
        (2, "candidate"),
        (3, "champion"),
    ]
    assert lake.rows(Policy)[0] == dataclasses.replace(policy(1), status="retired")


def test_the_database_itself_keeps_keys_unique(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    first = lake.commit(ledger("k"), rows={"rollouts": rollouts(3)})
    monkeypatch.setattr(
        commit_module.keys, "find", lambda db, key: None
    )  # a writer that holds no lock looked too early
    with pytest.raises(LakeError, match="UNIQUE constraint failed"):
        lake.commit(ledger("k"), rows={"rollouts": rollouts(3)})
    assert lake.snapshot() == first


def test_another_catalog_format_is_refused(lake: Lake) -> None:
    with sqlite3.connect(lake.root / "catalog.sqlite") as db:
        db.execute("UPDATE ducklake_metadata SET value = '1.1-dev1' WHERE key = 'version'")
    db.close()
    with pytest.raises(LakeError, match=r"format 1.1-dev1, this Strop writes format 1.0"):
        lake.commit(ledger("a"), rows={"rollouts": rollouts(3)})


def test_a_partitioned_table_is_refused(lake: Lake) -> None:
    lake._connection.execute("ALTER TABLE scores SET PARTITIONED BY (round)")
    with pytest.raises(LakeError, match="table 'scores' is partitioned"):
        lake.commit(ledger("a"), rows={"scores": scores(0, 3)})


def test_a_folder_that_is_named_like_a_column_changes_no_row(empty_lake: Path, tmp_path: Path) -> None:
    """`ducklake_add_data_files` would take the round of every row from it."""
    root = tmp_path / "round=7" / "lake"
    shutil.copytree(empty_lake, root)
    with open_lake(root) as lake:
        lake.commit(ledger("k", round=2), rows={"rollouts": rollouts(2, round=2)})
        assert [row.round for row in (*lake.rows(Rollout), *lake.rows(StageRun))] == [2, 2, 2]


def test_files_of_another_table_or_type_are_refused(lake: Lake) -> None:
    path = lake.staging / "x.parquet"
    wrong = to_arrow(Score, scores(0, 3))
    for given, message in (
        (wrong.drop_columns(["reason"]), "'reason' must be string, the file has none"),
        (wrong.append_column("more", pa.array([1, 2, 3])), "'scores', which has no column 'more'"),
        (wrong.set_column(4, "problem_id", pa.array([1, 2, 3], pa.int32())), "'problem_id' must be int64, it is int32"),
    ):
        pq.write_table(given, path)
        with pytest.raises(LakeError, match=message):
            lake.commit(ledger("k"), files={"scores": [path]})
    assert lake.rows(Score) == []
    assert not [*(lake.root / "data/main/scores").rglob("*.parquet")]


def test_a_reader_in_a_transaction_stays_where_it_was(lake: Lake) -> None:
    lake.commit(ledger("a"), rows={"scores": scores(0, 10)})
    with open_lake(lake.root, read_only=True) as reader:
        reader._connection.execute("BEGIN")
        counts = []
        for i in range(3):
            counts.append(reader.query("SELECT count(*), max(score_id) FROM scores WHERE score_id > 5")[0])
            lake.commit(ledger(f"b{i}"), rows={"scores": scores(100 * i + 100, 10)})
        reader._connection.execute("COMMIT")
        assert counts == [(4, 9)] * 3
        assert reader.query("SELECT count(*), max(score_id) FROM scores WHERE score_id > 5") == [(34, 309)]


def test_long_texts_have_no_bounds_and_short_ones_do(tmp_path: Path) -> None:
    rows = [Example(kind="sft", prompt=text, completion="k") for text in ("a" * LONGEST, "b" * (LONGEST + 1))]
    path = write_rows(tmp_path / "e.parquet", Example, rows)
    facts = read_footer(path).columns
    assert (facts["prompt"].low, facts["prompt"].high) == ("a" * LONGEST, None)
    assert (facts["completion"].low, facts["completion"].high) == ("k", "k")
    assert (facts["chosen"].values, facts["chosen"].nulls) == (0, 2)


def test_an_error_of_the_catalog_is_a_failed_commit(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> int:
        raise CatalogError("cannot write the catalog: database or disk is full")

    monkeypatch.setattr(commit_module, "register", full)
    with pytest.raises(LakeError, match="free some space"):
        lake.commit(ledger("k"), rows={"scores": scores(0, 3)})
    assert not [*(lake.root / "data/main/scores").rglob("*.parquet")]


def test_duckdb_is_kept_from_a_catalog_that_python_writes(lake: Lake) -> None:
    """Its SQLite library would remove the log with the transaction in it: file locks do not hold within a process."""
    with open_catalog_db(lake.place, write=True) as db:
        db.execute("UPDATE ducklake_snapshot_changes SET author = 'me'")
        with pytest.raises(RuntimeError, match="within a transaction of open_catalog_db"):
            lake.query("SELECT count(*) FROM scores")
        seen: list[int] = []
        waiting = threading.Thread(target=lambda: seen.append(lake.snapshot()))
        waiting.start()
        waiting.join(0.2)
        assert not seen
    waiting.join()
    assert seen == [lake.snapshot()]
