"""The SQL console: pinned to a snapshot, right after updates, light to load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from lake_rows import ledger, one_of_each, rollouts

from strop.storage.catalog import LiveColumn, LiveFile, LiveTable, read_catalog
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake
from strop.storage.patience import Patience
from strop.storage.ready_views import READY
from strop.storage.tables import (
    BY_NAME,
    Decision,
    Metric,
    Policy,
    Problem,
    Score,
    columns,
)
from strop.storage.views import view_sql


def test_the_console_reads_what_the_lake_reads(lake: Lake) -> None:
    lake.commit(ledger(), rows=one_of_each())
    lake.commit(ledger("b"), rows={"rollouts": rollouts(3, first=10)})
    with open_console(lake.root) as console:
        for table, row in BY_NAME.items():
            names = ", ".join(f'"{c.name}"' for c in columns(row))
            sql = f"SELECT {names} FROM {table} ORDER BY ALL"
            assert console.query(sql).rows == lake.query(sql), table


def test_a_new_status_is_seen_and_an_old_snapshot_keeps_the_old_one(lake: Lake) -> None:
    policies = [Policy(policy_id=i, status="candidate", kind="full", path="p", content_hash="h") for i in (1, 2, 3)]
    snapshots = [lake.commit(ledger("a"), rows={"policies": policies})]
    snapshots += [lake.commit(ledger(f"b{i}"), policy_status={i: "champion"}) for i in (1, 2)]
    snapshots += [lake.commit(ledger("c"), policy_status={1: "retired", 3: "rejected"})]
    wanted = ["candidate candidate candidate", "champion candidate candidate", "champion champion candidate"]
    wanted += ["retired champion rejected"]
    for snapshot, status in zip(snapshots, wanted, strict=True):
        with open_console(lake.root, snapshot=snapshot) as console:
            found = console.query("SELECT string_agg(status, ' ' ORDER BY policy_id) FROM policies").rows
            assert found == [(status,)]
            assert console.snapshot == snapshot
    with open_console(lake.root) as console:
        assert console.query("SELECT status FROM policies ORDER BY policy_id").rows == [
            ("retired",),
            ("champion",),
            ("rejected",),
        ]
        assert {t.name: t.rows for t in console.tables()}["policies"] == 3


def test_deleted_and_merged_rows_follow_the_snapshot(lake: Lake) -> None:
    """What `strop gc` may do later: rows deleted, files merged; history must still read right."""
    snapshots = [lake.commit(ledger(f"k{i}"), rows={"rollouts": rollouts(4, first=10 * i)}) for i in (1, 2, 3)]
    lake.query("DELETE FROM rollouts WHERE rollout_id = 11")
    deleted = lake.snapshot()
    lake.query("CALL ducklake_merge_adjacent_files('lake')")
    lake.commit(ledger("k4"), rows={"rollouts": rollouts(1, first=90)})
    for snapshot, n in [*zip(snapshots, (4, 8, 12), strict=True), (deleted, 11), (None, 12)]:
        with open_console(lake.root, snapshot=snapshot) as console:
            assert console.query("SELECT count(*) FROM rollouts").rows == [(n,)], snapshot


def test_an_unknown_snapshot_is_refused(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"no snapshot 99; the newest is \d"):
        open_console(lake.root, snapshot=99)


def test_an_open_console_stays_on_its_snapshot(lake: Lake) -> None:
    with open_console(lake.root) as console:
        lake.commit(ledger(), rows={"rollouts": rollouts(3)})
        assert console.query("SELECT count(*) FROM rollouts").rows == [(0,)]


def test_columns_added_later_have_their_default_in_older_files() -> None:
    table = LiveTable(
        "t",
        (LiveColumn("a", "BIGINT", 1, None), LiveColumn("b", "INTEGER", 5, "7"), LiveColumn("c", "VARCHAR", 5, None)),
        (
            LiveFile(Path("/old"), 1, 2, False, False, None, 0, False),
            LiveFile(Path("/new's"), 1, 6, False, False, None, 0, False),
        ),
    )
    assert view_sql(table, 9).splitlines() == [
        """SELECT "a", CAST('7' AS INTEGER) AS "b", CAST(NULL AS VARCHAR) AS "c" FROM read_parquet(['/old'])""",
        """UNION ALL SELECT "a", "b", "c" FROM read_parquet(['/new''s'])""",
    ]


def test_a_table_without_files_has_its_columns(lake: Lake) -> None:
    with open_console(lake.root) as console:
        result = console.query("SELECT problem_id, parents, level FROM problems")
    assert (result.columns, result.types, result.rows) == (
        ["problem_id", "parents", "level"],
        ["BIGINT", "BIGINT[]", "DOUBLE"],
        [],
    )


def test_values_are_what_json_can_write(lake: Lake) -> None:
    with open_console(lake.root) as console:
        sql = "SELECT 1.5, [0.25], {'a': 1::DECIMAL(4, 2)}, uuid(), INTERVAL 2 SECONDS, sum(x), 'ab'::BLOB, "
        row = console.query(sql + "DATE '2026-11-21' FROM range(3) t(x)").rows[0]
    assert row[:3] == (1.5, [0.25], {"a": 1.0})
    assert row[4:] == (2.0, 3, "6162", "2026-11-21")
    json.dumps(row)


def test_rounds_at_a_glance(lake: Lake) -> None:
    lake.commit(
        ledger("base", round=0, seconds=2.0),
        rows={
            "policies": [
                Policy(
                    policy_id=1,
                    round=0,
                    run_id="t-s0",
                    name="t-s0/r0",
                    status="champion",
                    kind="base",
                    path="p",
                    content_hash="h",
                )
            ],
            "metrics": [Metric(metric_id=1, round=0, run_id="t-s0", policy_id=1, name="pass@1", value=0.25, n=8)],
        },
    )
    lake.commit(
        ledger("one", round=1, seconds=1.5),
        rows={
            "policies": [
                Policy(
                    policy_id=2,
                    round=1,
                    run_id="t-s0",
                    name="t-s0/r1",
                    status="candidate",
                    kind="full",
                    path="p",
                    content_hash="h",
                )
            ],
            "rollouts": [
                *rollouts(4, run_id="t-s0", round=1),
                *rollouts(2, first=50, run_id="t-s0", round=1, split="heldout"),
            ],
            "decisions": [
                Decision(decision_id=i, run_id="t-s0", round=1, subject_id=subject, keep=keep)
                for i, (subject, keep) in enumerate([(1, True), (1, True), (2, True), (2, False), (3, False)])
            ]
            + [Decision(decision_id=9, run_id="t-s0", round=1, subject_kind="policy", subject_id=77, keep=True)],
            "metrics": [
                Metric(
                    metric_id=i,
                    round=1,
                    run_id="t-s0",
                    policy_id=policy,
                    name=name,
                    slice=slice,
                    value=value,
                    n=8,
                    ci_low=0.3,
                    ci_high=0.7,
                )
                for i, (policy, name, slice, value) in enumerate(
                    [
                        (2, "pass@1", "heldout", 0.5),
                        (2, "pass@8", "heldout", 0.75),
                        (2, "diversity", "heldout", 0.625),
                        (2, "pass@1", "heldout/hard", 0.125),
                        (1, "pass@1", "heldout", 0.875),
                    ]
                )
            ],
        },
    )
    lake.commit(ledger("gate", round=1, stage="gate", seconds=0.5), policy_status={1: "retired", 2: "champion"})
    with open_console(lake.root) as console:
        rounds = console.query("SELECT * FROM v_rounds")
        described = next(t for t in console.tables() if t.name == "v_rounds")
    assert rounds.rows == [
        ("t-s0", 0, "t-s0/r0", "retired", 0.25, None, None, None, None, None, 0, 2.0),
        ("t-s0", 1, "t-s0/r1", "champion", 0.5, 0.3, 0.7, 0.75, 0.625, 1, 4, 2.0),
    ]
    assert [(c.name, c.sql_type) for c in described.columns] == list(zip(rounds.columns, rounds.types, strict=True))


def test_pass_rates_leave_errors_out_and_count_a_redone_score_once(lake: Lake) -> None:
    verdicts = [(1, "pass"), (2, "fail"), (3, "error"), (4, "pass"), (4, "pass"), (3, None)]
    scores = [
        Score(score_id=i, run_id="t-s0", round=1, subject_id=subject, problem_id=7, scorer="answer", verdict=verdict)
        for i, (subject, verdict) in enumerate(verdicts)
    ]
    step = Score(score_id=9, run_id="t-s0", round=1, subject_id=1, problem_id=7, step_index=0, verdict="fail")
    said = {"run_id": "t-s0", "round": 1, "subject_id": 5, "problem_id": 7, "scorer": "answer"}
    redone = [Score(score_id=20, verdict="pass", **said), Score(score_id=21, verdict="fail", supersedes=20, **said)]
    problem = Problem(problem_id=7, task="sums", split="heldout", prompt="?")
    lake.commit(ledger(), rows={"scores": [*scores, step, *redone], "problems": [problem]})
    with open_console(lake.root) as console:
        rates = console.query("SELECT * FROM v_pass_rates")
        described = next(t for t in console.tables() if t.name == "v_pass_rates")
    assert rates.rows == [("t-s0", 1, "answer", "", 7, "sums", "heldout", None, 4, 2, 0.5)]
    assert [(c.name, c.sql_type) for c in described.columns] == list(zip(rates.columns, rates.types, strict=True))


def test_every_table_and_column_is_documented(lake: Lake) -> None:
    with open_console(lake.root) as console:
        tables = {t.name: t for t in console.tables()}
        assert set(tables) == {*BY_NAME, *READY}
        for table in tables.values():
            assert table.doc
            assert all(c.doc for c in table.columns), table.name
        shown = {name for (name,) in console.query("SHOW TABLES").rows}
    assert shown == set(tables)


def test_the_console_loads_nothing_heavy(lake: Lake) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(2)})
    script = f"""
import sys
import threading
import time
from pathlib import Path
from strop.storage.console import open_console
from strop.storage.lineage import trace
with open_console(Path({str(lake.root)!r})) as console:
    assert console.query("SELECT count(*) FROM rollouts").rows == [(2,)]
    trace(console, 1)
heavy = {{"pyarrow", "numpy", "pandas", "torch", "prefect", "psutil", "filelock", "xxhash"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_the_catalog_knows_files_and_deletions(lake: Lake) -> None:
    policies = [Policy(policy_id=i, status="candidate", kind="full", path="p", content_hash="h") for i in (1, 2)]
    lake.commit(ledger("a"), rows={"policies": policies})
    lake.query("UPDATE policies SET status = 'champion' WHERE policy_id = 1")
    files = read_catalog(lake.root).tables["policies"].files
    assert [(f.rows, f.deleted, f.deletes is not None) for f in files] == [(2, 1, True), (1, 0, False)]
    lake.commit(ledger("b"), policy_status={2: "retired"})
    files = read_catalog(lake.root).tables["policies"].files
    assert [(f.rows, f.deleted, f.deletes is not None) for f in files] == [(1, 0, False), (1, 0, False)]
    with open_console(lake.root) as console:
        assert console.query("SELECT status FROM policies ORDER BY policy_id").rows == [("champion",), ("retired",)]


def test_rows_are_fetched_as_they_are_needed_and_a_slow_reader_costs_no_time(lake: Lake) -> None:
    with open_console(lake.root, memory_gb=0.2) as console:
        with console.stream("SELECT range FROM range(1000000000000)", timeout_s=0.2) as found:
            batches = found.batches(1000)
            assert next(batches)[0] == (0,)
            time.sleep(0.4)
            assert next(batches)[0] == (1000,)
        assert console.query("SELECT 1").rows == [(1,)]


def test_arrow_batches_have_the_types_of_the_lake(lake: Lake) -> None:
    lake.commit(ledger(), rows=one_of_each())
    with (
        open_console(lake.root) as console,
        console.stream("SELECT created_at, parents FROM runs, problems LIMIT 3") as found,
    ):
        schema, batches = found.arrow(2)
        assert [str(field.type) for field in schema] == ["timestamp[us, tz=UTC]", "list<l: int64>"]
        assert [batch.num_rows for batch in batches] == [2, 1]


def test_a_query_cancelled_from_another_thread_says_so_and_the_console_goes_on(lake: Lake) -> None:
    with open_console(lake.root) as console:
        timer = threading.Timer(0.2, console.cancel)
        timer.start()
        with pytest.raises(LakeError, match="was cancelled"):
            console.query("SELECT count(*) FROM range(1000000000000) WHERE range % 7 = 3")
        timer.join()
        assert console.query("SELECT 1").rows == [(1,)]


def test_the_time_of_all_fetches_counts_together() -> None:
    over = threading.Event()
    patience = Patience(1.0, over.set, None)
    with patience.spending():
        time.sleep(0.1)
    time.sleep(1.0)
    assert not over.is_set()
    with patience.spending(), patience.spending():
        assert over.wait(10)
    assert patience.is_over
    assert 1.0 <= patience.spent_s < 5
