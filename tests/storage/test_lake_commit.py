"""A commit: all of a shard or nothing of it, once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from lake_rows import ledger, one_of_each, rollouts

from strop.storage import commit as commit_module
from strop.storage import data_files, durable
from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake, open_lake
from strop.storage.parquet import write_rows
from strop.storage.tables import Policy, Rollout, Score

WRITER = """
import sys
from pathlib import Path
from lake_rows import ledger, rollouts
from strop.storage.lake import open_lake
from strop.storage.parquet import write_rows
from strop.storage.tables import Rollout, Score

me = int(sys.argv[2])
with open_lake(Path(sys.argv[1])) as lake:
    for i in range(10):
        rows = rollouts(20, first=1000 * me + 100 * i)
        scores = [Score(score_id=r.rollout_id, subject_id=r.rollout_id) for r in rows]
        file = write_rows(lake.staging / f"{me}-{i}.parquet", Rollout, rows)
        assert lake.commit(ledger(f"{me}-{i}", shard=me), files={"rollouts": [file]}, rows={"scores": scores})
        lake.commit(ledger(f"shared-{i}", stage="shared"), rows={"scores": [Score(score_id=i, subject_id=0)]})
"""
TOO_BIG = """
import resource, sys
from pathlib import Path
from lake_rows import ledger, rollouts
from strop.storage.errors import LakeError
from strop.storage.lake import open_lake

with open_lake(Path(sys.argv[1])) as lake:
    lake.commit(ledger("before"), rows={"rollouts": rollouts(5)})
    for limit in (1000, 10000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            lake.commit(ledger("big"), rows={"rollouts": rollouts(3000, first=100)})
        except LakeError as error:
            print(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(lake.query("SELECT count(*) FROM rollouts")[0][0], len(list(lake.staging.iterdir())))
    lake.commit(ledger("big"), rows={"rollouts": rollouts(3000, first=100)})
    print(lake.query("SELECT count(*) FROM rollouts")[0][0])
"""


def run(script: str, *arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_key_is_committed_once(lake: Lake) -> None:
    first = lake.commit(ledger("k"), rows={"rollouts": rollouts(3)})
    staged = write_rows(lake.staging / "again.parquet", Rollout, rollouts(3))
    assert lake.commit(ledger("k"), files={"rollouts": [staged]}) is None
    assert first == lake.snapshot()
    assert len(lake.rows(Rollout)) == 3
    assert not staged.exists()


def test_the_snapshot_says_which_shard_made_it(lake: Lake) -> None:
    snapshot = lake.commit(ledger("k", round=3, stage="generate"), rows={"rollouts": rollouts(1)})
    found = lake.query(
        "SELECT commit_message, commit_extra_info FROM ducklake_snapshots('lake') WHERE snapshot_id = ?", [snapshot]
    )
    assert found[0][0] == "t-s0 round 3: generate 1/1"
    assert json.loads(found[0][1]) == {"run": "t-s0", "round": 3, "stage": "generate", "shard": 0, "key": "k"}


def test_files_lie_by_table_run_and_round(lake: Lake) -> None:
    lake.commit(ledger("k", run_id="a/../b"), rows={"rollouts": rollouts(1)})
    files = [path.relative_to(lake.root) for path in (lake.root / "data/main/rollouts").rglob("*.parquet")]
    assert [file.parent.as_posix() for file in files] == ["data/main/rollouts/a_.._b/r1"]


def test_a_policy_changes_status_in_the_same_commit(lake: Lake) -> None:
    policies = [Policy(policy_id=i, status="candidate", kind="full", path="p", content_hash="h") for i in (1, 2)]
    before = lake.commit(ledger("a"), rows={"policies": policies})
    lake.commit(ledger("b"), policy_status={1: "retired", 2: "champion"})
    assert [p.status for p in lake.rows(Policy)] == ["retired", "champion"]
    assert lake.query(f"SELECT DISTINCT status FROM policies AT (VERSION => {before})") == [("candidate",)]
    lake.commit(ledger("c"), policy_status={2: "retired", 1: "champion"})
    assert [p.status for p in lake.rows(Policy)] == ["champion", "retired"]


def test_an_unknown_policy_undoes_the_whole_commit(lake: Lake) -> None:
    staged = write_rows(lake.staging / "r.parquet", Rollout, rollouts(3))
    with pytest.raises(LakeError, match="no such policy"):
        lake.commit(ledger("k"), files={"rollouts": [staged]}, policy_status={99: "champion"})
    assert lake.rows(Rollout) == []
    assert lake.committed("t-s0") == {}
    assert not [*(lake.root / "data/main/rollouts").rglob("*.parquet"), *lake.staging.iterdir()]
    assert lake.commit(ledger("k"), rows={"rollouts": rollouts(3)}) is not None


def test_unknown_tables_and_foreign_rows_are_refused(lake: Lake) -> None:
    with pytest.raises(LakeError, match="no table 'rollout'; did you mean 'rollouts'"):
        lake.commit(ledger(), rows={"rollout": rollouts(1)})
    with pytest.raises(LakeError, match="'scores' takes Score rows, got Rollout"):
        lake.commit(ledger(), rows={"scores": rollouts(1)})
    with pytest.raises(LakeError, match="no table 'nope'"):
        lake.commit(ledger(), files={"nope": [lake.staging / "x.parquet"]})


def test_a_torn_worker_file_is_refused_and_leaves_nothing(lake: Lake) -> None:
    torn = write_rows(lake.staging / "r.parquet", Rollout, rollouts(100))
    torn.write_bytes(torn.read_bytes()[:-20])
    with pytest.raises(LakeError, match="run the same command again"):
        lake.commit(ledger("k"), files={"rollouts": [torn]})
    assert lake.rows(Rollout) == []
    assert lake.commit(ledger("k"), rows={"rollouts": rollouts(1)}) is not None


@pytest.mark.parametrize("place", ["stage", "rename", "commit"])
def test_a_full_disk_is_named_and_loses_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    lake.commit(ledger("before"), rows={"rollouts": rollouts(2)})
    staged = write_rows(lake.staging / "r.parquet", Rollout, rollouts(3, first=10))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(lake.root / "data"))

    with monkeypatch.context() as patch:
        if place == "stage":
            patch.setattr(commit_module, "to_bytes", full)
        elif place == "rename":
            patch.setattr(data_files, "fsync_all", full)
        else:
            patch.setattr(commit_module, "register", full)
        with pytest.raises(LakeError, match="free some space") as raised:
            lake.commit(ledger("k"), files={"rollouts": [staged]}, rows={"scores": [Score(score_id=1, subject_id=1)]})
    assert str(lake.root) in str(raised.value)
    assert "Nothing that was committed before is lost" in str(raised.value)
    assert not any(lake.staging.iterdir())
    assert len(lake.rows(Rollout)) == 2
    assert len([*(lake.root / "data/main/rollouts").rglob("*.parquet")]) == 1


def test_a_file_size_limit_is_reported_and_loses_nothing(lake: Lake) -> None:
    out, errors = run(TOO_BIG, lake.root).communicate(timeout=60)
    assert "Traceback" not in errors
    assert out.count("could not commit generate 1/1 of round 1") == 2
    assert out.splitlines()[-2:] == ["5 0", "3005"]


def test_what_a_failed_commit_already_did_is_not_undone(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    """COMMIT came through, but its acknowledgement did not: the key is looked up before any file is removed."""

    class Deaf:
        def __init__(self, inner: object) -> None:
            self.inner = inner

        def execute(self, sql: str, *args: object) -> object:
            done = self.inner.execute(sql, *args)  # type: ignore[attr-defined]
            if sql == "COMMIT":
                raise OSError(errno.EIO, "lost")
            return done

    monkeypatch.setattr(lake, "_connection", Deaf(lake._connection))
    snapshot = lake.commit(ledger("k"), rows={"rollouts": rollouts(3)})
    monkeypatch.undo()
    assert snapshot == lake.snapshot()
    assert len(lake.rows(Rollout)) == 3


def test_two_writers_and_a_reader_see_whole_commits_only(lake: Lake) -> None:
    writers = [run(WRITER, lake.root, me) for me in (1, 2)]
    seen = set()
    with open_lake(lake.root, read_only=True) as reader:
        while any(writer.poll() is None for writer in writers):
            count = "(SELECT count(*) FROM rollouts), (SELECT count(*) FROM scores WHERE subject_id > 0)"
            mine = reader.query(f"SELECT {count}")[0]
            with open_console(lake.root) as console:
                theirs = console.query(f"SELECT {count}").rows[0]
            for n_rollouts, n_scores in (mine, theirs):
                assert n_rollouts == n_scores
                assert n_rollouts % 20 == 0
                seen.add(n_rollouts)
    for writer in writers:
        _, errors = writer.communicate()
        assert (writer.returncode, errors) == (0, "")
    ids = [r.rollout_id for r in lake.rows(Rollout)]
    assert ids == [1000 * me + 100 * i + j for me in (1, 2) for i in range(10) for j in range(20)]
    assert [s.score_id for s in lake.rows(Score, "subject_id = 0")] == list(range(10))
    assert len(lake.committed("t-s0")) == 30
    assert len(seen) > 2


def test_every_registered_file_is_registered_once(lake: Lake) -> None:
    lake.commit(ledger("a"), rows=one_of_each())
    lake.commit(ledger("b"), rows=one_of_each())
    files = [file.path for table in read_catalog(lake.root).tables.values() for file in table.files]
    assert len(files) == len(set(files))
    assert all(Path(path).is_file() for path in files)


def test_folders_are_made_durably_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durable, "fsync", synced.append)
    durable.make_folder(tmp_path / "a/b")
    durable.make_folder(tmp_path / "a/b")
    assert synced == [tmp_path, tmp_path / "a"]
    shutil.rmtree(tmp_path / "a")


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/lake/data"), "make /lake/data writable"),
        (duckdb.Error("Failed to execute COMMIT: database or disk is full"), "free some space at "),
        (duckdb.Error("attempt to write a readonly database"), "writable and run the same command again"),
        (duckdb.Error("something else"), "half written; run the same command again"),
    ],
)
def test_a_failure_says_what_to_do(tmp_path: Path, error: Exception, advice: str) -> None:
    said = str(commit_module.failure(error, tmp_path, ledger(round=3, shards=4)))
    assert said.startswith("could not commit generate 1/4 of round 3 of t-s0 to ")
    assert advice in said


def test_an_interrupt_at_the_very_end_of_a_commit_ends_the_run_and_the_commit_stands(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = commit_module.open_catalog_db

    @contextlib.contextmanager
    def interrupted(*arguments: Any, **keywords: Any) -> Iterator[Any]:
        with plain(*arguments, **keywords) as db:
            yield db
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(commit_module, "open_catalog_db", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lake.commit(ledger("k"), rows={"rollouts": rollouts(3)})
    assert lake.commit(ledger("k"), rows={"rollouts": rollouts(3)}) is None
    assert len(lake.rows(Rollout)) == 3
