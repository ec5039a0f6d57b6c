"""The one change of a row there is: a policy's status. Files are never rewritten, so the row moves to a new one.

The files that hold the policy end with the snapshot, as if all their rows were deleted, and what they held is written
once more with the new status. Files of policies are small, and earlier snapshots keep the old ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import duckdb

from strop.storage.catalog import read_catalog
from strop.storage.errors import LakeError
from strop.storage.parquet import from_arrow
from strop.storage.place import Place
from strop.storage.sole_use import through_duckdb
from strop.storage.tables import Policy, Row
from strop.storage.views import view_sql


def with_status(
    connection: duckdb.DuckDBPyConnection,
    place: Place,
    rows: Mapping[str, Sequence[Row]],
    policy_status: Mapping[int, str],
) -> tuple[dict[str, Sequence[Row]], list[int]]:
    """The rows of a commit that has these new statuses too, and the data files that end with it.

    Tables without rows are left out. Raises LakeError when there is no such policy.
    """
    return with_changes(connection, place, rows, {id: {"status": status} for id, status in policy_status.items()})


def with_changes(
    connection: duckdb.DuckDBPyConnection,
    place: Place,
    rows: Mapping[str, Sequence[Row]],
    changes: Mapping[int, Mapping[str, str]],
) -> tuple[dict[str, Sequence[Row]], list[int]]:
    """The same for any fields of policies, by their id."""
    given = {table: members for table, members in rows.items() if members}
    if not changes:
        return given, []
    moved = [row for row in given.get(Policy.TABLE, ()) if isinstance(row, Policy)]
    ended = []
    catalog = read_catalog(place.root)
    table = catalog.tables[Policy.TABLE]
    for file in table.files:
        sql = view_sql(dataclasses.replace(table, files=(file,)), catalog.snapshot)
        with through_duckdb(place.root):
            held = from_arrow(Policy, connection.execute(sql).to_arrow_table())
        if any(policy.policy_id in changes for policy in held):
            moved += held
            ended.append(file.id)
    there = {policy.policy_id for policy in moved}
    for policy_id, fields in changes.items():
        if policy_id not in there:
            what = ", ".join(f"{name} of policy {policy_id} to {value!r}" for name, value in fields.items())
            raise LakeError(f"cannot set the {what}: the lake has no such policy")
    changed = [dataclasses.replace(row, **changes.get(row.policy_id, {})) for row in moved]  # type: ignore[arg-type]
    return {**given, Policy.TABLE: changed}, ended
