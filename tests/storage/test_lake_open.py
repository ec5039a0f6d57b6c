"""Opening: what is a lake, what is not, and what to do about it."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from lake_rows import ledger, one_of_each, rollouts

from strop.storage import extensions
from strop.storage.console import open_console
from strop.storage.errors import LakeError
from strop.storage.lake import Lake, open_lake
from strop.storage.layout import FOLDERS
from strop.storage.place import Place
from strop.storage.tables import SCHEMA_VERSION, TABLES, Policy, Rollout, SchemaVersion


def test_a_new_lake_has_its_folders_tables_and_version(tmp_path: Path) -> None:
    with open_lake(tmp_path / "new/lake", create=True) as lake:
        assert {path.name for path in lake.root.iterdir() if path.is_dir()} == set(FOLDERS)
        assert [(v.version, v.round) for v in lake.rows(SchemaVersion)] == [(SCHEMA_VERSION, 0)]
        assert {name for (name,) in lake.query("SELECT table_name FROM duckdb_tables()")} >= {t.TABLE for t in TABLES}


def test_creating_twice_opens_the_same_lake(lake: Lake) -> None:
    lake.commit(ledger(), rows={"rollouts": rollouts(2)})
    with open_lake(lake.root, create=True) as again:
        assert len(again.rows(Rollout)) == 2
        assert len(again.rows(SchemaVersion)) == 1


def test_a_folder_that_is_no_lake_says_what_to_type(tmp_path: Path) -> None:
    for opening in (open_lake, open_console):
        with pytest.raises(LakeError, match=r"no lake in .* `strop run --lake .*` makes one"):
            opening(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(LakeError, match=r"not empty \(it holds 'thesis\.tex'\)"):
        open_lake(tmp_path, create=True)


def test_a_lake_of_a_newer_strop_is_refused(lake: Lake) -> None:
    newer = SchemaVersion(version=SCHEMA_VERSION + 1, strop_version="9")
    lake.commit(ledger(), rows={"schema_versions": [newer]})
    for opening in (open_lake, open_console):
        with pytest.raises(LakeError, match=r"newer Strop.*pip install --upgrade strop"):
            opening(lake.root)


def test_a_broken_catalog_is_named(lake: Lake) -> None:
    lake.close()
    for name in ("catalog.sqlite-wal", "catalog.sqlite-shm"):
        (lake.root / name).unlink(missing_ok=True)
    (lake.root / "catalog.sqlite").write_bytes(b"not a database" * 100)
    for opening in (open_lake, open_console):
        with pytest.raises(LakeError, match=r"catalog"):
            opening(lake.root)


def test_a_lake_whose_making_was_killed_is_finished_by_the_next_create(tmp_path: Path) -> None:
    script = """
import os, signal, sys
from pathlib import Path
from strop.storage import lake, layout
layout._make_tables = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
lake.open_lake(Path(sys.argv[1]), create=True)
"""
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "lake"]).returncode == -9
    for opening in (open_lake, open_console):
        with pytest.raises(LakeError, match="never finished being made"):
            opening(tmp_path / "lake")
    with open_lake(tmp_path / "lake", create=True) as lake:
        assert lake.commit(ledger(), rows={"rollouts": rollouts(1)}) is not None


def test_a_moved_lake_opens_with_its_updates(lake: Lake, tmp_path: Path) -> None:
    lake.commit(ledger("a"), rows=one_of_each())
    lake.commit(ledger("b"), policy_status={1: "retired", 2: "champion"})
    lake.close()
    moved = tmp_path / "else where's"
    shutil.move(lake.root, moved)
    with open_lake(moved) as there:
        assert [p.status for p in there.rows(Policy)] == ["retired", "champion"]
        there.commit(ledger("c"), rows={"rollouts": rollouts(1, first=50)}, policy_status={1: "champion"})
        assert [p.status for p in there.rows(Policy)] == ["champion", "champion"]
        assert [r.rollout_id for r in there.rows(Rollout)] == [1, 2, 50]
    with open_console(moved) as console:
        assert console.query("SELECT status FROM policies ORDER BY policy_id").rows == [("champion",), ("champion",)]


def test_a_read_only_lake_reads_and_refuses_to_write(lake: Lake) -> None:
    lake.commit(ledger("a"), rows={"rollouts": rollouts(2)})
    with open_lake(lake.root, read_only=True) as reader:
        assert len(reader.rows(Rollout)) == 2
        with pytest.raises(LakeError, match="read-only"):
            reader.commit(ledger("b"))
        with pytest.raises(LakeError, match="read-only"):
            reader.query("DELETE FROM rollouts")
        lake.commit(ledger("b"), rows={"rollouts": rollouts(2, first=9)})
        assert len(reader.rows(Rollout)) == 4


def test_a_wrong_query_is_quoted_back(lake: Lake) -> None:
    with pytest.raises(LakeError, match=r"cannot answer 'SELECT nope FROM rollouts'.*nope"):
        lake.query("SELECT nope FROM rollouts")


def test_a_missing_extension_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(LakeError, match=r"pip install duckdb-extension-ducklake==\d"):
        extensions.connect(Place(tmp_path))


def test_a_file_whose_signature_was_checked_is_checked_again_once_it_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extensions.connect(Place(tmp_path)).close()
    extensions.connect(Place(tmp_path)).close()
    kept = extensions._shipped
    shipped = kept("ducklake")
    other = tmp_path / shipped.name
    shutil.copyfile(shipped, other)
    monkeypatch.setattr(extensions, "_shipped", lambda name, extra=None: other if name == "ducklake" else kept(name))
    extensions.connect(Place(tmp_path)).close()
    with other.open("r+b") as file:
        file.seek(-8, 2)  # in its signature, at the end
        file.write(b"tampered")
    with pytest.raises(LakeError, match=r"cannot load .*ducklake.duckdb_extension.*signature"):
        extensions.connect(Place(tmp_path))


def test_the_sqlite_extension_is_linked_under_the_name_duckdb_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extensions.connect(Place(tmp_path)).close()
    link = next(tmp_path.rglob("sqlite_scanner.duckdb_extension"))
    link.unlink()
    link.symlink_to(tmp_path / "gone")  # an environment that was removed
    extensions.connect(Place(tmp_path)).close()
    assert link.is_file()


def test_opening_leaves_the_catalog_readable_to_plain_sqlite(lake: Lake) -> None:
    mode = sqlite3.connect(lake.root / "catalog.sqlite").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)
