"""Rows by hand for the tests of the lake."""

from __future__ import annotations

import datetime
from typing import Any

from strop.storage.ids import shard_number
from strop.storage.tables import (
    Context,
    Decision,
    Example,
    Metric,
    Plan,
    PluginState,
    Policy,
    PolicyExample,
    Problem,
    Rollout,
    Row,
    Run,
    SchemaVersion,
    Score,
    StageRun,
    TokenLogps,
    TrainMetric,
)

NOON = datetime.datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=datetime.UTC)


def ledger(key: str = "k", *, run_id: str = "t-s0", round: int = 1, shard: int = 0, **fields: Any) -> StageRun:
    """A ledger row; everything a test does not care about is filled in."""
    given: dict[str, Any] = {
        "stage": "generate",
        "kind": "generate",
        "shards": 1,
        "plugin": "sample",
        "plugin_version": "1",
        "config_json": "{}",
        "upstream": [],
        "seed": 7,
        "rows_json": "{}",
    }
    given.update(fields)
    number = shard_number(run_id, round, given["stage"], shard)
    return StageRun(run_id=run_id, round=round, stage_run_id=number, key=key, shard=shard, **given)


def one_of_each() -> dict[str, list[Row]]:
    """Rows of every table but the ledger: one with all fields set, one with every optional field null."""
    stamp: dict[str, Any] = {"run_id": "t-s0", "round": 1, "stage_run_id": 5}
    return {
        "runs": [
            Run(**stamp, recipe="r", recipe_json="{}", recipe_hash="h", seed=-1, strop_version="0", created_at=NOON),
            Run(**stamp, recipe="r", recipe_json="{}", recipe_hash="h", seed=2**62, strop_version="0"),
        ],
        "problems": [
            Problem(**stamp, problem_id=1, prompt="1+1=", reference="2", parents=[3, 2**62], level=0.5),
            Problem(**stamp, problem_id=2, prompt="émoji 🦉 'quoted'\n\x00nul"),
        ],
        "plans": [Plan(**stamp, plan_id=1, problem_id=1, n=8), Plan(**stamp, plan_id=2, problem_id=1)],
        "rollouts": [
            Rollout(
                **stamp,
                rollout_id=1,
                problem_id=1,
                completion="2",
                token_ids=[1, 2**31 - 1],
                logps=[-0.5, -0.25],
                turn_roles=["user", ""],
                stop=[],
                step_offsets=[0],
                entropy=0.1,
            ),
            Rollout(**stamp, rollout_id=2, problem_id=1, completion=""),
        ],
        "scores": [
            Score(**stamp, score_id=1, subject_id=1, scorer="answer", verdict="pass", value=1.0),
            Score(**stamp, score_id=2, subject_id=2, scorer="answer", verdict="error", reason="time-out"),
        ],
        "decisions": [
            Decision(**stamp, decision_id=1, subject_id=1, keep=True, weight=0.5),
            Decision(**stamp, decision_id=2, subject_id=2, keep=False),
        ],
        "examples": [
            Example(**stamp, example_id=1, kind="sft", prompt="1+1=", completion="2", rollout_id=1, loss_spans=[0, 1]),
            Example(**stamp, example_id=2, kind="pair", prompt="1+1=", chosen="2", rejected="3", sources=[1, 2]),
        ],
        "policies": [
            Policy(**stamp, policy_id=1, name="t-s0/r0", status="champion", kind="base", path="p", content_hash="ab"),
            Policy(
                **stamp, policy_id=2, status="candidate", kind="full", path="p", content_hash="cd", parent_policy_id=1
            ),
        ],
        "policy_examples": [
            PolicyExample(**stamp, policy_id=2, example_id=1, share=0.25),
            PolicyExample(**stamp, policy_id=2, example_id=2),
        ],
        "train_metrics": [
            TrainMetric(**stamp, policy_id=2, step=1, name="loss", value=0.5),
            TrainMetric(**stamp, policy_id=2, step=2, name="loss", value=None),
        ],
        "token_logps": [
            TokenLogps(**stamp, rollout_id=1, policy_hash="ab", policy_id=1, logps=[-0.5, -1.0], engine="hf"),
            TokenLogps(**stamp, rollout_id=2, policy_hash="ef", logps=None),
        ],
        "contexts": [Context(**stamp, context_id=1, name="a", text="think", sources=[1])],
        "metrics": [
            Metric(**stamp, metric_id=1, name="pass@1", value=0.5, n=10, ci_low=0.4, ci_high=0.6),
            Metric(**stamp, metric_id=2, name="pass@1", value=None, n=None),
        ],
        "plugin_state": [PluginState(**stamp, stage="select", state_json='{"a": 1}')],
        "schema_versions": [SchemaVersion(**stamp, version=1, strop_version="0")],
    }


def rollouts(n: int, *, first: int = 1, **fields: Any) -> list[Rollout]:
    """n rollouts with consecutive ids."""
    return [Rollout(rollout_id=first + i, problem_id=i // 4, completion=f"answer {i}", **fields) for i in range(n)]
