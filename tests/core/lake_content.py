"""Everything a lake says, clocks and machine names aside: two lakes with equal content are equal to a user."""

from strop.storage.lake import open_lake
from strop.storage.tables import TABLES, columns

VOLATILE = {"started_at", "seconds", "host", "created_at", "latency_s"}


def content(root, *, without_run=False, run_id=None):
    """table -> sorted rows, of one run only if asked. `without_run` leaves out run ids and whatever follows from them.

    Columns and tables that an older lake lacks are left out, too.
    """
    skip = VOLATILE | (RUN_BOUND if without_run else set())
    found = {}
    where, params = ("", []) if run_id is None else (" WHERE run_id = ?", [run_id])
    with open_lake(root, read_only=True) as lake:
        there = {row[0] for row in lake.query("SELECT table_name || '.' || column_name FROM duckdb_columns()")}
        for table in TABLES:
            known = [c.name for c in columns(table) if f"{table.TABLE}.{c.name}" in there]
            names = ", ".join(f'"{name}"' for name in known if name not in skip)
            rows = lake.query(f"SELECT {names} FROM {table.TABLE}{where}", params) if names else []
            found[table.TABLE] = sorted(map(repr, rows))
    return found


RUN_BOUND = {
    "run_id",
    "stage_run_id",
    "key",
    "upstream",
    "name",
    "problem_id",
    "plan_id",
    "rollout_id",
    "score_id",
    "decision_id",
    "example_id",
    "policy_id",
    "parent_policy_id",
    "metric_id",
    "subject_id",
    "group_id",
    "rejected_rollout_id",
    "parents",
}
