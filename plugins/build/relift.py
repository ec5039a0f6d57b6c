"""Every scored completion with its reward; and once enough prompts went unsolved, demonstrations of them all.

A prompt whose completions all fail waits, from round to round. When `wait` of them have gathered, their demonstrations
become examples of this round, members of a group that have no reward, and nobody waits any more. `train: relift` learns
from completions (stratum 0) and demonstrations (stratum 1) in turns.

Source: Ma et al. 2025, 2506.07527 (ReLIFT), and its code (TheRoadQaQ/ReLIFT), which waits for 128.
Changed: the demonstration is text of the problem, as in `demonstrated`; a problem that waits already does so once, and
one that is solved in a later round does not leave.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pydantic import PositiveInt

from strop.core.completions import loss_prompt
from strop.core.plugin import Config, Returned, stage
from strop.core.problems import key_of
from strop.core.verdicts import groups, verdicts
from strop.plugins.build.demonstrated import solution
from strop.plugins.build.grouped import Grouped, grouped
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class Relift(Config):
    """Which groups, where demonstrations are, and how many make a turn."""

    scorer: str | None = None
    """Label of the verify stage whose value is the reward and whose verdict counts; without it all of them."""
    key: str | None = None
    """Key of the problem's `aux` that holds the worked solution; null = its reference answer."""
    wait: PositiveInt = 128
    """Unsolved prompts that must have gathered before their demonstrations are trained on."""
    contrast: bool = False
    """Leave out groups whose rewards are all equal, which only count in the mean over completions."""


@stage("build")
def relift(
    config: Relift,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
    state: dict[str, Any] | None,
) -> Returned:
    """Groups in order of problem key, then demonstrations in the order in which they came to wait.

    Raises ValueError when no rollout has a verdict.
    """
    verdict = verdicts(scores, config.scorer)
    if rollouts and not verdict:
        raise ValueError("relift tells solved from unsolved, and no rollout has a verdict: put a `verify` before it")
    rewarded = grouped(
        Grouped(scorer=config.scorer, contrast=config.contrast),
        rollouts=rollouts,
        scores=scores,
        decisions=decisions,
        problems=problems,
    )
    found = [replace(example, stratum=0) for example in rewarded]
    waiting: dict[int, dict[str, Any]] = {row["problem_id"]: row for row in (state or {}).get("waiting", [])}
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        said = {verdict[r.rollout_id] for r in group if r.rollout_id in verdict}
        first = group[0]
        text = solution(problems[first.problem_id], config.key)
        if "fail" in said and "pass" not in said and text is not None:
            waiting.setdefault(
                first.problem_id,
                {
                    "problem_id": first.problem_id,
                    "group_id": first.group_id,
                    "prompt": loss_prompt(first),
                    "completion": text,
                },
            )
    if len(waiting) >= config.wait:
        found += [Example(kind="group", stratum=1, **row) for row in waiting.values() if row["problem_id"] in problems]
        waiting = {}
    return Returned(found, {"waiting": list(waiting.values())})
