"""Making a lake in a folder, and attaching one: what must be there before the first row."""

from __future__ import annotations

import contextlib

import duckdb

from strop.storage.catalog_db import open_catalog_db
from strop.storage.checksums import catch_up
from strop.storage.durable import fsync, make_folder
from strop.storage.errors import LakeError
from strop.storage.extensions import quoted
from strop.storage.locks import commit_lock
from strop.storage.migrations import migrate, record_version, schema_version
from strop.storage.place import FILE, Place
from strop.storage.sole_use import through_duckdb
from strop.storage.tables import SCHEMA_VERSION, TABLES, SchemaVersion, columns

FOLDERS = ("data", "staging", "policies", "locks", "logs", "work")
OPTIONS = {"data_inlining_row_limit": "0", "parquet_compression": "zstd", "parquet_row_group_size": "8192"}


def lay_out(place: Place) -> None:
    """Make the folders of a lake. Raises LakeError when the place is taken by something else or cannot be written."""
    root = place.root
    folders = [name for name in FOLDERS if name != "data" or place.data is None]
    try:
        if root.is_dir() and not place.exists:
            strange = sorted(path.name for path in root.iterdir() if path.name not in (*folders, FILE))
            if strange:
                raise LakeError(
                    f"{root} is no lake and not empty (it holds {strange[0]!r}); name an empty or a new folder"
                )
        for name in folders:
            make_folder(root / name)
    except OSError as error:
        raise LakeError(f"cannot make a lake in {root}: {error}") from error


def attach(connection: duckdb.DuckDBPyConnection, place: Place, *, create: bool, read_only: bool) -> int:
    """Attach the catalog as `lake` and make it the place where plain table names are looked up; its schema version.

    An older lake is migrated, unless it is only read.
    """
    connection.execute("SET TimeZone = 'UTC'")
    there = has_catalog(place)
    with contextlib.nullcontext() if there else commit_lock(place.root), through_duckdb(place.root):
        connection.execute(_attach_sql(place, create=create, read_only=read_only))
        made_by = schema_version(connection)
    if made_by is None and create and not read_only:
        with commit_lock(place.root):
            with through_duckdb(place.root):
                _make_tables(connection, place)
                made_by = schema_version(connection)
            catch_up(place)
    if made_by is None:
        raise LakeError(f"the lake {place} was never finished being made; `strop run --lake {place}` finishes it")
    if made_by > SCHEMA_VERSION:
        raise LakeError(
            f"the lake {place} has schema version {made_by}, made by a newer Strop; this one knows versions up to "
            f"{SCHEMA_VERSION}. Upgrade: pip install --upgrade strop"
        )
    if made_by < SCHEMA_VERSION and not read_only:
        migrate(connection, place)
        made_by = SCHEMA_VERSION
    connection.execute("USE lake")
    return made_by


def _attach_sql(place: Place, *, create: bool, read_only: bool) -> str:
    """A SQLite catalog's folder can be moved, so its data path is ours to say; machines that share one must agree."""
    options = f"DATA_PATH {quoted(place.data_url)}"
    if place.catalog:
        target = f"ducklake:postgres:{place.catalog}"
        options += f", CREATE_IF_NOT_EXISTS {str(create).lower()}"
    else:
        target = f"ducklake:sqlite:{place.sqlite}"
        options += ", META_BUSY_TIMEOUT 10000, OVERRIDE_DATA_PATH true"
        options += "" if read_only else ", META_JOURNAL_MODE 'WAL'"
    return f"ATTACH {quoted(target)} AS lake ({options}{', READ_ONLY' if read_only else ''})"


def has_catalog(place: Place) -> bool:
    """Whether DuckLake's own tables are there. Raises LakeError when another lake's data are in this catalog."""
    if not place.catalog:
        return place.sqlite.is_file()
    with open_catalog_db(place, write=False) as db:
        if db.execute("SELECT to_regclass('ducklake_metadata') AS there")[0]["there"] is None:
            return False
        found = db.execute("SELECT value FROM ducklake_metadata WHERE key = 'data_path' AND scope IS NULL")
    if found and found[0]["value"] != place.data_url:
        raise LakeError(
            f"the catalog {place.catalog} belongs to a lake with its data in {found[0]['value']}, not in "
            f"{place.data_url}: a database holds one lake. Correct `data` in {place.root / FILE}, or name another "
            "database"
        )
    return True


def _make_tables(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
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
    if place.data:
        return
    folder = place.root / "data" / "main" / SchemaVersion.TABLE
    for path in [*folder.glob("*.parquet"), folder, folder.parent, folder.parent.parent]:
        fsync(path)
