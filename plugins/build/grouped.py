"""Every scored completion of a prompt, with its reward: what policy-gradient objectives learn from.

Source: Shao et al. 2024, 2402.03300 (groups); leaving out groups of one reward as in Yu et al. 2025, 2503.14476 (DAPO,
there refilled with further prompts).
"""

from __future__ import annotations

from pydantic import PositiveInt

from strop.core.completions import dropped_by, loss_prompt
from strop.core.plugin import Config, stage
from strop.core.problems import key_of
from strop.core.verdicts import groups, pending, values
from strop.storage.tables import Decision, Example, Problem, Rollout, Score


class Grouped(Config):
    """Which groups."""

    scorer: str | None = None
    """Label of the verify stage whose value is the reward; without it the mean over all of them."""
    contrast: bool = False
    """Leave out groups whose rewards are all equal: they teach nothing where the baseline is the group's mean."""
    least: PositiveInt = 1
    """Smallest group that is used."""


@stage("build")
def grouped(
    config: Grouped,
    *,
    rollouts: list[Rollout],
    scores: list[Score],
    decisions: list[Decision],
    problems: dict[int, Problem],
) -> list[Example]:
    """Groups in order of problem key. Completions without a score, or that a filter dropped, are left out.

    Raises ValueError when no rollout has a score, unless a scorer says that it has none to give yet.
    """
    value = values(scores, config.scorer)
    if rollouts and not value and not pending(scores, config.scorer):
        raise ValueError("grouped learns from rewards, and no rollout has a score: put a `verify` before it")
    dropped = dropped_by(decisions)
    found = []
    for group in sorted(groups(rollouts), key=lambda g: key_of(problems[g[0].problem_id])):
        members = [
            r for r in group if r.rollout_id in value and r.rollout_id not in dropped and r.finish_reason != "error"
        ]
        flat = len({value[r.rollout_id] for r in members}) < 2
        if len(members) >= config.least and not (config.contrast and flat):
            found += [_member(rollout, value[rollout.rollout_id]) for rollout in members]
    return found


def _member(rollout: Rollout, reward: float) -> Example:
    return Example(
        kind="group",
        problem_id=rollout.problem_id,
        prompt=loss_prompt(rollout),
        completion=rollout.completion,
        rollout_id=rollout.rollout_id,
        group_id=rollout.group_id,
        reward=reward,
        loss_spans=rollout.loss_spans,
    )
