"""A lake of two runs written by hand: three problems, two rounds of the first, rates and settings known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from strop.storage.ids import shard_number
from strop.storage.lake import Lake, open_lake
from strop.storage.tables import (
    Decision,
    Metric,
    PluginState,
    Policy,
    Problem,
    Rollout,
    Row,
    Run,
    Score,
    StageRun,
)

PASSES = {("a", 1): (0, 2, 1), ("a", 2): (2, 2, 0), ("b", 1): (2, 0, 1)}
"""Run and round -> of two held-out completions for each of the problems, how many pass."""
PROMPTS = ("1+1=", "2+2=", "3|\x1b[31m3=")


def make(root: Path) -> Path:
    """The lake; the last commit re-judges a rollout of round 1 of run a, after round 2."""
    with open_lake(root, create=True) as lake:
        for run, rounds in (("a", 2), ("b", 1)):
            _start(lake, run)
            for round in range(1, rounds + 1):
                _round(lake, run, round)
        again = {"run_id": "a", "round": 1, "stage_run_id": 9}
        old = _id("a", 1, 0, 1) + 500
        scores = [
            Score(**again, score_id=7, subject_id=_id("a", 1, 0, 1), scorer="answer", verdict="fail", supersedes=old)
        ]
        lake.commit(_ledger("a", 1, "reverify", "verify"), rows={"scores": scores})
    return root


def _start(lake: Lake, run: str) -> None:
    recipe = {"rounds": 2, "seed": 0, "base": {"steps": 3 if run == "a" else 4}, "round": [{"generate": {}}]}
    stamp: dict[str, Any] = {"run_id": run, "round": 0, "stage_run_id": shard_number(run, 0, "run", 0)}
    made = Run(
        **stamp, recipe="tiny", recipe_json=json.dumps(recipe), recipe_hash=run, seed=int(run == "b"), strop_version="1"
    )
    problems: list[Row] = [
        Problem(**stamp, problem_id=_problem(run, i), problem_key=f"key{i}", task="sums", split="heldout",
                prompt=prompt, category="odd" if i == 1 else "even")
        for i, prompt in enumerate(PROMPTS)
    ]  # fmt: skip
    base = Policy(
        **stamp,
        policy_id=_problem(run, 50),
        name=f"{run}/r0",
        status="champion",
        kind="base",
        path="p",
        content_hash="h",
    )
    lake.commit(_ledger(run, 0, "task.sums", "task"), rows={"runs": [made], "problems": problems, "policies": [base]})


def _round(lake: Lake, run: str, round: int) -> None:
    stamp: dict[str, Any] = {"run_id": run, "round": round, "stage_run_id": shard_number(run, round, "heldout", 0)}
    rollouts, scores = [], []
    for problem, passes in enumerate(PASSES[run, round]):
        for sample in range(3):
            id = _id(run, round, problem, sample)
            verdict = "pass" if sample < passes else "fail" if sample < 2 else "error"
            if (run, round, problem, sample) == ("a", 1, 0, 1):
                verdict = "error"  # verified again at the end
            rollouts.append(
                Rollout(**stamp, rollout_id=id, problem_id=_problem(run, problem), split="heldout", sample_index=sample,
                        prompt=PROMPTS[problem], completion=f"{verdict} {sample}", n_tokens=2)
            )  # fmt: skip
            scores.append(Score(**stamp, score_id=id + 500, subject_id=id, scorer="answer", verdict=verdict))
    new = Problem(**stamp, problem_id=_problem(run, 10 + round), problem_key=f"{run}{round}", task="sums", prompt="9",
                  origin="weakness", status="rejected")  # fmt: skip
    policy = _problem(run, 50 + round)
    made = Policy(
        **stamp, policy_id=policy, name=f"{run}/r{round}", status="candidate", kind="full", path="p", content_hash="h"
    )
    gate = Decision(
        **stamp, decision_id=policy, subject_kind="policy", subject_id=policy, decider="gate", keep=round == 1,
        action="promote" if round == 1 else "keep", reason=f"because {round}"
    )  # fmt: skip
    metric = Metric(
        **stamp, metric_id=policy, name="pass@1", value=0.25 * round, n=3, ci_low=0.1 * round, ci_high=0.5 * round
    )
    asked = json.dumps({"overrides": ["generate.temperature=0.5"], "state": None})
    lake.commit(
        _ledger(run, round, "generate", "generate", temperature=1.0 if round == 1 else 0.5),
        rows={"rollouts": rollouts, "scores": scores, "problems": [new], "policies": [made], "metrics": [metric]},
    )
    lake.commit(
        _ledger(run, round, "cool", "control"),
        rows={"plugin_state": [PluginState(**stamp, stage="cool", state_json=asked)], "decisions": [gate]},
        policy_status={policy: "champion"} if round == 1 else {policy: "rejected"},
    )


def _ledger(run: str, round: int, stage: str, kind: str, **config: Any) -> StageRun:
    return StageRun(
        run_id=run, round=round, stage_run_id=shard_number(run, round, stage, 0), key=f"{run}{round}{stage}",
        stage=stage, kind=kind, shard=0, shards=1, plugin=stage,
        plugin_version=str(round) if kind == "control" else "1", config_json=json.dumps(config), upstream=[],
        seed=1, rows_json="{}",
    )  # fmt: skip


def _problem(run: str, i: int) -> int:
    return (1000 if run == "a" else 2000) + i


def _id(run: str, round: int, problem: int, sample: int) -> int:
    return _problem(run, 0) * 10_000 + round * 1000 + problem * 10 + sample
