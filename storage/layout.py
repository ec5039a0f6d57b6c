"""Making a lake in a folder, and attaching one: what must be there before the first row."""

from __future__ import annotations

import contextlib
from pathlib import Path

import duckdb

from strop.storage.checksums import catch_up
from strop.storage.durable import fsync, make_folder
from strop.storage.errors import LakeError
from strop.storage.extensions import quoted
from strop.storage.locks import commit_lock
from strop.storage.migrations import migrate, record_version, schema_version
from strop.storage.place import place_of
from strop.storage.tables import SCHEMA_VERSION, TABLES, SchemaVersion, columns

FOLDERS = ("data", "staging", "policies", "locks", "logs", "work")
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


def attach(connection: duckdb.DuckDBPyConnection, root: Path, *, create: bool, read_only: bool) -> int:
    """Attach the catalog as `lake` and make it the place where plain table names are looked up; its schema version.

    An older lake is migrated, unless it is only read.
    """
    options = "META_BUSY_TIMEOUT 10000, OVERRIDE_DATA_PATH true"
    options += ", READ_ONLY" if read_only else ", META_JOURNAL_MODE 'WAL'"
    attach = (
        f"ATTACH {quoted(f'ducklake:sqlite:{root}/catalog.sqlite')} AS lake "
        f"(DATA_PATH {quoted(f'{root}/data/')}, {options})"
    )
    connection.execute("SET TimeZone = 'UTC'")
    made = (root / "catalog.sqlite").is_file()
    with contextlib.nullcontext() if made else commit_lock(root):
        connection.execute(attach)
    if schema_version(connection) is None and create and not read_only:
        with commit_lock(root):
            _make_tables(connection, root)
    made_by = schema_version(connection)
    if made_by is None:
        raise LakeError(f"the lake {root} was never finished being made; `strop run --lake {root}` finishes it")
    if made_by > SCHEMA_VERSION:
        raise LakeError(
            f"the lake {root} has schema version {made_by}, made by a newer Strop; this one knows versions up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install --upgrade strop"
        )
    if made_by < SCHEMA_VERSION and not read_only:
        migrate(connection, root)
        made_by = SCHEMA_VERSION
    connection.execute("USE lake")
    return made_by


def _make_tables(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Make every table, in one transaction whose last row says that the lake is complete."""
    if schema_version(connection) is not None:  # another process was faster
        return
    for name, value in OPTIONS.items():
        connection.execute(f"CALL lake.set_option({quoted(name)}, {quoted(value)})")
    connection.execute("BEGIN")
    for row in TABLES:
        fields = ", ".join(f'"{c.name}" {c.sql_type}' for c in columns(row))
        connection.execute(f"CREATE TABLE lake.{row.TABLE} ({fields})")
    record_version(connection, SCHEMA_VERSION)
    connection.execute("COMMIT")
    folder = root / "data" / "main" / SchemaVersion.TABLE
    for path in [*folder.glob("*.parquet"), folder, folder.parent, folder.parent.parent]:
        fsync(path)
    catch_up(place_of(root))
