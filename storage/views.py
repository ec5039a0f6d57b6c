"""The SQL behind the console's tables: a view for each table of the lake, and ready-made ones for common questions."""

from __future__ import annotations

from dataclasses import dataclass

from strop.storage.catalog import LiveFile, LiveTable
from strop.storage.tables import Column

SNAPSHOT_ID = "_ducklake_internal_snapshot_id"


def view_sql(table: LiveTable, snapshot: int) -> str:
    """The query of a table at a snapshot: plain files in one scan, each file with deleted rows in a scan of its own."""
    plain: dict[tuple[str, ...], list[LiveFile]] = {}
    parts = []
    for file in table.files:
        if file.deletes is None and not file.later_rows:
            plain.setdefault(_selected(table, file), []).append(file)
        else:
            parts.append(_masked(table, file, snapshot))
    for selected, files in plain.items():
        parts.append(f"SELECT {', '.join(selected)} FROM read_parquet([{', '.join(literal(f.path) for f in files)}])")
    if not parts:
        empty = ", ".join(f'CAST(NULL AS {c.sql_type}) AS "{c.name}"' for c in table.columns)
        parts.append(f"SELECT {empty} WHERE false")
    return "\nUNION ALL ".join(parts)


def _masked(table: LiveTable, file: LiveFile, snapshot: int) -> str:
    """One file without its deleted rows and without those of later snapshots."""
    conditions = []
    if file.deletes is not None:
        dated = f" WHERE {SNAPSHOT_ID} <= {snapshot}" if file.deletes_dated else ""
        conditions.append(f"file_row_number NOT IN (SELECT pos FROM read_parquet({literal(file.deletes)}){dated})")
    if file.later_rows:
        conditions.append(f"{SNAPSHOT_ID} <= {snapshot}")
    return (
        f"SELECT {', '.join(_selected(table, file))} FROM read_parquet({literal(file.path)}, file_row_number = true) "
        f"WHERE {' AND '.join(conditions)}"
    )


def _selected(table: LiveTable, file: LiveFile) -> tuple[str, ...]:
    """The columns in the table's order; one added after the file was written has its default there."""
    return tuple(
        f'"{c.name}"' if c.since <= file.since else f'CAST({literal(c.default)} AS {c.sql_type}) AS "{c.name}"'
        for c in table.columns
    )


def literal(value: object) -> str:
    """A text or number as SQL; None is NULL."""
    if value is None or isinstance(value, int | float):
        return "NULL" if value is None else repr(value)
    return "'" + str(value).replace("'", "''") + "'"


@dataclass(frozen=True, slots=True)
class ReadyView:
    """A view that answers a common question."""

    name: str
    doc: str
    needs: tuple[str, ...]
    columns: tuple[Column, ...]
    sql: str


V_ROUNDS = ReadyView(
    "v_rounds",
    "One row per run and round: what came out of it.",
    ("stage_runs", "policies", "metrics", "rollouts", "decisions"),
    (
        Column("run_id", "VARCHAR", "the run"),
        Column("round", "INTEGER", "the round; 0 examines the base policy"),
        Column("policy", "VARCHAR", "name of the policy made in the round"),
        Column("status", "VARCHAR", "its status now"),
        Column("pass_at_1", "DOUBLE", "held-out pass@1 of the round"),
        Column("ci_low", "DOUBLE", "lower end of its 95 % interval"),
        Column("ci_high", "DOUBLE", "upper end of its 95 % interval"),
        Column("pass_at_8", "DOUBLE", "held-out pass@8"),
        Column("diversity", "DOUBLE", "held-out diversity"),
        Column("kept", "BIGINT", "training rollouts that every filter kept; null where none ran"),
        Column("rollouts", "BIGINT", "training rollouts sampled"),
        Column("seconds", "DOUBLE", "seconds of work, summed over shards that ran side by side"),
    ),
    """
WITH work AS (SELECT run_id, round, sum(seconds) AS seconds FROM stage_runs GROUP BY ALL),
made AS (
  SELECT run_id, round, max_by(name, policy_id) AS policy, max_by(status, policy_id) AS status,
    max(policy_id) AS policy_id
  FROM policies GROUP BY ALL),
measured AS (
  SELECT m.run_id, m.round,
    any_value(value) FILTER (name = 'pass@1') AS pass_at_1,
    any_value(ci_low) FILTER (name = 'pass@1') AS ci_low,
    any_value(ci_high) FILTER (name = 'pass@1') AS ci_high,
    any_value(value) FILTER (name = 'pass@8') AS pass_at_8,
    any_value(value) FILTER (name = 'diversity') AS diversity
  FROM metrics m LEFT JOIN made USING (run_id, round)
  WHERE m.slice = 'heldout' AND (made.policy_id IS NULL OR m.policy_id IS NULL OR m.policy_id = made.policy_id)
  GROUP BY ALL),
sampled AS (SELECT run_id, round, count(*) AS rollouts FROM rollouts WHERE split = 'train' GROUP BY ALL),
judged AS (
  SELECT run_id, round, count(*) FILTER (keep) AS kept FROM (
    SELECT run_id, round, subject_id, bool_and(keep) AS keep FROM decisions
    WHERE subject_kind = 'rollout' GROUP BY ALL)
  GROUP BY ALL)
SELECT run_id, round, policy, status, pass_at_1, ci_low, ci_high, pass_at_8, diversity, kept,
  coalesce(rollouts, 0) AS rollouts, seconds
FROM work LEFT JOIN made USING (run_id, round) LEFT JOIN measured USING (run_id, round)
LEFT JOIN sampled USING (run_id, round) LEFT JOIN judged USING (run_id, round)
ORDER BY run_id, round""",
)

V_PASS_RATES = ReadyView(
    "v_pass_rates",
    "One row per run, round, scorer and problem: how often it was solved. Errors count in neither number.",
    ("scores", "problems"),
    (
        Column("run_id", "VARCHAR", "the run"),
        Column("round", "INTEGER", "the round that sampled and scored the rollouts"),
        Column("scorer", "VARCHAR", "label of the scorer"),
        Column("problem_id", "BIGINT", "the problem"),
        Column("task", "VARCHAR", "its task"),
        Column("split", "VARCHAR", "'train' or 'heldout'"),
        Column("category", "VARCHAR", "the task's own grouping"),
        Column("n", "BIGINT", "rollouts with a verdict of pass or fail"),
        Column("passed", "BIGINT", "those that passed"),
        Column("rate", "DOUBLE", "passed / n"),
    ),
    """
SELECT s.run_id, s.round, s.scorer, s.problem_id, p.task, p.split, p.category,
  count(DISTINCT s.subject_id) AS n,
  count(DISTINCT s.subject_id) FILTER (s.verdict = 'pass') AS passed,
  passed / n AS rate
FROM scores s LEFT JOIN (
  SELECT problem_id, any_value(task) AS task, any_value(split) AS split, any_value(category) AS category
  FROM problems GROUP BY problem_id) p USING (problem_id)
WHERE s.subject_kind = 'rollout' AND s.step_index IS NULL AND s.verdict IN ('pass', 'fail')
GROUP BY ALL""",
)

READY: dict[str, ReadyView] = {view.name: view for view in (V_ROUNDS, V_PASS_RATES)}
