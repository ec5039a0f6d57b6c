"""Upkeep merges small files; rows and history stay."""

from __future__ import annotations

import duckdb
import pytest
from lake_rows import ledger, rollouts

from strop.storage import lake as lake_module
from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.lake import Lake
from strop.storage.tables import Policy, Score


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


def test_upkeep_that_fails_does_not_fail_the_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object) -> None:
        raise duckdb.IOException("disk full")

    monkeypatch.setattr(lake_module, "EVERY", 1)
    monkeypatch.setattr(lake_module, "merge_small_files", fail)
    assert lake.commit(ledger(), rows={"rollouts": rollouts(1)}) is not None
    assert "could not merge the small files" in caplog.text
