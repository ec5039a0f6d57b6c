"""Every scored completion of a prompt with its reward, and the problem's own solution beside them, without one.

Objectives that mix reinforcement with demonstrations (`hpt`, `srft`, `critique_grpo`) take the member of a group that
has no reward for its demonstration.

Source: Yan et al. 2025, 2504.14945 (LUFFY: one off-policy trace in each group); Lv et al. 2025, 2509.04419 (HPT).
Changed: the demonstration is text of the problem; which model wrote it is not known here.
"""

from __future__ import annotations

import json

from strop.core.plugin import Config, stage
from strop.plugins.build.grouped import Grouped, grouped
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class Demonstrated(Config):
    """Which groups, and where their demonstrations are."""

    scorer: str | None = None
    """Label of the verify stage whose value is the reward; without it the mean over all of them."""
    key: str | None = None
    """Key of the problem's `aux` that holds the worked solution; null = its reference answer."""


@stage("build")
def demonstrated(
    config: Demonstrated,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
) -> list[Example]:
    """Groups in order of problem key, each with its demonstration last; a problem without one gives a plain group.

    Raises ValueError when no rollout has a score.
    """
    members = grouped(
        Grouped(scorer=config.scorer), rollouts=rollouts, scores=scores, decisions=decisions, problems=problems
    )
    found = []
    for at, member in enumerate(members):
        found.append(member)
        last = at + 1 == len(members) or _group(members[at + 1]) != _group(member)
        text = solution(problems[member.problem_id or 0], config.key) if last else None
        if text is not None:
            found.append(
                Example(
                    kind="group",
                    problem_id=member.problem_id,
                    prompt=member.prompt,
                    completion=text,
                    group_id=member.group_id,
                )
            )
    return found


def _group(member: Example) -> tuple[int | None, int | None]:
    return member.problem_id, member.group_id


def solution(problem: Problem, key: str | None) -> str | None:
    """The worked solution at that key of `aux`, without a key the reference answer; None where there is none."""
    if key is None:
        return problem.reference
    text = json.loads(problem.aux or "{}").get(key)
    return None if text is None else str(text)
