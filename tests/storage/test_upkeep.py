"""Upkeep merges small files and removes leftovers; rows and history stay."""

from __future__ import annotations

import datetime
import os
from pathlib import Path

import duckdb
import pytest
from lake_rows import ledger, rollouts

from strop.storage import lake as lake_module
from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import write_rows
from strop.storage.tables import Policy, Rollout, Score
from strop.storage.upkeep import sweep

NOW = datetime.timedelta()


def fill(lake: Lake, commits: int) -> list[int | None]:
    policy = Policy(policy_id=1, status="candidate", kind="base", path="p", content_hash="h")
    made = [lake.commit(ledger("policy"), rows={"policies": [policy]})]
    for i in range(commits):
        rows = {"scores": [Score(score_id=i, subject_id=i)], "rollouts": rollouts(2, first=10 * i + 10)}
        status = "champion" if i % 2 else "retired"
        made.append(lake.commit(ledger(f"k{i}", shard=i), rows=rows, policy_status={1: status}))
    return made


def test_small_files_are_merged_now_and_then_and_history_stays(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lake_module, "EVERY", 4)
    made = fill(lake, 12)
    files = {name: len(table.files) for name, table in read_catalog(lake.root).tables.items()}
    assert files["stage_runs"] < 6
    assert files["scores"] < 6
    assert files["rollouts"] == 12
    assert [s.score_id for s in lake.rows(Score)] == list(range(12))
    assert len(lake.committed("t-s0")) == 13
    for i, snapshot in enumerate(made):
        with open_console(lake.root, snapshot=snapshot) as console:
            sql = (
                "SELECT (SELECT count(*) FROM scores), (SELECT count(*) FROM stage_runs), (SELECT status FROM policies)"
            )
            status = "candidate" if i == 0 else "retired" if i % 2 else "champion"
            assert console.query(sql).rows == [(i, i + 1, status)]
    assert lake.commit(ledger("k3")) is None


def test_a_sweep_removes_leftovers_and_nothing_else(lake: Lake) -> None:
    made = fill(lake, 5)
    orphan = write_rows(lake.root / "data/main/rollouts/t-s0/r1/killed.parquet", Rollout, rollouts(2))
    staged = write_rows(lake.staging / "killed/part.parquet", Rollout, rollouts(2))
    rows = lake.rows(Rollout)
    nothing = sweep(lake)
    assert (nothing.data_files, nothing.staged) == (0, 0)
    assert orphan.exists()
    assert staged.exists()
    swept = sweep(lake, NOW)
    assert swept.data_files > 10
    assert len(read_catalog(lake.root).tables["rollouts"].files) == 1
    assert swept.staged == 1
    assert not orphan.exists()
    assert not staged.exists()
    assert lake.rows(Rollout) == rows
    with open_console(lake.root, snapshot=made[2]) as console:
        assert console.query("SELECT count(*) FROM scores").rows == [(2,)]
    lake.commit(ledger("after"), policy_status={1: "rejected"})
    assert lake.rows(Policy)[0].status == "rejected"


def test_a_fresh_file_keeps_its_folder_from_being_swept(lake: Lake) -> None:
    staged = write_rows(lake.staging / "live/part.parquet", Rollout, rollouts(2))
    os.utime(staged.parent, (0, 0))
    assert sweep(lake, datetime.timedelta(hours=1)).staged == 0
    os.utime(staged, (0, 0))
    os.utime(staged.parent, (0, 0))
    assert sweep(lake, datetime.timedelta(hours=1)).staged == 1


def test_upkeep_that_fails_does_not_fail_the_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise duckdb.IOException("disk full")

    monkeypatch.setattr(lake_module, "EVERY", 1)
    monkeypatch.setattr(lake_module, "merge_small_files", fail)
    assert lake.commit(ledger(), rows={"rollouts": rollouts(1)}) is not None
    assert "could not merge the small files" in caplog.text


def test_a_read_only_lake_is_not_swept(lake: Lake, tmp_path: Path) -> None:
    with open_lake(lake.root, read_only=True) as reader, pytest.raises(LakeError, match="read-only"):
        sweep(reader)
