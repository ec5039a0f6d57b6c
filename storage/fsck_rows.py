"""Questions whose every answer is a row that should not be: the ledger against the rows, ids, and references."""

from __future__ import annotations

import re
from dataclasses import dataclass

from strop.storage.console import Console
from strop.storage.links import SCORED_BY
from strop.storage.tables import BY_NAME, TABLES, Row, SchemaVersion, StageRun

SHOWN = 5
"""Rows named for each question; the number of all of them is told."""


@dataclass(frozen=True, slots=True)
class Check:
    """One question."""

    table: str
    about: str
    sql: str
    problem: str
    """Format string over the columns of an answer."""
    advice: str = "find the damaged file above, or report it: no command of Strop writes such rows"

    @property
    def tables(self) -> set[str]:
        """The tables it reads."""
        return BY_NAME.keys() & set(re.findall(r"\w+", self.sql))


REFERENCES: tuple[tuple[str, str, str, str], ...] = (
    ("problems", "unnest(parents)", "problems", "true"),
    ("plans", "problem_id", "problems", "true"),
    ("plans", "context_id", "contexts", "true"),
    ("plans", "start_rollout_id", "rollouts", "true"),
    ("rollouts", "problem_id", "problems", "true"),
    ("rollouts", "policy_id", "policies", "true"),
    ("rollouts", "plan_id", "plans", "true"),
    ("rollouts", "context_id", "contexts", "true"),
    ("rollouts", "parent_rollout_id", "rollouts", "true"),
    ("token_logps", "rollout_id", "rollouts", "true"),
    ("token_logps", "policy_id", "policies", "true"),
    ("scores", "subject_id", "rollouts", "subject_kind IN ('rollout', 'step', 'token')"),
    ("scores", "subject_id", "problems", "subject_kind = 'problem'"),
    ("scores", "subject_id", "examples", "subject_kind = 'pair'"),
    ("scores", "problem_id", "problems", "true"),
    ("scores", "supersedes", "scores", "true"),
    ("decisions", "subject_id", "rollouts", "subject_kind = 'rollout'"),
    ("decisions", "subject_id", "policies", "subject_kind = 'policy'"),
    ("examples", "problem_id", "problems", "true"),
    ("examples", "rollout_id", "rollouts", "true"),
    ("examples", "rejected_rollout_id", "rollouts", "true"),
    ("examples", "unnest(sources)", "rollouts", "true"),
    ("policies", "parent_policy_id", "policies", "true"),
    ("policies", "reference_policy_id", "policies", "true"),
    ("policies", SCORED_BY, "policies", "true"),
    ("policy_examples", "policy_id", "policies", "true"),
    ("policy_examples", "example_id", "examples", "true"),
    ("train_metrics", "policy_id", "policies", "true"),
    ("contexts", "parent_context_id", "contexts", "true"),
    ("contexts", "unnest(sources)", "rollouts", "true"),
    ("metrics", "policy_id", "policies", "true"),
    ("metrics", "context_id", "contexts", "true"),
    ("stage_runs", "reuses", "stage_runs", "true"),
)
"""Table, column, the table it points into, and of which rows; null and 0 point nowhere."""

COUNTS = """
WITH said AS (
  SELECT s.stage_run_id, e.key AS name, CAST(e.value AS BIGINT) AS n FROM stage_runs s, json_each(s.rows_json) e),
there AS ({there})
SELECT s.run_id, s.round, s.stage, s.shard, name, coalesce(said.n, 0), coalesce(there.n, 0)
FROM said FULL JOIN there USING (stage_run_id, name) JOIN stage_runs s USING (stage_run_id)
WHERE s.reuses IS NULL AND (coalesce(said.n, 0) > coalesce(there.n, 0)
  OR coalesce(said.n, 0) < there.n AND name <> 'plugin_state') LIMIT {shown}"""
"""The ledger counts the state of a controller, that of other stages it does not."""
KEYS = "SELECT key, count(*) FROM stage_runs GROUP BY key HAVING count(*) > 1 LIMIT {shown}"
SHARDS = """
SELECT run_id, round, stage, shard, count(*) FROM stage_runs GROUP BY ALL HAVING count(*) > 1 LIMIT {shown}"""
UPSTREAM = """
SELECT stage_run_id, run_id, stage, up FROM (SELECT *, unnest(upstream) AS up FROM stage_runs)
WHERE up NOT IN (SELECT key FROM stage_runs) LIMIT {shown}"""
RUNS = "SELECT DISTINCT run_id FROM stage_runs WHERE run_id NOT IN (SELECT run_id FROM runs) LIMIT {shown}"
CHAMPIONS = """
SELECT run_id, count(*) FROM policies WHERE status = 'champion' GROUP BY run_id HAVING count(*) > 1 LIMIT {shown}"""
OWNERS = """
SELECT run_id, round, stage_run_id, count(*) FROM {table}
WHERE stage_run_id NOT IN (SELECT stage_run_id FROM stage_runs) GROUP BY ALL LIMIT {shown}"""
TWICE = "SELECT {id}, count(*) FROM {table} GROUP BY {id} HAVING count(*) > 1 LIMIT {shown}"
FOREIGN = "SELECT {id}, stage_run_id FROM {table} WHERE {id} >> 20 <> stage_run_id LIMIT {shown}"
DANGLING = """
SELECT {id}, points, count(*) OVER () FROM (SELECT {id}, {column} AS points FROM {table} WHERE {where}) s
WHERE points <> 0 AND NOT EXISTS (SELECT 1 FROM {target} t WHERE t.{target_id} = s.points) LIMIT {shown}"""


def quick(console: Console) -> list[Check]:
    """Questions to the ledger alone."""
    return [
        Check("stage_runs", "keys", KEYS.format(shown=SHOWN), "the key {} is there {} times"),
        Check("stage_runs", "shards", SHARDS.format(shown=SHOWN), "run {} round {} {} shard {} was committed {} times"),
        Check(
            "stage_runs",
            "upstream",
            UPSTREAM.format(shown=SHOWN),
            "stage run {} ({} {}) read {}, which is not in the ledger",
        ),
        Check("stage_runs", "runs", RUNS.format(shown=SHOWN), "run {} has stage runs and no row in `runs`"),
        Check("policies", "champions", CHAMPIONS.format(shown=SHOWN), "run {} has {} champions"),
    ]


def full(console: Console) -> list[Check]:
    """Those, and the questions that read every table."""
    return [*quick(console), _counts(), *(check for row in _stage_tables() for check in _of(row)), *_references()]


def _stage_tables() -> list[type[Row]]:
    return [row for row in TABLES if row is not SchemaVersion]


def _counts() -> Check:
    there = " UNION ALL ".join(
        f"SELECT stage_run_id, '{row.TABLE}' AS name, count(*) AS n FROM {row.TABLE} GROUP BY stage_run_id"
        for row in _stage_tables()
        if row is not StageRun
    )
    problem = "run {} round {} {} shard {}: of {} the ledger counts {} rows, there are {}"
    return Check("stage_runs", "rows of each shard", COUNTS.format(there=there, shown=SHOWN), problem)


def _of(row: type[Row]) -> list[Check]:
    """Every row belongs to a stage run, and its id is its own and says so."""
    owners = OWNERS.format(table=row.TABLE, shown=SHOWN)
    problem = "run {} round {}: stage run {} is not in the ledger and has {} rows"
    checks = [Check(row.TABLE, "owners", owners, problem)] if row is not StageRun else []
    if row.ID is not None:
        asked = {"id": row.ID, "table": row.TABLE, "shown": SHOWN}
        checks += [
            Check(row.TABLE, "ids", TWICE.format(**asked), f"{row.ID} {{}} is there {{}} times"),
            Check(row.TABLE, "ids", FOREIGN.format(**asked), f"{row.ID} {{}} is not of its stage run {{}}"),
        ]
    return checks


def _references() -> list[Check]:
    ids = {row.TABLE: row.ID or "stage_run_id" for row in TABLES}
    checks = []
    for table, column, target, where in REFERENCES:
        sql = DANGLING.format(
            id=ids[table], column=column, table=table, where=where, target=target, target_id=ids[target], shown=SHOWN
        )
        name = "reward_policy_id" if column == SCORED_BY else column.removeprefix("unnest(").removesuffix(")")
        problem = f"{ids[table]} {{}}: its {name} {{}} is not in {target} ({{}} such rows)"
        checks.append(Check(table, f"{name} in {target}", sql, problem))
    return checks
