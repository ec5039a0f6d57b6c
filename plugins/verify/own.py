"""The scorer the problem's own task brings along.

Source: procedural tasks that grade themselves, e.g. Stojanovski et al. 2025, 2505.24760 (Reasoning Gym).
"""

from __future__ import annotations

import dataclasses

from strop.core.plugin import Config, Task, stage
from strop.plugins.verify._verdict import unfit, unknown
from strop.storage.errors import PluginError, did_you_mean
from strop.storage.tables import Problem, Rollout, Score


class Own(Config):
    """What is judged."""

    allow_truncated: bool = False
    """Judge completions cut off at `max_tokens` too; else they fail."""


@stage("verify")
def own(config: Own, *, rollouts: list[Rollout], problems: dict[int, Problem], tasks: dict[str, Task]) -> list[Score]:
    """One score a rollout, in their order. A scorer that raises gives the verdict 'error' with what it raised.

    Raises PluginError when a task has no scorer, or its scorer returns something else than a score.
    """
    return [_judged(config, rollout, problems[rollout.problem_id], tasks) for rollout in rollouts]


def _judged(config: Own, rollout: Rollout, problem: Problem, tasks: dict[str, Task]) -> Score:
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
        return score
    try:
        score = scorer(problem, rollout.completion)
    except Exception as error:
        return unknown(rollout, f"the scorer failed: {type(error).__name__}: {error}")
    if not isinstance(score, Score):
        raise PluginError(f"the scorer of task {problem.task!r} must return a Score, it returned {score!r}")
    return dataclasses.replace(
        score, subject_kind="rollout", subject_id=rollout.rollout_id, problem_id=rollout.problem_id
    )
