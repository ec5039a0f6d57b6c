"""The scorer the problem's own task brings along.

Source: procedural tasks that grade themselves, e.g. Stojanovski et al. 2025, 2505.24760 (Reasoning Gym).
"""

from __future__ import annotations

import dataclasses

from strop.core.plugin import PerRollout, Task, stage
from strop.plugins.verify._verdict import unfit
from strop.storage.errors import PluginError, did_you_mean
from strop.storage.tables import Problem, Rollout, Score


class Own(PerRollout):
    """What is judged."""

    allow_truncated: bool = False
    """Judge completions cut off at `max_tokens` too; else they fail."""


@stage("verify")
def own(config: Own, *, rollout: Rollout, problem: Problem, tasks: dict[str, Task]) -> Score:
    """What the scorer says; where it raises, the verdict is 'error' as in every verifier of single rollouts.

    Raises PluginError when the task has no scorer, or its scorer returns something else than a score.
    """
    if problem.task not in tasks:
        raise PluginError(f"no task {problem.task!r} in the recipe{did_you_mean(problem.task, tasks)}")
    scorer = tasks[problem.task].score
    if scorer is None:
        raise PluginError(
            f"the task {problem.task!r} has no scorer of its own: "
            "write `verify: answer` (or `verify: math`, for algebra), which compare with the reference"
        )
    score = unfit(rollout, allow_truncated=config.allow_truncated)
    if score is not None:
        return dataclasses.replace(
            score, subject_kind="rollout", subject_id=rollout.rollout_id, problem_id=rollout.problem_id
        )
    score = scorer(problem, rollout.completion)
    if not isinstance(score, Score):
        raise PluginError(f"the scorer of task {problem.task!r} must return a Score, it returned {score!r}")
    return dataclasses.replace(
        score, subject_kind="rollout", subject_id=rollout.rollout_id, problem_id=rollout.problem_id
    )
