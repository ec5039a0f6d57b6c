"""What nobody needs goes; rows, history that is wanted, young files and other people's work stay."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lake_rows import ledger, rollouts
from old_lake import unpack
from test_upkeep import fill

from strop.storage.catalog import read_catalog
from strop.storage.checkpoints import adopt, is_pruned
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.fsck import fsck
from strop.storage.gc import Wishes, gc
from strop.storage.lake import Lake, open_lake
from strop.storage.locks import run_lock
from strop.storage.parquet import write_rows
from strop.storage.tables import Policy, Rollout, Score

NOW = datetime.timedelta()
ALL = Wishes(older_than=NOW)


def tree(root: Path) -> dict[Path, bytes]:
    """Every file, but for the empty log and its index that SQLite makes for a reader."""
    files = {path: path.read_bytes() for path in root.rglob("*") if path.is_file() and not path.match("*-shm")}
    return {path: data for path, data in files.items() if data or not path.match("*-wal")}


def gone(root: Path, wishes: Wishes = ALL, *, dry_run: bool = False) -> dict[str, int]:
    return {of.kind: of.count for of in gc(root, wishes, dry_run=dry_run) if of.count}


@pytest.fixture
def littered(lake: Lake) -> Lake:
    """A lake with some of every kind of litter, of which nothing is old."""
    fill(lake, 5)
    write_rows(lake.root / "data/main/rollouts/t-s0/r1/killed.parquet", Rollout, rollouts(2))
    write_rows(lake.staging / "killed/part.parquet", Rollout, rollouts(2))
    for name in ("work/k/policy/model.bin", "policies/0123456789abcdef/model.bin", "cache/making-x/model.bin"):
        path = lake.root / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"weights")
    return lake


def test_leftovers_go_when_they_are_old_and_nothing_else_does(littered: Lake) -> None:
    root, rows = littered.root, littered.rows(Rollout)
    caches = [root / "cache"]
    assert gone(root, Wishes(caches=caches)) == {"small files merged": 16}
    assert gone(root, Wishes(caches=caches)) == {}
    assert gone(root, Wishes(older_than=NOW, caches=caches)) == {
        "merged and expired files": 16,
        "files of killed commits": 1,
        "staged files": 1,
        "work folders": 1,
        "half-made base policies": 1,
        "unreferenced checkpoints": 1,
    }
    assert len(read_catalog(root).tables["rollouts"].files) == 1
    for folder in ("staging", "work", "policies", "cache"):
        assert list((root / folder).iterdir()) == [], folder
    assert littered.rows(Rollout) == rows
    with open_console(root, snapshot=5) as console:
        assert console.query("SELECT count(*) FROM scores").rows == [(3,)]
    littered.commit(ledger("after"), policy_status={1: "rejected"})
    assert littered.rows(Policy)[0].status == "rejected"
    assert [f for f in fsck(root).findings if f.kind in ("catalog", "data file")] == []


def test_a_dry_run_changes_no_byte_and_tells_what_would_go(littered: Lake) -> None:
    root = littered.root
    littered.close()
    before = tree(root)
    wishes = Wishes(older_than=NOW, keep_snapshots=2, caches=[root / "cache"])
    told = gone(root, wishes, dry_run=True)
    assert tree(root) == before
    assert told.pop("small files merged") > 15
    assert told == {
        "expired snapshots": 6,
        "files of killed commits": 1,
        "staged files": 1,
        "work folders": 1,
        "half-made base policies": 1,
        "unreferenced checkpoints": 1,
    }
    done = gone(root, wishes)
    assert {kind: done[kind] for kind in told} == told


def test_expired_snapshots_cannot_be_read_back_and_their_files_go(lake: Lake) -> None:
    made = fill(lake, 5)
    assert gone(lake.root, Wishes(older_than=NOW, keep_snapshots=datetime.timedelta(days=30))).keys() == {
        "small files merged",
        "merged and expired files",
    }
    newest = lake.snapshot()
    assert gone(lake.root, Wishes(older_than=NOW, keep_snapshots=1))["expired snapshots"] == newest
    with pytest.raises(LakeError, match=rf"no snapshot {made[2]}; .*--keep-snapshots"):
        open_console(lake.root, snapshot=made[2])
    assert [s.score_id for s in lake.rows(Score)] == list(range(5))
    assert lake.commit(ledger("k3")) is None
    assert lake.commit(ledger("new"), rows={"rollouts": rollouts(1, first=99)}) is not None
    gone(lake.root)
    live = sum(len(table.files) for table in read_catalog(lake.root).tables.values())
    assert len(list((lake.root / "data").rglob("*.parquet"))) == live
    assert [f for f in fsck(lake.root).findings if f.kind in ("catalog", "data file")] == []


def test_a_console_that_is_open_keeps_reading_merged_files(lake: Lake) -> None:
    fill(lake, 5)
    with open_console(lake.root) as console:
        gone(lake.root, Wishes())
        assert console.query("SELECT count(*), sum(score_id) FROM scores").rows == [(5, 10)]


def test_a_fresh_file_keeps_its_folder(lake: Lake) -> None:
    staged = write_rows(lake.staging / "live/part.parquet", Rollout, rollouts(2))
    os.utime(staged.parent, (0, 0))
    hour = Wishes(older_than=datetime.timedelta(hours=1))
    assert gone(lake.root, hour) == {}
    os.utime(staged, (0, 0))
    os.utime(staged.parent, (0, 0))
    assert gone(lake.root, hour) == {"staged files": 1}


def test_what_a_live_run_has_staged_stays_for_a_day_whatever_is_asked(littered: Lake) -> None:
    with run_lock(littered.root, "t-s0"):
        assert {"staged files", "work folders", "unreferenced checkpoints"}.isdisjoint(gone(littered.root))
    assert {"staged files", "work folders", "unreferenced checkpoints"} <= gone(littered.root).keys()


def test_a_file_that_is_needed_stays_though_it_is_listed_for_deletion(lake: Lake) -> None:
    import sqlite3

    fill(lake, 1)
    lake.close()
    with sqlite3.connect(lake.root / "catalog.sqlite") as connection:
        needed = "SELECT t.table_name, f.path FROM ducklake_data_file f JOIN ducklake_table t USING (table_id)"
        table, path = connection.execute(f"{needed} WHERE f.path LIKE '%/r1/%'").fetchone()
        connection.execute(
            "INSERT INTO ducklake_files_scheduled_for_deletion VALUES (0, ?, 1, '2020-01-01 00:00:00+00')",
            [f"main/{table}/{path}"],
        )
    connection.close()
    gone(lake.root, Wishes(older_than=datetime.timedelta(hours=1)))
    assert [f for f in fsck(lake.root).findings if f.kind == "data file"] == []


def test_weights_of_rejected_policies_go_and_their_rows_say_so(lake: Lake) -> None:
    made = []
    for i, status in enumerate(["retired", "rejected", "champion", "rejected", "rejected"]):
        work = lake.root / "work" / str(i)
        work.mkdir()
        (work / "w").write_text(f"weights {i if i != 3 else 1}")
        path, content_hash = adopt(lake.root, work)
        made.append(
            Policy(
                policy_id=i + 1, run_id="t", round=i, status=status, kind="full", path=path, content_hash=content_hash
            )
        )
    lake.commit(ledger(), rows={"policies": made})
    assert gone(lake.root) == {}
    assert gone(lake.root, Wishes(checkpoints="rejected"), dry_run=True) == {"pruned checkpoints": 1}
    assert gone(lake.root, Wishes(checkpoints="rejected"))["pruned checkpoints"] == 1
    assert [is_pruned(policy.detail) for policy in lake.rows(Policy)] == [False, True, False, True, False]
    assert [(lake.root / policy.path).is_dir() for policy in made] == [True, False, True, False, True]
    assert [f for f in fsck(lake.root).findings if f.kind == "checkpoint"] == []
    assert "pruned checkpoints" not in gone(lake.root, Wishes(checkpoints="not-champion"))
    with pytest.raises(LakeError, match="no kind of checkpoint 'reject'; did you mean 'rejected'"):
        gc(lake.root, Wishes(checkpoints="reject"))


@pytest.mark.parametrize(
    ("what", "stride"),
    [
        ("merge", 3),
        ("gc", 5),
        pytest.param("merge", 1, marks=pytest.mark.slow),
        pytest.param("gc", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_step_the_lake_is_whole_and_the_next_call_goes_on(what: str, stride: int, tmp_path: Path) -> None:
    root = tmp_path / "template"
    shutil.copytree(unpack(1, tmp_path / "old") / "lake", root)
    open_lake(root).close()
    driver = Path(__file__).with_name("care_driver.py")
    done = subprocess.run([sys.executable, driver, what, tmp_path, str(stride)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) > 3
    assert found[-1]["step"] is None
    assert found[-1]["status"] == 0, done.stderr
    for line in found:
        assert line["rows"], line
        assert (line["again"], line["then_rows"]) == (0, True), line
        assert line["damage"] == [], line
        if what == "gc":
            assert line["left"] == found[-1]["left"], line
