"""Making a lake in a folder, and attaching one: what must be there before the first row."""

from __future__ import annotations

import contextlib
from importlib.metadata import version
from pathlib import Path

import duckdb

from strop.storage.durable import fsync, make_folder
from strop.storage.errors import LakeError
from strop.storage.extensions import quoted
from strop.storage.locks import commit_lock
from strop.storage.sole_use import through_duckdb
from strop.storage.tables import SCHEMA_VERSION, TABLES, SchemaVersion, columns

FOLDERS = ("data", "staging", "policies", "locks", "logs", "work")
HAS_TABLE = "SELECT 1 FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = ?"
OPTIONS = {"data_inlining_row_limit": "0", "parquet_compression": "zstd", "parquet_row_group_size": "8192"}


def lay_out(root: Path) -> None:
    """Make the folders of a lake. Raises LakeError when the place is taken by something else or cannot be written."""
    try:
        if root.is_dir() and not (root / "catalog.sqlite").exists():
            strange = sorted(path.name for path in root.iterdir() if path.name not in FOLDERS)
            if strange:
                raise LakeError(
                    f"{root} is no lake and not empty (it holds {strange[0]!r}); name an empty or a new folder"
                )
        for name in FOLDERS:
            make_folder(root / name)
    except OSError as error:
        raise LakeError(f"cannot make a lake in {root}: {error}") from error


def attach(connection: duckdb.DuckDBPyConnection, root: Path, *, create: bool, read_only: bool) -> None:
    """Attach the catalog as `lake` and make it the place where plain table names are looked up."""
    options = "META_BUSY_TIMEOUT 10000, OVERRIDE_DATA_PATH true"
    options += ", READ_ONLY" if read_only else ", META_JOURNAL_MODE 'WAL'"
    attach = (
        f"ATTACH {quoted(f'ducklake:sqlite:{root}/catalog.sqlite')} AS lake "
        f"(DATA_PATH {quoted(f'{root}/data/')}, {options})"
    )
    connection.execute("SET TimeZone = 'UTC'")
    made = (root / "catalog.sqlite").is_file()
    with contextlib.nullcontext() if made else commit_lock(root), through_duckdb(root):
        connection.execute(attach)
        made_by = _made_by(connection)
    if made_by is None and create and not read_only:
        with commit_lock(root), through_duckdb(root):
            _make_tables(connection, root)
            made_by = _made_by(connection)
    if made_by is None:
        raise LakeError(f"the lake {root} was never finished being made; `strop run --lake {root}` finishes it")
    if made_by > SCHEMA_VERSION:
        raise LakeError(
            f"the lake {root} has schema version {made_by}, made by a newer Strop; this one knows versions up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install --upgrade strop"
        )
    connection.execute("USE lake")


def _made_by(connection: duckdb.DuckDBPyConnection) -> int | None:
    """The lake's schema version; None while it is still being made."""
    if not connection.execute(HAS_TABLE, [SchemaVersion.TABLE]).fetchall():
        return None
    found = connection.execute(f"SELECT max(version) FROM lake.{SchemaVersion.TABLE}").fetchone()
    return found[0] if found else None


def _make_tables(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Make every table, in one transaction whose last row says that the lake is complete."""
    if _made_by(connection) is not None:  # another process was faster
        return
    for name, value in OPTIONS.items():
        connection.execute(f"CALL lake.set_option({quoted(name)}, {quoted(value)})")
    connection.execute("BEGIN")
    for row in TABLES:
        fields = ", ".join(f'"{c.name}" {c.sql_type}' for c in columns(row))
        connection.execute(f"CREATE TABLE lake.{row.TABLE} ({fields})")
    connection.execute(
        f"INSERT INTO lake.{SchemaVersion.TABLE} BY NAME SELECT ? AS version, ? AS strop_version, '' AS run_id, "
        "0 AS round, 0 AS stage_run_id",
        [SCHEMA_VERSION, version("strop")],
    )
    connection.execute("COMMIT")
    folder = root / "data" / "main" / SchemaVersion.TABLE
    for path in [*folder.glob("*.parquet"), folder, folder.parent, folder.parent.parent]:
        fsync(path)
