"""Rows for the tests of stage plugins, written by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from strop.core.plugin import Config, PassRate
from strop.core.problems import problem_key
from strop.core.registry import Plugin, find
from strop.storage.tables import Decision, Problem, Rollout, Score


def problem(problem_id: int, prompt: str = "", reference: str | None = "10", **fields: Any) -> Problem:
    """A stored problem of task `t`."""
    made = Problem(
        **{
            "problem_id": problem_id,
            "task": "t",
            "prompt": prompt or f"p{problem_id}=",
            "reference": reference,
            **fields,
        }
    )
    return dataclasses.replace(made, problem_key=problem_key(made))


def group(problem_id: int, *completions: str, **fields: Any) -> list[Rollout]:
    """Rollouts of one problem: the i-th has the id 100 * problem_id + i."""
    return [
        Rollout(
            rollout_id=100 * problem_id + i,
            problem_id=problem_id,
            policy_id=7,
            group_id=problem_id,
            sample_index=i,
            prompt=f"p{problem_id}=",
            completion=text,
            **fields,
        )
        for i, text in enumerate(completions)
    ]


def judged(rollouts: list[Rollout], *marks: float | str | None, scorer: str = "answer") -> list[Score]:
    """A score a rollout: a number is a value (1 passes), 'error' an error, None no score at all."""
    found = []
    for rollout, mark in zip(rollouts, marks, strict=True):
        about: dict[str, Any] = {"subject_id": rollout.rollout_id, "problem_id": rollout.problem_id, "scorer": scorer}
        if isinstance(mark, str):
            found.append(Score(**about, verdict=mark, reason="down"))
        elif mark is not None:
            found.append(Score(**about, verdict="pass" if mark == 1 else "fail", value=float(mark)))
    return found


def dropped(*rollout_ids: int) -> list[Decision]:
    return [Decision(subject_id=i, keep=False, reason="said so") for i in rollout_ids]


def rates(**passed: tuple[int, int]) -> dict[int, PassRate]:
    """rates(p3=(1, 8)) is one of eight for problem 3."""
    return {int(name[1:]): PassRate(int(name[1:]), n, c, 1) for name, (c, n) in passed.items()}


def use(stage: str, name: str, **config: Any) -> Callable[..., Any]:
    """The plugin with its config bound, called with handles; those it does not ask for are left out."""
    plugin = find(stage, name)
    settings = plugin.configure(config)
    return lambda **handles: called(plugin, settings, handles)


def called(plugin: Plugin, config: Config, handles: dict[str, Any]) -> Any:
    """What it returns; a verifier of single rollouts is asked about each of `rollouts`, here and without its limits."""
    if not plugin.mark.each:
        return plugin.call(config, handles)
    about = handles["problems"]
    return [plugin.call(config, {**handles, "rollout": r, "problem": about[r.problem_id]}) for r in handles["rollouts"]]
