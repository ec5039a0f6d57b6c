"""A lake by hand in which every link between rows occurs, a rerun and a search tree among them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from lake_rows import NOON, ledger

from strop.storage.lake import Lake
from strop.storage.tables import (
    Context,
    Decision,
    Example,
    Metric,
    Plan,
    Policy,
    PolicyExample,
    Problem,
    Rollout,
    Row,
    Run,
    Score,
    StageRun,
    TokenLogps,
)


def policy(id: int, round: int, run: str, parent: int | None, **more: Any) -> Policy:
    """A policy with its own hash."""
    fields = {"status": "retired", "kind": "full" if parent else "base", "objective": "sft", "examples": 3, **more}
    name = f"{run}/r{round}"
    return Policy(policy_id=id, name=name, parent_policy_id=parent, path=f"p{id}", content_hash=f"{id:08x}f", **fields)


def fill(lake: Lake) -> None:
    """Run a: base policy 10, a tree of rollouts, a pair, policy 11. Run b: a rerun of a with another judge."""
    start = ledger("start", run_id="a", round=0, stage="start", kind="task")
    _commit(
        lake,
        start,
        runs=[_run("a", 0)],
        problems=[
            Problem(problem_id=1, prompt="1+1=", reference="2", task="sums", category="easy"),
            Problem(problem_id=2, prompt="1+2=", reference="3", task="sums", parents=[1], origin="weakness"),
            Problem(problem_id=3, prompt="9+9=", reference="18", task="sums", split="heldout"),
        ],
        policies=[policy(10, 0, "a", None)],
        contexts=[Context(context_id=300, name="hint", text="add", memory="lessons")],
    )
    select = ledger("select", run_id="a", stage="select", kind="select", plugin="uniform", upstream=["start"])
    _commit(
        lake,
        select,
        plans=[
            Plan(plan_id=90, problem_id=2, n=4, context_id=300, reason="uniform"),
            Plan(plan_id=91, problem_id=2, start_rollout_id=101, branch_step=1),
        ],
    )
    generate = ledger("generate", run_id="a", upstream=["select"], seed=99)
    base: dict[str, Any] = {"problem_id": 2, "policy_id": 10, "group_id": 70, "finish_reason": "stop", "n_tokens": 2}
    _commit(
        lake,
        generate,
        rollouts=[
            Rollout(rollout_id=101, completion="3", plan_id=90, context_id=300, sample_index=0, seed=1, **base),
            Rollout(rollout_id=102, completion="4", parent_rollout_id=101, branch_step=1, sample_index=1, **base),
            Rollout(rollout_id=103, completion="5", parent_rollout_id=102, branch_step=2, sample_index=2, **base),
            Rollout(rollout_id=104, completion="3", parent_rollout_id=101, sample_index=3, **base),
            Rollout(rollout_id=109, completion="18", problem_id=3, policy_id=10, split="heldout"),
        ],
    )
    verify = ledger("verify", run_id="a", stage="verify", kind="verify", plugin="answer", upstream=["generate"])
    said: dict[str, Any] = {"scorer": "answer", "scorer_version": "1", "problem_id": 2}
    _commit(
        lake,
        verify,
        scores=[
            Score(score_id=201, subject_id=101, verdict="pass", value=1.0, answer="3", **said),
            Score(score_id=202, subject_id=102, verdict="fail", value=0.0, reason="expected 3, got 4", **said),
            Score(score_id=203, subject_id=103, verdict="error", reason="time-out", **said),
            Score(score_id=204, subject_id=103, verdict="fail", value=0.0, supersedes=203, **said),
            Score(score_id=205, subject_id=104, verdict="pass", value=1.0, **said),
            Score(score_id=206, subject_id=101, subject_kind="step", step_index=0, value=0.5, **said),
            Score(score_id=207, subject_id=2, subject_kind="problem", value=0.7, scorer="hard", scorer_version="1"),
            Score(score_id=208, subject_id=402, subject_kind="pair", value=0.9, scorer="judge", scorer_version="1"),
            Score(score_id=209, subject_id=11, subject_kind="policy", value=0.9, scorer="judge", scorer_version="1"),
        ],
    )
    decide = ledger("filter", run_id="a", stage="filter", kind="filter", plugin="correct", upstream=["verify"])
    kept = {101: True, 102: False, 103: False, 104: True}
    _commit(
        lake,
        decide,
        decisions=[
            Decision(
                decision_id=400 + id,
                subject_id=id,
                decider="correct",
                keep=keep,
                reason="correct" if keep else "wrong: expected 3",
            )
            for id, keep in kept.items()
        ]
        + [
            Decision(decision_id=510, subject_kind="problem", subject_id=1, decider="dedupe", keep=True),
            Decision(decision_id=511, subject_kind="pair", subject_id=402, decider="dedupe", keep=True),
        ],
    )
    build = ledger("build", run_id="a", stage="build", kind="build", plugin="rft", upstream=["filter", "verify"])
    _commit(
        lake,
        build,
        examples=[
            Example(
                example_id=401, kind="sft", builder="rft", problem_id=2, prompt="1+2=", completion="3", rollout_id=101
            ),
            Example(
                example_id=402,
                kind="pair",
                builder="best_worst",
                problem_id=2,
                prompt="1+2=",
                chosen="3",
                rejected="4",
                rollout_id=101,
                rejected_rollout_id=102,
                margin=1.0,
            ),
            Example(
                example_id=403,
                kind="group",
                builder="group",
                problem_id=2,
                prompt="1+2=",
                completion="5",
                rollout_id=103,
                group_id=70,
                reward=0.0,
                sources=[101, 102, 101],
            ),
        ],
        contexts=[
            Context(context_id=301, name="hint", text="add well", op="update", parent_context_id=300, sources=[101])
        ],
    )
    train = ledger("train", run_id="a", stage="train", kind="train", plugin="sft", upstream=["build"])
    links = [PolicyExample(policy_id=11, example_id=id) for id in (401, 402, 403)]
    scored = '{"reward_policy_id": 10}'
    trained = policy(11, 1, "a", 10, status="champion", reference_policy_id=10, steps=8, loss=0.25, detail=scored)
    _commit(lake, train, policies=[trained], policy_examples=links)
    weighed = [TokenLogps(rollout_id=id, policy_hash="h", policy_id=10, logps=[-1.0]) for id in (101, 102)]
    _commit(lake, ledger("train-logps", run_id="a", stage="train~logps", kind="train"), token_logps=weighed)
    gate = ledger("gate", run_id="a", stage="gate", kind="gate", plugin="better", upstream=["train"])
    _commit(
        lake,
        gate,
        metrics=[
            Metric(
                metric_id=600, policy_id=11, context_id=300, name="pass@1", value=0.75, n=4, ci_low=0.5, ci_high=1.0
            ),
            Metric(metric_id=601, policy_id=10, name="pass@1", value=0.5, n=4),
        ],
        decisions=[
            Decision(
                decision_id=512,
                subject_kind="policy",
                subject_id=11,
                decider="better",
                keep=True,
                action="promote",
                reason="pass@1 0.5 -> 0.75",
            )
        ],
    )
    _rerun(lake, generate, decide)


def _rerun(lake: Lake, generate: StageRun, decide: StageRun) -> None:
    """Run b uses a's rollouts and decisions and scores anew; it trains its own policy."""
    again = ledger("b-generate", run_id="b", reuses=generate.stage_run_id)
    sources = json.dumps({"from": "verify", "rounds": [[{"run": "a", "round": 1}]]})
    _commit(lake, again, runs=[_run("b", 1, parent_run_id="a", sources_json=sources)])
    verify = ledger("b-verify", run_id="b", stage="verify", kind="verify", plugin="answer", upstream=["b-generate"])
    said: dict[str, Any] = {"scorer": "answer", "scorer_version": "2", "problem_id": 2}
    _commit(
        lake,
        verify,
        scores=[
            Score(score_id=221, subject_id=101, verdict="fail", value=0.0, reason="no unit", **said),
            Score(score_id=222, subject_id=104, verdict="pass", value=1.0, **said),
        ],
    )
    again = ledger("b-filter", run_id="b", stage="filter", kind="filter", reuses=decide.stage_run_id)
    _commit(lake, again)
    build = ledger("b-build", run_id="b", stage="build", kind="build", plugin="rft", upstream=["b-verify"])
    example = Example(
        example_id=421, kind="sft", builder="rft", problem_id=2, prompt="1+2=", completion="3", rollout_id=104
    )
    _commit(lake, build, examples=[example])
    train = ledger("b-train", run_id="b", stage="train", kind="train", plugin="sft", upstream=["b-build"])
    links = [PolicyExample(policy_id=21, example_id=421)]
    _commit(lake, train, policies=[policy(21, 1, "b", 10, status="champion", examples=1)], policy_examples=links)


def _run(run_id: str, seed: int, **more: Any) -> Run:
    return Run(
        run_id=run_id,
        recipe="r",
        recipe_json="{}",
        recipe_hash=f"hash-of-{run_id}",
        seed=seed,
        strop_version="0",
        code_version="0123456789",
        created_at=NOON,
        **more,
    )


def _commit(lake: Lake, stage: StageRun, **rows: list[Any]) -> None:
    stamp = {"run_id": stage.run_id, "round": stage.round, "stage_run_id": stage.stage_run_id}
    stamped: dict[str, list[Row]] = {table: [dataclasses.replace(r, **stamp) for r in of] for table, of in rows.items()}
    lake.commit(stage, rows=stamped)
