"""A lake made by an older Strop reads as it is, and becomes one of today when somebody writes to it."""

from __future__ import annotations

import datetime
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lake_rows import ledger, rollouts
from old_lake import unpack

from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.gc import Wishes, gc
from strop.storage.lake import Lake, open_lake
from strop.storage.lineage import trace
from strop.storage.migrations import MIGRATIONS
from strop.storage.tables import SCHEMA_VERSION, TABLES, Rollout, Row, Run, Score, columns

ADDED = {
    2: {
        ("runs", "parent_run_id"),
        ("runs", "sources_json"),
        ("stage_runs", "reuses"),
        ("rollouts", "detail"),
        ("scores", "supersedes"),
    },
    3: {
        ("rollouts", "min_p"),
        ("rollouts", "stop_token_ids"),
        ("rollouts", "n_prompt_tokens"),
        ("rollouts", "cost"),
        ("token_logps", "rollout_id"),
    },
    4: {("examples", "stratum"), ("train_metrics", "policy_id")},
}
"""By version."""
ROLLOUTS = {1: 216, 2: 216, 3: 204}
"""By version: since 3 a verify stage begins while rollouts are still sampled, and the killed run has fewer of them."""


@pytest.fixture(scope="session", params=range(1, SCHEMA_VERSION))
def version(request: pytest.FixtureRequest) -> int:
    """Schema version of an older lake."""
    return int(request.param)


@pytest.fixture(scope="session")
def kept(version: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(version, tmp_path_factory.mktemp("old")) / "lake"


@pytest.fixture(scope="session")
def versions(version: int) -> list[tuple[int]]:
    """Rows of `schema_versions` once it is of today."""
    return [(number,) for number in range(version, SCHEMA_VERSION + 1)]


@pytest.fixture
def old(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "old"))


def everything(lake: Lake) -> dict[str, list[Row]]:
    return {table.TABLE: lake.rows(table) for table in TABLES if table.TABLE != "schema_versions"}


def test_the_migrations_lead_step_by_step_from_the_first_version_to_todays_tables(old: Path, version: int) -> None:
    assert [m.version for m in MIGRATIONS] == list(range(2, SCHEMA_VERSION + 1))
    before = {(t.name, c.name) for t in read_catalog(old).tables.values() for c in t.columns}
    assert [number for number in ADDED if ADDED[number] <= before] == list(range(2, version + 1))
    open_lake(old).close()
    tables = read_catalog(old).tables
    assert set(tables) == {t.TABLE for t in TABLES}
    for table in TABLES:
        there = {(c.name, c.sql_type) for c in tables[table.TABLE].columns}
        assert there == {(c.name, c.sql_type) for c in columns(table)}, table.TABLE


def test_a_reader_of_an_older_lake_sees_todays_columns_empty_and_changes_nothing(old: Path, version: int) -> None:
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    with open_lake(old, read_only=True) as lake:
        assert [run.parent_run_id for run in lake.rows(Run)] == [None, None]
        assert len(lake.rows(Rollout, without=["logps"])) == ROLLOUTS[version]
    with open_console(old) as console:
        assert console.query("SELECT count(*), count(supersedes) FROM scores").rows == [(192, 0)]
        for ready in (table.name for table in console.tables() if table.rows is None):
            assert console.query(f"SELECT * FROM {ready}").columns, ready
        assert trace(console, "whole/r1").up.children
    after = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    assert {path: data for path, data in after.items() if not path.name.startswith("catalog.sqlite-")} == before


def test_a_writer_migrates_it_and_old_rows_and_old_snapshots_stay(
    old: Path, version: int, versions: list[tuple[int]], caplog: pytest.LogCaptureFixture
) -> None:
    then = read_catalog(old).snapshot
    with open_lake(old, read_only=True) as lake:
        before = everything(lake)
    with open_lake(old) as lake:
        assert everything(lake) == before
        assert lake.query("SELECT version FROM schema_versions ORDER BY version") == versions
        assert lake.query(f"SELECT count(*) FROM scores AT (VERSION => {then})") == [(192,)]
    assert f"now has schema version {SCHEMA_VERSION}" in caplog.text
    with open_console(old, snapshot=then) as console:
        assert console.query("SELECT max(version), count(*) FROM schema_versions").rows == [(version, 1)]
        assert console.query("SELECT count(*), count(detail) FROM rollouts").rows == [(ROLLOUTS[version], 0)]


def test_files_of_both_versions_live_together_and_merge(old: Path, version: int) -> None:
    then = read_catalog(old).snapshot
    with open_lake(old) as lake:
        before = everything(lake)
        for i in range(3):
            scores = [Score(score_id=i + 1, subject_id=1, supersedes=i)]
            lake.commit(ledger(f"k{i}", shard=i), rows={"rollouts": rollouts(2, detail="{}"), "scores": scores})
        both = everything(lake)
        gc(old, Wishes(older_than=datetime.timedelta()))
        files = read_catalog(old).tables
        assert len(files["scores"].files) == (2 if version == 1 else 1), "files merge with those of the same columns"
        assert everything(lake) == both
    assert [row for row in both["scores"] if row.run_id] == before["scores"]
    new = "count(*), count(supersedes), sum(supersedes)"
    for at, found in ((None, (195, 3, 3)), (then, (192, 0, None))):
        with open_console(old, snapshot=at) as console:
            assert console.query(f"SELECT {new} FROM scores").rows == [found]
            assert console.query("SELECT count(detail) FROM rollouts").rows == [(0 if at else 6,)]


def test_two_processes_that_open_an_older_lake_at_once_migrate_it_once(old: Path, versions: list[tuple[int]]) -> None:
    code = "import pathlib, sys, strop.storage.lake as lake; lake.open_lake(pathlib.Path(sys.argv[1]))"
    made = [subprocess.Popen([sys.executable, "-c", code, old], stderr=subprocess.PIPE) for _ in range(3)]
    errors = [process.communicate(timeout=60)[1].decode() for process in made]
    assert [process.returncode for process in made] == [0, 0, 0], errors
    assert sum(f"now has schema version {SCHEMA_VERSION}" in error for error in errors) == 1
    with open_lake(old, read_only=True) as lake:
        assert lake.query("SELECT version FROM schema_versions ORDER BY version") == versions


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_migration_killed_anywhere_leaves_either_version_and_is_made_again(
    kept: Path, version: int, versions: list[tuple[int]], stride: int, tmp_path: Path
) -> None:
    whole = [number for (number,) in versions]
    shutil.copytree(kept, tmp_path / "template")
    driver = Path(__file__).with_name("care_driver.py")
    done = subprocess.run([sys.executable, driver, "migrate", tmp_path, str(stride)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) >= (9 if stride == 1 else 4)
    assert found[-1]["status"] == 0, done.stderr
    seen = [line["versions"] for line in found]
    assert seen == sorted(seen), "the old version up to COMMIT, today's after it"
    assert seen[len(seen) // 2] == [version]
    assert seen[-1] == whole
    for line in found:
        assert line["rows"], line
        assert (line["again"], line["then"], line["then_rows"]) == (0, whole, True), line
        assert line["damage"] == [], line
