"""Schema versions: how a lake made by an older Strop becomes one of today, and how it reads until it does.

A writer that opens an older lake brings it up to date, in one transaction under the commit lock, whose last rows say
so: a kill leaves the old version or the new one. Old files stay as they are and read null where they lack a column.
A reader changes nothing: what its snapshot lacks is null (see `views`).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

import duckdb

from strop.storage.checksums import next_file, note
from strop.storage.locks import commit_lock
from strop.storage.place import Place
from strop.storage.sole_use import through_duckdb
from strop.storage.tables import TABLES, SchemaVersion, columns
from strop.storage.upkeep import synced

HAS_TABLE = "SELECT 1 FROM duckdb_tables() WHERE database_name = 'lake' AND table_name = ?"
HAS_COLUMNS = "SELECT table_name, column_name FROM duckdb_columns() WHERE database_name = 'lake'"
RECORD = """
INSERT INTO lake.schema_versions BY NAME
SELECT ? AS version, ? AS strop_version, '' AS run_id, 0 AS round, 0 AS stage_run_id"""

log = logging.getLogger("strop.lake")


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from a schema version to the next."""

    version: int
    """What the lake is afterwards."""
    doc: str
    sql: tuple[str, ...]
    """Statements that lose nothing: DuckLake keeps the old columns for old snapshots."""


MIGRATIONS: tuple[Migration, ...] = (
    Migration(
        2,
        "rows can say that they re-use, replace or import others",
        (
            "ALTER TABLE lake.runs ADD COLUMN parent_run_id VARCHAR",
            "ALTER TABLE lake.runs ADD COLUMN sources_json VARCHAR",
            "ALTER TABLE lake.stage_runs ADD COLUMN reuses BIGINT",
            "ALTER TABLE lake.rollouts ADD COLUMN detail VARCHAR",
            "ALTER TABLE lake.scores ADD COLUMN supersedes BIGINT",
        ),
    ),
    Migration(
        3,
        "rollouts keep min-p, stop tokens and price; log-probabilities under other policies are kept",
        (
            "ALTER TABLE lake.rollouts ADD COLUMN min_p DOUBLE",
            "ALTER TABLE lake.rollouts ADD COLUMN stop_token_ids INTEGER[]",
            "ALTER TABLE lake.rollouts ADD COLUMN n_prompt_tokens INTEGER",
            "ALTER TABLE lake.rollouts ADD COLUMN cost DOUBLE",
            "CREATE TABLE lake.token_logps (rollout_id BIGINT, policy_hash VARCHAR, policy_id BIGINT, logps FLOAT[], "
            "engine VARCHAR, run_id VARCHAR, round INTEGER, stage_run_id BIGINT)",
        ),
    ),
    Migration(
        4,
        "every optimiser step's metrics are kept; groups can have strata",
        (
            "ALTER TABLE lake.examples ADD COLUMN stratum INTEGER",
            "CREATE TABLE lake.train_metrics (policy_id BIGINT, step INTEGER, name VARCHAR, value DOUBLE, "
            "run_id VARCHAR, round INTEGER, stage_run_id BIGINT)",
        ),
    ),
)
"""In order; the last one leads to `SCHEMA_VERSION`."""


def schema_version(connection: duckdb.DuckDBPyConnection) -> int | None:
    """The schema version of the attached lake; None while it is still being made."""
    if not connection.execute(HAS_TABLE, [SchemaVersion.TABLE]).fetchall():
        return None
    found = connection.execute(f"SELECT max(version) FROM lake.{SchemaVersion.TABLE}").fetchone()
    return found[0] if found else None


def record_version(connection: duckdb.DuckDBPyConnection, number: int) -> None:
    """Write the row that says which schema version the lake now has."""
    connection.execute(RECORD, [number, version("strop")])


def migrate(connection: duckdb.DuckDBPyConnection, place: Place) -> None:
    """Bring the attached lake to `SCHEMA_VERSION`; nothing to do where it, or another process, has done so already."""
    with commit_lock(place.root):
        mark = next_file(place)
        with through_duckdb(place.root), _transaction(connection):
            before = schema_version(connection)
            due = [] if before is None else [migration for migration in MIGRATIONS if migration.version > before]
            for migration in due:
                for statement in migration.sql:
                    connection.execute(statement)
                with synced(place, SchemaVersion.TABLE):
                    record_version(connection, migration.version)
        note(place, mark)
    for migration in due:
        log.warning(
            "the lake %s now has schema version %d: %s. An older Strop can no longer open it",
            place,
            migration.version,
            migration.doc,
        )


@contextlib.contextmanager
def _transaction(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    connection.execute("BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(duckdb.Error):  # DuckDB may have aborted it already
            connection.execute("ROLLBACK")
        raise


def absent(connection: duckdb.DuckDBPyConnection, place: Place) -> dict[str, frozenset[str]]:
    """The columns that an attached older lake lacks, by table."""
    with through_duckdb(place.root):
        there = set(connection.execute(HAS_COLUMNS).fetchall())
    known = {row.TABLE: {c.name for c in columns(row)} for row in TABLES}
    return {table: frozenset(name for name in names if (table, name) not in there) for table, names in known.items()}
