"""v_at_k against the definitions, worked out in Python."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
from lake_rows import ledger

from strop.storage.console import open_console
from strop.storage.lake import Lake
from strop.storage.tables import Problem, Rollout, Score

Sample = tuple[str | None, bool]


def expected(samples: list[Sample], k: int) -> tuple[float, float, float]:
    """(pass@k by every choice of k, mean of the first k, majority of the first k with ties averaged)."""
    chosen = list(itertools.combinations([passed for _, passed in samples], k))
    votes = Counter(sample for sample in samples[:k] if sample[0] is not None)
    most = [passed for (_, passed), n in votes.items() if n == max(votes.values())]
    majority = sum(most) / len(most) if most else 0.0
    return sum(map(any, chosen)) / len(chosen), sum(passed for _, passed in samples[:k]) / k, majority


def test_it_agrees_with_the_definitions(lake: Lake) -> None:
    draw = random.Random(4)
    samples: dict[int, list[Sample]] = {}
    for problem in range(1, 65):
        right = draw.choice("ab")
        given = [draw.choice(["a", "b", "c", None]) for _ in range(1 + problem % 8)]
        samples[problem] = [(answer, answer == right) for answer in given]
    commit(lake, samples)
    with open_console(lake.root) as console:
        found = console.query("SELECT problem_id, k, n, pass_at_k, mean_at_k, majority_at_k FROM v_at_k").rows
    sizes = {problem: len(members) for problem, members in samples.items()}
    assert {(p, k) for p, k, *_ in found} == {
        (p, min(2**i, n)) for p, n in sizes.items() for i in range(4) if i == 0 or 2 ** (i - 1) < n
    }
    for problem, k, n, *numbers in found:
        assert n == len(samples[problem])
        assert numbers == pytest.approx(expected(samples[problem], k)), (problem, k)


def commit(lake: Lake, samples: dict[int, list[Sample]], **more: Any) -> None:
    stamp = {"run_id": "r", "round": 1, "stage_run_id": 1}
    rollouts, scores = [], []
    for problem, members in samples.items():
        for i in reversed(range(len(members))):  # by index, not by id
            id = 100 * problem + len(members) - i
            answer, passed = members[i]
            verdict = "pass" if passed else "fail"
            rollouts.append(
                Rollout(**stamp, rollout_id=id, problem_id=problem, policy_id=1, sample_index=i, completion="")
            )
            scores.append(
                Score(**stamp, score_id=id, subject_id=id, scorer="s", verdict=verdict, answer=answer, value=passed)
            )
    problems = [Problem(**stamp, problem_id=p, prompt="p", task="t") for p in samples]
    lake.commit(ledger(), rows={"rollouts": rollouts, "problems": problems, "scores": [*scores, *more.get("also", [])]})


def test_errors_superseded_scores_and_scorers_without_answers(lake: Lake) -> None:
    stamp = {"run_id": "r", "round": 1, "stage_run_id": 1, "problem_id": 1}
    also = [
        Score(**stamp, score_id=901, subject_id=101, scorer="e", verdict="error"),
        Score(**stamp, score_id=902, subject_id=102, scorer="e", verdict="error"),
        Score(**stamp, score_id=903, subject_id=102, scorer="e", verdict="pass", value=1.0, supersedes=902),
        Score(**stamp, score_id=904, subject_id=103, scorer="e", verdict="fail", value=0.0),
        Score(**stamp, score_id=905, subject_id=101, scorer="s", verdict="pass", answer="x", supersedes=101),
    ]
    commit(lake, {1: [("x", True), ("x", True), ("y", False)]}, also=also)
    with open_console(lake.root) as console:
        found = console.query("SELECT scorer, n, mean_at_k, majority_at_k FROM v_at_k WHERE k = n ORDER BY scorer").rows
        whole = console.query("SELECT * FROM v_at_k")
        described = next(table for table in console.tables() if table.name == "v_at_k")
    assert [(c.name, c.sql_type) for c in described.columns] == list(zip(whole.columns, whole.types, strict=True))
    assert found == [("e", 2, 0.5, None), ("s", 3, 1.0, 1.0)], "an error is no zero; the last score of a chain counts"


def test_completions_behind_hints_are_not_counted(lake: Lake) -> None:
    stamp = {"run_id": "r", "round": 1, "stage_run_id": 1, "problem_id": 1}
    own = [(True, None), (False, None), (True, "p"), (True, "p")]
    rollouts = [
        Rollout(**stamp, rollout_id=i, policy_id=1, sample_index=i, prompt="p", completion="", train_prompt=learnt)
        for i, (_, learnt) in enumerate(own, 1)
    ]
    scores = [
        Score(**stamp, score_id=i, subject_id=i, scorer="s", verdict="pass" if passed else "fail", value=passed)
        for i, (passed, _) in enumerate(own, 1)
    ]
    problem = Problem(**stamp, task="t", prompt="p")
    lake.commit(ledger(), rows={"rollouts": rollouts, "scores": scores, "problems": [problem]})
    with open_console(lake.root) as console:
        assert console.query("SELECT n, passed, rate FROM v_pass_rates").rows == [(2, 1, 0.5)]
        assert console.query("SELECT n, pass_at_k FROM v_at_k WHERE k = 1").rows == [(2, 0.5)]
