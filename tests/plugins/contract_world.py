"""Small real inputs for every kind of stage: chain arithmetic, sampled by the scripted engine, judged by `answer`."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from plugin_rows import called

from strop.core.engine import NamedPolicy, RewardModel
from strop.core.plugin import Examined, PassRate
from strop.core.problems import problem_key
from strop.core.registry import find
from strop.core.seeds import derive
from strop.storage.tables import Decision, Plan, Problem, Rollout, Score

SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("base", "huggingface"): {"model": "."},
    ("base", "served"): {"model": "toy"},
    ("select", "uniform"): {"problems": 5},
    ("synthesize", "weakness"): {"problems": 7, "threshold": 1.0},
    ("evaluate", "pass_at_k"): {"k": [1, 4]},
    ("engine", "openai"): {"base_urls": ["http://localhost:8000/v1"]},
    ("objective", "t_reg"): {"better": "well {prompt}", "worse": "badly {prompt}"},
    ("engine", "scripted"): {"rules": [{"match": "", "replies": ["1", "2=2"]}]},
    ("task", "chain_arithmetic"): {"train": 12, "heldout_per_category": 1},
    ("task", "jsonl"): {"path": "problems.jsonl"},
    ("task", "hf_dataset"): {"path": "problems.jsonl"},
    ("task", "reasoning_gym"): {"dataset": "chain_sum", "train": 6, "heldout": 3},
}
"""Settings of the plugins that have some without a default, or whose defaults are too much here."""


def settings(stage: str, name: str, folder: Path) -> dict[str, Any]:
    """The plugin's settings; a file they name is written to the folder."""
    found = dict(SETTINGS.get((stage, name), {}))
    if "path" in found:
        found["path"] = str(folder / found["path"])
        lines = (json.dumps({"prompt": f"{i}+1=", "reference": str(i + 1)}) for i in range(12))
        Path(found["path"]).write_text("\n".join(lines))
    return found


def world() -> dict[str, Any]:
    """Every handle that is plain data, and the engine."""
    chain = find("task", "chain_arithmetic")
    task = chain.call(chain.configure({"train": 12, "heldout_per_category": 1, "max_operators": 3}), {"seed": 0})
    problems = {p.problem_id: p for p in map(stored, enumerate(task.problems(), start=1))}
    plan = [Plan(plan_id=50 + i, problem_id=i) for i in problems]
    engine = engine_that_knows(problems)
    rollouts = sampled(plan, problems, engine)
    judge = find("verify", "answer")
    scores = called(judge, judge.configure({}), {"rollouts": rollouts, "problems": problems})
    scores = [dataclasses.replace(s, score_id=1 + i, scorer="answer", scorer_version="1") for i, s in enumerate(scores)]
    assert {s.verdict for s in scores} == {"pass", "fail"}
    rates = pass_rates(scores)
    return {
        "problems": problems,
        "plan": plan,
        "engine": engine,
        "policy": NamedPolicy(
            Path(), "hash", None, {rollouts[0].rollout_id: [-0.5] * rollouts[0].n_tokens}, lambda: engine
        ),
        "reward_models": [implicit(engine, "first"), implicit(engine, "second")],
        "contexts": {},
        "rollouts": rollouts,
        "scores": scores,
        "decisions": [Decision(subject_id=r.rollout_id, keep=i % 5 > 0) for i, r in enumerate(rollouts)],
        "pass_rates": rates,
        "tasks": {"chain": task},
        "heldout_keys": frozenset({p.problem_key for p in problems.values() if p.split == "heldout"}),
        "candidate": Examined(2, [], {i: PassRate(i, 4, 4, 1) for i in rates}),
        "champion": Examined(1, [], rates),
        "history": [],
        "metrics": [],
        "verifiers": {"answer": lambda rs: called(judge, judge.configure({}), {"rollouts": rs, "problems": problems})},
        "state": None,
        "split": "train",
        "seed": 11,
        "round": 1,
        "sample_seed": sample_seed,
        "progress": lambda rollouts, tokens: None,
        "threads": 1,
        "directory": Path(),
    }


def implicit(engine: Any, stage: str) -> RewardModel:
    """A reward model by the log-ratio of two policies, both under this engine."""
    ours, reference = (NamedPolicy(Path(), name, None, {}, lambda: engine) for name in (stage, "base"))
    return RewardModel(f"run/r1/{stage}", stage, ours, reference, 0.1)


def stored(numbered: tuple[int, Problem]) -> Problem:
    """The problem as the lake would hold it."""
    problem_id, problem = numbered
    aux = json.dumps({"scope": ("in", "near", "out")[problem_id % 3], "query": problem_id // 2})
    named = dataclasses.replace(problem, problem_id=problem_id, task="chain", aux=aux)
    return dataclasses.replace(named, problem_key=problem_key(named))


def sample_seed(problem: Problem, index: int) -> int:
    return derive(0, problem.problem_key, index)


def engine_that_knows(problems: dict[int, Problem]) -> Any:
    """Half of what it says is right, and it says one wrong thing in several ways."""
    rules = [
        {"match": rf"(^|\n){re.escape(p.prompt)}$", "replies": [p.reference, f"0={p.reference}", "no", "1=100", "100"]}
        for p in problems.values()
    ]
    judges_itself = {"match": "Proposed answer", "replies": ["A"]}
    plugin = find("engine", "scripted")
    return plugin.call(plugin.configure({"rules": [*rules, judges_itself]}), {})


def sampled(plan: list[Plan], problems: dict[int, Problem], engine: Any) -> list[Rollout]:
    generate = find("generate", "sample")
    handles = {"plan": plan, "problems": problems, "contexts": {}, "engine": engine, "sample_seed": sample_seed}
    rows = generate.call(generate.configure({"n": 4}), {**handles, "progress": lambda r, t: None})
    return [dataclasses.replace(r, rollout_id=1000 + i, policy_id=3, group_id=r.problem_id) for i, r in enumerate(rows)]


def pass_rates(scores: list[Score]) -> dict[int, PassRate]:
    found: dict[int, PassRate] = {}
    for score in scores:
        before = found.get(score.problem_id or 0, PassRate(score.problem_id or 0, 0, 0, 1))
        passed = before.passed + (score.verdict == "pass")
        found[before.problem_id] = dataclasses.replace(before, n=before.n + 1, passed=passed)
    return found
