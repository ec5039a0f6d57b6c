"""Pairs that say where feedback applies: a revised completion over the policy's own there, its own kept elsewhere.

A problem says whether feedback is about it: its `aux` has a scope, 'in', 'near' (it only seems to be) or 'out'. In
scope a pair is its revised completion, text of the problem, over one that the policy wrote; elsewhere both sides are
what the policy wrote. `train: c3po` learns from all three, which it tells apart by the stratum, 0, 1 and 2.

Source: Stephan et al. 2024, 2402.10893 (C3PO), which has a stronger model write prompts of each scope, and the policy
revise its completions with the feedback before its eyes.
Left out: both of these. The problems come with their scope and what is wanted, e.g. from a JSONL file.
"""

from __future__ import annotations

import json

from strop.core.completions import distinct, dropped_by, loss_prompt
from strop.core.plugin import Config, stage
from strop.core.problems import key_of
from strop.core.verdicts import groups
from strop.plugins.build.demonstrated import solution
from strop.storage.tables import Decision, Example, Problem, Rollout

SCOPES = ("in", "near", "out")


class Scoped(Config):
    """Where a problem's scope and its revised completion are."""

    scope: str = "scope"
    """Key of the problem's `aux` that holds 'in', 'near' or 'out'."""
    revised: str | None = None
    """Key of the `aux` that holds the revised completion of a problem in scope; null = its reference answer."""


@stage("build")
def scoped(
    config: Scoped, *, rollouts: list[Rollout], decisions: list[Decision], problems: dict[int, Problem]
) -> list[Example]:
    """At most one pair a group, in order of problem key, of its earliest completion that no filter dropped.

    In scope that is the earliest that is not the revised one; without a revised one there is no pair. Raises ValueError
    where a problem has no scope.
    """
    dropped = dropped_by(decisions)
    found = []
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        problem = problems[group[0].problem_id]
        scope = _scope(problem, config.scope)
        revised = solution(problem, config.revised) if scope == "in" else None
        if scope == "in" and revised is None:
            continue
        own = [r for r in group if r.rollout_id not in dropped and r.finish_reason != "error"]
        for rollout in [r for r in distinct(own) if r.completion != revised][:1]:
            found.append(_pair(rollout, SCOPES.index(scope), revised))
    return found


def _scope(problem: Problem, key: str) -> str:
    found = json.loads(problem.aux or "{}").get(key)
    if found not in SCOPES:
        raise ValueError(
            f"scoped needs `{key}` of every problem, 'in', 'near' or 'out'; "
            f"problem {problem.problem_id} ({problem.prompt[:40]!r}) has {found!r}"
        )
    return str(found)


def _pair(rollout: Rollout, stratum: int, revised: str | None) -> Example:
    own = rollout.rollout_id
    return Example(
        kind="pair",
        problem_id=rollout.problem_id,
        prompt=loss_prompt(rollout),
        chosen=rollout.completion if revised is None else revised,
        rejected=rollout.completion,
        rollout_id=own if revised is None else None,
        rejected_rollout_id=own,
        stratum=stratum,
    )
