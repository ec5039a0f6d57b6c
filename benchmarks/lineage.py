"""Lineage of a policy through the views, as a ratio to SQL by hand over the same Parquet files.

    python benchmarks/lineage.py [--rollouts 1000000] [--lake DIR] [--json]

A lake of ten rounds is made (or an existing one of this script is used); the question is who sampled what, for which
problems, over a policy and all its ancestors, and of one policy with verdicts. CPU seconds, best of seven, both sides
in turn; answers are compared. Also: `lineage` and `explain` of a policy, both ways, in seconds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb

from strop.storage.catalog import read_catalog
from strop.storage.console import open_console
from strop.storage.explain import explain
from strop.storage.ids import shard_number
from strop.storage.lake import Lake, open_lake
from strop.storage.lineage import trace
from strop.storage.parquet import write_table
from strop.storage.tables import BY_NAME, Policy, Run, StageRun, columns

ROUNDS, SHARDS = 10, 10
HAND = """
WITH RECURSIVE pol AS (SELECT policy_id, name, parent_policy_id FROM {policies}),
anc AS (
  SELECT policy_id, name, parent_policy_id, 0 AS distance FROM pol WHERE name = '{policy}'
  UNION ALL
  SELECT pol.policy_id, pol.name, pol.parent_policy_id, distance + 1
  FROM anc JOIN pol ON pol.policy_id = anc.parent_policy_id)
SELECT distance, anc.name, s.name AS sampled_by, count(*) AS examples, count(DISTINCT e.problem_id) AS problems
FROM anc JOIN {policy_examples} t USING (policy_id) JOIN {examples} e USING (example_id)
LEFT JOIN {rollouts} r ON r.rollout_id = e.rollout_id LEFT JOIN pol s ON s.policy_id = r.policy_id
GROUP BY ALL ORDER BY ALL"""
VIEW = """
SELECT distance, ancestor, s.name AS sampled_by, count(*) AS examples, count(DISTINCT t.problem_id) AS problems
FROM v_ancestors a JOIN v_trained_on t ON t.policy_id = a.ancestor_id
LEFT JOIN rollouts r USING (rollout_id) LEFT JOIN policies s ON s.policy_id = r.policy_id
WHERE a.policy = '{policy}' GROUP BY ALL ORDER BY ALL"""
HAND_VERDICTS = """
SELECT v.verdict, count(*) AS n
FROM {policies} p JOIN {policy_examples} t USING (policy_id) JOIN {examples} e USING (example_id)
LEFT JOIN (
  SELECT run_id, subject_id, CASE WHEN bool_or(verdict = 'error') THEN 'error' WHEN bool_or(verdict = 'fail')
    THEN 'fail' WHEN bool_or(verdict = 'pass') THEN 'pass' END AS verdict
  FROM {scores} WHERE subject_kind = 'rollout' AND step_index IS NULL
    AND score_id NOT IN (SELECT supersedes FROM {scores} WHERE supersedes IS NOT NULL)
  GROUP BY ALL) v ON v.run_id = e.run_id AND v.subject_id = e.rollout_id
WHERE p.name = '{policy}' GROUP BY ALL ORDER BY ALL"""
VIEW_VERDICTS = "SELECT verdict, count(*) AS n FROM v_training_sets WHERE policy = '{policy}' GROUP BY ALL ORDER BY ALL"


class Maker:
    """Writes the lake, stage by stage; rows come from SQL over a range."""

    def __init__(self, lake: Lake) -> None:
        self.lake, self.duck, self.policies = lake, duckdb.connect(), list[int]()

    def stage(self, name: str, round: int, table: str, sql: str, shard: int = 0) -> int:
        """Commit rows of a table; `{base}` in the SQL is the first id of the shard, which is returned."""
        run = ledger(name, round, shard)
        base = run.stage_run_id << 20
        given = self.duck.sql(sql.format(base=base))
        there = {*given.columns, "run_id", "round", "stage_run_id"}
        stamp = f"'bench' AS run_id, {round} AS round, {run.stage_run_id} AS stage_run_id"
        wanted = ", ".join(
            f"CAST({c.name if c.name in there else 'NULL'} AS {c.sql_type}) AS {c.name}"
            for c in columns(BY_NAME[table])
        )
        rows = self.duck.sql(f"SELECT {wanted} FROM (SELECT {stamp}, * FROM given)").to_arrow_table()
        staged = write_table(self.lake.staging / f"{name}-{round}-{shard}.parquet", BY_NAME[table], rows)
        self.lake.commit(run, files={table: [staged]})
        return base

    def policy(self, round: int) -> None:
        """Commit the policy of a round, a child of the one before."""
        run = ledger("policy", round, 0)
        parent = self.policies[-1] if self.policies else None
        self.policies.append(run.stage_run_id << 20)
        row = Policy(
            run_id="bench",
            round=round,
            stage_run_id=run.stage_run_id,
            policy_id=self.policies[-1],
            name=f"bench/r{round}",
            status="champion" if round == ROUNDS else "retired",
            kind="full",
            path="p",
            content_hash=f"{round:032x}",
            parent_policy_id=parent,
        )
        self.lake.commit(run, rows={"policies": [row]})


def ledger(stage: str, round: int, shard: int) -> StageRun:
    """A ledger row."""
    return StageRun(
        run_id="bench",
        round=round,
        stage_run_id=shard_number("bench", round, stage, shard),
        key=f"{stage}-{round}-{shard}",
        stage=stage,
        kind=stage,
        shard=shard,
        shards=1,
        plugin=stage,
        plugin_version="1",
        config_json="{}",
        upstream=[],
        seed=0,
        rows_json="{}",
        seconds=1.0,
    )


def make(root: Path, rollouts: int) -> None:
    """Ten rounds: rollouts in ten shards each, a score and a decision a rollout, an example for every third."""
    n = rollouts // ROUNDS // SHARDS
    with open_lake(root, create=True) as lake:
        maker = Maker(lake)
        run = Run(run_id="bench", recipe="bench", recipe_json="{}", recipe_hash="0", seed=0, strop_version="0")
        lake.commit(ledger("run", 0, 0), rows={"runs": [run]})
        problems = maker.stage(
            "task",
            0,
            "problems",
            "SELECT {base} + i AS problem_id, md5(i::VARCHAR) AS problem_key, 'sums' AS task, 'train' AS split, "
            "'problem ' || i AS prompt, i::VARCHAR AS reference, 'task' AS origin, 'active' AS status, "
            "[]::BIGINT[] AS parents FROM range(50000) t(i)",
        )
        maker.policy(0)
        for round in range(1, ROUNDS + 1):
            asked = f"{problems} + (k // 8 * 4 + {round}) % 50000 AS problem_id"
            bases = [
                maker.stage(
                    "generate",
                    round,
                    "rollouts",
                    f"SELECT {{base}} + i AS rollout_id, {asked.replace('k //', f'({shard * n} + i) //')}, "
                    f"{maker.policies[-1]} AS policy_id, i // 8 AS group_id, i % 8 AS sample_index, "
                    "'train' AS split, 'problem' AS prompt, repeat('step ' || i || ' then ', 20) AS completion, "
                    f"100 AS n_tokens, 'stop' AS finish_reason FROM range({n}) t(i)",
                    shard,
                )
                for shard in range(SHARDS)
            ]
            ids = " UNION ALL ".join(
                f"SELECT {b} + i AS id, {s * n} + i AS k FROM range({n}) t(i)" for s, b in enumerate(bases)
            )
            maker.stage(
                "verify",
                round,
                "scores",
                f"SELECT {{base}} + k AS score_id, 'rollout' AS subject_kind, id AS subject_id, {asked}, "
                "'answer' AS scorer, '1' AS scorer_version, CASE WHEN k % 3 = 0 THEN 'pass' ELSE 'fail' END "
                f"AS verdict, (k % 3 = 0)::INT AS value FROM ({ids}) ORDER BY k",
            )
            maker.stage(
                "filter",
                round,
                "decisions",
                "SELECT {base} + k AS decision_id, 'rollout' AS subject_kind, id AS subject_id, 'correct' AS decider, "
                f"k % 3 = 0 AS keep FROM ({ids}) ORDER BY k",
            )
            examples = maker.stage(
                "build",
                round,
                "examples",
                f"SELECT {{base}} + k AS example_id, 'sft' AS kind, 'rft' AS builder, {asked}, 'problem' AS prompt, "
                f"'text ' || k AS completion, id AS rollout_id, []::BIGINT[] AS sources FROM ({ids}) "
                "WHERE k % 3 = 0 ORDER BY k",
            )
            maker.policy(round)
            maker.stage(
                "train",
                round,
                "policy_examples",
                f"SELECT {maker.policies[-1]} AS policy_id, {examples} + k AS example_id FROM ({ids}) WHERE k % 3 = 0",
            )


def cpu(work: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(root: Path) -> dict[str, object]:
    """Ratios by policy and question, then seconds of the commands."""
    files = {
        name: f"read_parquet([{', '.join(repr(str(f.path)) for f in table.files)}])"
        for name, table in read_catalog(root).tables.items()
        if table.files
    }
    duck = duckdb.connect()
    duck.execute("SET parquet_metadata_cache = true")
    found: dict[str, object] = {}
    with open_console(root) as console:
        for round in (1, 3, ROUNDS):
            policy = f"bench/r{round}"
            for name, by_hand, view in (("ancestry", HAND, VIEW), ("verdicts", HAND_VERDICTS, VIEW_VERDICTS)):
                hand_sql, view_sql = by_hand.format(policy=policy, **files), view.format(policy=policy)
                assert duck.execute(hand_sql).fetchall() == console.query(view_sql).rows
                times = [
                    (cpu(lambda q=hand_sql: duck.execute(q).fetchall()), cpu(lambda q=view_sql: console.query(q)))  # type: ignore[misc]
                    for _ in range(7)
                ]
                found[f"{name} {policy}"] = round_(min(v for _, v in times) / min(h for h, _ in times))
        last = f"bench/r{ROUNDS}"
        found["trace_cpu_s"] = round_(min(cpu(lambda: trace(console, last)) for _ in range(3)))
        found["explain_cpu_s"] = round_(min(cpu(lambda: explain(console, last)) for _ in range(3)))
    return found


def round_(value: float) -> float:
    """Three digits after the point."""
    return float(f"{value:.3f}")


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=1_000_000)
    parser.add_argument("--lake", type=Path, help="kept there, and used again if it is there")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.lake or Path(folder) / "lake"
        if not root.exists():
            make(root, options.rollouts)
        found = measure(root)
    print(json.dumps(found, indent=1) if options.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
