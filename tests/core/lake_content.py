"""Everything a lake says, clocks and machine names aside: two lakes with equal content are equal to a user."""

from strop.storage.lake import open_lake
from strop.storage.tables import TABLES, columns

VOLATILE = {"started_at", "seconds", "host", "created_at", "latency_s"}


def content(root, *, without_run=False):
    """table -> sorted rows. `without_run` leaves out run ids and whatever is derived from them."""
    skip = VOLATILE | (RUN_BOUND if without_run else set())
    found = {}
    with open_lake(root, read_only=True) as lake:
        for table in TABLES:
            names = ", ".join(f'"{c.name}"' for c in columns(table) if c.name not in skip)
            found[table.TABLE] = sorted(map(repr, lake.query(f"SELECT {names} FROM {table.TABLE}")))
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
