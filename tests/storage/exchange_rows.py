"""A small lake to export from: two problems, right, wrong, unjudged and failed rollouts, examples of both kinds."""

from __future__ import annotations

import json

from lake_rows import ledger

from strop.storage.lake import Lake
from strop.storage.tables import Context, Example, Policy, PolicyExample, Problem, Rollout, Row, Run, Score

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+3="}]
RECIPE = {
    "name": "tiny",
    "round": [{"verify": {"use": "answer", "as": "answer"}}, {"heldout.verify": {"use": "answer", "as": "answer"}}],
    "tasks": {"sums": {"use": "jsonl", "as": "sums", "path": "/no/such/file"}},
}
"""As `runs.recipe_json` has it, as far as an export reads it."""


def fill(lake: Lake) -> None:
    """Commit the rows: run `t-s0`, rounds 1 (trained on) and 2 (one more rollout)."""
    stamp = {"run_id": "t-s0", "round": 1, "stage_run_id": 5}
    run = Run(
        run_id="t-s0",
        recipe="tiny",
        recipe_json=json.dumps(RECIPE),
        recipe_hash="h",
        seed=3,
        strop_version="0",
    )
    problems = [
        Problem(**stamp, problem_id=1, problem_key="a", task="sums", prompt="1+1=", reference="2", category="easy"),
        Problem(
            **stamp, problem_id=2, problem_key="b", task="sums", prompt="3+3=", reference="6", messages=json.dumps(CHAT)
        ),
        Problem(**stamp, problem_id=3, problem_key="c", task="sums", prompt="9+9=", reference="18", split="heldout"),
        Problem(**stamp, problem_id=4, problem_key="d", task="sums", prompt="bad", status="rejected"),
    ]
    policies = [
        Policy(**stamp, policy_id=1, name="t-s0/r0", status="retired", kind="base", path="p", content_hash="x"),
        Policy(
            **stamp,
            policy_id=2,
            name="t-s0/r1",
            status="champion",
            kind="full",
            path="p",
            content_hash="y",
            parent_policy_id=1,
        ),
    ]
    templated = "<s>Be brief.<u>3+3=<a>"
    rollouts = [
        _rollout(10, 1, 0, "2", prompt="1+1="),
        _rollout(11, 1, 1, "3", prompt="1+1="),
        _rollout(12, 2, 0, "6", prompt=templated),
        _rollout(13, 2, 1, "7", prompt=templated),
        _rollout(14, 1, 2, "2", prompt="Count.\n\n1+1=", context_id=90),
        _rollout(15, 1, 3, "", prompt="1+1=", finish_reason="error", error="gone"),
        _rollout(16, 3, 0, "18", prompt="9+9=", split="heldout"),
        _rollout(17, 2, 2, "12", prompt=templated),
        _rollout(18, 2, 3, "6", prompt=templated, train_prompt="hinted"),
    ]
    scores = [
        _score(30, 10, 1, "pass"),
        _score(31, 11, 1, "fail"),
        _score(32, 12, 2, "pass"),
        _score(33, 13, 2, "error"),
        _score(34, 14, 1, "pass"),
        _score(35, 16, 3, "pass"),
        _score(36, 17, 2, "error"),
        _score(37, 17, 2, "fail", supersedes=36),
        _score(38, 12, 2, "fail", scorer="strict"),
        _score(39, 18, 2, None, value=0.25),
    ]
    examples = [
        Example(**stamp, example_id=50, kind="sft", problem_id=1, prompt="1+1=", completion="2", rollout_id=10),
        Example(**stamp, example_id=51, kind="sft", problem_id=2, prompt=templated, completion="6", rollout_id=12),
        Example(
            **stamp, example_id=52, kind="sft", problem_id=1, prompt="Count.\n\n1+1=", completion="2", rollout_id=14
        ),
        Example(**stamp, example_id=53, kind="sft", problem_id=2, prompt="hinted", completion="6", rollout_id=18),
        Example(**stamp, example_id=54, kind="sft", prompt="free", completion="text"),
        Example(
            **stamp,
            example_id=60,
            kind="pair",
            problem_id=1,
            prompt="1+1=",
            chosen="2",
            rejected="3",
            rollout_id=10,
            rejected_rollout_id=11,
        ),
        Example(
            **stamp,
            example_id=61,
            kind="pair",
            problem_id=2,
            prompt=templated,
            chosen="6",
            rejected="7",
            rollout_id=12,
            rejected_rollout_id=13,
        ),
    ]
    rows: dict[str, list[Row]] = {
        "runs": [run],
        "problems": list(problems),
        "policies": list(policies),
        "rollouts": list(rollouts),
        "scores": list(scores),
        "examples": list(examples),
        "policy_examples": [PolicyExample(**stamp, policy_id=2, example_id=i) for i in (50, 51)],
        "contexts": [Context(**stamp, context_id=90, name="n", text="Count.")],
    }
    lake.commit(ledger("a", run_id="t-s0"), rows=rows)
    late = [_rollout(19, 3, 1, "17", prompt="9+9=", split="heldout", round=2, stage_run_id=6, policy_id=2)]
    lake.commit(ledger("b", run_id="t-s0", round=2), rows={"rollouts": list(late)})


def _rollout(id: int, problem: int, index: int, completion: str, **fields: object) -> Rollout:
    given: dict[str, object] = {"run_id": "t-s0", "round": 1, "stage_run_id": 5, "policy_id": 1, "n_tokens": 1}
    given |= {"token_ids": [id, 1], "logps": [-0.5, -0.25]}
    given |= fields
    return Rollout(rollout_id=id, problem_id=problem, sample_index=index, completion=completion, **given)  # type: ignore[arg-type]


def _score(id: int, rollout: int, problem: int, verdict: str | None, **fields: object) -> Score:
    value = {"pass": 1.0, "fail": 0.0}.get(verdict or "")
    given: dict[str, object] = {"scorer": "answer", "verdict": verdict, "value": value} | fields
    stamp = {"run_id": "t-s0", "round": 1, "stage_run_id": 5}
    return Score(score_id=id, subject_id=rollout, problem_id=problem, **stamp, **given)  # type: ignore[arg-type]
