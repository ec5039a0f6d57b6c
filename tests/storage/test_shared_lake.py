"""A lake on PostgreSQL and S3 is the same lake: what one machine commits, another reads, queries, merges and sweeps."""

from __future__ import annotations

import datetime
import importlib.util
import os
from pathlib import Path

import pytest
from lake_rows import ledger, one_of_each, rollouts

from strop.storage.as_of import resolve
from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.data_files import data_files
from strop.storage.errors import LakeError
from strop.storage.gc import Wishes, gc
from strop.storage.joining import join
from strop.storage.lake import Lake, open_lake
from strop.storage.lineage import trace
from strop.storage.parquet import write_rows
from strop.storage.place import place_of
from strop.storage.tables import TABLES, Policy, Rollout
from strop.storage.upkeep import merge_small_files


def everything(root: Path) -> dict[str, list[tuple[object, ...]]]:
    with open_console(root) as console:
        return {row.TABLE: sorted(console.query(f"SELECT * FROM {row.TABLE}").rows, key=repr) for row in TABLES}


def fill(lake: Lake) -> None:
    """Files, rows, an update of a committed row, and a key that comes twice."""
    lake.commit(ledger("a"), rows=one_of_each())
    file = write_rows(lake.staging / "r.parquet", Rollout, rollouts(50, first=100))
    lake.commit(ledger("b", round=2), files={"rollouts": [file]}, policy_status={1: "retired", 2: "champion"})
    assert lake.commit(ledger("b", round=2), rows={"rollouts": rollouts(1)}) is None
    assert list(lake.staging.iterdir()) == []


def test_one_machine_reads_what_another_wrote_as_from_a_local_lake(lake: Lake, machines) -> None:
    fill(lake)
    with open_lake(machines.a) as here, open_lake(machines.b) as there:
        fill(here)
        assert everything(machines.b) == everything(lake.root)
        assert there.rows(Rollout) == lake.rows(Rollout)
        assert [p.status for p in there.rows(Policy)] == ["retired", "champion"]
        assert there.commit(ledger("a"), rows={"rollouts": rollouts(1)}) is None
        there.commit(ledger("c", round=3), rows={"rollouts": rollouts(1, first=900)})
        assert here.snapshot() == there.snapshot() == resolve(machines.a, "round=3")
    assert not (machines.a / "data").exists()
    assert not (machines.a / "catalog.sqlite").exists()


def test_an_old_snapshot_and_lineage_are_read_from_any_machine(machines) -> None:
    with open_lake(machines.a) as here:
        fill(here)
    before = resolve(machines.b, "t-s0@1")
    with open_console(machines.b, snapshot=before) as console:
        assert console.query("SELECT status FROM policies ORDER BY policy_id").rows == [("champion",), ("candidate",)]
        assert console.query("SELECT count(*) FROM rollouts").rows == [(2,)]
    with open_console(machines.b) as console:
        assert trace(console, "t-s0/r0").up.label == "t-s0/r0 (retired)"
        assert next(info.rows for info in console.tables() if info.name == "rollouts") == 52
    with pytest.raises(LakeError, match="no snapshot 99"):
        read_catalog(machines.b, 99)


def test_merging_and_sweeping_keep_every_snapshot(machines) -> None:
    with open_lake(machines.a) as here, open_lake(machines.b) as there:
        made = [here.commit(ledger(f"k{i}"), rows={"rollouts": rollouts(2, first=10 * i + 1)}) for i in range(6)]
        candidate = there.commit(ledger("p"), rows={"policies": one_of_each()["policies"]})
        there.commit(ledger("q"), policy_status={1: "retired"})
        files = data_files(here.place)
        files.put({files.at("data/main/rollouts/orphan.parquet"): b"left by a crash"})
        for name in ("stale.parquet", "fresh.parquet"):  # another machine's run may be about to commit what is fresh
            (there.staging / name).write_text("x")
        os.utime(there.staging / "stale.parquet", (0, 0))
        with there.exclusive() as connection:
            merge_small_files(connection, there.place, rollouts=True)
        swept = {of.kind: of.count for of in gc(machines.b, Wishes(older_than=datetime.timedelta(seconds=-60)))}
        assert swept["staged files"] == 1
        assert [path.name for path in there.staging.glob("*.parquet")] == ["fresh.parquet"]
        assert swept["files of killed commits"] == 1
        assert swept["merged and expired files"] >= 6
        registered = [f for table in read_catalog(machines.a).tables.values() for f in table.files]
        before = read_catalog(machines.a, candidate).tables["policies"].files
        kept = {file.location for file in files.list("data")}
        assert kept == {path for f in (*registered, *before) for path in (f.path, f.deletes) if path}
        assert len([f for f in registered if "/rollouts/" in f.path]) == 1
        for n, snapshot in enumerate(made):
            with open_console(machines.a, snapshot=snapshot) as console:
                assert console.query("SELECT count(*) FROM rollouts").rows == [(2 * n + 2,)]
        assert [p.status for p in here.rows(Policy)] == ["retired", "candidate"]


@pytest.mark.parametrize("parts", [("catalog",), ("data", "endpoint")])
def test_catalog_and_data_can_be_shared_apart(machines_keys, parts, lake: Lake, tmp_path: Path) -> None:
    joined = join(tmp_path / "half", {name: machines_keys[name] for name in parts})
    assert joined.made
    assert not join(tmp_path / "half", {name: machines_keys[name] for name in parts}).made
    with open_lake(tmp_path / "half") as half:
        fill(half)
    fill(lake)
    assert everything(tmp_path / "half") == everything(lake.root)
    assert (tmp_path / "half/catalog.sqlite").is_file() == ("catalog" not in parts)
    assert (tmp_path / "half/data").is_dir() == ("data" not in parts)


@pytest.fixture
def machines_keys(database, bucket, s3_server):
    return {"catalog": database, "data": f"{bucket}/p", "endpoint": s3_server}


def test_joining_names_what_is_wrong_and_leaves_no_lake(
    machines, bucket, postgres_server, lake: Lake, tmp_path
) -> None:
    new = tmp_path / "new"
    keys = {"catalog": machines.catalog, "data": machines.data, "endpoint": machines.endpoint}
    for changed, message in (
        ({"data": f"{bucket}/elsewhere"}, "belongs to a lake with its data in .*a database holds one lake"),
        ({"data": "s3://no-such-bucket/x"}, "cannot write to s3://no-such-bucket/x.*bucket must exist"),
        ({"catalog": "postgresql://strop@127.0.0.1:1/x"}, "cannot reach the catalog.*Check that the server runs"),
        ({"catalog": "postgresql://strop:pw@h/x"}, "catalog holds a password, which is never stored"),
        ({"catalog": "mysql://h/x"}, "not understood; write it like postgresql://user@host/database"),
        ({"data": "bucket/x"}, "not understood; write it like s3://bucket/prefix"),
        ({"catalog": None, "data": None}, "say where"),
    ):
        with pytest.raises(LakeError, match=message):
            join(new, {**keys, **changed})
        assert not (new / "lake.toml").exists()
    with pytest.raises(LakeError, match="catalog and data in the folder already"):
        join(lake.root, keys)
    with pytest.raises(LakeError, match="says something else"):
        join(machines.a, {**keys, "endpoint": "http://127.0.0.1:1"})
    new.mkdir(exist_ok=True)
    (new / "lake.toml").write_text((machines.a / "lake.toml").read_text().replace(machines.catalog, postgres_server))
    with pytest.raises(LakeError, match=r"there is no lake in the database .*strop lake init"):
        read_catalog(new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("catalogue = 'postgresql://h/d'", "unknown key 'catalogue'; did you mean 'catalog'"),
        ("data = 3", "data must be a text, got 3"),
        ("data = ", "cannot read .*lake.toml"),
    ],
)
def test_a_wrong_lake_toml_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "lake.toml").write_text(text)
    with pytest.raises(LakeError, match=message):
        place_of(tmp_path)


def test_missing_keys_and_parts_say_what_to_do(machines, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        for opening in (open_lake, open_console):
            with pytest.raises(LakeError, match="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
                opening(machines.a)
    found = importlib.util.find_spec
    missing = ("duckdb_extension_postgres_scanner", "duckdb_extension_httpfs")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in missing else found(name))
    with pytest.raises(LakeError, match=r"pip install 'strop\[remote\]'"):
        open_lake(machines.a)
    with pytest.raises(LakeError, match=r"pip install 'strop\[remote\]'"):
        open_console(machines.a)
